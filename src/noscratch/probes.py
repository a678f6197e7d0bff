"""Prices of this device: a few steps of each kind of run, in a process of their own (noscratch.probe).

The probe's task holds whole batches of the run's own, from the least to the greatest length, and a quarter of one: each
is met once, then timed. Memory is the probe's peak, what every further length adds, and what the run maps of its data.
Runs that differ in seed, steps and rates alone share one probe, which is kept in data/estimates under the digest of
device, environment, code, data and settings.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from noscratch import device as devices
from noscratch.device import processor
from noscratch.errors import NoscratchError
from noscratch.estimate import CHECKPOINTS, Clock, Price, Time, tokens_of
from noscratch.plan import Job, Plan, canonical_json
from noscratch.probe import FOUND, TOLD
from noscratch.results import write_if_changed
from noscratch.run_data import Batches, Shape, batches, read_data
from noscratch.store import Store, as_json

FREE = ("seed", "tier")
FREE_TRAIN = ("steps", "lr", "weight_decay", "warmup", "schedule", "clip", "evaluate_every", "matched")
"""Settings that change nothing of a step's price."""
SPREAD, FEW, SLOW = 24, 3, 1.0
"""How many batches a probe has; few where a step takes more than so many seconds, by a rough guess."""
GUESS = 2e10
"""Operations per second of that guess: one CPU core."""
BESIDE = 64
"""Bytes that the loop keeps for each example: lengths, orders, predictions."""
CLOCKS = ("wall", "cpu")


class Probes:
    """Prices of this device, from probes that run when a price is first asked for."""

    def __init__(self, store: Store, plan: Plan, device: str) -> None:
        """device: "cpu" or "cuda"; NoscratchError where PyTorch does not have it."""
        devices.require(device)
        self.store, self.plan, self.device = store, plan, device
        self.folder = store.data / "estimates"
        self._known: dict[str, Price] = {}

    def price(self, job: Job) -> Price:
        """From data/estimates, or from a probe, which is then kept there."""
        key = self._key(job)
        path = self.folder / f"{key}.json"
        if key not in self._known and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            times = {name: Time(**found[name]) for name in ("start", "first", "step", "evaluation", "end")}
            self._known[key] = Price(**found | times)
        if key not in self._known:
            self._known[key] = self._probe(job)
            write_if_changed(path, as_json(asdict(self._known[key])))
        return self._known[key]

    def _key(self, job: Job) -> str:
        from noscratch import passport

        settings = {name: value for name, value in job.settings.items() if name not in FREE}
        settings["train"] = {name: value for name, value in settings["train"].items() if name not in FREE_TRAIN}
        device = passport.identify(self.device) | {"processor": processor()}
        prepared = self.plan[job.needs["prepared"]]
        known = [device, settings, job.code, prepared.address, self.store.has(prepared), "pretrained" in job.needs]
        return hashlib.sha256(canonical_json(known).encode()).hexdigest()[:16]

    def _probe(self, job: Job) -> Price:
        from noscratch import passport

        passports = self.store.data / "passports"
        passport.check(self.device, passports)  # the self-test of a device is no part of a run's time
        run = batches(job, read_data(self.store, self.plan, job))
        with tempfile.TemporaryDirectory(prefix="noscratch-probe-") as name:
            folder = Path(name)
            course = _lay_out(folder, job, run)
            told = {"settings": course.settings, "device": self.device, "passports": str(passports)}
            (folder / TOLD).write_bytes(as_json(told))
            slot = nullcontext() if self.device == "cpu" else devices.gpu_slot(self.store.data / ".slots", 1)
            with slot:
                done = subprocess.run(
                    [sys.executable, "-m", "noscratch.probe", str(folder)], capture_output=True, text=True, check=False
                )
            if done.returncode:
                raise NoscratchError(
                    f"An estimate runs a few steps of each kind of run; those of {job.name} ended with code "
                    f"{done.returncode}: {done.stderr.strip()[-300:]}. If memory ran out, take a smaller batch_tokens, "
                    "or set micro_tokens."
                )
            found = json.loads((folder / FOUND).read_text(encoding="utf-8"))
        return _price(found, course, run)


@dataclass(frozen=True)
class Course:
    """What a probe sees of a run.

    settings: of the probe. order: the shapes of its steps' batches: first `distinct` of them once each, then again.
    evaluations: split -> its batches. mapped, examples: bytes and examples that it has of the run's data.
    """

    settings: Mapping[str, Any]
    order: Sequence[Shape]
    distinct: int
    evaluations: Mapping[str, Sequence[Shape]]
    mapped: int
    examples: int


def _lay_out(folder: Path, job: Job, run: Batches) -> Course:
    """Write the probe's task into folder/prepared, and folder/init where the run starts from weights."""
    from noscratch.data import Split, evaluation_batches, training_batches

    train, data = job.settings["train"], run.data
    tokens = train["batch_tokens"]
    chosen = run.spread(FEW if _guess(job) > SLOW else SPREAD)
    middle = chosen[len(chosen) // 2]
    examples = {"train": np.concatenate([*chosen, middle[: len(middle) // 4]])}
    examples |= {name: np.concatenate(run.spread(FEW, name)) for name in run.evaluations}
    prepared = folder / "prepared"
    prepared.mkdir()
    (prepared / "meta.json").write_text(json.dumps(data.meta), encoding="utf-8")
    for name, index in examples.items():
        data.write(prepared, name, index)

    probe = {name: Split(prepared, name, data.alone) for name in examples}
    lengths = probe["train"].lengths
    distinct = next(count for _, count, _ in training_batches(lengths, tokens, 0, 0))
    order = [index for _, _, index in islice(training_batches(lengths, tokens, 0, 0), 2 * distinct + 1)]
    plan = {name: value for name, value in train.items() if name != "matched"}
    plan |= {"steps": len(order), "evaluate_every": len(order) - 1, "lr": 1e-6, "warmup": 0}
    settings = {**job.settings, "seed": 0, "train": plan}
    if "pretrained" in job.needs:
        _write_weights(folder / "init", data.meta, settings)
    return Course(
        settings=settings,
        order=[probe["train"].shapes(index) for index in order],
        distinct=distinct,
        evaluations={
            name: [probe[name].shapes(index) for index in evaluation_batches(probe[name].lengths, tokens)]
            for name in run.evaluations
        },
        mapped=sum((prepared / f"{name}.arrow").stat().st_size for name in examples),
        examples=sum(len(split) for split in probe.values()),
    )


def _guess(job: Job) -> float:
    """Seconds of a step, roughly: six operations per token and weight."""
    size = job.settings["model"]
    return 6 * 12 * size["layers"] * size["d_model"] ** 2 * job.settings["train"]["batch_tokens"] / GUESS


def _write_weights(folder: Path, meta: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Weights such as a run is handed: untrained, which costs the same."""
    from safetensors.torch import save_file

    from noscratch.model import build_model
    from noscratch.train import WEIGHTS, WIDTHS

    model = build_model(meta, settings, 0).to(WIDTHS[settings["dtype"]])
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)


# ---------------------------------------------------------------- from a probe to a price


def _price(found: Mapping[str, Any], course: Course, run: Batches) -> Price:
    """The price of a kind of run, from what its probe found."""
    data, steps = run.data, run.step_shapes
    priced = {
        clock: _times([step[clock] for step in found["steps"]], found["end"][clock], course, run) for clock in CLOCKS
    }

    def time(name: str) -> Time:
        return Time(**{clock: parts[name] for clock, parts in priced.items()})

    tokens = float(np.mean([tokens_of(shape) for shape in steps]))
    examples = sum(map(len, data.lengths.values()))
    # Predictions grow with the examples; weights and the rest do not.
    files = found["files"]
    predictions = sum(size for name, size in files.items() if name.endswith(".parquet"))
    watts = None
    if found["joules"] is not None:
        watts = (found["joules"][1] - found["joules"][0]) / (found["steps"][-1]["wall"] - found["steps"][0]["wall"])
    return Price(
        **{name: time(name) for name in ("start", "first", "step", "evaluation", "end")},
        lengths=len(_lengths(steps)),
        met=len(_lengths(course.order)),
        flops=found["counts"]["flops"] / sum(map(tokens_of, course.order)) * tokens,
        memory=found["memory"] + (data.mapped - course.mapped + BESIDE * examples if found["host"] else 0),
        growth=_growth(found["steps"][: course.distinct]) if found["host"] else 0.0,
        pieces=found["pieces"],
        device_memory=found["device_memory"],
        disk=sum(files.values()) + round(predictions * (examples / course.examples - 1)),
        scratch=CHECKPOINTS * files["weights.safetensors"],
        watts=watts,
        made_up=data.folder is None,
    )


def _lengths(shapes: Sequence[Shape]) -> set[int]:
    return {length for shape in shapes for _, length in shape}


def _growth(steps: Sequence[Mapping[str, Any]]) -> float:
    """Bytes that a length adds which was not met before, from the second half of the steps that meet new ones: the
    allocator and the tables of libraries keep something for each."""
    half, last = steps[len(steps) // 2], steps[-1]
    new = last["lengths"] - half["lengths"]
    return max(0.0, (last["resident"] - half["resident"]) / new) if new > 2 else 0.0


def _times(ends: Sequence[float], end: float, course: Course, run: Batches) -> dict[str, float]:
    """The parts of a price by one clock, from the end of every step and of the whole probe."""
    durations = [after - before for before, after in pairwise(ends)]  # of step 1, 2, ...; step 0 is within the start
    n = course.distinct
    again: dict[str, list[float]] = {}
    for step in range(n, 2 * n):
        again.setdefault(repr(course.order[step]), []).append(durations[step - 1])
    shapes = {repr(shape): shape for shape in course.order}
    clock = Clock([(shapes[name], float(np.median(times))) for name, times in again.items()])
    new = [durations[step - 1] - clock(course.order[step]) for step in range(1, n)]
    probed = {name: sum(map(clock, whole)) for name, whole in course.evaluations.items()}
    share = 0.0
    if probed:  # the last step but one is followed by an evaluation
        share = max(0.0, durations[-1] - clock(course.order[-1])) / probed["validation"]
    left = end - ends[-1] - share * sum(probed.values())
    scored = {name: share * sum(map(clock, whole)) for name, whole in run.evaluation_shapes.items()}
    return {
        "start": ends[0] - clock(course.order[0]),
        "first": max(0.0, float(np.mean(new))) if new else 0.0,
        "step": float(np.mean([clock(shape) for shape in run.step_shapes])),
        "evaluation": scored.pop("validation", 0.0),
        "end": max(0.0, left) + sum(scored.values()),
    }
