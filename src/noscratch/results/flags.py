"""Flags: what one should look at twice before believing a run. A flag settles nothing and leaves nothing out.

`reports/flags.parquet` has one row per run, flag and split, columns as in SCHEMA, sorted by KEY:

    tier, task, backbone, protocol, seed     the run
    flag                                     see FLAGS
    split                                    where it was seen: "test", "validation" or "train"
    metric, value                            the score that is flagged
    limit                                    what that score should not exceed, for "at chance" should have exceeded;
                                             for the unexpected, what was expected
    other                                    the run or the claim that it is held against, "" where none is
    why                                      the flag in words

The rules, with n the number of examples of the split:

    constant                every prediction is one value
    at chance               no onset in cells.parquet: validation never exceeded its threshold, or by a constant alone
    same predictions        another run of the task predicts the same for every example, and neither is at chance: two
                            seeds that are one run, or two cells that share one
    above published         test is above the best that a paper of the ledger claims for the task, by two points and
                            three standard errors of a score of n examples
    perfect                 test is above 99.5 %, more than anyone reports for a task of the grid
    unexpected score        validation is off what params.yaml expects of the preset from scratch, by five points and
                            three standard errors
    unexpected time         a published run on a CPU took more than twice, or less than half, the processor time that
                            params.yaml expects; metric "cpu_seconds", split "train"
    test above validation   test is above validation, on which the checkpoint was selected, by five points and three
                            standard errors of the difference
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from noscratch.backbones import file_of
from noscratch.params import Expected
from noscratch.results import cells, parquet_bytes, write_if_changed
from noscratch.results.cells import BASELINES, Group
from noscratch.results.claims import Paper, Trained, load
from noscratch.results.collect import CELL, Row, read_results
from noscratch.results.survival import spread

KEY = (*CELL, "flag", "split")
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in CELL[:-1]),
        pa.field("seed", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("flag", "split", "metric")),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("limit", pa.float64()),
        *(pa.field(name, pa.string(), nullable=False) for name in ("other", "why")),
    ]
)
FLAGS = (
    "constant",
    "at chance",
    "same predictions",
    "above published",
    "perfect",
    "unexpected score",
    "unexpected time",
    "test above validation",
)
PUBLISHED_MARGIN = 0.02
ERRORS = 3.0
CEILING = 0.995
GAP = 0.05
TIMES = 2.0
Expectations = Mapping[tuple[str, str, str], Expected]


def report(reports: Path, claims: Path, expected: Expectations) -> None:
    """Write cells.parquet and flags.parquet into `reports` from its results.parquet, curves.parquet and published
    records, the ledger, and what is expected of a (tier, task, backbone) from scratch."""
    rows, papers = read_results(reports / "results.parquet"), load(claims)
    groups = cells.groups(rows, cells.read_curves(reports / "curves.parquet"))
    write_if_changed(reports / "cells.parquet", parquet_bytes(cells.table(groups)))
    write_if_changed(
        reports / "flags.parquet", parquet_bytes(table(rows, groups, papers, expected, reports / "records" / "runs"))
    )


def table(
    rows: Sequence[Row], groups: Iterable[Group], papers: Iterable[Paper], expected: Expectations, records: Path
) -> pa.Table:
    """flags.parquet from the rows of results.parquet, their groups, the ledger, and the published runs in `records`."""
    scores = [row for row in rows if row["phase"] == "finetune" and row["primary"] and row["value"] is not None]
    trained = [row for row in scores if row["backbone"] not in BASELINES]
    stayed = {
        (group.tier, group.task, group.backbone, group.protocol, seed): group.threshold
        for group in groups
        for seed, onset in group.onsets.items()
        if not onset.learned
    }
    found = [*_constant(trained), *_at_chance(trained, stayed), *_same(trained, stayed)]
    found += [*_too_good(trained, published(papers)), *_above_validation(trained)]
    found += [*_unexpected(trained, expected, records)]
    found.sort(key=lambda row: tuple(row[name] for name in KEY))
    return pa.Table.from_pylist(found, schema=SCHEMA)


def published(papers: Iterable[Paper]) -> dict[tuple[str, str], tuple[float, str]]:
    """(task, metric, "" for the primary one) -> the highest accuracy that is claimed for it, and the claim."""
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for paper in papers:
        for claim in paper.claims:
            if not isinstance(claim, Trained) or (claim.kind, claim.unit) != ("accuracy", "percent"):
                continue
            for quantity in claim.quantities:
                if len(quantity.cells) == 1:
                    place = quantity.cells[0].task, quantity.metric or ""
                    best[place] = max(best.get(place, (0.0, "")), (quantity.high / 100, claim.id))
    return best


def _flag(row: Row, flag: str, why: str, limit: float | None = None, other: str = "") -> Row:
    names = (*CELL, "split", "metric", "value")
    return {name: row[name] for name in names} | {"flag": flag, "limit": limit, "other": other, "why": why}


def _constant(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if row["degenerate"]:
            yield _flag(row, "constant", f"all {row['examples']} predictions are one value")


def _at_chance(rows: Iterable[Row], stayed: Mapping[tuple[Any, ...], float | None]) -> Iterator[Row]:
    for row in rows:
        if row["split"] == "validation" and _cell(row) in stayed:
            yield _flag(row, "at chance", "validation shows nothing learned", stayed[_cell(row)])


def _same(rows: Iterable[Row], stayed: Collection[tuple[Any, ...]]) -> Iterator[Row]:
    twins: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row["degenerate"] and _cell(row) not in stayed:
            twins[row["tier"], row["task"], row["split"], row["predictions"]].append(row)
    for alike in twins.values():
        for row in alike if len(alike) > 1 else ():
            other = next(each for each in alike if each is not row)
            yield _flag(row, "same predictions", f"{len(alike)} runs predict the same throughout", None, _name(other))


def _too_good(rows: Iterable[Row], best: Mapping[tuple[str, str], tuple[float, str]]) -> Iterator[Row]:
    for row in rows:
        if row["split"] != "test":
            continue
        for task in (row["task"], file_of(row["task"])):  # a variant has no number of its own
            claimed = best.get((task, "")) or best.get((task, row["metric"]))
            if claimed:
                break
        if claimed:
            level, claim = claimed
            limit = level + PUBLISHED_MARGIN + ERRORS * spread(row["metric"], level) / math.sqrt(row["examples"])
            if row["value"] > limit:
                yield _flag(row, "above published", "better than the best published score", limit, claim)
        if row["value"] > CEILING:
            yield _flag(row, "perfect", "hardly an error", CEILING)


def _unexpected(rows: Iterable[Row], expected: Expectations, records: Path) -> Iterator[Row]:
    for row in rows:
        wanted = expected.get((row["tier"], row["task"], row["backbone"]))
        if wanted is None or (row["protocol"], row["split"]) != ("scratch", "validation"):
            continue
        level = wanted.validation
        if abs(row["value"] - level) > GAP + ERRORS * spread(row["metric"], level) / math.sqrt(row["examples"]):
            yield _flag(row, "unexpected score", f"params.yaml expects {level:.3g}", level)
        place = records.joinpath(*(str(row[name]) for name in CELL[:-1]), f"seed{row['seed']}", "finetune")
        if (place / "provenance.json").is_file():
            made = json.loads((place / "provenance.json").read_bytes())
            address = json.loads((place / "record.json").read_bytes())["address"]
            took, limit = made["cpu_seconds"], wanted.cpu_seconds
            if (address, made["device"]) == (row["address"], "cpu") and not limit / TIMES <= took <= limit * TIMES:
                timed = row | {"split": "train", "metric": "cpu_seconds", "value": took}
                yield _flag(timed, "unexpected time", f"params.yaml expects {limit:.3g} s", limit)


def _above_validation(rows: Iterable[Row]) -> Iterator[Row]:
    validation = {_cell(row): row for row in rows if row["split"] == "validation"}
    for row in rows:
        other = validation.get(_cell(row))
        if row["split"] == "test" and other is not None:
            error = math.sqrt(
                sum(spread(row["metric"], each["value"]) ** 2 / each["examples"] for each in (row, other))
            )
            limit = other["value"] + GAP + ERRORS * error
            if row["value"] > limit:
                yield _flag(row, "test above validation", "the unseen split is the easier one", limit)


def _cell(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in CELL)


def _name(row: Row) -> str:
    return f"{row['task']}/{row['backbone']}/{row['protocol']} seed {row['seed']}"
