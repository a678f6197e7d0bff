"""SGConv block: a global convolution whose kernel has few parameters at many scales and decays with the distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent, require
from noscratch.backbones._block import Convolution, MixerBlock, Settings
from noscratch.kernels import conv

PAPER = "Li et al., What Makes Convolutional Models Great on Long Sequence Modeling?, arXiv 2210.09298"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(Settings):
    """Defaults: the authors' LRA settings that several tasks share (repository, branch `preview`)."""

    kernel_dim: int = 32
    """d: taps of each segment before it is stretched. ListOps and Retrieval 1, Text 2, Path-X 64."""
    decay_min: float = 2.0
    decay_max: float = 2.0
    """Each segment is smaller than the one before it by this factor, which grows linearly over the heads from one to
    the other. Image 1 and 1, Path-X 1 and 3."""
    init: Literal["randn", "cos"] = "randn"
    """cos (Path-X): in each segment the heads' taps are 0, 1, ..., H - 1 periods of a cosine, in random order."""
    lr: float = 0.001
    """Learning rate of the segments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kernel_dim >= 1, f"kernel_dim is at least 1; got {self.kernel_dim}.")
        require(
            0 < self.decay_min <= self.decay_max,
            f"0 < decay_min <= decay_max; got {self.decay_min} and {self.decay_max}.",
        )


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    return MixerBlock(SGConv(config, d_model, max_length, causal, backend), d_model, config)


class SGConv(Convolution):
    """y = K u + D u in each head, with enough segments for `max_length` taps; the norm of the first K divides every K.

    No recurrence of fixed size gives this kernel: `step` carries all earlier inputs and its cost grows with them.
    """

    forms: ClassVar = {"sgconv_kernel": conv.SGCONV_BACKENDS, "long_conv": conv.LONG_CONV_BACKENDS}
    scale: Tensor
    first_norm: Tensor

    def __init__(self, config: Config, heads: int, max_length: int, causal: bool, backend: str) -> None:
        super().__init__(heads, causal, backend)
        self.max_length, d = max_length, config.kernel_dim
        segments = (
            1 + (-(-max_length // d) - 1).bit_length()
        )  # 1 + ceil(log2(max_length / d)): d, d, 2 d, 4 d, ... taps
        self.W = nn.Parameter(torch.randn(segments, self.directions, heads, d))
        if config.init == "cos":
            periods = torch.stack([torch.randperm(heads) for _ in range(segments)])[:, None, :, None]
            waves = torch.cos(periods * torch.linspace(0, 2 * math.pi, d))
            self.W = nn.Parameter(waves.repeat(1, self.directions, 1, 1))
        decay = torch.linspace(config.decay_min, config.decay_max, heads)
        left = torch.arange(segments - 1, -1, -1)[:, None, None, None]
        self.register_buffer("scale", decay[:, None] ** left, persistent=False)
        self.register_buffer("first_norm", conv.sgconv_norm(self.segments(), 1.0).detach())
        self.optim = {"W": {"lr": config.lr}}

    def segments(self) -> Tensor:
        """(S, directions H, d): the segments with their decay."""
        return (self.W * self.scale).flatten(1, 2)

    def kernel(self, length: int) -> Tensor:
        taps = conv.sgconv_kernel(self.segments(), 1.0, length, self.first_norm, backend=self.backend)
        return taps.unflatten(0, (self.directions, -1))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """(the inputs so far (B, H, 0), the kernel (H, max_length))."""
        return self.D.new_empty(batch, len(self.D), 0), self.kernel(self.max_length)[0]

    def step(self, u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        past, taps = state
        past = torch.cat([past, u.unsqueeze(-1)], dim=-1)
        length = past.shape[-1]
        require(
            length <= self.max_length,
            f"The kernel of this block has max_length = {self.max_length} taps; got position {length}.",
        )
        return (past * taps[:, :length].flip(-1)).sum(-1) + self.D * u, (past, taps)
