"""Several processes that train one model together, started by torchrun: data parallel, or sharded for large models.

Every rank takes the examples rank, rank + world, ... of each global batch, a pure function of (seed, epoch, rank), and
adds up the gradients of its losses' sum. Their sum over the ranks is that of one process with the whole batch, so only
the order of additions differs. The statistics of batch norms are such sums as well. The first rank writes; checkpoints
are read by all (one shared folder).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from noscratch.backbones._norm import BatchNorm
from noscratch.backbones._presets import Preset
from noscratch.device import together
from noscratch.errors import NoscratchError
from noscratch.ranks import Alone, is_sharded

BUCKET = 2**25
"""Bytes of gradients that are added up at once."""


@contextmanager
def join(device: str, sharded: bool) -> Iterator[Alone]:
    """Join the processes that torchrun has started; by itself, a process is Alone.

    device: "cuda" (one GPU for each process of a host, by LOCAL_RANK) or "cpu".
    """
    if not together():
        if sharded:
            raise NoscratchError(
                'A model is sharded over several processes; this is one. Start it with torchrun: the page "Train your '
                'own" has the lines.'
            )
        yield Alone()
        return
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise NoscratchError(
                f"Every process has a GPU of its own; this host has {gpus} and torchrun started more. Give "
                f"--nproc-per-node={gpus}."
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Together(torch.device(device), sharded)
    finally:
        dist.destroy_process_group()


class Together(Alone):
    """A rank of the default process group, its model on `device`.

    sharded: parameters, gradients and optimizer state of every block are split over the ranks (FSDP); the embedding,
    the last norm and the head are kept by each.
    """

    def __init__(self, device: torch.device, sharded: bool = False) -> None:
        self.rank, self.world, self.sharded = dist.get_rank(), dist.get_world_size(), sharded
        self._device = device

    def wrap(self, model: nn.Module) -> None:
        """Shard the blocks; norms take the statistics of the whole batch."""
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.total = self._total
        if self.sharded:
            shard(model)

    def add(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, in float64."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(sums)
        return sums.tolist()

    def add_array(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the ranks, element by element."""
        sums = torch.from_numpy(values).to(self._device)
        dist.all_reduce(sums)
        return sums.cpu().numpy()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over the ranks; those of sharded parameters are so already."""
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Until every rank is here."""
        dist.barrier()

    def _total(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks that have examples, with gradients."""
        total: torch.Tensor = _Total.apply(part * float(self.taking))
        return total


class _Total(torch.autograd.Function):
    """Sum over the ranks, forwards and backwards: each rank's loss depends on every rank's part."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor) -> torch.Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Consecutive gradients of one type, of at most BUCKET bytes unless one alone is larger."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.nbytes for g in [*bucket, gradient]) > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def shard(model: nn.Module) -> None:
    """Split every block of a noscratch.model.Model over the ranks; gradients are sums, not means."""
    from torch.distributed.fsdp import fully_shard

    for block in model.get_submodule("blocks").children():
        module = fully_shard(block)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def state_bytes(preset: Preset, ranks: int) -> int:
    """Bytes of float32 parameters, gradients and AdamW's two moments that each of so many ranks keeps of a published
    model when its blocks are sharded; 1: all of them. Counted on the meta device. Activations and the one block that
    is gathered at a time come on top.
    """
    with torch.device("meta"):
        first, other = (sum(p.numel() for p in preset.block(i).parameters()) for i in (0, 1))
    blocks = first + (preset.layers - 1) * other
    return 4 * 4 * (sum(preset.around.values()) + -(-blocks // ranks))
