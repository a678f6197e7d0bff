"""Published records: finished runs of the mini and paper tiers, copied into git so that a fresh clone shows them.

    reports/records/runs/<tier>/<task>/<backbone>/<protocol>/seed<k>/<phase>/    results, read by collect.py
    reports/records/tuning/<tier>/<task>/<backbone>/scratch/seed<k>/trial<i>/    the search before the runs

Each folder holds what the store has of the run but its weights. Failed and diverged runs are published like the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from noscratch.errors import NoscratchError
from noscratch.plan import VIEWS, Plan
from noscratch.store import PROVENANCE, RECORD, Store, read_record, verify

RECORDS = Path("reports/records")
KEPT = ("curves.csv", "predictions.parquet")


def publish_records(store: Store, plan: Plan) -> list[Path]:
    """Copy every finished run of the plan that is not published yet; returns the new folders, relative to the checkout.

    A run at a place that an earlier one holds takes it over: git keeps the earlier one. Raises NoscratchError for the
    smoke tier, and for a run whose artifacts are not those of its record.
    """
    if plan.params.run.tier == "smoke":
        raise NoscratchError(
            "Published records are evidence, and runs of the smoke tier are none. Set run.tier in params.yaml to mini "
            "or paper."
        )
    new = []
    for job in plan.of(*VIEWS["runs"]):
        if not store.has(job):
            continue
        source = store.path(job)
        place = RECORDS / ("tuning" if job.kind == "tuning" else "runs") / job.view
        target = store.root / place
        if (target / RECORD).is_file() and (target / RECORD).read_bytes() == (source / RECORD).read_bytes():
            continue
        verify(source, read_record(source))
        temporary = target.with_name(f".tmp-{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name in (RECORD, PROVENANCE, *KEPT):
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        new.append(place)
    return new


@dataclass(frozen=True)
class Trial:
    """One pair of the search, and what it reached on the validation set."""

    tier: str
    task: str
    backbone: str
    lr: float
    weight_decay: float
    state: str
    metric: str
    value: float
    """Of the primary metric at the selected step; minus infinity for a run that did not finish."""
    address: str


def trials(root: Path) -> list[Trial]:
    """Every published trial, in the order of tier, task, backbone and trial."""
    return list(_trials(root / RECORDS / "tuning"))


def _trials(folder: Path) -> Iterator[Trial]:
    for path in sorted(folder.rglob(RECORD)):
        record = json.loads(path.read_text(encoding="utf-8"))
        done, cell, train = record["state"] == "done", record["cell"], record["settings"]["train"]
        yield Trial(
            tier=cell["tier"],
            task=cell["task"],
            backbone=cell["backbone"],
            lr=train["lr"],
            weight_decay=train["weight_decay"],
            state=record["state"],
            metric=record["result"]["primary"] if done else "",
            value=record["result"]["selection"]["value"] if done else float("-inf"),
            address=record["address"],
        )


def chosen(found: list[Trial]) -> dict[tuple[str, str, str], Trial]:
    """(tier, task, backbone) -> its best trial: the first of equals."""
    best: dict[tuple[str, str, str], Trial] = {}
    for trial in found:
        cell = (trial.tier, trial.task, trial.backbone)
        if cell not in best or trial.value > best[cell].value:
            best[cell] = trial
    return best
