"""One rule for how large an error may be, that of the self-test, and one way to say how large it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noscratch.known_answers import tolerance

__all__ = ["GOLDEN", "Error", "assert_close", "error", "tolerance"]

GOLDEN = 1e-10
"""Relative error allowed against stored float64 reference vectors, computed in float64."""


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
