"""Counted floating-point operations of a piece of work: two per multiply-add of matrix products and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
