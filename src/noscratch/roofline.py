"""What runs would cost on a class of device that is not at hand, from their operations alone.

A step is traced on PyTorch's `meta` device, whose tensors have shapes and no content, so that any size costs nothing
here, and code takes the way that it takes off the CPU. Each operation then takes the longest of three times on the
device: its arithmetic at a share of the peak rate, its bytes at the same share of the memory's rate, and its launch.
That is the roofline of Williams, Waterman and Patterson (2009, doi 10.1145/1498765.1498785), operation by operation,
for eager execution. The share is an assumption and is printed as one; what overlaps, fuses or waits on the host is not
modelled.

Matrix products and attention count as in noscratch.flops; a Fourier transform of length n counts 5 n log2(n), half of
that where input or output is real.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from noscratch.estimate import CHECKPOINTS, ClaimCost, Clock, Price, Time
from noscratch.flops import FORMULAS
from noscratch.model import Model, build_model, pixel_value
from noscratch.plan import Job, Plan
from noscratch.record import count_job, write_count
from noscratch.results import parquet_bytes, write_if_changed
from noscratch.run_data import Data, Shape, batches, made_up

START = 20.0
"""Seconds of a run beside its steps: process, libraries, data, writing."""
TRACED = 3
"""Batches of a run that are traced, from the least to the greatest length."""
FORWARD = 1 / 3
"""Of a step's time, without gradients."""
OPTIMIZER = 28
"""Bytes that a fused AdamW moves per weight: weight, gradient and two moments read, all but the gradient written."""


@dataclass(frozen=True)
class DeviceClass:
    """By its maker's data sheet, dense: operations per second by dtype, bytes per second and bytes of memory, watts."""

    name: str
    rates: Mapping[str, float]
    bandwidth: float
    memory: int
    watts: float
    launch: float = 5e-6
    """Seconds between two operations that the host can issue; measured on no device in particular."""


CLASSES = {
    "h200": DeviceClass("h200", {"float32": 67e12, "bfloat16": 989e12, "float64": 67e12}, 4.8e12, 141 * 10**9, 700),
    "h100": DeviceClass("h100", {"float32": 67e12, "bfloat16": 989e12, "float64": 67e12}, 3.35e12, 80 * 10**9, 700),
    "a100": DeviceClass("a100", {"float32": 19.5e12, "bfloat16": 312e12, "float64": 19.5e12}, 2.0e12, 80 * 10**9, 400),
    "t4": DeviceClass("t4", {"float32": 8.1e12, "bfloat16": 8.1e12, "float64": 0.25e12}, 0.32e12, 16 * 10**9, 70),
}


@dataclass
class Trace(TorchDispatchMode):
    """What is dispatched: (operations, bytes) of each kernel. Views move nothing and are left out."""

    work: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _is_view(func):
            given, made = _tensors([args, kwargs]), _tensors(result)
            if made:
                self.work.append((_operations(func, args, kwargs or {}, result), sum(map(_bytes, [*given, *made]))))
        return result

    def seconds(self, device: DeviceClass, dtype: str, share: float) -> float:
        """How long it takes on a device of which `share` of both peak rates is reached."""
        rate, bandwidth = share * device.rates[dtype], share * device.bandwidth
        return sum(max(operations / rate, moved / bandwidth, device.launch) for operations, moved in self.work)

    @property
    def operations(self) -> float:
        return sum(operations for operations, _ in self.work)


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returned)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, list | tuple) else []


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


_FOURIER = (torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r, torch.ops.aten._fft_c2c)


def _operations(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    packet = func._overloadpacket
    if packet in FORMULAS:
        return float(FORMULAS[packet](*args, **kwargs, out_val=result))
    if packet in _FOURIER:
        whole = max(args[0].numel(), result.numel())  # the complex side of a real transform is the half one
        length = math.prod(max(args[0].shape[dim], result.shape[dim]) for dim in args[1])
        return 5.0 * whole * math.log2(max(length, 2)) * (1.0 if packet is _FOURIER[2] else 0.5)
    return float(sum(tensor.numel() for tensor in _tensors(result)))


class Rooflines:
    """Prices of a device class; see noscratch.estimate for what they are made of. Data are made up, whatever is
    prepared: a prediction is the same on every machine."""

    def __init__(self, plan: Plan, device: DeviceClass, share: float) -> None:
        """share: of the peak rates that are reached, in (0, 1]."""
        self.plan, self.device, self.share = plan, device, share
        self._known: dict[str, Price] = {}

    def price(self, job: Job) -> Price:
        """From traces of the run's least, median and greatest batch."""
        key = repr([{**job.settings, "seed": 0}, job.needs["prepared"]])
        if key not in self._known:
            self._known[key] = self._price(job, self._data(job))
        return self._known[key]

    def _data(self, job: Job) -> Data:
        return made_up(self.plan, self.plan[job.needs["prepared"]], job.settings["objective"] != "classify")

    def _price(self, job: Job, data: Data) -> Price:
        run = batches(job, data)
        chosen = [data.shape("train", index) for index in run.spread(TRACED)]
        width = 8 if job.settings["dtype"] == "float64" else 4
        # Blocks are alike: what a second one adds, every further one adds.
        layers, (one, two) = job.settings["model"]["layers"], [self._traced(job, data, chosen, n) for n in (1, 2)]

        def of_all(first: float, second: float) -> float:
            return first + (layers - 1) * (second - first)

        weights = round(of_all(one.weights, two.weights))
        seconds = Clock([(shape, of_all(one.seconds[i], two.seconds[i])) for i, shape in enumerate(chosen)])
        operations = Clock([(shape, of_all(one.operations[i], two.operations[i])) for i, shape in enumerate(chosen)])
        held = max(of_all(first, second) for first, second in zip(one.held, two.held, strict=True))
        # As the loop does where memory runs out: a batch goes through in halves, quarters, down to single sequences.
        room = self.device.memory - 4 * width * weights
        pieces, most = 1, max(count for shape in chosen for count, _ in shape)
        while held / pieces > room and pieces < most:
            pieces *= 2
        optimizer = max(OPTIMIZER / 4 * width * weights / (self.share * self.device.bandwidth), self.device.launch)
        scored = {name: FORWARD * sum(map(seconds, whole)) for name, whole in run.evaluation_shapes.items()}

        def elapsed(time: float) -> Time:
            return Time(wall=time)

        return Price(
            start=elapsed(START),
            first=elapsed(0.0),
            lengths=1,
            met=1,
            step=elapsed(float(np.mean([seconds(shape) for shape in run.step_shapes])) + optimizer),
            evaluation=elapsed(scored.pop("validation", 0.0)),
            end=elapsed(sum(scored.values())),
            flops=float(np.mean([operations(shape) for shape in run.step_shapes])),
            memory=4 * width * weights + round(held / pieces),
            growth=0.0,
            pieces=1,
            device_memory=self.device.memory,
            disk=width * weights + 16 * sum(map(len, data.lengths.values())),
            scratch=CHECKPOINTS * width * weights,
            watts=self.device.watts,
            made_up=True,
        )

    def _traced(self, job: Job, data: Data, chosen: Sequence[Shape], layers: int) -> _Traced:
        settings = {**job.settings, "model": {**job.settings["model"], "layers": layers}}
        model = build_model(data.meta, settings, 0)
        model.set_progress(0.5)
        found = [_step(model, shape, job, data) for shape in chosen]
        return _Traced(
            sum(parameter.numel() for parameter in model.parameters()),
            [trace.seconds(self.device, job.settings["dtype"], self.share) for trace, _ in found],
            [trace.operations for trace, _ in found],
            [held for _, held in found],
        )


@dataclass(frozen=True)
class _Traced:
    """A model's weights, and of each batch: seconds, operations, and the bytes held from forward to backward."""

    weights: int
    seconds: Sequence[float]
    operations: Sequence[float]
    held: Sequence[int]


def _step(model: Model, shape: Shape, job: Job, data: Data) -> tuple[Trace, int]:
    """A step's forward and backward operations, and the bytes that it holds between the two."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()
        return tensor

    model.train()
    with _without_content():
        own = _shadows(model)
        with Trace() as trace, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _loss(model, own, shape, job, data).backward()
    return trace, sum(held.values())


class _Fused(TorchFunctionMode):
    """Attention in one kernel, which keeps no scores: tensors without content would take the way in pieces."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args, 0.0, given["is_causal"], attn_mask=given["attn_mask"])[0]
        return func(*args, **given)


@contextmanager
def _without_content() -> Iterator[None]:
    """New tensors have shapes only. What kernels keep for later calls is dropped before and after: it would mix the
    two. Autocast knows nothing of such tensors, and the kernels that switch it off get none."""

    def forget() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("noscratch.kernels."):
                for kept in vars(module).values():
                    getattr(kept, "cache_clear", lambda: None)()

    forget()
    try:
        with torch.device("meta"), _Fused(), patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
            yield
    finally:
        forget()


def _shadows(model: Model) -> dict[str, Tensor]:
    """Every parameter and buffer without its content; scalars, which code may look at, as they are."""
    own: dict[str, Tensor] = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.ndim:
            own[name] = torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
    return own


def _features(model: Model, own: Mapping[str, Tensor], count: int, length: int, data: Data) -> Tensor:
    channels = data.meta["channels"]
    tokens = torch.ones((count, length, channels) if channels > 1 else (count, length), dtype=torch.int64)
    mask = torch.ones(count, length, dtype=torch.bool)
    return torch.func.functional_call(model, dict(own), (tokens, mask))


def _loss(model: Model, own: Mapping[str, Tensor], shape: Shape, job: Job, data: Data) -> Tensor:
    """As noscratch.objectives, without what depends on the content of a batch."""
    objective, meta = job.settings["objective"], data.meta
    features = [_features(model, own, count, length, data) for count, length in shape]
    head = {name.removeprefix("head."): value for name, value in own.items() if name.startswith("head.")}
    if objective == "classify":
        rows = torch.cat([part.mean(1) for part in features])
        output = torch.func.functional_call(model.head, head, (rows,))
        return output.float().logsumexp(-1).sum()
    share = meta["pretraining"]["ratio"] if objective == "masked" else 1.0
    flat = torch.cat([part.flatten(0, 1) for part in features])
    output = torch.func.functional_call(model.head, head, (flat[: max(1, round(share * len(flat)))],)).float()
    if meta["pretraining"]["loss"] == "l1":
        return functional.l1_loss(output, pixel_value(torch.zeros(output.shape, dtype=torch.int64)), reduction="sum")
    logits = output.unflatten(-1, (meta["channels"], -1)).flatten(0, 1)
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")


def publish(found: Sequence[ClaimCost], tier: str, name: str, share: float, root: Path) -> Path:
    """Write what claims cost on a device class as a record below reports/records; returns its folder."""
    folder = root / "reports" / "records" / f"cost-{tier}-{name}"
    rows = [
        {
            "paper": row.paper,
            "claim": row.claim,
            "seeds": row.seeds,
            "cells": row.cells,
            "left_out": row.left_out,
            "gpu_hours": round(row.cost.time.wall / 3600, 1),
            "memory_bytes": row.cost.memory,
            "disk_bytes": row.cost.disk,
            "energy_kwh": round((row.cost.joules or 0.0) / 3.6e6, 1),
        }
        for row in found
    ]
    write_if_changed(folder / "costs.parquet", parquet_bytes(pa.Table.from_pylist(rows)))
    settings = {"tier": tier, "device": asdict(CLASSES[name]), "utilization": share}
    write_count(folder, count_job(folder.name, settings, ("noscratch.roofline",)))
    return folder
