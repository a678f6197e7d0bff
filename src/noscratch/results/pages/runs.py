"""A page per cell of the grid with its runs, and the page of the runs that did not finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import PHASES, Evidence, Group, Run, summarize
from noscratch.results.pages.markup import (
    Cell,
    Html,
    Page,
    Row,
    backbone_page,
    chip,
    code,
    details,
    facts,
    join,
    link,
    listing,
    metric_value,
    note,
    number,
    score,
    short,
    si,
    size,
    smoke_note,
    table,
    tag,
    task_page,
    tier_badge,
)

PHASE_TITLES = {"pretrain": "Self-pretraining", "finetune": "Fine-tuning"}
# The rows of the table under a curve; the download has every point.
TABLE_ROWS = 8


def pages(evidence: Evidence) -> Iterator[Page]:
    for group in evidence.groups:
        if runs := evidence.runs_of(group):
            yield group_page(evidence, group, runs)
    yield failures(evidence)


def group_page(evidence: Evidence, group: Group, runs: Sequence[Run]) -> Page:
    """The page of one cell of the grid: its runs, which differ in their seed alone."""
    tier, task, backbone, _ = group
    page = Page(
        runs[0].cell.page.partition("#")[0],
        " ".join(group),
        f"The runs of {' '.join(group)}: scores, curves, settings and provenance, seed by seed.",
        crumbs=[
            ("Results", "../results.html"),
            (task, f"../{task_page(task)}"),
            (backbone, f"../{backbone_page(backbone)}"),
        ],
        template="run.html",
        wide=True,
    )
    page.add(_overview(evidence, group, runs))
    for state, reason in sorted({(run.state, run.reason) for run in runs if run.state != "done"}):
        page.add(note(tag("strong", state), f": {reason or 'no reason was recorded'}", kind="bad"))
    if tier == "smoke":
        page.add(smoke_note())
    page.add(_seeds(evidence, group, runs))
    told: dict[str, str] = {}
    for phase in PHASES:
        if having := [run for run in runs if phase in run.records]:
            told = _phase(page, phase, having, told)
    page.heading("Redo it")
    page.say("The same command on the same plan gives the same bytes on the same kind of machine.")
    page.command("\n".join(f"noscratch run {record['address']}" for run in runs for record in run.records.values()))
    return page


def _overview(evidence: Evidence, group: Group, runs: Sequence[Run]) -> Html:
    """The mean over seeds, or what became of the runs where there is none."""
    scores = evidence.scores.get(group)
    if not scores:
        return tag("p", join(map(chip, sorted({run.state for run in runs})), " "), " ", tier_badge(group[0]))
    s = summarize(scores)
    return tag("p", f"Test {scores[0].metric}: ", score(s.mean, s.low, s.high, s.n, scores[0].metric, group[0]))


def _seeds(evidence: Evidence, group: Group, runs: Sequence[Run]) -> Html:
    values = {each.cell: each for each in evidence.scores.get(group, [])}
    rows = []
    for run in runs:
        held, result = values.get(run.cell), run.records.get("finetune", {}).get("result") or {}
        seed = tag("span", f"seed {run.cell.seed}", id=f"seed-{run.cell.seed}")
        kept = result["selection"]["step"] if result else None
        rows.append(
            (
                seed,
                chip(run.state),
                tag("b", metric_value(held.value, held.metric)) if held else "",
                number(held.examples) if held else "",
                "" if kept is None else number(kept),
            )
        )
    columns = ["Run", "State", "Test score", "Examples", "Checkpoint kept, step"]
    return table(columns, rows, "One run a seed; nothing else differs")


def _phase(page: Page, phase: str, runs: Sequence[Run], told: Mapping[str, str]) -> dict[str, str]:
    """Add a phase; of its settings those that differ from what was `told` of the one before. Returns its settings."""
    page.heading(PHASE_TITLES[phase])
    results = {run.cell.seed: run.records[phase]["result"] for run in runs if run.records[phase]["result"]}
    if results:
        rules = sorted({result["selection"]["rule"] for result in results.values()})
        page.say(f"Checkpoint kept: {'; '.join(rules)}.")
        page.add(_metrics(results), *_curves(runs, phase), _counts(results))
    settings = _settings([run.records[phase]["settings"] for run in runs])
    new = {name: value for name, value in settings.items() if told.get(name) != value}
    title = "Settings that differ from self-pretraining" if told else "Settings"
    page.add(details(title, listing(f"{name} = {value}" for name, value in new.items())))
    page.add(details("Provenance: addresses, code, records", *_provenance(runs, phase)))
    return settings


def _metrics(results: Mapping[int, Mapping[str, Any]]) -> Html:
    primary = next(iter(results.values()))["primary"]
    names = sorted({(s, m) for result in results.values() for s, of in result["metrics"].items() for m in of})
    rows = [
        (f"seed {seed}", *(_metric(result["metrics"].get(split, {}).get(name), name, primary) for split, name in names))
        for seed, result in results.items()
    ]
    return table(["Run", *(f"{split} {name}" for split, name in names)], rows, "Every metric at the checkpoint kept")


def _metric(value: float | None, name: str, primary: str) -> Html | str:
    if value is None:
        return ""
    return tag("b", metric_value(value, name)) if name == primary else metric_value(value, name)


def _counts(results: Mapping[int, Mapping[str, Any]]) -> Html:
    """What it took, a range where the seeds differ."""
    counts = [result["counts"] for result in results.values()]
    facts_ = {"compute": _range([count["flops"] for count in counts], lambda value: si(value, "FLOP"))}
    for name in sorted(counts[0].keys() - {"flops"}):
        facts_[name.replace("_", " ")] = _range([count[name] for count in counts], number)
    return facts(facts_)


def _range(values: Sequence[float], words: Callable[[float], str]) -> str:
    least, most = words(min(values)), words(max(values))
    return least if least == most else f"{least} to {most}"


def _curves(runs: Sequence[Run], phase: str) -> list[Html]:
    """The loss, then every other metric: one line a seed, one style a split, and a table under them."""
    points: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    for run in runs:
        for step, split, metric, value in run.curves[phase]:
            points.setdefault(metric, {}).setdefault(split, {}).setdefault(run.cell.seed, []).append((step, value))
    metrics = sorted(points, key=lambda metric: (metric != "loss", metric))
    if not metrics:
        return []
    pictures = [
        charts.line_chart(
            f"{PHASE_TITLES[phase]}: {metric}",
            "step",
            metric,
            {split: list(seeds.values()) for split, seeds in points[metric].items()},
        )
        for metric in metrics
    ]
    tables = [_curve_table(metric, points[metric]) for metric in metrics]
    return [tag("div", *pictures, class_="ns-figures"), details("The curves as text", *tables)]


def _curve_table(metric: str, splits: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]]) -> Html:
    series = {f"{split}, seed {seed}": dict(p) for split, seeds in splits.items() for seed, p in seeds.items()}
    steps = sorted({step for points in series.values() for step in points})
    shown = [step for step, _ in charts.thin([(step, 0.0) for step in steps], TABLE_ROWS)]
    rows = [[number(step), *(_metric(of.get(step), metric, "") for of in series.values())] for step in shown]
    part = f"{len(shown)} of {len(steps)} points" if len(shown) < len(steps) else f"{len(steps)} points"
    return table(["Step", *series], rows, f"{metric}, {part}")


def _settings(every: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names and values; what differs between the runs (the seed) has each value."""
    values: dict[str, list[str]] = {}
    for settings in every:
        for name, value in _flat(settings):
            values.setdefault(name, []).append(_plain(value))
    return {name: ", ".join(dict.fromkeys(of)) for name, of in sorted(values.items())}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in sorted(value):
        if isinstance(value[key], Mapping) and value[key]:
            yield from _flat(value[key], f"{prefix}{key}.")
        else:
            yield prefix + key, value[key]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value) if not isinstance(value, Mapping) else "none"


def _provenance(runs: Sequence[Run], phase: str) -> list[Html]:
    """Each record by its address and sha256: it lists what the run read and every file that it wrote, with theirs."""
    records = [run.records[phase] for run in runs]
    backends = sorted({f"{k}: {v}" for r in records for k, v in ((r["result"] or {}).get("kernels") or {}).items()})
    about = facts(
        [
            ("Code digest", join((short(digest) for digest in sorted({r["code"] for r in records})), ", ")),
            ("Kernel backends", ", ".join(backends) or "none"),
            ("Modules", ", ".join(sorted({module for r in records for module in r["modules"]}))),
            ("Records", code(f"{runs[0].folder.rpartition('/')[0]}/seed*/{phase}/record.json")),
        ]
    )
    rows = [
        (
            f"seed {run.cell.seed}",
            code(record["address"]),
            join((join([f"{role} ", code(need)]) for role, need in sorted(record["needs"].items())), ", ") or "nothing",
            f"{len(record['artifacts'])}, {size(sum(file['bytes'] for file in record['artifacts'].values()))}",
            tag("code", run.digests[phase], class_="ns-digest"),
        )
        for run, record in zip(runs, records, strict=True)
    ]
    caption = "Each record lists what the run read and every file that it wrote, with their sha256"
    return [about, table(["Run", "Address", "Needs", "Files written", "sha256 of its record"], rows, caption)]


def failures(evidence: Evidence) -> Page:
    page = Page(
        "failures.html",
        "Failures",
        "Runs that failed, diverged or were blocked, with their reasons.",
        wide=True,
    )
    bad = [run for run in evidence.runs.values() if run.state != "done"]
    counts = {
        state: sum(run.state == state for run in evidence.runs.values())
        for state in ("done", "failed", "diverged", "blocked")
    }
    page.say(
        "A run that failed, diverged or could not start is a result too. None is dropped: it keeps its page, its "
        "reason and its place in the tables, and a claim that needs it says so."
    )
    page.add(charts.share_bar("Runs of the present plan", counts))
    if not bad:
        page.say("Every run of the present plan finished.")
        return page
    reasons: dict[tuple[str, str], list[Run]] = {}
    for run in bad:
        reasons.setdefault((run.state, run.reason), []).append(run)
    summary = [(chip(state), reason or "none recorded", len(runs)) for (state, reason), runs in sorted(reasons.items())]
    page.heading("By reason")
    page.add(table(["State", "Reason", "Runs"], summary, "Why runs did not finish"))
    page.heading("Run by run")
    rows = [
        Row(
            (
                chip(run.state),
                tier_badge(run.cell.tier),
                link(task_page(run.cell.task), run.cell.task),
                link(backbone_page(run.cell.backbone), run.cell.backbone),
                run.cell.protocol,
                link(run.cell.page, f"seed {run.cell.seed}"),
                Cell(run.reason, kind="ns-wide"),
            ),
            {"state": [run.state], **run.cell.facets},
        )
        for run in bad
    ]
    columns = ["State", "Tier", "Task", "Backbone", "Protocol", "Run", "Reason"]
    caption = f"{len(bad)} of {len(evidence.runs)} runs did not finish"
    page.add(table(columns, rows, caption, facets=["state", "tier", "task", "backbone", "protocol"]))
    return page
