"""A page per cell of the grid with its runs, and the page of the runs that did not finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import PHASES, Evidence, Group, Run
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
    note,
    short,
    smoke_note,
    table,
    tag,
    task_page,
    tier_badge,
)
from noscratch.results.pages.numbers import at, inside, of_metric, shown, under, words
from noscratch.results.pages.scores import group_page, mean_of, scored

PHASE_TITLES = {"pretrain": "Self-pretraining", "finetune": "Fine-tuning"}
# The rows of the table under a curve; the download has every point.
TABLE_ROWS = 4
# What provenance says of where a run ran; the rest of it is telemetry.
FLAGGED = ("tier", "task", "backbone", "protocol")
ENVIRONMENT = ("device", "processor", "platform", "python", "commit", "dirty", "started")


def pages(evidence: Evidence) -> Iterator[Page]:
    for group in evidence.groups:
        if runs := evidence.runs_of(group):
            yield _group(evidence, group, runs)
    yield _failures(evidence)


def _group(evidence: Evidence, group: Group, runs: Sequence[Run]) -> Page:
    """The page of one cell of the grid: its runs, which differ in their seed alone."""
    tier, task, backbone, _ = group
    page = Page(
        group_page(group),
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
    score = mean_of(evidence, group).content
    metric = next((scores[0].metric for scores in [evidence.scores.get(group)] if scores), None)
    page.say(f"Test {metric}: ", scored(score, tier)) if metric else page.say(score, " ", tier_badge(tier))
    for state, reason in sorted({(run.state, run.reason) for run in runs if run.state != "done"}):
        page.add(note(tag("strong", state), ": ", words(reason or "no reason was recorded"), kind="bad"))
    for flag in (each for each in evidence.flags if tuple(each[name] for name in FLAGGED) == group):
        page.add(note(tag("strong", "Look twice"), ": ", words(f"seed {flag['seed']}, {flag['split']}: {flag['why']}")))
    if tier == "smoke":
        page.add(smoke_note())
    page.add(under(at("results", *group) + "/", _seeds(evidence, group, runs), _metrics(group, runs)))
    told: dict[str, str] = {}
    for phase in PHASES:
        if having := [run for run in runs if phase in run.records]:
            told = _phase(page, group, phase, having, told)
    page.heading("Provenance")
    page.add(*_provenance(runs))
    page.heading("Redo it")
    page.say("The same command on the same plan gives the same bytes on the same kind of machine.")
    page.command("\n".join(f"noscratch run {record['address']}" for run in runs for record in run.records.values()))
    return page


def _seeds(evidence: Evidence, group: Group, runs: Sequence[Run]) -> Html:
    tested = (row for row in evidence.rows_of(group) if row["phase"] == "finetune" and row["split"] == "test")
    held = {row["seed"]: row for row in tested if row["primary"]}
    counts = ("examples", "selected_step", "steps", "parameters", "tokens_real", "flops")
    rows = []
    for run in runs:
        seed = run.cell.seed
        row = held.get(seed, {})
        base = at("results", *group, seed, "finetune", "test", row.get("metric", ""))
        value = row.get("value")
        cells = [
            tag("span", f"seed {seed}", id=f"seed-{seed}"),
            chip(run.state),
            "" if value is None else shown(f"{base}/value", of_metric(row["metric"]), value),
        ]
        for name in counts:
            form = "si:FLOP" if name == "flops" else "number"
            cells.append("" if row.get(name) is None else shown(f"{base}/{name}", form, row[name]))
        rows.append(cells)
    columns = ["Run", "State", "Test score", "Examples", "Step kept", "Steps", "Parameters", "Tokens", "Compute"]
    return table(columns, rows, "One run a seed; nothing else differs", named=True)


def _metrics(group: Group, runs: Sequence[Run]) -> Html:
    """Every metric of every phase and split."""
    places = [
        (phase, run.cell.seed, split, name, value)
        for run in runs
        for phase, record in run.records.items()
        for split, values in (record["result"] or {}).get("metrics", {}).items()
        for name, value in sorted(values.items())
    ]
    if not places:
        return Html("")
    found = {(phase, seed, split, name): value for phase, seed, split, name, value in places}
    names = sorted({(PHASES.index(phase), split, name) for phase, _, split, name, _ in places})
    rows: list[list[object]] = []
    for seed in dict.fromkeys(seed for _, seed, *_ in places):
        cells: list[object] = [f"seed {seed}"]
        for index, split, name in names:
            value = found.get((PHASES[index], seed, split, name))
            address = at("results", *group, seed, PHASES[index], split, name, "value")
            cells.append("" if value is None else shown(address, of_metric(name), value))
        rows.append(cells)
    heads = (f"{split} {name}" + (", pretraining" if index == 0 else "") for index, split, name in names)
    return table(["Run", *heads], rows, "Every metric at the checkpoint kept", named=True)


def _phase(page: Page, group: Group, phase: str, runs: Sequence[Run], told: Mapping[str, str]) -> dict[str, str]:
    """Add a phase; of its settings those that differ from what was `told` of the one before. Returns its settings."""
    page.heading(PHASE_TITLES[phase])
    results = {run.cell.seed: run.records[phase]["result"] for run in runs if run.records[phase]["result"]}
    if results:
        rules = sorted({result["selection"]["rule"] for result in results.values()})
        page.say("Checkpoint kept: ", words("; ".join(rules)), ".")
        page.add(*_curves(group, phase, runs))
    settings = _settings([run.records[phase]["settings"] for run in runs])
    new = {name: value for name, value in settings.items() if told.get(name) != value}
    title = "Settings that differ from self-pretraining" if told else "Settings"
    page.add(details(title, listing(f"{name} = {value}" for name, value in new.items())))
    if where := [part for run in runs if phase in run.provenance for part in _environment(run, phase)]:
        page.add(details("Environment and telemetry", *where))
    return settings


def _curves(group: Group, phase: str, runs: Sequence[Run]) -> list[Html]:
    """The loss, then every other metric: one line a seed, one style a split, and a table under them."""
    points: dict[str, dict[str, dict[int, list[tuple[float, float]]]]] = {}
    for run in runs:
        for step, split, metric, value in run.curve(phase):
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
            group[0] == "smoke",
        )
        for metric in metrics
    ]
    text = under(at("curves", *group) + "/", _curve_table(group, phase, points))
    return [tag("div", *pictures, class_="ns-figures"), details("The curves as text", text)]


def _curve_table(
    group: Group, phase: str, points: Mapping[str, Mapping[str, Mapping[int, Sequence[tuple[float, float]]]]]
) -> Html:
    """Metric -> split -> seed -> curve, at some of the steps."""
    series = {
        (metric, split, seed): dict(curve)
        for metric, splits in points.items()
        for split, seeds in splits.items()
        for seed, curve in seeds.items()
    }
    steps = sorted({step for curve in series.values() for step in curve})
    rows = []
    for step, _ in charts.thin([(step, 0.0) for step in steps], TABLE_ROWS):
        cells: list[object] = [int(step)]
        for (metric, split, seed), curve in series.items():
            address = at("curves", *group, seed, phase, int(step), split, metric)
            cells.append(shown(address, of_metric(metric), curve[step]) if step in curve else "")
        rows.append(cells)
    heads = (f"{metric}, {split}, seed {seed}" for metric, split, seed in series)
    return table(["Step", *heads], rows, "Some of the steps; the download has all", named=True)


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


def _provenance(runs: Sequence[Run]) -> list[Html]:
    """Each record by its address and sha256: it lists what the run read and every file that it wrote, with theirs."""
    every = [(run, phase, record) for run in runs for phase, record in run.records.items()]
    records = [record for *_, record in every]
    backends = sorted({f"{k}: {v}" for r in records for k, v in ((r["result"] or {}).get("kernels") or {}).items()})
    about = facts(
        [
            ("Code digest", join((short(digest) for digest in sorted({r["code"] for r in records})), ", ")),
            ("Kernel backends", words(", ".join(backends) or "none")),
            ("Records", code(f"{runs[0].folder.rpartition('/')[0]}/seed*/*/record.json")),
        ]
    )
    rows = [
        (
            f"seed {run.cell.seed}, {phase}",
            code(record["address"]),
            join((join([f"{role} ", code(need)]) for role, need in sorted(record["needs"].items())), ", ") or "nothing",
            tag("code", run.digests[phase], class_="ns-digest"),
        )
        for run, phase, record in every
    ]
    caption = "Each record lists what the run read and every file that it wrote, with their sha256"
    return [about, table(["Run", "Address", "Needs", "sha256 of its record"], rows, caption, named=True)]


def _environment(run: Run, phase: str) -> list[Html]:
    """Where a published run ran, and what was measured of it."""
    said = run.provenance[phase]
    place = [(name, words(_plain(said[name]))) for name in ENVIRONMENT if said.get(name) not in (None, "")]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(said.get("libraries", {}).items()))
    folder = f"{run.folder}/{phase}"
    measured = [
        (name.replace("_", " "), shown(inside("provenance", folder, *name.split(".")), _form(name), value))
        for name, value in _flat(said)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return [
        tag("p", tag("strong", words(f"seed {run.cell.seed}"))),
        facts([*place, ("libraries", words(libraries)), *measured]),
    ]


def _form(name: str) -> str:
    """Units are the end of a name."""
    unit = name.rpartition("_")[2].rpartition(".")[2]
    forms = {"seconds": "duration", "bytes": "bytes", "memory": "bytes", "joules": "si:J", "second": "three"}
    return forms.get(unit, "number")


def _failures(evidence: Evidence) -> Page:
    page = Page(
        "failures.html",
        "Failures",
        "Runs that failed, diverged or were blocked, with their reasons.",
        wide=True,
    )
    bad = [run for run in evidence.runs.values() if run.state != "done"]
    states = ("done", "failed", "diverged", "blocked")
    counts = {
        state: (sum(run.state == state for run in evidence.runs.values()), at("count", "cells", state=state))
        for state in states
    }
    page.say(
        "A run that failed, diverged or could not start is a result too. None is dropped: it keeps its page, its "
        "reason and its place in the tables, and a claim that needs it says so."
    )
    page.add(charts.share_bar("Runs", counts))
    if bad:
        _unfinished(page, bad)
    else:
        page.say("Every run of the present plan finished.")
    page.heading("Runs to look at twice")
    _flags(page, evidence)
    return page


def _unfinished(page: Page, bad: Sequence[Run]) -> None:
    reasons: dict[tuple[str, str], list[Run]] = {}
    for run in bad:
        reasons.setdefault((run.state, run.reason), []).append(run)
    summary = [
        (
            chip(state),
            Cell(words(reason or "none recorded"), kind="ns-wide"),
            shown(at("count", "cells", state=state, reason=reason), "number", len(runs)),
        )
        for (state, reason), runs in sorted(reasons.items())
    ]
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
            ),
            {"state": [run.state], **run.cell.facets},
        )
        for run in bad
    ]
    columns = ["State", "Tier", "Task", "Backbone", "Protocol", "Run"]
    facets = ["state", "tier", "task", "backbone", "protocol"]
    page.add(table(columns, rows, "Every run that did not finish; its page has the reason", facets))


def _flags(page: Page, evidence: Evidence) -> None:
    """How often each flag is up, and the runs above tier smoke that it is up for."""
    page.say(
        "A flag leaves nothing out and settles nothing. It marks a finished run that one should look at before "
        "believing it: constant predictions, no better than chance, better than anyone has reported."
    )
    counts = [
        (tier_badge(tier), flag, shown(at("count", "flags", tier=tier, flag=flag), "number", n))
        for (tier, flag), n in sorted(Counter((each["tier"], each["flag"]) for each in evidence.flags).items())
    ]
    if not counts:
        page.say("No flag is up.")
        return
    page.add(table(["Tier", "Flag", "How often"], counts, "Flags by tier"))
    rows = []
    for each in (each for each in evidence.flags if each["tier"] != "smoke"):
        group = tuple(each[name] for name in FLAGGED)
        run = link(f"{group_page(group)}#seed-{each['seed']}", f"seed {each['seed']}")
        names = (tier_badge(each["tier"]), each["task"], each["backbone"], each["protocol"], run)
        cells = (each["flag"], *names, Cell(words(each["why"]), kind="ns-wide"))
        rows.append(Row(cells, {name: [each[name]] for name in ("flag", *FLAGGED)}))
    if rows:
        columns = ["Flag", "Tier", "Task", "Backbone", "Protocol", "Run", "Why"]
        page.add(table(columns, rows, "Every flag above tier smoke", ["flag", *FLAGGED]))
