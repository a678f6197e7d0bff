"""S4 block: a diagonal-plus-rank-1 state-space model started at HiPPO-LegS, as one long convolution or a recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent, require
from noscratch.backbones._block import (
    ConjugatePairs,
    MixerBlock,
    StateSpaceSettings,
    check_pairs,
    own_rate,
    randomize,
)
from noscratch.kernels import conv, ssm

PAPER = "Gu, Goel, Ré, Efficiently Modeling Long Sequences with Structured State Spaces, arXiv 2111.00396"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(StateSpaceSettings):
    """Defaults: S4-LegS as in the paper's LRA runs (section 4.2, appendix D) and in Amos et al. 2024 (2310.02980).

    Lambda, P, B and dt have the learning rate `lr`.
    """

    n_ssm: int = 0
    """How many systems (Lambda, P, B) there are: head h has the one of number h mod n_ssm. 0: one for each head."""
    init: Literal["legs", "random"] = "legs"
    """HiPPO-LegS with its whole B; random: every parameter of the SSM ~ N(0, 0.1^2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs(self.d_state)
        require(self.n_ssm >= 0, f"n_ssm is at least 1, or 0 for one system per head; got {self.n_ssm}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    require(
        config.n_ssm == 0 or d_model % config.n_ssm == 0,
        f"n_ssm divides d_model, so that each system serves as many heads; got {config.n_ssm} and {d_model}.",
    )
    return MixerBlock(S4(config, d_model, causal, backend), d_model, config)


class S4(ConjugatePairs):
    """x' = (Lambda - P P^*) x + B u, y = 2 Re(C x) + D u in each head, bilinear. C is the true C, at every length."""

    forms: ClassVar = {"s4_kernel": ssm.KERNEL_BACKENDS, "long_conv": conv.LONG_CONV_BACKENDS}
    advance = staticmethod(ssm.s4_step)

    def __init__(self, config: Config, heads: int, causal: bool, backend: str) -> None:
        legs, systems = ssm.hippo_legs(config.d_state), config.n_ssm or heads
        super().__init__(heads, systems, legs.Lambda, (config.dt_min, config.dt_max), causal, backend)
        self.sharing = heads // systems
        self.P = nn.Parameter(torch.view_as_real(legs.P_t).float().repeat(systems, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(legs.B_t).float().repeat(systems, 1, 1))
        if config.init == "random":
            randomize(self)
        self.optim = own_rate(config.lr, "log_dt", "log_decay", "frequency", "P", "B")

    def kernel(self, length: int) -> Tensor:
        return ssm.s4_kernel(*self.system(), torch.view_as_complex(self.C), length, backend=self.backend)

    def recurrence(self) -> tuple[Tensor, ...]:
        return ssm.s4_discretize(*self.system())

    def system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (H,), Lambda (H, N/2), P (1, H, N/2), B (H, N/2)."""
        shared = (self.eigenvalues(), torch.view_as_complex(self.P), torch.view_as_complex(self.B))
        Lambda, P, B = (part.repeat(self.sharing, 1) for part in shared)
        return self.log_dt.exp(), Lambda, P.unsqueeze(0), B
