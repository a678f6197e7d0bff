"""One process, or one of several (ranks) that train one model together: what the loop asks of them.

The loop knows this module only; `noscratch.distributed` has the form for several processes. Tensors that are sharded
over ranks (DTensor) are met here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn


class Alone:
    """A process by itself: it has the whole batch, and sums are its own. Several ranks give every method a collective
    form, so each of them is called by all ranks in the same order."""

    rank = 0
    world = 1
    sharded = False
    taking = True
    """Whether this rank has examples in the piece at hand, or goes through the motions."""

    def wrap(self, model: nn.Module) -> None:
        """Prepare a model whose parameters are the same on every rank."""

    def shares(self, index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """What each rank takes of a batch."""
        return [index[rank :: self.world] for rank in range(self.world)]

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        return list(numbers)

    def add_array(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the ranks, element by element."""
        return values

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over the ranks."""

    def wait(self) -> None:
        """Until every rank is here."""


def is_sharded(tensor: Tensor) -> bool:
    """Is it split over the ranks?"""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    part: Any = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def fill(own: Tensor, given: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if is_sharded(own):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = own
        given = distribute_tensor(given.to(own.device), sharded.device_mesh, sharded.placements)
        local(own).copy_(local(given))
    else:
        own.copy_(given)
