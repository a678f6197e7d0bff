"""One rule for how large an error may be, and one way to say how large it was."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

GOLDEN = 1e-10
"""Relative error allowed against stored float64 reference vectors, computed in float64."""


def tolerance(dtype: torch.dtype, length: int = 1, condition: float = 1.0) -> float:
    """Largest |got - want| allowed in `dtype`, relative to the scale of the result (max |want| by default).

    eps(dtype) * 4 (1 + log2(2 length)) * condition, because
    - an FFT or a pairwise sum of `length` terms passes each value through log2(2 length) rounded additions, so its
      error grows like eps log2(2 length) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, 4.2, 24.1);
    - around that stand a few roundings that do not depend on the length (inputs, a product, the result): the 1;
    - both sides of a comparison in float64 round, and transcendental functions are right to a few ulp: the 4;
    - what amplifies errors of the data is the caller's to state as `condition`: `length` for a recurrence taken step by
      step (errors of Abar^l add up), `length * |Im dt A|` for the phase of a parameter that was rounded to `dtype`, the
      ratio of the sizes of the terms to the size of their sum where they cancel.
    """
    return torch.finfo(dtype).eps * 4.0 * (1.0 + math.log2(2.0 * max(length, 1))) * max(condition, 1.0)


class Error(NamedTuple):
    """Differences relative to one scale for the whole tensor: pointwise ratios mean nothing where a kernel decayed."""

    max: float
    rms: float


def error(got: Tensor, want: Tensor, scale: float | None = None) -> Error:
    """max and RMS of |got - want| / scale in double precision; `scale`: max |want| if not given; 0 counts as 1."""
    assert got.shape == want.shape, f"shapes differ: got {tuple(got.shape)}, want {tuple(want.shape)}"
    wide = torch.complex128 if got.is_complex() or want.is_complex() else torch.float64
    got, want = got.detach().to(wide), want.detach().to(wide)
    if not got.numel():
        return Error(0.0, 0.0)
    unit = want.abs().max().item() if scale is None else scale
    difference = (got - want).abs() / (unit if unit > 0 else 1.0)
    return Error(difference.max().item(), difference.square().mean().sqrt().item())


def assert_close(got: Tensor, want: Tensor, bound: float, scale: float | None = None, what: str = "result") -> None:
    """Fail unless max |got - want| <= bound * scale; the message gives max and RMS. NaN fails."""
    found = error(got, want, scale)
    report = f"{what}: max error {found.max:.3g}, RMS {found.rms:.3g}, allowed {bound:.3g}"
    assert found.max <= bound, f"{report} ({got.dtype}, shape {tuple(got.shape)})"
