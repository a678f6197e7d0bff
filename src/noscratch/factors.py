"""A crossed design on one cell: every seed with every numerics, as ordinary jobs; results.variance splits the spread.

A numerics is a dtype and a backend of the kernels. Both are settings of a job and so part of its address: runs that the
plan has anyway are not made twice, and any other run stands in the store beside them (until `noscratch gc`, since no
tier names it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from noscratch.errors import NoscratchError
from noscratch.params import PROTOCOLS, Block, Params, Run, backends
from noscratch.plan import Job, Plan, resolved_backend
from noscratch.record import Stopwatch, write_bench
from noscratch.results import parquet_bytes
from noscratch.results.variance import Split, split
from noscratch.stages import run_job
from noscratch.store import Store, as_json, read_record

DTYPES = get_args(Run.model_fields["dtype"].annotation)
NUMERICS = ("float64/fast", "float32/fast", "float32/reference", "bfloat16/fast")
"""Those of a design unless others are named."""


@dataclass(frozen=True)
class Trial:
    """One run of the design."""

    seed: int
    numerics: str
    plan: Plan
    job: Job


@dataclass(frozen=True)
class Design:
    """The runs of one cell ("task/backbone/protocol") at one tier, seed by seed."""

    tier: str
    cell: str
    seeds: tuple[int, ...]
    numerics: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        """The folder of its record."""
        return f"factors-{self.tier}-{self.cell.replace('/', '-')}"


def design(params: Params, cell: str, tier: str, seeds: Sequence[int], numerics: Sequence[str]) -> Design:
    """Plan a design; `numerics` are written "dtype" or "dtype/backend". Raises NoscratchError before any work."""
    parts = cell.split("/")
    known = (tuple(params.tasks), tuple(params.backbones), PROTOCOLS)
    if len(parts) != 3 or not all(part in names for part, names in zip(parts, known, strict=True)):
        raise NoscratchError(
            f"A cell is TASK/BACKBONE/PROTOCOL of the names in params.yaml, such as listops/s4d/scratch; got {cell!r}. "
            "`noscratch plan --kind finetune` lists them."
        )
    if tier not in params.tiers:
        raise NoscratchError(f"The tiers are {', '.join(params.tiers)}; got {tier!r}. Name one of them.")
    forms = tuple(dict.fromkeys(map(_numerics, numerics)))
    if min(len(set(seeds)), len(forms)) < 2:
        raise NoscratchError(
            f"A crossed design has two seeds and two numerics at least; got seeds {list(seeds)} and numerics "
            f"{', '.join(forms)}. Name more of them."
        )
    chosen = tuple(dict.fromkeys(seeds))
    block = Block(tasks=(parts[0],), backbones=(parts[1],), protocols=(parts[2],))
    alone = params.tiers[tier].model_copy(update={"grid": (block,), "seeds": chosen})
    trials: dict[tuple[int, str], Trial] = {}
    for form in forms:
        dtype, backend = form.split("/")
        run = params.run.model_copy(update={"tier": tier, "dtype": dtype, "backend": backend})
        plan = Plan(params.model_copy(update={"run": run, "tiers": {**params.tiers, tier: alone}}))
        for job in plan.of("finetune"):
            if job.cell is not None and job.cell.backbone == parts[1]:
                trials[job.cell.seed, form] = Trial(job.cell.seed, form, plan, job)
    if len(trials) < len(chosen) * len(forms):
        raise NoscratchError(
            f"{parts[1]} cannot be trained by protocol {parts[2]} on {parts[0]} at tier {tier}. Choose another cell."
        )
    return Design(tier, cell, chosen, forms, tuple(trials[seed, form] for seed in chosen for form in forms))


def _numerics(text: str) -> str:
    dtype, _, backend = text.partition("/")
    if dtype not in DTYPES or (backend or "auto") not in backends():
        raise NoscratchError(
            f"A numerics is one of {', '.join(DTYPES)}, and if need be a slash and one of {', '.join(backends())}; got "
            f"{text!r}. Correct it."
        )
    return f"{dtype}/{resolved_backend(backend or 'auto')}"


def run(store: Store, made: Design, *, network: bool | None = None, progress: bool = False) -> Iterator[Trial]:
    """Do every run that is not in the store, with all that it needs; yields each when it stands there."""
    for trial in made.trials:
        for job in trial.plan.with_needs(trial.job):
            run_job(store, trial.plan, job, network=network, progress=progress)
        yield trial


def rows(store: Store, made: Design) -> list[dict[str, Any]]:
    """One row per run: seed, numerics, address, and its primary metric on test. Raises NoscratchError for a run that
    did not finish: a design with a gap cannot be split."""
    found = []
    for trial in made.trials:
        if not store.has(trial.job):
            raise NoscratchError(f"A split needs every run of the design; {trial.job.name} is not there. Run it first.")
        record = read_record(store.path(trial.job))
        if record["state"] != "done":
            raise NoscratchError(
                f"A split needs every run of the design; {trial.job.name} {record['state']}: {record['reason']}. Leave "
                "out its seed or its numerics."
            )
        metric = record["result"]["primary"]
        value = record["result"]["metrics"]["test"][metric]
        row = {"seed": trial.seed, "numerics": trial.numerics, "address": trial.job.address}
        found.append(row | {"metric": metric, "value": value})
    return found


def split_of(made: Design, found: Sequence[dict[str, Any]]) -> Split:
    """The variance split of the rows."""
    values = {(row["seed"], row["numerics"]): row["value"] for row in found}
    return split([[values[seed, form] for form in made.numerics] for seed in made.seeds])


def publish(made: Design, found: Sequence[dict[str, Any]], root: Path, watch: Stopwatch) -> Path:
    """Write the scores and their split as a record below reports/records; returns its folder. `watch` was made before
    the runs."""
    folder = root / "reports" / "records" / made.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "factors.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(list(found))))
    components = split_of(made, found)
    (folder / "split.json").write_bytes(
        as_json([{"component": name} | vars(part) for name, part in components.parts.items()])
    )
    settings = {"tier": made.tier, "cell": made.cell, "seeds": made.seeds, "numerics": made.numerics}
    write_bench(folder, made.name, settings, ("noscratch.results.variance",), watch)
    return folder
