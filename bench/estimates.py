"""Estimates against what the runs then took: time and memory of whole cells, predicted from a few steps.

    python -m bench.estimates --out FOLDER [--cells TIER:TASK/BACKBONE/PROTOCOL ...]

Every training job of the cells (their first seed) is estimated by a probe of its own, then run, on the CPU. Runs of the
present code that stand in the store, or were published from a processor of this name, count with the provenance that
they have: no estimate has seen them. FOLDER gets estimates.parquet and a record. Elapsed times hold for an idle machine
only; those of the processor are good on a busy one too, within what shared caches cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from bench._timing import alone
from noscratch.device import processor
from noscratch.estimate import cost, select
from noscratch.params import Params, load
from noscratch.plan import Job, Plan, at_tier
from noscratch.probes import Probes
from noscratch.record import Stopwatch, write_bench
from noscratch.results import parquet_bytes
from noscratch.results.published import RECORDS
from noscratch.stages import run_job
from noscratch.store import RECORD, Store, read_provenance, read_record

MODULES = ("noscratch.estimate", "noscratch.probes", "noscratch.probe", "noscratch.train")
QUANTITIES = ("seconds", "cpu_seconds", "peak_memory")
CELLS = (
    *(f"mini:{task}/{name}/*" for task in ("listops", "text") for name in ("s4", "s4d")),
    "mini:listops/s4-random/scratch",
    *(f"smoke:listops/{name}/scratch" for name in ("transformer", "lru", "bigs")),
)


def on_cpu(root: Path, tier: str) -> Params:
    """The settings of a tier, on the CPU."""
    params = at_tier(load(root), tier)
    return params.model_copy(update={"run": params.run.model_copy(update={"device": "cpu"})})


def run(root: Path, tier: str, address: str) -> None:
    """Do a job and what it needs."""
    plan, store = Plan(on_cpu(root, tier)), Store(root)
    for job in plan.with_needs(plan[address]):
        run_job(store, plan, job)


def took(store: Store, plan: Plan, job: Job) -> dict[str, Any]:
    """The provenance of a job: the published one, else of its run, which is done if need be."""
    published = store.root / RECORDS / "runs" / job.view
    if (published / RECORD).is_file() and read_record(published)["address"] == job.address:
        found = read_provenance(published)
        if found["processor"] == processor():
            return found
    alone(run, store.root, plan.params.run.tier, job.address)
    return read_provenance(store.path(job))


def compare(store: Store, plan: Plan, job: Job, kept: Path) -> dict[str, Any]:
    """A row: what a probe says of a job, which is kept in a folder, and what its provenance says."""
    tier = plan.params.run.tier
    alone(run, store.root, tier, job.needs["prepared"])
    probes = Probes(store, plan, "cpu")
    probes.folder = kept
    said = cost(probes, plan, job)
    found = took(store, plan, job)
    row: dict[str, Any] = {"job": job.name, "kind": job.kind, "tier": tier, "steps": job.settings["train"].get("steps")}
    predicted = (said.time.wall, said.time.cpu, said.memory)
    for name, value in zip(QUANTITIES, predicted, strict=True):
        actual = found.get(name)
        row |= {f"predicted_{name}": float(value), name: None if actual is None else float(actual)}
    return row


def errors(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Relative errors, where the run measured it."""
    return [row[f"predicted_{name}"] / row[name] - 1 for row in rows if row[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the record")
    parser.add_argument("--cells", nargs="+", default=CELLS, help="TIER:TASK/BACKBONE/PROTOCOL, * for any text")
    asked = parser.parse_args()
    root, rows = Path.cwd(), []
    watch = Stopwatch(root, "cpu")
    with tempfile.TemporaryDirectory() as kept:  # never from a probe of an earlier call
        for tier, _, pattern in (text.partition(":") for text in asked.cells):
            plan = Plan(on_cpu(root, tier))
            for cell, jobs in select(plan, [pattern]).items():
                if cell.seed != min(plan.params.tier.seeds):
                    continue
                for job in jobs:
                    rows.append(compare(Store(root), plan, job, Path(kept)))
                    print(json.dumps(rows[-1]), flush=True)
    for name in QUANTITIES:
        found = errors(rows, name)
        worst = max(found, key=abs)
        print(f"{name}: median absolute error {median(map(abs, found)):.1%}, worst {worst:+.1%}, n = {len(found)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "estimates.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows)))
    write_bench(asked.out, "estimates", {"cells": list(asked.cells)}, MODULES, watch)


if __name__ == "__main__":
    main()
