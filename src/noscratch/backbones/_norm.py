"""Norms of the features (..., D): layer norm, and batch norm over the positions that are real."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from noscratch.backbones import require, without_padding

MOMENTUM = 0.1
"""What a batch's statistics weigh in the running ones."""


def norm(kind: str, d_model: int) -> LayerNorm | BatchNorm:
    """The norm of this name, layer or batch."""
    return BatchNorm(d_model) if kind == "batch" else LayerNorm(d_model)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with the mask that a batch norm takes."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


class BatchNorm(nn.Module):
    """x (B, L, D) and mask (B, L), or None without padding: each channel less its mean, over its standard deviation,
    times weight, plus bias.

    In training both are those of the batch's real positions, so that padding changes nothing. A batch is what goes
    through the model at once: a piece of `micro_tokens`, of pairs the texts of one length. Several processes count
    as one batch. In evaluation they are running averages, and x may be single positions (B, D).

    Ioffe and Szegedy, arXiv 1502.03167; momentum and the unbiased running variance as in PyTorch.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        # Several processes put their sum here, through which gradients flow.
        self.total: Callable[[Tensor], Tensor] = _own
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("variance", torch.ones(d_model))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.training:
            return (x - self.mean) * ((self.variance + self.eps).rsqrt() * self.weight) + self.bias
        require(x.ndim == 3, f"Batch norm trains on whole batches (B, L, D); got {tuple(x.shape)}. Call eval().")
        real = x.new_full((), x.shape[:2].numel()) if mask is None else mask.sum().to(x.dtype)
        count = self.total(real)
        mean = self.total(without_padding(x, mask).sum((0, 1))) / count
        x = x - mean
        variance = self.total(without_padding(x.square(), mask).sum((0, 1))) / count
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean.dtype), MOMENTUM)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.variance.lerp_(unbiased.to(self.variance.dtype), MOMENTUM)
        return x * ((variance + self.eps).rsqrt() * self.weight) + self.bias


def _own(part: Tensor) -> Tensor:
    return part
