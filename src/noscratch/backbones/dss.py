"""DSS block: a diagonal state-space model with eigenvalues that all heads share, as a convolution or a recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent, require
from noscratch.backbones._block import (
    MixerBlock,
    StateSpace,
    StateSpaceSettings,
    eigenvalues,
    log_uniform,
    own_rate,
    randomize,
)
from noscratch.kernels import conv, ssm

PAPER = "Gupta, Gu, Berant, Diagonal State Spaces are as Effective as Structured State Spaces, arXiv 2203.14343"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(StateSpaceSettings):
    """Defaults: DSS-EXP of the paper (proposition 1a), sizes and rates of the authors' code.

    Lambda, dt and W have the learning rate `lr`.
    """

    variant: Literal["exp", "softmax"] = "exp"
    """softmax: each mode is divided by the sum of its powers (proposition 1b). It sums over `max_length` positions,
    however long the sequence is, so that padding changes nothing: the paper's models on inputs padded to one length."""
    init: Literal["legs", "lin", "random"] = "legs"
    """Eigenvalues: those of skew-symmetric HiPPO-LegS of size 2 N with positive imaginary part, or -1/2 + i pi n;
    random: every parameter of the SSM ~ N(0, 0.1^2)."""


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    return MixerBlock(DSS(config, d_model, max_length, causal, backend), d_model, config)


class DSS(StateSpace):
    """x' = Lambda x + u, y = Re(W x) + D u in each head. The paper's W is C here."""

    forms: ClassVar = {"dss_kernel": ssm.KERNEL_BACKENDS, "long_conv": conv.LONG_CONV_BACKENDS}
    advance = staticmethod(ssm.dss_step)

    def __init__(self, config: Config, heads: int, max_length: int, causal: bool, backend: str) -> None:
        super().__init__(heads, config.d_state, 1.0, causal, backend)
        self.variant, self.max_length = config.variant, max_length
        Lambda = eigenvalues(config.init, 2 * config.d_state)
        self.log_dt = nn.Parameter(log_uniform(config.dt_min, config.dt_max, heads))
        # exp: log(-Re Lambda), so that the real part stays negative; softmax: Re Lambda, free to become positive.
        real = torch.log(-Lambda.real) if config.variant == "exp" else Lambda.real
        self.real = nn.Parameter(real.float())
        self.frequency = nn.Parameter(Lambda.imag.abs().float())
        if config.init == "random":
            randomize(self)
        self.optim = own_rate(config.lr, "log_dt", "real", "frequency", "C")

    def kernel(self, length: int) -> Tensor:
        dt, Lambda = self.system()
        W = torch.view_as_complex(self.C)
        if self.variant == "exp":
            return ssm.dss_kernel(dt, Lambda, W, length, "exp", backend=self.backend)
        require(
            length <= self.max_length,
            f"The softmax of this block is over max_length = {self.max_length} positions; got {length}.",
        )
        return ssm.dss_kernel(dt, Lambda, W, self.max_length, "softmax", backend=self.backend)[..., :length]

    def recurrence(self) -> tuple[Tensor, ...]:
        return ssm.dss_discretize(*self.system(), self.max_length, self.variant)

    def system(self) -> tuple[Tensor, Tensor]:
        """dt (H,), Lambda (N,)."""
        real = -self.real.exp() if self.variant == "exp" else self.real
        return self.log_dt.exp(), torch.complex(real, self.frequency)
