"""The way from the address of a number to the bytes that it comes from.

An address (results/pages/numbers.py) is walked without the code that wrote it: to a row of a report, from the row to
the records of its runs, from a record to files whose sha256 is on disk, from predictions to the score (scikit-learn,
scipy), from scores to means, differences and intervals (estimates.py). What else a row holds (p-values, medians of
onsets, thresholds) is made again as a whole by reports.py.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from noscratch.audit.case import CURVES, PREDICTIONS, UNREADABLE, Case, Entry
from noscratch.audit.estimates import Scores, Value, candidates, close, mean, over, repeated
from noscratch.audit.records import TOLERANCE, read_curve, recomputed
from noscratch.results import cells, claims, compute
from noscratch.results.collect import CELL, COUNTS
from noscratch.results.observations import FILE as OBSERVATIONS
from noscratch.results.publish import GENERATED
from noscratch.results.published import RECORDS
from noscratch.store import PROVENANCE, RECORD

ESTIMATE = ("estimate", "interval_low", "interval_high", "n")
STATES = ("failed", "diverged", "blocked", "done")  # from worst to best


class BrokenError(Exception):
    """The way from a number to its bytes ends too early; the message says where."""


class Walk:
    """The way from addresses to bytes in one checkout; whatever was walked once is remembered."""

    def __init__(self, case: Case) -> None:
        """Nothing is read yet."""
        self.case = case
        self._resolved: dict[str, list[Value] | str] = {}
        self._trusted: dict[Path, None] = {}
        self._json: dict[Path, Any] = {}
        self._curves: dict[Path, Any] = {}
        self._tables: dict[Path, list[dict[str, Any]]] = {}
        self._indexed: dict[tuple[str, ...], dict[tuple[str, ...], list[Mapping[str, Any]]]] = {}
        self._estimated: set[tuple[str, ...]] = set()  # rows whose estimate was computed again

    def values(self, address: str) -> list[Value] | str:
        """The values at an address, or where the way to them breaks."""
        if address not in self._resolved:
            try:
                self._resolved[address] = self._walk(address)
            except BrokenError as error:
                self._resolved[address] = str(error)
            except UNREADABLE as error:
                self._resolved[address] = f"the way breaks: {type(error).__name__} {error}"
        return self._resolved[address]

    def _walk(self, address: str) -> list[Value]:
        path, _, pointer = address.partition("#")
        path, _, query = path.partition("?")
        source, _, rest = path.partition("/")
        parts = [unquote(part) for part in rest.split("/")]
        steps = [unquote(step).replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        chosen = dict(parse_qsl(query, keep_blank_values=True))
        if source == "results":
            return self._results(parts)
        if source == "difference":
            return self._difference(parts)
        if source == "verdicts":
            return self._verdict(parts)
        if source == "claims":
            return (
                [_as_number(each) for each in _pointed(self._claim(parts[0]), steps)]
                if pointer
                else self._ledger(parts)
            )
        if source == "history":
            lines = (self.case.root / "reports/verdicts.jsonl").read_text(encoding="utf-8").splitlines()
            *steps, last = steps
            line = json.loads(lines[int(parts[0])])
            return [_as_number(each) for name in last.split(",") for each in _pointed(line, [*steps, name])]
        if source == "compute":
            return self._compute(parts)
        if source == "cells":
            return self._cell(parts)
        if source == "curves":
            return [self._point(parts)]
        if source in ("record", "provenance"):
            return [self._inside(source, "/".join(parts), steps)]
        if source == "sum":
            return [self._sum(parts[0], chosen)]
        if source == "size":
            return [(self.case.root / GENERATED / "/".join(parts)).stat().st_size]
        if source == "bench":
            return self._bench(*parts)
        if source == "count":
            return [sum(_agrees(row, chosen) for row in self._counted(parts[0]))]
        raise BrokenError(f"no source {source!r}")

    # ------------------------------------------------------------ results

    @cached_property
    def _by_cell(self) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self._table("results"):
            found[tuple(row[name] for name in (*CELL[:-1], "phase"))].append(row)
        return found

    @cached_property
    def _runs(self) -> dict[tuple[str, str], list[Entry]]:
        found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.case.in_place("runs", "published"):
            if entry.record["cell"] is not None:
                found[entry.address, entry.kind].append(entry)
        return found

    def _results(self, parts: Sequence[str]) -> list[Value]:
        *group, seed, phase, split, metric, column = parts
        rows = self._by_cell[(*group, phase)]
        if seed == "*":
            values = self._scores(rows, split, metric, column)
            return _mean(list(values.values()))
        alike = [r for r in rows if str(r["seed"]) == seed and r["split"] == split and r["metric"] == metric]
        if len(alike) != 1:
            raise BrokenError(f"{len(alike)} rows of results.parquet have it")
        return [self._from_bytes(alike[0], column)]

    def _scores(self, rows: Sequence[Mapping[str, Any]], split: str, metric: str, column: str) -> dict[int, float]:
        """Seed -> value of the runs that repeat each other: those of the present plan, else the largest group."""
        groups: dict[tuple[str, str], dict[int, Mapping[str, Any] | None]] = defaultdict(dict)
        for row in rows:
            group = groups[row["code"], row["setting"]]
            wanted = row["split"] == split and row["metric"] == metric and row["value"] is not None
            if wanted or row["seed"] not in group:
                group[row["seed"]] = row if wanted else None
        if not groups:
            raise BrokenError("no row of results.parquet has it")
        taken = groups[max(groups, key=lambda key: (key[0] == "current", len(groups[key]), key))]
        found = {seed: self._from_bytes(row, column) for seed, row in sorted(taken.items()) if row is not None}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def _from_bytes(self, row: Mapping[str, Any], column: str) -> Value:
        """A row's column, as the record of the run and the files of the record have it."""
        shown = row[column]
        entry = self._entry(row)
        result = entry.record["result"]
        if column == "value":
            stated = result["metrics"][row["split"]][row["metric"]]
            self._recompute(entry, row["split"], row["metric"], stated)
        elif column in COUNTS:
            stated = result["counts"][column]
        elif column == "examples":
            stated = result["examples"][row["split"]]
        elif column == "selected_step":
            stated = result["selection"]["step"]
        else:
            raise BrokenError(f"results.parquet has no number {column!r}")
        if shown != stated:
            raise BrokenError(f"results.parquet has {shown}, {entry.at(RECORD)} has {stated}")
        return _as_number(stated)

    def _entry(self, row: Mapping[str, Any]) -> Entry:
        """The record behind a row, with files that are what it states."""
        cell = tuple(row[name] for name in CELL)
        for entry in self._runs[row["address"], row["phase"]]:
            if entry.cell == cell:
                self._trust(entry)
                return entry
        raise BrokenError(f"no record of {row['address']} lies in data/runs or {RECORDS}")

    def _trust(self, entry: Entry) -> None:
        """Every file of the entry that is there, and those that a score needs, have the sha256 of the record."""
        if entry.folder in self._trusted:
            return
        for name, artifact in entry.record["artifacts"].items():
            path = entry.folder / name
            if not path.is_file():
                if entry.place == "published" and name not in (CURVES, PREDICTIONS):
                    continue  # weights stay where they were made
                raise BrokenError(f"{entry.at(name)} is missing")
            if self.case.digests.one(path) != artifact["sha256"]:
                raise BrokenError(f"{entry.at(name)} has not the sha256 of its record")
        self._trusted[entry.folder] = None

    def _recompute(self, entry: Entry, split: str, metric: str, stated: float) -> None:
        if entry.kind != "finetune" or metric == "loss":
            return  # needs probabilities, which are not kept: the record is the bytes
        found = self.case.predictions(entry)[split]
        again = recomputed(metric, found.target, found.prediction)
        if again is None or not math.isclose(again, stated, rel_tol=0.0, abs_tol=TOLERANCE):
            raise BrokenError(f"{entry.at(RECORD)} has {stated}, its predictions give {again}")

    def _difference(self, parts: Sequence[str]) -> list[Value]:
        tier, task, *names, metric = parts
        sides = [
            self._scores(self._by_cell[tier, task, *names[k : k + 2], "finetune"], "test", metric, "value")
            for k in (0, 2)
        ]
        shared = sorted(sides[0].keys() & sides[1].keys())
        return _mean([sides[0][seed] - sides[1][seed] for seed in shared])

    def _sum(self, column: str, chosen: Mapping[str, str]) -> Value:
        """Each run once, whatever number of rows it has."""
        runs = {
            tuple(row[name] for name in (*CELL, "phase")): row for row in self._table("results") if _agrees(row, chosen)
        }
        values = [row[column] if row["value"] is None else self._from_bytes(row, column) for row in runs.values()]
        return math.fsum(value for value in values if value is not None)

    def _cell(self, parts: Sequence[str]) -> list[Value]:
        """A row of cells.parquet: runs, mean, interval and onsets follow from the records and curves of its runs."""
        *key, columns = parts
        row = self._row("cells", cells.KEY, key)
        of = dict(zip(cells.KEY, key, strict=True))
        runs = [r for r in self._by_cell[(*key[:4], "finetune")] if all(r[name] == of[name] for name in of)]
        done = [r for r in runs if r["state"] == "done" and r["primary"]]
        scores = {r["seed"]: float(self._from_bytes(r, "value") or 0.0) for r in done if r["split"] == "test"}
        figures = mean([scores[seed] for seed in sorted(scores)]) if scores else [None, None, None, 0]
        onsets = json.loads(row["onsets"])
        for r in done:
            if r["split"] == "validation" and str(r["seed"]) in onsets and not r["degenerate"]:
                curve = self._curve(r)["validation", r["metric"]]
                first = next((step for step, value in curve.items() if value > row["threshold"]), None)
                _agree(row, f"onset of seed {r['seed']}", onsets[str(r["seed"])], first)
        learned = [step is not None for step in onsets.values()]
        share = stats.binomtest(sum(learned), len(learned)).proportion_ci(method="exact") if learned else None
        again = dict(zip(("mean", "interval_low", "interval_high", "n"), figures, strict=True))
        again |= {"runs": len({r["seed"] for r in runs}), "learned": sum(learned) / len(learned) if learned else None}
        again |= {"learned_low": share.low, "learned_high": share.high} if share else {}
        for name, value in again.items():
            _agree(row, name, row[name], value)
        return [_as_number(row[column]) for column in columns.split(",")]

    def _row(self, table: str, names: Sequence[str], key: Sequence[str]) -> Mapping[str, Any]:
        """The row of a report with this key."""
        if (table, *names) not in self._indexed:
            index: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
            for row in self._table(table):
                index[tuple(row[name] for name in names)].append(row)
            self._indexed[table, *names] = index
        rows = self._indexed[table, *names].get(tuple(key), [])
        if len(rows) != 1:
            raise BrokenError(f"{len(rows)} rows of {table}.parquet have it")
        return rows[0]

    def _table(self, name: str) -> list[dict[str, Any]]:
        """The rows of a report."""
        path = self.case.root / "reports" / f"{name}.parquet"
        if path not in self._tables:
            self._tables[path] = pq.read_table(path).to_pylist()
        return self._tables[path]

    # ------------------------------------------------------------ verdicts and claims

    def _verdict(self, parts: Sequence[str]) -> list[Value]:
        """A row of verdicts.parquet: its estimate is what the scores, observations or readings behind it give."""
        name, quantity, tier, columns = parts
        row = self._row("verdicts", ("claim", "quantity", "tier"), (name, quantity, tier))
        key = (name, quantity, tier)
        if key not in self._estimated:
            if row["n"] or row["estimate"] is not None:
                claim = self._papers[name]
                of = [each for each in claim.quantities if quantity in ("", each.name)]
                if len(of) == 1:  # a headline of several has no number of its own
                    _agree_in_one(row, self._estimates(claim, of[0], row))
            self._estimated.add(key)
        return [_as_number(row[column]) for column in columns.split(",")]

    def _estimates(self, claim: Any, quantity: Any, row: Mapping[str, Any]) -> list[list[Value]]:
        """What may stand for a quantity: an estimate for each comparison, or for each record of a measurement."""
        if isinstance(claim, claims.Conflict):
            readings = list(claim.readings[quantity.name].values())
            numbers = [value for value in readings if not isinstance(value, str)]
            return [[max(numbers) - min(numbers) if numbers else None, None, None, len(readings)]]
        if isinstance(claim, claims.Measured):
            found = [self._observed(folder, claim.id, quantity.name) for folder in row["record"].split("; ")]
            n = min(len(values) for values in found)
            if claim.kind != "efficiency":
                return [[values[0], None, None, n] for values in found]
            return [[*repeated(values, claim.unit)[:3], n] for values in found]
        first, *others = (
            over([self._sample(row["tier"], cell, claim.split, quantity.metric) for cell in group])
            for group in (quantity.cells, *quantity.against)
        )
        return candidates(first, others, claim.unit)

    def _sample(self, tier: str, cell: Any, split: str, metric: str | None, matched: str | None = None) -> Scores:
        """Seed -> score of a cell, the primary metric if none is named; each is walked to its bytes."""
        rows = [
            row
            for row in self._by_cell[tier, cell.task, cell.backbone, cell.protocol, "finetune"]
            if matched is None or row["matched"] in (None, matched)
        ]
        primary = next((row["metric"] for row in rows if row["primary"]), "")
        return self._scores(rows, split, metric or primary, "value")

    def _observed(self, folder: str, claim: str, quantity: str) -> list[float]:
        """The values of an observation, from a file that is what its record states."""
        for entry in self.case.in_place("bench"):
            if entry.folder == self.case.root / RECORDS / folder:
                self._trust(entry)
                if OBSERVATIONS in entry.record["artifacts"]:
                    for each in json.loads((entry.folder / OBSERVATIONS).read_bytes()):
                        if (each["claim"], each["quantity"]) == (claim, quantity):
                            return list(each["values"])
        raise BrokenError(f"no record in {RECORDS}/{folder} observed {claim}/{quantity}")

    def _compute(self, parts: Sequence[str]) -> list[Value]:
        """A row of compute.parquet: the difference, and what both sides spent, from the records of their runs."""
        name, quantity, tier, way, columns = parts
        row = self._row("compute", ("claim", "quantity", "tier", "way"), (name, quantity, tier, way))
        key = (name, quantity, tier, way)
        if key not in self._estimated:
            claim, (protocol, matched) = self._papers[name], compute.WAYS[way]
            of = next(each for each in claim.quantities if each.name == quantity)
            scratch = [group for group in of.against if not group[0].protocol.startswith(compute.PRETRAINED)]
            sides = [[replace(cell, protocol=protocol) for cell in group] for group in scratch or [of.cells]]
            if row["estimate"] is not None:
                first, *others = (
                    over([self._sample(tier, cell, claim.split, of.metric, matched or "") for cell in group])
                    for group in (of.cells, *sides)
                )
                _agree_in_one(row, candidates(first, others, row["unit"]))
            own, other = (
                [self._spent(tier, cell, matched) for cell in group]
                for group in (of.cells, [cell for side in sides for cell in side])
            )
            for k, column in enumerate(compute.COUNTS):
                if row[f"{column}_ratio"] is not None:
                    mine, theirs = (math.fsum(cost[k] for cost in costs) / len(costs) for costs in (own, other))
                    _agree(row, column, row[column], mine)
                    _agree(row, f"{column}_ratio", row[f"{column}_ratio"], theirs / mine)
            self._estimated.add(key)
        return [_as_number(row[column]) for column in columns.split(",")]

    def _spent(self, tier: str, cell: Any, matched: str | None) -> tuple[float, ...]:
        """Steps and operations of a cell's runs, both phases, as their records count them: means over seeds."""
        runs = {
            (row["seed"], phase): row
            for phase in ("pretrain", "finetune")
            for row in self._by_cell[tier, cell.task, cell.backbone, cell.protocol, phase]
            if row["matched"] in (None, matched) and row["steps"] is not None and row["flops"] is not None
        }
        seeds = {seed for seed, phase in runs if phase == "finetune"}
        return tuple(
            math.fsum(float(self._from_bytes(row, column) or 0.0) for row in runs.values()) / len(seeds)
            for column in compute.COUNTS
        )

    @cached_property
    def _papers(self) -> dict[str, Any]:
        return {claim.id: claim for paper in claims.load(self.case.root / "claims") for claim in paper.claims}

    @cached_property
    def statements(self) -> frozenset[str]:
        """What the claims say, in words."""
        return frozenset(claim.statement for claim in self._papers.values())

    def _claim(self, name: str) -> Any:
        """A claim as its file has it, defaults included."""
        return self._papers[name].model_dump(mode="json")

    def _ledger(self, parts: Sequence[str]) -> list[Value]:
        name, quantity = parts
        found = [each for each in self._papers[name].quantities if each.name == quantity]
        if len(found) != 1:
            raise BrokenError(f"{len(found)} quantities of the claim have that name")
        return [found[0].low, found[0].high]

    # ------------------------------------------------------------ records, curves, measurements

    def _point(self, parts: Sequence[str]) -> Value:
        *group, seed, phase, step, split, metric = parts
        for row in self._by_cell[(*group, phase)]:
            if str(row["seed"]) == seed:
                return self._curve(row)[split, metric][int(step)]
        raise BrokenError("no row of results.parquet has the run")

    def _curve(self, row: Mapping[str, Any]) -> Any:
        """The curve of a run, from a file that is what its record states."""
        path = self._entry(row).folder / CURVES
        if path not in self._curves:
            self._curves[path] = read_curve(path)
        return self._curves[path]

    def _inside(self, source: str, folder: str, steps: Sequence[str]) -> Value:
        """A place in the JSON files of the folders; several are added up."""
        name = RECORD if source == "record" else PROVENANCE
        folders = sorted(self.case.root.glob(folder)) if "*" in folder else [self.case.root / folder]
        known = {entry.folder: entry for entry in self.case.entries}
        found = []
        for place in folders:
            if place not in known:
                if "*" in folder:
                    continue
                raise BrokenError(f"{folder} has no record")
            self._trust(known[place])
            if name == RECORD:
                content = known[place].record
            elif (place / name).is_file():
                content = json.loads((place / name).read_bytes())
            else:
                continue
            try:
                found += list(_pointed(content, steps))
            except (KeyError, IndexError, TypeError):
                if "*" not in folder:
                    raise
        if not found:
            raise BrokenError(f"nothing has {'/'.join(steps)}")
        if "*" not in folder and "*" not in steps:
            return _as_number(found[0])
        return math.fsum(value for value in map(_as_number, found) if value is not None)

    def _bench(self, name: str, file: str, rows: str, columns: str) -> list[Value]:
        folder = self.case.root / RECORDS / name
        entries = [entry for entry in self.case.in_place("bench") if entry.folder == folder]
        if not entries or file not in entries[0].record["artifacts"]:
            raise BrokenError(f"no record in {RECORDS}/{name} lists {file}")
        self._trust(entries[0])
        path = folder / file
        if path not in self._tables:
            parquet = file.endswith(".parquet")
            self._tables[path] = pq.read_table(path).to_pylist() if parquet else json.loads(path.read_bytes())
        table = self._tables[path]
        taken, names = [table[int(row)] for row in rows.split(",")], columns.split(",")
        if len(taken) == 1:
            return [_ratio(taken[0], column) for column in names]
        x, y = (np.array([float(_ratio(row, column) or 0) for row in taken]) for column in names)
        kept = (x > 0) & (y > 0) & np.isfinite(y)
        return [float(stats.linregress(np.log(x[kept]), np.log(y[kept])).slope)]

    # ------------------------------------------------------------ counts

    def _counted(self, table: str) -> Iterable[Mapping[str, Any]]:
        if table in ("verdicts", "flags"):
            return self._table(table)
        if table == "sources":
            return [entry.record for entry in self.case.in_place("raw")]
        if table == "cells":
            return self._cells
        raise BrokenError(f"no table {table!r} is counted")

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        """One row per run of view and records: the worst state of its phases, and the first reason of that state."""
        phases: dict[tuple[Any, ...], dict[str, dict[str, Entry]]] = defaultdict(lambda: defaultdict(dict))
        for entry in self.case.in_place("runs", "published"):
            if entry.record["cell"] is not None and entry.kind in ("pretrain", "finetune"):
                phases[entry.cell][entry.place][entry.kind] = entry
        rows = []
        for cell, places in phases.items():
            view = places["runs"]
            blocked = not view or _worst(view.values())[0] == "blocked"
            shown = places["published"] if blocked and places["published"] else view
            state, reason = _worst([shown[kind] for kind in ("pretrain", "finetune") if kind in shown])
            rows.append(dict(zip(CELL, cell, strict=True)) | {"state": state, "reason": reason})
        return rows


def _worst(entries: Iterable[Entry]) -> tuple[str, str]:
    records = [entry.record for entry in entries]
    state = min((record["state"] for record in records), key=STATES.index)
    return state, next((record["reason"] for record in records if record["state"] == state and record["reason"]), "")


def _agree(row: Mapping[str, Any], name: str, shown: Value, found: Value) -> None:
    if not close(shown, found):
        raise BrokenError(f"its {name} is {shown}, the runs of {row['tier']} give {found}")


def _agree_in_one(row: Mapping[str, Any], found: Sequence[Sequence[Value]]) -> None:
    shown = [row[name] for name in ESTIMATE]
    if not any(all(map(close, shown, each)) for each in found):
        raise BrokenError(f"its estimate is {shown}, what it was made from gives {found}")


def _mean(values: Sequence[float]) -> list[Value]:
    if not values:
        raise BrokenError("no run has it")
    return mean(values)


def _ratio(row: Mapping[str, Any], column: str) -> Value:
    first, _, second = column.partition(":")
    return row[first] / row[second] if second else _as_number(row[first])


def _agrees(row: Mapping[str, Any], chosen: Mapping[str, str]) -> bool:
    return all(str(row[column]) in value.split("|") or str(row[column]) == value for column, value in chosen.items())


def _pointed(content: Any, steps: Sequence[str]) -> Iterator[Any]:
    """What a JSON pointer leads to; a * leads to every member."""
    if not steps:
        yield content
    elif steps[0] == "*":
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _pointed(inner, steps[1:])
    else:
        yield from _pointed(content[steps[0] if isinstance(content, dict) else int(steps[0])], steps[1:])


def _as_number(value: Any) -> Value:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise BrokenError(f"{value!r} is no number")
