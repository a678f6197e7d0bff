"""Equal compute: what self-pretraining gains over training from scratch, counted three ways.

Pretraining costs more than training from scratch for the same fine-tuning, so a gain says little by itself.
`reports/compute.parquet` has one row = claim x quantity x tier x way, for every claim about self-pretrained runs,
columns as in SCHEMA, sorted by KEY:

    paper, claim, quantity, tier    as in verdicts.parquet
    way                             "fine-tuning": the other side is trained as long as the fine-tuning
                                    "flops", "steps": as long as pretraining and fine-tuning together, by counted
                                    operations or by steps (scratch-matched)
    cells, against                  JSON lists of "task/backbone/protocol": the self-pretrained cells, the other side
    unit                            of the estimate: "points" for a score in percent
    estimate                        the mean difference, the self-pretrained less the other side
    interval_low, interval_high     its 95 % t interval; null below two seeds
    n, comparison                   seeds behind it; "paired" | "welch" | "none"
    steps, flops                    of a self-pretrained run, both phases: means over seeds and cells
    steps_ratio, flops_ratio        the other side's over those
    missing                         "" where there is an estimate

The other side is what the claim sets against self-pretraining if that is trained from scratch, else the same cells from
scratch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa

from noscratch.results import parquet_bytes, statistics, write_if_changed
from noscratch.results.claims import TIERS, Cell, Paper, Quantity, Trained, load
from noscratch.results.collect import Row, read_results
from noscratch.results.judge import Grid, Missing, Scale, spelt

KEY = ("paper", "claim", "quantity", "tier", "way")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in (*KEY, "cells", "against", "unit")),
        *(pa.field(name, pa.float64()) for name in ("estimate", "interval_low", "interval_high")),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("comparison", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("steps", "flops", "steps_ratio", "flops_ratio")),
        pa.field("missing", pa.string(), nullable=False),
    ]
)
# How the other side is trained, and by what it is matched (a column of results.parquet).
WAYS: Mapping[str, tuple[str, str | None]] = {
    "fine-tuning": ("scratch", None),
    "flops": ("scratch-matched", "flops"),
    "steps": ("scratch-matched", "steps"),
}
COUNTS = ("steps", "flops")
PRETRAINED = "spt-"


def report(reports: Path, claims: Path, planned: Collection[Cell] = ()) -> None:
    """Write compute.parquet from results.parquet and the folder of claims; the same in, the same bytes out."""
    results = read_results(reports / "results.parquet")
    rows = [
        row
        for way, (protocol, matched) in WAYS.items()
        for row in _rows(load(claims), [r for r in results if r["matched"] in (None, matched)], way, protocol, planned)
    ]
    rows.sort(key=lambda row: tuple(row[name] for name in KEY))
    write_if_changed(reports / "compute.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)))


def _rows(
    papers: Sequence[Paper], results: Sequence[Row], way: str, protocol: str, planned: Collection[Cell]
) -> Iterator[dict[str, Any]]:
    grid, spent = Grid(results, planned), _Spent(results)
    for paper in papers:
        for claim in paper.claims:
            if not isinstance(claim, Trained) or not claim.cells.protocol.startswith(PRETRAINED):
                continue
            for quantity in claim.quantities:
                sides = [_from_scratch(group, protocol) for group in _others(quantity)]
                for tier in TIERS:
                    if tier in grid.tiers or tier == claim.tier:
                        found = _difference(claim, quantity, sides, tier, grid) | spent.of(tier, quantity.cells, sides)
                        key = {"paper": paper.paper, "claim": claim.id, "quantity": quantity.name, "tier": tier}
                        yield key | {"way": way} | found


def _others(quantity: Quantity) -> list[tuple[Cell, ...]]:
    """What the claim sets against self-pretraining and is from scratch, else its own cells."""
    scratch = [group for group in quantity.against if not group[0].protocol.startswith(PRETRAINED)]
    return scratch or [quantity.cells]


def _from_scratch(cells: Sequence[Cell], protocol: str) -> tuple[Cell, ...]:
    return tuple(replace(cell, protocol=protocol) for cell in cells)


def _difference(
    claim: Trained, quantity: Quantity, sides: Sequence[tuple[Cell, ...]], tier: str, grid: Grid
) -> dict[str, Any]:
    unit = "points" if claim.unit == "percent" else claim.unit
    against = list(dict.fromkeys(cell for side in sides for cell in side))
    row: dict[str, Any] = {
        "cells": json.dumps([str(cell) for cell in quantity.cells]),
        "against": json.dumps([str(cell) for cell in against]),
        "unit": unit,
        "estimate": None,
        "interval_low": None,
        "interval_high": None,
        "n": 0,
        "comparison": "none",
        "missing": "",
    }
    missing: Missing = {}
    wanted = [*quantity.cells, *against]
    if outside := [str(cell) for cell in wanted if cell not in grid.cells]:
        missing["outside the grid"] = outside
    elif absent := [f"{cell} at tier {tier}" for cell in wanted if (tier, cell) not in grid.runs]:
        missing["runs"] = absent
    if missing:
        return row | {"missing": spelt(missing)}
    metric = quantity.metric or ""
    first = grid.sample(tier, quantity.cells, claim.split, metric)
    others = [grid.sample(tier, side, claim.split, metric) for side in sides]
    row["n"] = min(len(sample.values) for sample in (first, *others))
    if row["n"] == 0:
        return row | {"missing": "runs that finished"}
    scale = Scale(unit)
    if row["n"] == 1:
        return row | {"estimate": scale.single(first, others)}
    estimates = [scale.estimate(first, other) for other in others]
    estimate, row["comparison"] = min(estimates, key=lambda each: each[0].value)
    low, high = (scale.back(edge) for edge in statistics.interval(estimate))
    figures = {"estimate": scale.back(estimate.value), "interval_low": low, "interval_high": high, "n": estimate.n}
    return row | figures


class _Spent:
    """Steps and counted operations of whole runs, pretraining included."""

    def __init__(self, results: Sequence[Row]) -> None:
        runs: dict[tuple[str, Cell], dict[tuple[int, str], tuple[float, ...]]] = defaultdict(dict)
        for row in results:
            if all(row[name] is not None for name in COUNTS):
                cell = Cell(row["task"], row["backbone"], row["protocol"])
                runs[row["tier"], cell][row["seed"], row["phase"]] = tuple(float(row[name]) for name in COUNTS)
        self.means: dict[tuple[str, Cell], tuple[float, ...]] = {}
        for place, phases in runs.items():
            seeds = {seed for seed, phase in phases if phase == "finetune"}
            totals = zip(*(counts for (seed, _), counts in phases.items() if seed in seeds), strict=True)
            if seeds:
                self.means[place] = tuple(math.fsum(counts) / len(seeds) for counts in totals)

    def of(self, tier: str, cells: Sequence[Cell], sides: Sequence[tuple[Cell, ...]]) -> dict[str, float | None]:
        own, other = self._mean(tier, cells), self._mean(tier, [cell for side in sides for cell in side])
        found: dict[str, float | None] = {}
        for i, name in enumerate(COUNTS):
            found[name] = own[i] if own else None
            found[f"{name}_ratio"] = other[i] / own[i] if own and other and own[i] else None
        return found

    def _mean(self, tier: str, cells: Sequence[Cell]) -> tuple[float, ...] | None:
        found = [self.means[tier, cell] for cell in cells if (tier, cell) in self.means]
        if len(found) < len(cells):
            return None
        return tuple(fmean(each) for each in zip(*found, strict=True))
