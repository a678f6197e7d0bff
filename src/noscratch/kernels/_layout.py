"""How tensors lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def transposed(x: Tensor) -> Tensor:
    """x (batch, m, n) -> (batch, n, m), dense on the CPU, where PyTorch's copies go number by number and its shuffle of
    m n channels in m groups, which is the same, by tiles; elsewhere a view."""
    batch, m, n = x.shape
    if x.device.type != "cpu":
        return x.mT
    pixels = x.contiguous().as_strided((batch, m * n, 1, 1), (m * n, 1, m * n, m * n))  # one a sequence, channels last
    return torch.native_channel_shuffle(pixels, m).view(batch, n, m)
