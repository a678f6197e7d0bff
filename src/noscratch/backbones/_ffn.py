"""The feedforward of every backbone that has one: two dense maps, or two structured ones, around a GELU.

Structured forms, their initial values and self-guided training: Wei, Moalla, Pascanu, Gulcehre, "Building on Efficient
Foundations: Effectively Training LLMs with Structured Feedforward Layers", arXiv 2406.16450.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import require
from noscratch.backbones._linear import Linear
from noscratch.kernels import resolve, structured

KERNELS = {
    "low_rank": structured.low_rank,
    "block_dense": structured.block_dense,
    "block_shuffle": structured.block_shuffle,
}
GUIDED_SHARE = 0.5
"""The share of the steps, from the first on, in which a guided map has its dense one beside it."""


@dataclass(frozen=True)
class Settings:
    """What the two maps of a feedforward are: a part of a backbone's Config. Defaults: about 63 % of the parameters."""

    ffn: Literal["dense", "low_rank", "block_dense", "block_shuffle"] = "dense"
    rank: float = 0.5
    """Rank over d_model of low_rank and block_dense maps."""
    blocks: int = 2
    """Blocks of block_dense and block_shuffle maps."""
    guided: bool = False
    """Self-guided training: dense maps help structured ones through the first half of it."""

    def __post_init__(self) -> None:
        kinds = ("dense", *KERNELS)
        require(self.ffn in kinds, f"ffn is one of {', '.join(kinds)}; got {self.ffn!r}.")
        require(0 < self.rank <= 1, f"rank, over d_model, is in (0, 1]; got {self.rank}.")
        require(self.blocks >= 1, f"blocks is at least 1; got {self.blocks}.")
        require(not self.guided or self.ffn != "dense", "guided is for structured maps; got ffn 'dense'.")

    def shapes(self, inputs: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the two weights of a structured map; one of its widths is d_model, the other at least that."""
        narrow, b = min(inputs, outputs), self.blocks
        rank = narrow if self.ffn == "block_shuffle" else round(self.rank * narrow)
        if self.ffn == "low_rank":
            require(rank >= 1, f"rank times d_model is at least 1; got {self.rank} times {narrow}.")
            return (rank, inputs), (outputs, rank)
        require(
            rank > 0 == inputs % b == outputs % b == rank % b,
            f"Widths and rank are multiples of blocks = {b}; got widths {inputs} and {outputs}, rank {rank}.",
        )
        first = (b, rank // b, inputs // b)
        return first, ((outputs, rank) if self.ffn == "block_dense" else (b, outputs // b, rank // b))


class Feedforward(nn.Module):
    """x (..., D) to down(gelu(up(x))), (..., D)."""

    def __init__(self, d_model: int, width: int, settings: Settings, backend: str) -> None:
        super().__init__()
        self.up = _map(d_model, width, settings, backend)
        self.down = _map(width, d_model, settings, backend)

    @property
    def kernels(self) -> dict[str, str]:
        return self.up.kernels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(x)))
        return y

    def merge(self) -> None:
        """Make each structured map the dense one that it equals: faster for the few rows of generation."""
        self.up, self.down = (m.merged() if isinstance(m, Structured) else m for m in (self.up, self.down))


def _map(inputs: int, outputs: int, settings: Settings, backend: str) -> Linear | Structured:
    if settings.ffn == "dense":
        return Linear(inputs, outputs, backend)
    return Structured(inputs, outputs, settings, backend)


class Structured(nn.Module):
    """y = U V x + b with structured U V; guided: y = alpha W x + (1 - alpha) U V x + b, W = U V at first (section 4).

    alpha falls from 1 to 0 by half a cosine over the first half of the training.
    """

    alpha: Tensor

    def __init__(self, inputs: int, outputs: int, settings: Settings, backend: str) -> None:
        super().__init__()
        self.kind, self.backend = settings.ffn, backend
        first, second = settings.shapes(inputs, outputs)
        if self.kind == "low_rank":
            V, U = _nearest(nn.Linear(inputs, outputs).weight.detach(), rank=first[0])
        else:
            V, U = _orthonormal(first), _orthonormal(second)
        self.first, self.second = nn.Parameter(V.contiguous()), nn.Parameter(U.contiguous())
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.guide = nn.Parameter(self._product().detach()) if settings.guided else None
        if settings.guided:
            self.register_buffer("alpha", torch.ones(()))

    @property
    def kernels(self) -> dict[str, str]:
        return {self.kind: resolve(self.kind, self.backend, structured.STRUCTURED_BACKENDS, self.bias.device)}

    def set_progress(self, fraction: float) -> None:
        """Set alpha for the share `fraction` of the training that is over."""
        if self.guide is not None:
            self.alpha.fill_(0.5 * (1 + math.cos(math.pi * min(fraction / GUIDED_SHARE, 1.0))))

    def forward(self, x: Tensor) -> Tensor:
        y = KERNELS[self.kind](x, self.first, self.second, backend=self.backend)
        # Without its dense map the layer costs less: the second half of the training goes without.
        if self.guide is not None and (alpha := self.alpha.item()):
            y = alpha * structured.linear(x, self.guide, backend=self.backend) + (1 - alpha) * y
        return y + self.bias

    def merged(self) -> Linear:
        """The dense layer with the same outputs."""
        matrix = self._product()
        if self.guide is not None:
            matrix = self.alpha * self.guide + (1 - self.alpha) * matrix
        dense = Linear(matrix.shape[1], matrix.shape[0], self.backend)
        dense.weight, dense.bias = nn.Parameter(matrix.detach()), nn.Parameter(self.bias.detach().clone())
        return dense

    def _product(self) -> Tensor:
        return structured.dense_of(self.kind, self.first, self.second)


def _nearest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V (rank, in) and U (out, rank) of equal scale whose product U V is nearest to the matrix (out, in)."""
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    root = S[:rank].sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root


def _orthonormal(shape: tuple[int, ...]) -> Tensor:
    """Random matrices (..., m, n) with orthonormal rows or columns, whichever are fewer."""
    U, _, V = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    return U @ V
