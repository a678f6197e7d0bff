"""DLR block: a diagonal linear RNN with eigenvalues that all heads share, as a convolution or a recurrence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent
from noscratch.backbones._block import (
    MixerBlock,
    StateSpace,
    StateSpaceSettings,
    log_uniform,
    own_rate,
    randomize,
)
from noscratch.kernels import conv, ssm

PAPER = (
    "Gupta, Mehta, Berant, Simplifying and Understanding State Space Models with Diagonal Linear RNNs, arXiv 2212.00768"
)
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(StateSpaceSettings):
    """Defaults: the settings of Amos et al. 2024 (arXiv 2310.02980, repository), which are the authors' but for N."""

    d_state: int = 1024
    """The authors take 4096."""
    init: Literal["omega", "random"] = "omega"
    """omega: frequencies 2 pi n / N, all around the circle; random: every parameter of the SSM ~ N(0, 0.1^2)."""
    dt_min: float = 0.0001
    dt_max: float = 0.1
    """omega: the decay of each state, Re log lambda = -dt / 2 with dt drawn log-uniformly between the two."""
    lr: float = 0.0001
    """Of lambda and W."""


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    return MixerBlock(DLR(config, d_model, causal, backend), d_model, config)


class DLR(StateSpace):
    """x_t = exp(-a^2 + i w) x_{t-1} + u_t, y_t = Re(W x_t) + D u_t in each head. The paper's W is C here."""

    forms: ClassVar = {"dlr_kernel": ssm.KERNEL_BACKENDS, "long_conv": conv.LONG_CONV_BACKENDS}
    advance = staticmethod(ssm.dlr_step)

    def __init__(self, config: Config, heads: int, causal: bool, backend: str) -> None:
        N = config.d_state
        super().__init__(heads, N, 1 / N, causal, backend)
        # -a^2 is never positive: no mode grows.
        self.a = nn.Parameter(torch.exp(0.5 * log_uniform(config.dt_min / 2, config.dt_max / 2, N)))
        self.w = nn.Parameter(2 * math.pi * torch.arange(N) / N)
        if config.init == "random":
            randomize(self)
        self.optim = own_rate(config.lr, "a", "w", "C")

    def kernel(self, length: int) -> Tensor:
        # Both directions have the same eigenvalues: one product with twice the rows.
        W = torch.view_as_complex(self.C).flatten(0, 1)
        taps = ssm.dlr_kernel(self.a, self.w, W, length, backend=self.backend)
        return taps.unflatten(0, (self.directions, -1))

    def recurrence(self) -> tuple[Tensor, ...]:
        return (ssm.dlr_discretize(self.a, self.w),)
