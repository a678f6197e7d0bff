"""Redo: the runs behind one number, built again from nothing in a scratch store and compared with what is kept.

Sources are taken from the store once their bytes are hashed; data are prepared anew, models trained anew. A run is
`equal` when its record is the same bytes (which covers weights, predictions and curves by their sha256), `within
tolerance` when its test score differs by no more than its own standard error over the examples, else `different`.
Bit-equality is promised on the same device with the same libraries.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from noscratch.errors import NoscratchError
from noscratch.plan import Job, Plan, plans_of_all_tiers
from noscratch.results.published import RECORDS
from noscratch.stages import run_job
from noscratch.store import RECORD, SUMS, Store, link_or_copy, read_provenance, read_record, sha256_of, verify

ADDRESS = re.compile(r"[0-9a-f]{12}")
SEED = re.compile(r"(?:seed)?(\d+)")
FORMS = (
    "A cell is TIER/TASK/BACKBONE/PROTOCOL, with /SEED for one run of it; or the address of a run (12 hex digits); or "
    "the address of a number (`data-cell` on a page): results/..., difference/... or verdicts/..."
)
MACHINE = ("device", "processor", "python", "platform")


class RedoError(NoscratchError):
    """A number that cannot be built again here."""


@dataclass(frozen=True)
class Redone:
    """One run built again: its cell, the primary test metric, the kept and the new score, how many examples."""

    cell: str
    metric: str
    kept: float
    again: float
    examples: int
    equal: bool
    """To the last bit, as far as it was kept: the record, or, where only metrics.json is here, the score."""
    differences: Sequence[str]
    """What of its files and environment differs."""

    @property
    def tolerance(self) -> float:
        """The standard error of the score over its examples: binomial, or that of a correlation."""
        if self.metric in ("accuracy", "f1"):
            return math.sqrt(max(self.kept * (1 - self.kept), 1 / self.examples) / self.examples)
        return (1 - self.kept**2) / math.sqrt(max(self.examples - 1, 1))

    @property
    def outcome(self) -> str:
        """ "equal", "within tolerance" or "different"."""
        if self.equal:
            return "equal"
        return "within tolerance" if abs(self.again - self.kept) <= self.tolerance else "different"


def redo(root: Path, name: str, scratch: Path, progress: bool = False) -> Iterator[Redone]:
    """Build the runs behind `name` (see FORMS) again in the folder `scratch`, and compare each with what is kept.

    Raises RedoError for a name that leads to no finished run, and for published runs of earlier code, with the commit
    to check out.
    """
    plans = _plans(root)
    wanted = list(_wanted(root, plans, name))
    if not wanted:
        raise RedoError(f"{name}: no finished run is behind it. {FORMS}")
    store, again = Store(root), Store(scratch)
    _share(store, again)
    for plan, job in wanted:
        yield _redone(store, again, plan, job, progress)


def _plans(root: Path) -> list[Plan]:
    from noscratch.params import load

    return plans_of_all_tiers(load(root))


def _wanted(root: Path, plans: Sequence[Plan], name: str) -> Iterator[tuple[Plan, Job]]:
    """The jobs behind a name, each with its tier's plan."""
    cells = set(_cells(root, name))
    found = set()
    for plan in plans:
        for job in plan.of("finetune"):
            if job.cell is None:
                continue
            cell = (job.cell.tier, job.cell.task, job.cell.backbone, job.cell.protocol, job.cell.seed)
            if job.address == name or cell in cells or (*cell[:-1], None) in cells:
                if _kept(root, job) is None:
                    continue
                found.add(cell)
                yield plan, job
    for folder in sorted((root / RECORDS / "runs").rglob(RECORD)):
        record = read_record(folder.parent)
        cell = (*(record["cell"][key] for key in ("tier", "task", "backbone", "protocol")), record["cell"]["seed"])
        asked = cell in cells or (*cell[:-1], None) in cells or record["address"] == name
        if asked and cell not in found and record["kind"] == "finetune":
            commit = read_provenance(folder.parent).get("commit")
            raise RedoError(
                f"{'/'.join(map(str, cell))}: published run {record['address']} is of earlier settings or code, made "
                f"at commit {commit}. Build it there: `git worktree add ../noscratch-then {commit}`, then in that "
                f"folder `noscratch redo {'/'.join(map(str, cell[:-1]))}`."
            )


def _cells(root: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """(tier, task, backbone, protocol, seed or None for all) of everything behind a name."""
    if ADDRESS.fullmatch(name):
        return
    parts = [unquote(part) for part in name.strip("/").split("/")]
    if parts[0] == "results" and len(parts) > 5:
        parts = parts[1:6]
    elif parts[0] == "difference" and len(parts) == 8:
        yield (*parts[1:3], *parts[3:5], None)
        yield (*parts[1:3], *parts[5:7], None)
        return
    elif parts[0] == "verdicts" and len(parts) >= 4:
        yield from _of_verdict(root, *parts[1:4])
        return
    if len(parts) == 4 or (len(parts) == 5 and parts[4] == "*"):
        yield (*parts[:4], None)
    elif len(parts) == 5 and (seed := SEED.fullmatch(parts[4])):
        yield (*parts[:4], int(seed[1]))
    else:
        raise RedoError(f"{name}: this names no cell. {FORMS}")


def _of_verdict(root: Path, claim: str, quantity: str, tier: str) -> Iterator[tuple[Any, ...]]:
    for row in pq.read_table(root / "reports" / "verdicts.parquet").to_pylist():
        if (row["claim"], row["quantity"], row["tier"]) == (claim, quantity, tier):
            for cell in json.loads(row["cells"]):
                yield (tier, *cell.split("/"), None)


# ---------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class _Kept:
    """A score that is kept, and the record that has it (None: only reports/metrics.json is here)."""

    metric: str
    value: float
    record: Path | None


def _kept(root: Path, job: Job) -> _Kept | None:
    """What is kept of a run: in the store, the view, the published records, or the summary in git."""
    assert job.cell is not None
    store = Store(root)
    for folder in (store.path(job), store.data / "runs" / job.view, root / RECORDS / "runs" / job.view):
        if (folder / RECORD).is_file():
            record = read_record(folder)
            if record["address"] == job.address and record["state"] == "done":
                metric = record["result"]["primary"]
                return _Kept(metric, record["result"]["metrics"]["test"][metric], folder)
    summary: Any = {}
    path = root / "reports" / "metrics.json"
    # Where an earlier run of the cell is published, the summary may have the score of that one.
    if path.is_file() and not (root / RECORDS / "runs" / job.view / RECORD).is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
    for key in (job.cell.tier, job.cell.task, job.cell.backbone, job.cell.protocol):
        summary = summary.get(key, {})
    value = summary.get("seeds", {}).get(str(job.cell.seed))
    metric = next((name for name in summary if name not in ("n", "seeds")), None)
    return None if value is None or metric is None else _Kept(metric, value, None)


def _share(store: Store, again: Store) -> None:
    """What is not built again: the self-test of this device, downloads, and what was found out about sources."""
    again.data.mkdir(parents=True, exist_ok=True)
    for name in ("passports", "downloads"):
        if (store.data / name).is_dir() and not (again.data / name).exists():
            (again.data / name).symlink_to((store.data / name).resolve())
    (again.root / "reports").mkdir(exist_ok=True)


def _redone(store: Store, again: Store, plan: Plan, job: Job, progress: bool) -> Redone:
    kept = _kept(store.root, job)
    assert kept is not None
    assert job.cell is not None
    for need in plan.with_needs(job):
        if need.kind == "fetch" and store.has(need) and not again.has(need):
            _adopt(store, again, need)
        run_job(again, plan, need, progress=progress)
    new = again.path(job)
    record = read_record(new)
    name = "/".join([job.cell.tier, job.cell.task, job.cell.backbone, job.cell.protocol, f"seed{job.cell.seed}"])
    if record["state"] != "done":
        return Redone(name, kept.metric, kept.value, math.nan, 1, False, [f"it {record['state']}: {record['reason']}"])
    value, examples = record["result"]["metrics"]["test"][kept.metric], record["result"]["examples"]["test"]
    if kept.record is None:
        return Redone(name, kept.metric, kept.value, value, examples, value == kept.value, [])
    equal = sha256_of(kept.record / RECORD) == sha256_of(new / RECORD)
    differences = [] if equal else [*_files(kept.record, new), *_environment(store, kept.record, new)]
    return Redone(name, kept.metric, kept.value, value, examples, equal, differences)


def _adopt(store: Store, again: Store, job: Job) -> None:
    """Take a source over, its bytes hashed first."""
    source = store.path(job)
    verify(source, read_record(source))
    with again.building(job) as place:
        for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name != SUMS):
            target = place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)


def _files(kept: Path, new: Path) -> list[str]:
    """Which artifacts differ, and whether what they were made from does."""
    before, after = read_record(kept), read_record(new)
    names = sorted(before["artifacts"].keys() | after["artifacts"].keys())
    found = [name for name in names if before["artifacts"].get(name) != after["artifacts"].get(name)]
    roles = [role for role in sorted(after["inputs"]) if before["inputs"].get(role) != after["inputs"][role]]
    return [*found, *(f"its input {role}" for role in roles)]


def _environment(store: Store, kept: Path, new: Path) -> list[str]:
    """What differs in device and libraries, as far as the provenance of the kept run is here."""
    before = read_provenance(kept) or read_provenance(store.folder / str(read_record(kept)["name"]))
    after = read_provenance(new)
    if not before:
        return []
    sides = [{key: about.get(key) for key in MACHINE} | about.get("libraries", {}) for about in (before, after)]
    names = sorted(sides[0].keys() | sides[1].keys())
    return [f"{n}: {sides[0].get(n)}, now {sides[1].get(n)}" for n in names if sides[0].get(n) != sides[1].get(n)]
