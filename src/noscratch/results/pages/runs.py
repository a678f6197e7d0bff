"""A page per run, and the page of the runs that did not finish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import Evidence, Run
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
TABLE_ROWS = 12


def pages(evidence: Evidence) -> Iterator[Page]:
    for run in evidence.runs.values():
        yield run_page(run)
    yield failures(evidence)


def run_page(run: Run) -> Page:
    cell = run.cell
    page = Page(
        cell.page,
        cell.name,
        f"Run {cell.name}: settings, curves, metrics and provenance.",
        crumbs=[
            ("Results", "../results.html"),
            (cell.task, f"../{task_page(cell.task)}"),
            (cell.backbone, f"../{backbone_page(cell.backbone)}"),
        ],
        template="run.html",
        wide=True,
    )
    page.add(tag("p", chip(run.state), " ", tier_badge(cell.tier)))
    if run.state != "done":
        page.add(_why(run))
    if cell.tier == "smoke":
        page.add(smoke_note())
    for phase, record in run.records.items():
        page.heading(PHASE_TITLES[phase])
        if record["result"]:
            page.add(_selection(record["result"]), _metrics(record["result"], cell.tier))
        page.add(*_curves(run, phase))
        if record["result"]:
            page.add(_counts(record["result"]["counts"]))
        page.add(details("Settings", _settings(record["settings"])))
        page.add(details("Provenance: address, code, inputs, files", *_provenance(run, phase, record)))
    page.heading("Redo it")
    page.say("The same command on the same plan gives the same bytes on the same kind of machine.")
    for record in run.records.values():
        page.command(f"noscratch run {record['address']}")
    return page


def _why(run: Run) -> Html:
    return note(tag("strong", run.state), f": {run.reason or 'no reason was recorded'}", kind="bad")


def _selection(result: Mapping[str, Any]) -> Html:
    kept = result["selection"]
    return tag("p", f"Checkpoint kept: {kept['rule']}, step {number(kept['step'])} ({number(kept['value'])} there).")


def _metrics(result: Mapping[str, Any], tier: str) -> Html:
    rows = [
        (
            split,
            metric,
            tag("b", metric_value(value, metric)) if metric == result["primary"] else metric_value(value, metric),
            number(examples),
            tier_badge(tier),
        )
        for split, metrics in sorted(result["metrics"].items())
        for metric, value in sorted(metrics.items())
        for examples in [result["examples"][split]]
    ]
    caption = "n = 1 seed, so no interval over seeds: the results page has it"
    return table(["Split", "Metric", "Value", "Examples", "Tier"], rows, caption)


def _counts(counts: Mapping[str, float]) -> Html:
    others = [(name.replace("_", " "), number(n)) for name, n in sorted(counts.items()) if name != "flops"]
    return facts([("compute", si(counts["flops"], "FLOP")), *others])


def _curves(run: Run, phase: str) -> list[Html]:
    """The loss over all splits, then every other metric, each with a table under it."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for step, split, metric, value in run.curves[phase]:
        points.setdefault(metric, {}).setdefault(split, []).append((step, value))
    if not points:
        return []
    metrics = sorted(points, key=lambda metric: (metric != "loss", metric))
    pictures = [
        charts.line_chart(f"{PHASE_TITLES[phase]}: {metric}", "step", metric, points[metric]) for metric in metrics
    ]
    tables = [_curve_table(metric, points[metric]) for metric in metrics]
    return [tag("div", *pictures, class_="ns-figures"), details("The curves as text", *tables)]


def _curve_table(metric: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Html:
    steps = sorted({step for points in series.values() for step, _ in points})
    shown = [step for step, _ in charts.thin([(step, 0.0) for step in steps], TABLE_ROWS)]
    values = {name: dict(points) for name, points in series.items()}
    rows = [[number(step), *(_point(values[name].get(step), metric) for name in series)] for step in shown]
    part = f"{len(shown)} of {len(steps)} points" if len(shown) < len(steps) else f"{len(steps)} points"
    return table(["Step", *series], rows, f"{metric}, {part}; one seed, no interval")


def _point(value: float | None, metric: str) -> str:
    return "" if value is None else metric_value(value, metric)


def _settings(settings: Mapping[str, Any]) -> Html:
    return listing(f"{name} = {_plain(value)}" for name, value in _flat(settings))


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


def _provenance(run: Run, phase: str, record: Mapping[str, Any]) -> list[Html]:
    about = facts(
        [
            ("Address", code(record["address"])),
            ("Code digest", short(record["code"])),
            ("Record", join([code(f"{run.folder}/{phase}/record.json"), " sha256 ", short(run.digests[phase])])),
            (
                "Needs",
                join((join([f"{role} ", code(need)]) for role, need in sorted(record["needs"].items())), ", ")
                or "nothing",
            ),
            (
                "Kernel backends",
                ", ".join(f"{k}: {v}" for k, v in sorted(((record["result"] or {}).get("kernels") or {}).items()))
                or "none",
            ),
            ("Modules", ", ".join(record["modules"])),
        ]
    )
    inputs = [f"{digest}  {name}/record.json" for name, digest in sorted(record["inputs"].items())]
    written = [f"{file['sha256']}  {name}" for name, file in sorted(record["artifacts"].items())]
    bytes_ = sum(file["bytes"] for file in record["artifacts"].values())
    return [
        about,
        tag("p", "sha256 of its inputs' records, and of the ", f"{len(written)} files that it wrote ({size(bytes_)}):"),
        listing([*inputs, *written]),
    ]


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
