"""Run one job of the plan: check what it needs, do its work in a fresh folder, record it, publish it.

A diverged training run is a result and is kept, and a run that needs it has failed. Any other error ends the process
and publishes nothing: the next run does the job again. A job whose source cannot be had is never started; see
availability.py.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noscratch import device as devices
from noscratch.errors import NoscratchError
from noscratch.plan import BASELINES, Job, Plan
from noscratch.record import Stopwatch, write_record
from noscratch.store import RECORD, Store, read_provenance, read_record, sha256_of
from noscratch.telemetry import Progress

if TYPE_CHECKING:
    from noscratch.budget import Budget

MIRROR = "NOSCRATCH_MIRROR"


class _Ends(Exception):  # noqa: N818 (an outcome, caught below)
    """The job ends without being done: as diverged or failed, with a reason."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


def run_job(
    store: Store,
    plan: Plan,
    job: Job,
    *,
    network: bool | None = None,
    stop_after: float | None = None,
    progress: bool = False,
) -> str:
    """Do one job unless its result stands; returns its state.

    `network` overrides the tier's word on downloads; `stop_after` (seconds) ends training at a checkpoint with
    train.Interrupted. Raises sources.Blocked for a source that cannot be had.
    """
    if store.has(job):
        return str(read_record(store.path(job))["state"])
    inputs = {role: store.path(plan[address]) for role, address in job.needs.items()}
    for role, folder in inputs.items():
        if not (folder / RECORD).is_file():
            raise NoscratchError(
                f"Job {job.name} needs {folder.name} ({role}), which is not there. Run `noscratch run "
                f"{job.needs[role]}` first."
            )
    where = _device(job, plan)
    watch = Stopwatch(store.root, where)
    with store.building(job) as out:
        state, reason = "done", None
        result: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        try:
            _refuse_unless_done(inputs)
            if job.kind == "fetch":
                allowed = plan.params.tier.network if network is None else network
                result, extra = _fetch(store, job, out, allowed, progress)
            elif job.kind == "prepare":
                result = _prepare(job, inputs, out)
            elif job.settings["backbone"] in BASELINES:
                result = _baseline(job, inputs, out)
            else:
                result, extra = _train(store, plan, job, inputs, out, where, stop_after, progress)
        except _Ends as end:
            state, reason = end.state, end.reason
        digests = {role: sha256_of(folder / RECORD) for role, folder in inputs.items()}
        write_record(job, out, state, digests, result, reason)
        watch.write(out, extra)
    shutil.rmtree(_checkpoints(store, job), ignore_errors=True)
    return state


def _checkpoints(store: Store, job: Job) -> Path:
    """Where a training job keeps its checkpoints until its result is published."""
    return store.data / "checkpoints" / job.name


def _refuse_unless_done(inputs: Mapping[str, Path]) -> None:
    for folder in inputs.values():
        record = read_record(folder)
        if record["state"] != "done":
            raise _Ends(
                "failed", f"needs {record['kind']} {record['address']}, which {record['state']}: {record['reason']}"
            )


def _fetch(store: Store, job: Job, out: Path, network: bool, progress: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    from noscratch import sources

    fetched = sources.fetch(
        str(job.settings["source"]),
        out,
        network=network,
        mirror=os.environ.get(MIRROR),
        progress=progress,
        cache=store.data / "downloads",
        digests=store.root / "reports" / "digests.json",
    )
    return {"source": job.settings["source"], "form": fetched.form}, {"origin": fetched.origin}


def _prepare(job: Job, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    module = importlib.import_module(job.modules[0])  # of a task or a corpus
    return dict(module.prepare(module.Config(**job.settings["data"]), inputs, out))


def _baseline(job: Job, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    from noscratch import baselines

    return baselines.run(job.settings, inputs["prepared"], out)


def _device(job: Job, plan: Plan) -> str:
    """Where a job runs: all but training, the CPU."""
    if job.cell is None or job.cell.backbone in BASELINES:
        return "cpu"
    return devices.choose(plan.params.run.device, job.cell.tier, devices.gpu_count())


def _train(
    store: Store,
    plan: Plan,
    job: Job,
    inputs: Mapping[str, Path],
    out: Path,
    where: str,
    stop_after: float | None,
    progress: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    slot = devices.gpu_slot(store.data / ".slots", devices.gpu_count()) if where == "cuda" else nullcontext()
    with slot, Progress(progress) as report:
        from noscratch import passport, train  # after the slot: it fixes which GPU CUDA sees

        tested = passport.check(where, store.data / "passports")
        try:
            result = train.run(
                dict(job.settings),
                prepared=inputs["prepared"],
                out=out,
                checkpoints=_checkpoints(store, job),
                init=inputs.get("pretrained"),
                budget=_budget(job, inputs),
                device=where,
                stop_after=stop_after,
                checkpoint_seconds=plan.params.run.checkpoint_seconds,
                report=report,
            )
        except train.Diverged as diverged:
            raise _Ends("diverged", str(diverged)) from None
    return result, {"passport": tested["digest"]}


def _budget(job: Job, inputs: Mapping[str, Path]) -> Budget | None:
    """What the runs used that a matched job must spend as much as; None for any other job."""
    from noscratch.budget import Budget

    if "matched" not in job.settings["train"]:
        return None
    folders = [inputs["budget-pretrain"], inputs["budget-finetune"]]
    counts = [read_record(folder)["result"]["counts"] for folder in folders]
    steps, flops = (sum(count[key] for count in counts) for key in ("steps", "flops"))
    if job.settings["train"]["matched"] != "energy":
        return Budget(steps, flops)
    joules = [energy for folder in folders if (energy := read_provenance(folder).get("energy_joules")) is not None]
    if len(joules) < len(folders):
        raise NoscratchError(
            f"A run matched by energy needs the measured energy of {' and '.join(f.name for f in folders)}, and none "
            "was measured there: no counter could be read (RAPL below /sys/class/powercap, or NVML of a GPU). Choose "
            "`matched: flops` or `steps` for the tier, or run those jobs where their energy can be read."
        )
    return Budget(steps, flops, round(sum(joules) * counts[1]["flops"] / joules[1]))
