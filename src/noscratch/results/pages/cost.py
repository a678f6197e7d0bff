"""The cost page: what the runs took in compute, time and energy, and what each bit of accuracy costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from noscratch.results.pages import charts
from noscratch.results.pages.evidence import PHASES, Evidence, Group, Measurement, Run, cell_of, summarize
from noscratch.results.pages.markup import (
    Cell,
    Column,
    Html,
    Page,
    Row,
    backbone_page,
    claim_page,
    details,
    link,
    note,
    smoke_note,
    table,
    tag,
    task_page,
    tier_badge,
)
from noscratch.results.pages.numbers import at, inside, shown, words
from noscratch.results.pages.scores import group_page, interval, mean_of

PREDICTED = "cost-"
# What provenance may say of a run's cost, and its unit.
MEASURED = {("seconds",): "duration", ("energy_joules",): "si:J"}


def pages(evidence: Evidence) -> Iterator[Page]:
    page = Page("cost.html", "Cost", "Compute, time and energy of the runs, and accuracy against compute.", wide=True)
    page.say(
        "Compute is counted, operation by operation, over all steps of self-pretraining and fine-tuning; it is the "
        "same on every machine. Time and energy are measured, and shown for published runs, whose provenance is kept."
    )
    page.heading("Accuracy against compute")
    page.say("Each point is a backbone under a protocol. The line joins those that no other beats in both.")
    for tier in evidence.tiers:
        _pareto(page, evidence, tier)
    page.heading("What it took")
    page.add(_totals(evidence))
    _predictions(page, evidence)
    yield page


def _predictions(page: Page, evidence: Evidence) -> None:
    """What the claims of a tier would cost on a class of device: nothing that was measured."""
    for name, counted in evidence.measurements.items():
        if not name.startswith(PREDICTED):
            continue
        settings = counted.record["settings"]
        device, tier, share = settings["device"], settings["tier"], settings["utilization"]
        page.heading(f"What the claims of tier {tier} would cost on one {device['name'].upper()}")
        page.add(note(tag("strong", "Predicted, not measured."), " No such device was used."))
        sheet = ("record", counted.folder, "settings", "device")
        page.say(
            "The operations and bytes of each step are counted, and taken to run at ",
            shown(inside("record", counted.folder, "settings", "utilization"), "percent", share),
            " of the rates of the device's data sheet: ",
            shown(inside(*sheet, "rates", "float32"), "si:FLOP/s", device["rates"]["float32"]),
            " in float32, ",
            shown(inside(*sheet, "bandwidth"), "si:B/s", device["bandwidth"]),
            " of memory. The share is an assumption: twice the share is half the time. Energy is that time at the "
            "device's full power. Seeds are the least that settle a claim. Cells that claims share count once in the "
            "sums; those that the plan lacks are left out.",
        )
        page.command(
            f"noscratch estimate --tier {tier} --by-claim --device-class {device['name']} --utilization {share} "
            "--record"
        )
        page.add(_by_claim(counted))


def _by_claim(counted: Measurement) -> Html:
    rows = []
    for row in counted.rows:
        paper, claim = row["paper"], row["claim"]
        title = link(claim_page(claim), claim) if claim else words(f"all of {paper}" if paper else "all papers")
        count = ("seeds", "cells", "left_out")
        costs = {"gpu_hours": "number", "memory_bytes": "bytes", "disk_bytes": "bytes", "energy_kwh": "number"}
        cells = (
            title if claim else tag("strong", title),
            words(paper or "all"),
            *(shown(counted.at(row, name), "number", row[name]) for name in count),
            *(
                shown(counted.at(row, name), form, row[name]) if row["cells"] else Cell("", key="")
                for name, form in costs.items()
            ),
        )
        rows.append(Row(cells, {"paper": [paper or "all"]}))
    heads = ("Seeds", "Cells", "Cells left out", "GPU hours", "Peak memory", "Disk", "Energy, kWh")
    columns: list[Column | str] = ["Claim", "Paper", *(Column(name, sort="number") for name in heads)]
    return table(columns, rows, "Predicted cost of each claim, all seeds", ["paper"])


def _pareto(page: Page, evidence: Evidence, tier: str) -> None:
    """A figure per task, and its points as text."""
    figures, rows = [], []
    for task in sorted({group[1] for group in evidence.scores if group[0] == tier}):
        series: dict[str, list[tuple[float, charts.Interval, str]]] = {}
        points: dict[tuple[float, float], tuple[Group, list[dict[str, Any]]]] = {}
        for group in (group for group in evidence.scores if group[:2] == (tier, task)):
            spent = _compute(evidence, group)
            total = sum(float(row["flops"]) for row in spent)
            if not total:
                continue
            name = f"{group[2]}, {group[3]}"
            score = interval(summarize(evidence.scores[group]))
            series.setdefault(group[3], []).append((total, score, name))
            points[total, score.mean] = group, spent
        rows += [_point(evidence, *points[place]) for place in charts.pareto(points)]
        if series:
            metric = next(scores[0].metric for group, scores in evidence.scores.items() if group[:2] == (tier, task))
            figures.append(charts.cost_chart(task, metric, series, tier == "smoke"))
    if not figures:
        return
    page.heading(f"Tier {tier}", 3)
    if tier == "smoke":
        page.add(smoke_note())
    columns: list[Column | str] = [
        "Task",
        "Backbone",
        "Protocol",
        Column("Test score", sort="number"),
        Column("Self-pretraining", sort="number"),
        Column("Fine-tuning", sort="number"),
    ]
    caption = "What lies on the front, with the training compute of its first seed"
    text = table(columns, rows, caption, ["task", "backbone", "protocol"])
    page.add(tag("div", *figures, class_="ns-figures"), details("The fronts as text", text))


def _compute(evidence: Evidence, group: Group) -> list[dict[str, Any]]:
    """A row of results.parquet for each phase of the group's first seed, with its compute. A pretraining that several
    tasks share is in the cell of its corpus."""
    seed = evidence.scores[group][0].cell.seed
    tuned = next(row for row in evidence.rows_of(group) if (row["seed"], row["phase"]) == (seed, "finetune"))
    found: dict[str, dict[str, Any]] = {}
    for row in evidence.results:
        if row["address"] in (tuned["address"], tuned["pretrain_address"]) and row["flops"] is not None:
            found.setdefault(row["phase"], row)
    return [found[phase] for phase in PHASES if phase in found]


def _point(evidence: Evidence, group: Group, spent: Sequence[dict[str, Any]]) -> Row:
    flops = {row["phase"]: _flops(row) for row in spent}
    cells = (
        link(task_page(group[1]), group[1]),
        link(backbone_page(group[2]), group[2]),
        link(group_page(group), group[3]),
        mean_of(evidence, group),
        flops.get("pretrain", Cell("", key="")),
        flops.get("finetune", Cell("", key="")),
    )
    return Row(cells, {"task": [group[1]], "backbone": [group[2]], "protocol": [group[3]]})


def _flops(row: dict[str, Any]) -> Html:
    cell = cell_of(row)
    address = at("results", *cell.group, cell.seed, row["phase"], row["split"], row["metric"], "flops")
    return shown(address, "si:FLOP", row["flops"])


def _totals(evidence: Evidence) -> Html:
    """By tier and backbone: runs, compute, and what was measured of those that are published."""
    rows = []
    for tier in evidence.tiers:
        for backbone in sorted({group[2] for group in evidence.scores if group[0] == tier}):
            chosen = {"tier": tier, "backbone": backbone}
            spent: dict[tuple[Any, ...], float] = {}
            for row in evidence.results:
                if row["tier"] == tier and row["backbone"] == backbone and row["flops"] is not None:
                    spent[row["task"], row["protocol"], row["seed"], row["phase"]] = row["flops"]
            runs = [run for run in evidence.runs.values() if run.cell.tier == tier and run.cell.backbone == backbone]
            done = sum(run.state == "done" for run in runs)
            devices = sorted({str(said["device"]) for run in runs for said in run.provenance.values()})
            cells = (
                tier_badge(tier),
                link(backbone_page(backbone), backbone),
                shown(at("count", "cells", **chosen, state="done"), "number", done),
                shown(at("sum", "flops", **chosen), "si:FLOP", math.fsum(spent.values())),
                *(_measured(tier, backbone, runs, pointer, form) for pointer, form in MEASURED.items()),
                words(", ".join(devices)),
            )
            rows.append(Row(cells, {"tier": [tier], "backbone": [backbone]}))
    columns: list[Column | str] = ["Tier", "Backbone"]
    columns += [Column(name, sort="number") for name in ("Runs finished", "Compute", "Time", "Energy")]
    caption = "Every finished run, seeds and phases added up; time and energy of published runs alone"
    return table([*columns, "Device"], rows, caption, ["tier", "backbone"])


def _measured(tier: str, backbone: str, runs: Sequence[Run], pointer: Sequence[str], form: str) -> Cell:
    """What provenance measured, added up over the published runs."""
    found = []
    for said in (said for run in runs for said in run.provenance.values()):
        value: Any = said
        for step in pointer:
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            found.append(float(value))
    if not found:
        return Cell("", key="")
    folder = f"reports/records/runs/{tier}/*/{backbone}/*/*/*"
    return Cell(shown(inside("provenance", folder, *pointer), form, math.fsum(found)))
