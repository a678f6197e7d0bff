"""Counted floating-point operations: two per multiply-add of matrix products and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from noscratch.data import Split
from noscratch.model import Model

PROBES = 8
"""Lengths at which operations are counted."""

_aten = torch.ops.aten


def _linear(x: torch.Tensor, weight: torch.Tensor, *rest: Any, out_val: torch.Tensor) -> int:
    """oneDNN's product of x (..., in) and weight (out, in)."""
    return 2 * out_val.numel() * weight.shape[1]


# PyTorch has no formula for the CPU's form of attention: it does the work of the GPU's.
FORMULAS = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
if torch.backends.mkldnn.is_available():
    FORMULAS[torch.ops.mkldnn._linear_pointwise] = _linear


class _Counter(TorchDispatchMode):
    """`torch.utils.flop_counter.FlopCounterMode` without its report by module, and without importing the compiler,
    which would cost every process a second."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in FORMULAS:
            self.total += FORMULAS[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def count(work: Callable[[], None]) -> int:
    """The operations that `work` dispatches, by PyTorch's own formulas; Fourier transforms have none and count 0."""
    with _Counter() as counter:
        work()
    return counter.total


class Cost:
    """Operations of training steps, forward and backward, from a few probes: counting each step would slow it down.

    A batch of B sequences of length L costs s(L) + B (a L + b L^2): kernels are made once for a batch, attention is
    quadratic. Two batch sizes at the least and the greatest length of the split give a and b; s is counted at PROBES of
    its lengths and on both sides of powers of two, where tables jump, and interpolated. A row through the head has its
    own price. A model that changes in the course of the training is probed at `fractions` of it, of equal weight.
    """

    def __init__(self, model: Model, train: Split, device: torch.device, fractions: tuple[float, ...]) -> None:
        longest = train.batch(np.array([train.lengths.argmax()])).tokens[:1].to(device)
        lengths = train.sequence_lengths()
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]  # probes are no batches: no statistics of them
        model.train()
        if not model.set_progress(1.0):
            fractions = (1.0,)

        def body(size: int, length: int) -> float:
            part, total = longest[:, :length].repeat_interleave(size, dim=0), 0
            mask = torch.ones(size, length, dtype=torch.bool, device=device)
            for fraction in fractions:
                model.set_progress(fraction)
                total += count(lambda: model(part, mask).sum().backward())
            return total / len(fractions)

        spread = np.linspace(0, len(lengths) - 1, PROBES).round().astype(int)
        jumps = np.flatnonzero(np.diff(np.ceil(np.log2(lengths))))
        probes = lengths[np.unique([*spread, *jumps, *(jumps + 1)])]
        single = np.array([body(1, length) for length in probes.tolist()])
        ends = [0, -1]
        each = np.interp(lengths, probes[ends], [(body(2, probes[end]) - single[end]) / probes[end] for end in ends])
        shared = np.interp(lengths, probes, single - np.interp(probes, lengths, each) * probes)
        self._shared = dict(zip(lengths.tolist(), shared.tolist(), strict=True))
        self._each = dict(zip(lengths.tolist(), (each * lengths).tolist(), strict=True))
        row = torch.zeros(train.rows, model.d_model, dtype=model.weight.dtype, device=device)
        row.requires_grad_()
        self._row = count(lambda: model.head(row).sum().backward())
        model.zero_grad()
        for buffer, value in kept:
            buffer.copy_(value)

    def __call__(self, shapes: Mapping[int, Sequence[int]], rows: int) -> float:
        """Operations of batches: length -> how many have it, and how many sequences in all; rows through the head."""
        return rows * self._row + sum(
            batches * self._shared[length] + sequences * self._each[length]
            for length, (batches, sequences) in shapes.items()
        )
