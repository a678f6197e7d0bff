"""What the pages show, read once: reports, records, measurements and claims.

Pages take every number from here. A number of results.parquet that its record does not hold, or that has no record,
is an error: nothing is published that cannot be followed to bytes on disk.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from noscratch.errors import NoscratchError
from noscratch.results import claims, observations, parquet_table, published, statistics
from noscratch.results.collect import PUBLISHED
from noscratch.results.pages.markup import slug
from noscratch.results.pages.numbers import at

PHASES = ("pretrain", "finetune")
PROVENANCE = "provenance.json"
HISTORY = Path("reports", "verdicts.jsonl")
PLACE = "place"
# From worst to best: a run is as good as its worst phase.
STATES = ("failed", "diverged", "blocked", "done")

Group = tuple[str, str, str, str]
Curve = Sequence[tuple[int, str, str, float]]


class PublishError(NoscratchError):
    """Reports, records and claims that do not fit together."""


@dataclass(frozen=True)
class Measurement:
    """A measurement committed below reports/records: its record, what its provenance says, its files' bytes."""

    folder: str
    record: Mapping[str, Any]
    provenance: Mapping[str, Any]
    files: Mapping[str, bytes]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of its tables (Parquet, or JSON lists of objects where there is no Parquet), each with its PLACE."""
        tables = {n: parquet_table(c).to_pylist() for n, c in self.files.items() if n.endswith(".parquet")}
        tables = tables or {name: json.loads(content) for name, content in self.files.items() if name.endswith(".json")}
        return [row | {PLACE: (name, k)} for name, rows in tables.items() for k, row in enumerate(rows)]

    def at(self, row: Mapping[str, Any], column: str) -> str:
        """The address of a number in one of its rows."""
        return at("bench", self.folder.rpartition("/")[2], *row[PLACE], column)

    def exponent_at(self, rows: Sequence[Mapping[str, Any]], x: str, y: str) -> str:
        """The address of the exponent that the rows' column y follows in column x."""
        every = ",".join(str(row[PLACE][1]) for row in rows)
        return at("bench", self.folder.rpartition("/")[2], rows[0][PLACE][0], every, f"{x},{y}")


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid: what it is named by everywhere."""

    tier: str
    task: str
    backbone: str
    protocol: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.tier} {self.task} {self.backbone} {self.protocol} seed {self.seed}"

    @property
    def page(self) -> str:
        """The page of its group, at the place of its seed."""
        return f"runs/{slug('-'.join(self.group))}.html#seed-{self.seed}"

    @property
    def facets(self) -> dict[str, list[str]]:
        """What a table of runs is filtered by."""
        return {"tier": [self.tier], "task": [self.task], "backbone": [self.backbone], "protocol": [self.protocol]}

    @property
    def group(self) -> Group:
        return (self.tier, self.task, self.backbone, self.protocol)


@dataclass(frozen=True)
class Run:
    """A cell's records by phase and their sha256; its folder is relative to `root`.

    A published run has its provenance too; that of the others differs each time and enters no page.
    """

    cell: Cell
    root: Path
    folder: str
    records: Mapping[str, Mapping[str, Any]]
    digests: Mapping[str, str]
    provenance: Mapping[str, Mapping[str, Any]]

    def curve(self, phase: str) -> Curve:
        """(step, split, metric, value) in file order, read anew: the curves of thousands of runs fill a gigabyte."""
        if self.records[phase]["state"] != "done":
            return []
        with (self.root / self.folder / phase / "curves.csv").open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            return [(int(row["step"]), row["split"], row["metric"], float(row["value"])) for row in rows]

    @property
    def state(self) -> str:
        return min((str(record["state"]) for record in self.records.values()), key=STATES.index)

    @property
    def reason(self) -> str:
        """Why it is not done: the first reason among the phases in that state."""
        return next((str(r["reason"]) for r in self.records.values() if r["state"] == self.state and r["reason"]), "")


@dataclass(frozen=True)
class Summary:
    """A mean over `n` seeds and its 95 % t interval; one seed has none."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Score:
    """What one run scored on test: the row of results.parquet behind a number."""

    cell: Cell
    metric: str
    value: float
    examples: int


class Evidence:
    """Everything under `root` that the site shows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.papers = claims.load(root / "claims")
        self.results = _rows(root / "reports" / "results.parquet")
        self.verdicts = _rows(root / "reports" / "verdicts.parquet")
        self.cells = _rows(root / "reports" / "cells.parquet")
        self.flags = _rows(root / "reports" / "flags.parquet")
        self.compute = _rows(root / "reports" / "compute.parquet")
        self.runs = self._runs()
        self.tasks = _records(root / "data" / "prepared")
        self.sources = _records(root / "data" / "raw")
        self.measurements = {
            path.parent.name: _measurement(path, root)
            for path in sorted((root / "reports" / "records").glob("*/record.json"))
        }
        self._check_results()

    def _runs(self) -> dict[Cell, Run]:
        """The runs of the present plan, and the published ones that results.parquet takes beside them (see collect)."""
        runs = {run.cell: run for run in map(self._run, _run_folders(self.root / "data" / "runs"))}
        published = map(self._run, _run_folders(self.root / "reports" / PUBLISHED))
        finished = {cell for cell, run in runs.items() if run.state != "blocked"}
        return runs | {run.cell: run for run in published if run.cell not in finished}

    def _run(self, folder: Path) -> Run:
        records, digests, provenance = {}, {}, {}
        published = folder.is_relative_to(self.root / "reports")
        for phase in PHASES:
            path = folder / phase / "record.json"
            if path.exists():
                content = path.read_bytes()
                records[phase] = json.loads(content)
                digests[phase] = sha256(content).hexdigest()
                if published:
                    provenance[phase] = json.loads((folder / phase / PROVENANCE).read_bytes())
        return Run(
            Cell(**next(iter(records.values()))["cell"]),
            self.root,
            folder.relative_to(self.root).as_posix(),
            records,
            digests,
            provenance,
        )

    def _check_results(self) -> None:
        """Every number is in the record that its row names, to the last digit."""
        for row in self.results:
            if row["value"] is None:
                continue
            cell = cell_of(row)
            run = self.runs.get(cell)
            record = run.records.get(row["phase"]) if run else None
            if record is None:
                raise PublishError(
                    f"every published number has a record, but {cell.name} ({row['phase']}) has none under data/runs "
                    "or reports/records/runs: run `dvc repro`, or `noscratch sync` after `dvc pull`"
                )
            held = (record["result"] or {}).get("metrics", {}).get(row["split"], {}).get(row["metric"])
            if record["address"] != row["address"] or held != row["value"]:
                raise PublishError(
                    f"results.parquet and the record of {cell.name} ({row['phase']}) differ: "
                    f"{row['split']} {row['metric']} is {row['value']} at {row['address']} in the one, "
                    f"{held} at {record['address']} in the other: run `dvc repro collect`"
                )

    @cached_property
    def trials(self) -> list[tuple[str, Mapping[str, Any], bool]]:
        """The published search for learning rates: folder and record of each trial, and whether it was chosen."""
        best = {trial.address for trial in published.chosen(published.trials(self.root)).values()}
        paths = sorted((self.root / published.RECORDS / "tuning").rglob("record.json"))
        records = [(path.parent.relative_to(self.root).as_posix(), json.loads(path.read_bytes())) for path in paths]
        return [(folder, record, record["address"] in best) for folder, record in records]

    @cached_property
    def observations(self) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
        """What was counted or measured for a claim: (folder of the record, entry of its observations.json)."""
        found: dict[str, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
        for measured in self.measurements.values():
            for entry in json.loads(measured.files.get(observations.FILE, b"[]")):
                found[entry["claim"]].append((measured.folder, entry))
        return found

    @cached_property
    def scores(self) -> dict[Group, list[Score]]:
        """Primary test scores of finished runs, one per seed, by (tier, task, backbone, protocol).

        Where the runs of a cell differ in more than their seed, those that `judge` takes: of the present plan, or where
        there are none the most numerous.
        """
        found: dict[Group, dict[tuple[str, str], list[Score]]] = defaultdict(lambda: defaultdict(list))
        seeds: dict[tuple[Group, tuple[str, str]], set[int]] = defaultdict(set)
        for row in self.results:
            if row["phase"] != "finetune":
                continue
            cell, setting = cell_of(row), (row["code"], row["setting"])
            scores = found[cell.group][setting]
            seeds[cell.group, setting].add(cell.seed)
            if row["primary"] and row["split"] == "test" and row["value"] is not None:
                scores.append(Score(cell, row["metric"], row["value"], row["examples"]))
        taken = {
            group: of[max(of, key=lambda key: (key[0] == "current", len(seeds[group, key]), key))]
            for group, of in sorted(found.items())
        }
        return {group: sorted(scores, key=lambda score: score.cell) for group, scores in taken.items() if scores}

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Every change of a verdict, the oldest first; empty where none was ever published."""
        path = self.root / HISTORY
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    @cached_property
    def groups(self) -> list[Group]:
        """Every (tier, task, backbone, protocol) that was planned or published, the strongest tier first."""
        every = {cell.group for cell in self.runs} | {cell_of(row).group for row in self.results}
        return sorted(every, key=lambda group: (-_strength(group[0]), group))

    @cached_property
    def _by_group(self) -> dict[Group, list[dict[str, Any]]]:
        rows = defaultdict(list)
        for row in self.results:
            rows[cell_of(row).group].append(row)
        return rows

    def rows_of(self, group: Group) -> list[dict[str, Any]]:
        """The rows of results.parquet of a group's runs, both phases."""
        return self._by_group.get(group, [])

    def runs_of(self, group: Group) -> list[Run]:
        return self._runs_by_group.get(group, [])

    @cached_property
    def _runs_by_group(self) -> dict[Group, list[Run]]:
        found = defaultdict(list)
        for cell, run in sorted(self.runs.items()):
            found[cell.group].append(run)
        return found

    @cached_property
    def task_names(self) -> list[str]:
        return sorted(self.tasks.keys() | {group[1] for group in self.groups})

    @cached_property
    def backbones(self) -> list[str]:
        tried = {record["cell"]["backbone"] for _, record, _ in self.trials}
        return sorted({group[2] for group in self.groups} | tried)

    @cached_property
    def tiers(self) -> list[str]:
        return list(dict.fromkeys(group[0] for group in self.groups))


def summarize(scores: Sequence[Score]) -> Summary:
    """The mean over seeds."""
    values = [score.value for score in scores]
    if len(values) == 1:
        return Summary(values[0], None, None, 1)
    return _summary(statistics.mean(values))


def gain(scores: Sequence[Score], over: Sequence[Score]) -> Summary | None:
    """The mean difference over the seeds that both have; None where they share none."""
    first, second = ({score.cell.seed: score.value for score in side} for side in (scores, over))
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    if len(shared) == 1:
        return Summary(first[shared[0]] - second[shared[0]], None, None, 1)
    return _summary(statistics.paired([first[seed] for seed in shared], [second[seed] for seed in shared]))


def _summary(estimate: statistics.Estimate) -> Summary:
    return Summary(estimate.value, *statistics.interval(estimate), estimate.n)


def _run_folders(root: Path) -> list[Path]:
    """Folders of cells; what tuning left beside them is no result."""
    found = root.glob("*/*/*/*/seed*/*/record.json")
    return sorted({path.parent.parent for path in found if path.parent.name in PHASES})


def _strength(tier: str) -> int:
    order: tuple[str, ...] = claims.TIERS
    return order.index(tier)


def cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(row["tier"], row["task"], row["backbone"], row["protocol"], int(row["seed"]))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise PublishError(
            f"the site needs {path.parent.name}/{path.name}, which is not there: run `dvc repro collect judge`"
        )
    return list(pq.read_table(path).to_pylist())


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """record.json of every folder below `folder`, by the folder's name."""
    return {path.parent.name: json.loads(path.read_bytes()) for path in sorted(folder.glob("*/record.json"))}


def _measurement(path: Path, root: Path) -> Measurement:
    """A record with the files that it lists, each verified."""
    folder, record = path.parent, json.loads(path.read_bytes())
    files = {}
    for name, listed in sorted(record["artifacts"].items()):
        file = folder / name
        if not file.is_file() or sha256(file.read_bytes()).hexdigest() != listed["sha256"]:
            raise PublishError(
                f"a measurement's files are those of its record, but {file.relative_to(root).as_posix()} "
                f"{'has another sha256' if file.is_file() else 'is not there'}: take back the committed folder, "
                "or measure again"
            )
        files[name] = file.read_bytes()
    # What was counted is the same on every machine and has none.
    provenance = json.loads((folder / PROVENANCE).read_bytes()) if (folder / PROVENANCE).is_file() else {}
    return Measurement(folder.relative_to(root).as_posix(), record, provenance, files)
