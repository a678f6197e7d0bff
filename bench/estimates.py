"""Estimates against what the runs then took: time and memory of whole cells, predicted from a few steps.

    python -m bench.estimates --out FOLDER [--cells TIER:TASK/BACKBONE/PROTOCOL ...]

Every training job of the cells (their first seed) is estimated by a probe of its own, then run, on the CPU; runs that
stand in the store count with the provenance that they have. FOLDER gets estimates.parquet and a record. Elapsed times
hold for an idle machine only; those of the processor are good on a busy one too.
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
from noscratch.estimate import cost, select
from noscratch.params import Params, load
from noscratch.plan import Job, Plan, at_tier
from noscratch.probes import Probes
from noscratch.record import Stopwatch, write_bench
from noscratch.results import parquet_bytes
from noscratch.stages import run_job
from noscratch.store import Store, read_provenance

MODULES = ("noscratch.estimate", "noscratch.probes", "noscratch.probe", "noscratch.train")
QUANTITIES = ("seconds", "cpu_seconds", "peak_memory")
CELLS = (
    *(f"mini:listops/{name}/scratch" for name in ("transformer", "s4", "s4d", "dlr", "sgconv", "transformer-nope")),
    *(f"mini:text/{name}/scratch" for name in ("transformer", "s4", "s4d")),
    *("mini:listops/s4/spt-masked", "mini:listops/transformer/spt-causal"),
    *("mini:cola/bigs/scratch", "mini:rte/transformer/scratch"),
    *(f"smoke:listops/{name}/scratch" for name in ("transformer", "s4d", "lru", "bigs")),
    *("smoke:pathfinder/transformer/scratch", "smoke:pathfinder-128/s4d/spt-masked"),
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


def compare(store: Store, plan: Plan, job: Job) -> dict[str, Any]:
    """A row: what a fresh probe says of a job, and what its provenance says."""
    tier = plan.params.run.tier
    for address in job.needs.values():
        alone(run, store.root, tier, address)
    probes = Probes(store, plan, "cpu")
    with tempfile.TemporaryDirectory() as folder:  # never from an earlier probe
        probes.folder = Path(folder)
        said = cost(probes, plan, job)
    alone(run, store.root, tier, job.address)
    took = read_provenance(store.path(job))
    row: dict[str, Any] = {"job": job.name, "kind": job.kind, "tier": tier, "steps": job.settings["train"].get("steps")}
    predicted = (said.time.wall, said.time.cpu, said.memory)
    for name, value in zip(QUANTITIES, predicted, strict=True):
        actual = took.get(name)
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
    for tier, _, pattern in (text.partition(":") for text in asked.cells):
        plan = Plan(on_cpu(root, tier))
        for cell, jobs in select(plan, [pattern]).items():
            if cell.seed != min(plan.params.tier.seeds):
                continue
            for job in jobs:
                rows.append(compare(Store(root), plan, job))
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
