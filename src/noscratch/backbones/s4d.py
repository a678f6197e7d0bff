"""S4D block: a diagonal state-space model as one long convolution, or as a recurrence with carried state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent
from noscratch.backbones._block import (
    ConjugatePairs,
    MixerBlock,
    StateSpaceSettings,
    check_pairs,
    eigenvalues,
    own_rate,
    randomize,
)
from noscratch.kernels import conv, ssm

PAPER = (
    "Gu, Gupta, Goel, Ré, On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893"
)
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(StateSpaceSettings):
    """Defaults: the paper's S4D-LegS (sections 4 and 5), the bidirectional form with a GLU mix used for LRA.

    A, dt and B have the learning rate `lr`.
    """

    init: Literal["legs", "inv", "lin", "random"] = "legs"
    """Eigenvalues: S4D-LegS, S4D-Inv, S4D-Lin (section 4); random: every parameter of the SSM ~ N(0, 0.1^2)."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    train_b: bool = False
    """B = 1 is absorbed by C unless it is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.d_state)


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    return MixerBlock(S4D(config, d_model, causal, backend), d_model, config)


class S4D(ConjugatePairs):
    """x' = A x + B u, y = 2 Re(C x) + D u in each head."""

    forms: ClassVar = {"s4d_kernel": ssm.KERNEL_BACKENDS, "long_conv": conv.LONG_CONV_BACKENDS}
    advance = staticmethod(ssm.s4d_step)

    def __init__(self, config: Config, heads: int, causal: bool, backend: str) -> None:
        A, dt = eigenvalues(config.init, config.d_state), (config.dt_min, config.dt_max)
        super().__init__(heads, heads, A, dt, causal, backend)
        self.discretization = config.discretization
        B = torch.view_as_real(torch.ones(heads, config.d_state // 2, dtype=torch.complex64))
        if config.train_b:
            self.B = nn.Parameter(B)
        else:
            self.register_buffer("B", B, persistent=False)
        if config.init == "random":
            randomize(self)
        self.optim = own_rate(config.lr, "log_dt", "log_decay", "frequency", *["B"] * config.train_b)

    def kernel(self, length: int) -> Tensor:
        C = torch.view_as_complex(self.C)
        return ssm.s4d_kernel(*self.system(), C, length, self.discretization, backend=self.backend)

    def recurrence(self) -> tuple[Tensor, ...]:
        return ssm.discretize(*self.system(), self.discretization)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """dt (H,), A (H, N/2), B (H, N/2)."""
        return self.log_dt.exp(), self.eigenvalues(), torch.view_as_complex(self.B)
