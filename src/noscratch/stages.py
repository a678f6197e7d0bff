"""Run one job of the plan: check what it needs, do its work in a fresh folder, record it, publish it.

A diverged training run is a result and is kept, and a run that needs it has failed. Any other error ends the process
and publishes nothing: the next run does the job again. A job whose source cannot be had is never started; see
availability.py.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from noscratch import device as devices
from noscratch.errors import NoscratchError
from noscratch.locks import hold
from noscratch.plan import BASELINES, Job, Plan
from noscratch.record import Stopwatch, write_record
from noscratch.store import RECORD, Store, read_provenance, read_record, sha256_of
from noscratch.telemetry import Telemetry, summary

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
    sharded: bool = False,
) -> str:
    """Do one job unless its result stands; returns its state.

    `network` overrides the tier's word on downloads; `stop_after` (seconds) ends training at a checkpoint with
    train.Interrupted; `sharded` splits the model over the processes that torchrun has started, of which the first
    records. Raises sources.Blocked for a source that cannot be had, NoscratchError where another process does the job.
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
    how = _How(_device(job, plan), stop_after, progress, sharded)
    if devices.rank():
        return _follow(store, plan, job, inputs, how)
    with hold(store.data / ".locks" / f"{job.name}.lock", f"One process at a time does a job, here {job.name}"):
        return _do(store, plan, job, inputs, how, network)


class _How(NamedTuple):
    """What changes no result: where training runs, how long, who is told, and whether processes share the model."""

    device: str
    stop_after: float | None
    progress: bool
    sharded: bool


def _do(store: Store, plan: Plan, job: Job, inputs: Mapping[str, Path], how: _How, network: bool | None) -> str:
    watch = Stopwatch(store.root, how.device)
    with store.building(job) as out:
        state, reason = "done", None
        result: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        try:
            _refuse_unless_done(inputs)
            if job.kind == "fetch":
                allowed = plan.params.tier.network if network is None else network
                result, extra = _fetch(store, job, out, allowed, how.progress)
            elif job.kind == "prepare":
                result = _prepare(job, inputs, out)
            elif job.settings["backbone"] in BASELINES:
                result = _baseline(job, inputs, out)
            else:
                result, extra = _train(store, plan, job, inputs, out, how)
        except _Ends as end:
            state, reason = end.state, end.reason
        extra |= summary(_checkpoints(store, job))
        extra |= _energy_matched(inputs, extra.get("energy_joules"))
        digests = {role: sha256_of(folder / RECORD) for role, folder in inputs.items()}
        write_record(job, out, state, digests, result, reason)
        watch.write(out, extra)
    if state != "diverged":  # there, the last good checkpoint may tell why
        shutil.rmtree(_checkpoints(store, job), ignore_errors=True)
    return state


def _follow(store: Store, plan: Plan, job: Job, inputs: Mapping[str, Path], how: _How) -> str:
    """Train along with the first of several processes, which records."""
    if not _trains(job):
        raise NoscratchError(f"Several processes train together; {job.name} is no training. Run it without torchrun.")
    try:
        _refuse_unless_done(inputs)
        with tempfile.TemporaryDirectory() as out:
            _train(store, plan, job, inputs, Path(out), how)
    except _Ends as end:
        return end.state
    return "done"


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
    if not _trains(job):
        return "cpu"
    return devices.choose(plan.params.run.device, job.settings["tier"], devices.gpu_count())


def _trains(job: Job) -> bool:
    """Does it run the training loop? A baseline does not."""
    return job.cell is not None and job.cell.backbone not in BASELINES


def _train(
    store: Store, plan: Plan, job: Job, inputs: Mapping[str, Path], out: Path, how: _How
) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = devices.together()  # torchrun's processes have the GPUs of their hosts
    slots = (
        nullcontext() if shared or how.device == "cpu" else devices.gpu_slot(store.data / ".slots", devices.gpu_count())
    )
    with slots:
        devices.require(how.device)
        from noscratch import distributed, passport, train  # after the slot: it fixes which GPU CUDA sees

        checkpoints = _checkpoints(store, job)
        with (
            distributed.join(how.device, how.sharded) as ranks,
            Telemetry(checkpoints, how.device, how.progress) as telemetry,
        ):
            if ranks.rank:
                ranks.wait()  # the first tests the device, the others read what it found
            tested = passport.check(how.device, store.data / "passports")
            if not ranks.rank:
                ranks.wait()
            try:
                result = train.run(
                    dict(job.settings),
                    prepared=inputs["prepared"],
                    out=out,
                    checkpoints=checkpoints,
                    init=inputs.get("pretrained"),
                    budget=_budget(job, inputs),
                    device=how.device,
                    stop_after=how.stop_after,
                    checkpoint_seconds=plan.params.run.checkpoint_seconds,
                    report=(lambda steps, state: None) if ranks.rank else telemetry,
                    ranks=ranks,
                )
            except train.Diverged as diverged:
                raise _Ends("diverged", str(diverged)) from None
    return result, {"passport": tested["digest"], "processes": ranks.world, "sharded": ranks.sharded}


def _energy_matched(inputs: Mapping[str, Path], spent: float | None) -> dict[str, Any]:
    """Of a matched run, the energy of the runs that set its budget, and its own over that; null where not measured.

    Counters differ from run to run, so the record has operations and steps alone.
    """
    if "budget-finetune" not in inputs:
        return {}
    budget = _joules([inputs["budget-pretrain"], inputs["budget-finetune"]])
    ratio = None if budget is None or spent is None else spent / sum(budget)
    return {"matched_energy": {"budget_joules": None if budget is None else sum(budget), "ratio": ratio}}


def _joules(folders: list[Path]) -> list[float] | None:
    """The measured energy of jobs; None when it is not there for all."""
    found = [joules for folder in folders if (joules := read_provenance(folder).get("energy_joules")) is not None]
    return found if len(found) == len(folders) else None


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
    joules = _joules(folders)
    if joules is None:
        raise NoscratchError(
            f"A run matched by energy needs the measured energy of {' and '.join(f.name for f in folders)}, and none "
            "was measured there: no counter could be read (RAPL below /sys/class/powercap, or NVML of a GPU). Choose "
            "`matched: flops` or `steps` for the tier, or run those jobs where their energy can be read."
        )
    return Budget(steps, flops, round(sum(joules) * counts[1]["flops"] / joules[1]))
