"""What laws have in common: the same numbers in double precision, and gradients against a cotangent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.detach()).item()


def run(f: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """f(*inputs) and the gradients of Re <cotangent, f> to every input, 0 for one that plays no part."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = f(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, cotangent.to(y.dtype), materialize_grads=True)
