"""What run.threads and run.backend should be on this device: measured on the models and data of the present plan.

Both change the order of sums and so the last bits: they are settings, part of every address, and nothing is chosen by
timing while a job runs. Each backbone (variants with it) takes steps of the first of its jobs whose data are prepared,
on one batch of at most PROBE_TOKENS tokens, under every thread count and every backend that all kernels have. On a CPU
as many processes work side by side as the engines would start, so that what they take from each other counts.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from noscratch import backbones
from noscratch.data import Split, read_meta, training_batches
from noscratch.errors import NoscratchError
from noscratch.kernels import BACKENDS, KernelError
from noscratch.model import build_model
from noscratch.objectives import outcome_of
from noscratch.optim import AdamW
from noscratch.params import FILE
from noscratch.plan import Plan, resolved_backend
from noscratch.store import Store
from noscratch.train import WIDTHS
from noscratch.yaml_reader import read

PROBE_TOKENS = 4096
MARGIN = 1.05
"""How many times as fast another choice must be to be proposed: less may be the noise of the measurement."""


class TuneError(NoscratchError):
    """Nothing to measure, or a measurement that failed."""


@dataclass(frozen=True)
class Probe:
    """What is measured for one backbone."""

    backbone: str
    settings: Mapping[str, Any]
    prepared: Path
    tokens: float
    """Computed tokens of all steps of the plan's jobs with this backbone: what it weighs."""


class Choice(NamedTuple):
    threads: int
    backend: str


def probes(store: Store, plan: Plan) -> list[Probe]:
    """One for each backbone of the plan's training jobs, in the plan's order."""
    jobs = [job for job in plan.of("tuning", "pretrain", "finetune") if "backend" in job.settings]
    found: dict[str, Probe] = {}
    weights: dict[str, float] = {}
    for job in jobs:
        name, train = backbones.file_of(job.settings["backbone"]), job.settings["train"]
        weights[name] = weights.get(name, 0.0) + train["batch_tokens"] * train.get("steps", 0)
        prepared = plan[job.needs["prepared"]]
        if name not in found and store.has(prepared):
            found[name] = Probe(name, job.settings, store.path(prepared), 0.0)
    if not found:
        raise TuneError(
            "Tuning measures the plan's models on prepared data, and none are prepared. `snakemake --cores all "
            "prepared` makes them."
        )
    return [Probe(p.backbone, p.settings, p.prepared, weights[name]) for name, p in found.items()]


def choices(plan: Plan, measured: Sequence[Probe], device: str, cores: int) -> list[Choice]:
    """What is measured, the present choice among it: thread counts that are powers of two and all cores (on a GPU the
    present one), by the backends that every kernel of the plan has."""
    present = present_choice(plan)
    threads = {2**k for k in range(cores.bit_length())} | {cores} if device == "cpu" else set()
    threads = {t for t in threads if t <= cores} | {present.threads}
    fit = [backend for backend in BACKENDS if backend != "auto" and _runs(backend, measured, device)]
    return [Choice(t, backend) for t in sorted(threads) for backend in fit]


def present_choice(plan: Plan) -> Choice:
    return Choice(plan.params.run.threads, resolved_backend(plan.params.run.backend))


def _runs(backend: str, measured: Iterable[Probe], device: str) -> bool:
    try:
        for probe in measured:
            model = build_model(read_meta(probe.prepared), {**probe.settings, "backend": backend}, seed=0)
            model.to(device).kernels()
    except KernelError:
        return False
    return True


def measure(measured: Sequence[Probe], choice: Choice, device: str, cores: int, seconds: float) -> dict[str, float]:
    """Tokens per second of each backbone, all processes together."""
    count = max(1, cores // choice.threads) if device == "cpu" else 1
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(count)
    pipes, workers = [], []
    for _ in range(count):
        mine, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(theirs, start, measured, choice, device, seconds), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(mine)
        workers.append(worker)
    try:
        rates: list[dict[str, float]] = [pipe.recv() for pipe in pipes]
    except EOFError:
        raise TuneError(
            f"A measurement with {choice.threads} threads and backend {choice.backend} ended early (see above): a "
            "setting of the plan does not run here, or memory ran out."
        ) from None
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return {probe.backbone: sum(rate[probe.backbone] for rate in rates) for probe in measured}


def _work(answer: Any, start: Any, measured: Sequence[Probe], choice: Choice, device: str, seconds: float) -> None:
    torch.set_num_threads(choice.threads)
    rates = {}
    for probe in measured:
        step, tokens = _step(probe, choice.backend, torch.device(device))
        start.wait()
        rates[probe.backbone] = tokens / _seconds(step, seconds)
        start.wait()
    answer.send(rates)


def _step(probe: Probe, backend: str, device: torch.device) -> tuple[Any, int]:
    """A function that takes one step of training, and the tokens that it computes."""
    settings = {**probe.settings, "backend": backend}
    meta, objective = read_meta(probe.prepared), settings["objective"]
    model = build_model(meta, settings, seed=0).to(device, WIDTHS[settings["dtype"]])
    optimizer = AdamW(model, settings["train"]["lr"], settings["train"]["weight_decay"])
    split = Split(probe.prepared, "train", alone=objective != "classify")
    _, _, index = next(training_batches(split.lengths, settings["train"]["batch_tokens"], 0, 0))
    batch = split.batch(index[: max(1, PROBE_TOKENS // int(split.lengths[index].max()))]).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["dtype"] == "bfloat16"):
            outcome = outcome_of(model, batch, objective, meta, seed=0, epoch=0)
        outcome.total.backward()
        optimizer.norm().item()
        optimizer.step()

    return step, sum(len(rows) * length for rows, length in batch.parts)


def _seconds(step: Any, seconds: float) -> float:
    """Of one step: the mean over those that fit into `seconds`, after a first one that counts only if it alone takes
    longer."""
    begun = time.perf_counter()
    step()
    first = time.perf_counter() - begun
    if first > seconds:
        return first
    begun, done = time.perf_counter(), 0
    while done < 1 or time.perf_counter() - begun < seconds:
        step()
        done += 1
    return (time.perf_counter() - begun) / done


def speeds(
    measured: Sequence[Probe], rates: Mapping[Choice, Mapping[str, float]], present: Choice
) -> dict[Choice, float]:
    """How many times as fast as at present the whole plan would be: each backbone weighs what it has to compute."""

    def hours(choice: Choice) -> float:
        return sum(probe.tokens / rates[choice][probe.backbone] for probe in measured)

    return {choice: hours(present) / hours(choice) for choice in rates}


def proposal(faster: Mapping[Choice, float], present: Choice) -> Choice:
    """The fastest choice, or the present one where none is faster by MARGIN."""
    best = max(faster, key=lambda choice: faster[choice])
    return best if faster[best] >= MARGIN else present


def lines(plan: Plan, chosen: Choice) -> dict[str, str]:
    """The keys of `run` to write, and their values: `auto` stays where it means the chosen backend."""
    asked = plan.params.run.backend
    backend = asked if resolved_backend(asked) == chosen.backend else chosen.backend
    return {"threads": str(chosen.threads), "backend": backend}


def write(root: Path, values: Mapping[str, str]) -> None:
    """Put values of `run` into params.yaml; every other byte stays as it is."""
    path = root / FILE
    document = read(path)
    text = document.replaced({("run", key): value for key, value in values.items()})
    staged = path.with_name(f".{FILE}-{os.getpid()}")
    staged.write_bytes(text.encode("utf-8"))
    staged.replace(path)
