"""Pure functions of tensors: the slow reference form first, the fast form after it, and one rule for which of them
runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from noscratch.errors import NoscratchError

BACKENDS = ("auto", "reference", "fast", "triton", "compiled")
ONE_FORM = ("reference",)  # of steps, discretizations and matrices, which have nothing faster to be checked against


class KernelError(NoscratchError):
    """A kernel was asked for a backend that it lacks, or for a shape that it does not define."""


def resolve(kernel: str, backend: str, available: Sequence[str], device: torch.device | None = None) -> str:
    """The form that `backend` names: "auto" is "triton" on CUDA where the kernel has it, else "fast", else "reference".

    Raises KernelError for a name that the kernel lacks; never falls back to another form.
    """
    if backend == "auto":
        if device is not None and device.type == "cuda" and "triton" in available:
            return "triton"
        return "fast" if "fast" in available else "reference"
    if backend not in available:
        raise KernelError(
            f"{kernel} has the backends {', '.join(available)}; got {backend!r}. Set `run.backend` to one of them "
            f"or to auto."
        )
    return backend
