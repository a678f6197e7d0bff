"""LRU block: a diagonal linear recurrence between dense input and output maps, run as a scan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from noscratch.backbones import parallel, recurrent, require
from noscratch.backbones._block import Mixer, MixerBlock, Settings, own_rate, randomize
from noscratch.kernels import scan

PAPER = "Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, arXiv 2303.06349"
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config(Settings):
    """Defaults: the initialization of appendix A."""

    d_state: int = 256
    """N: complex states of the layer."""
    init: Literal["ring", "random"] = "ring"
    """ring: eigenvalues uniform on the ring r_min <= |lambda| <= r_max with phases up to max_phase (lemma 3.2);
    random: every parameter of the recurrence ~ N(0, 0.1^2)."""
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 2 * math.pi
    """For long sequences the paper raises the radii, to 0.9 ... 0.999, and lowers the phase (section 3.4)."""
    lr: float = 0.001
    """Learning rate of nu and theta, which also have no weight decay; the paper lowers theirs too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.d_state >= 1, f"d_state is at least 1; got {self.d_state}.")
        require(0 <= self.r_min < self.r_max <= 1, f"0 <= r_min < r_max <= 1; got {self.r_min} and {self.r_max}.")
        require(self.max_phase > 0, f"max_phase is positive; got {self.max_phase}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> MixerBlock:
    return MixerBlock(LRU(config, d_model, causal, backend), d_model, config)


class LRU(Mixer):
    """x_t = lambda x_{t-1} + gamma B u_t, y_t = Re(C x_t) + D u_t, lambda = exp(-e^nu + i e^theta).

    gamma = sqrt(1 - |lambda|^2) follows lambda; the paper starts it there and trains it, which B can do as well. The
    bidirectional form adds the same recurrence from the end, with a C of its own; both see the present position.
    """

    forms: ClassVar = {"lru": scan.LRU_BACKENDS}

    def __init__(self, config: Config, heads: int, causal: bool, backend: str) -> None:
        super().__init__(causal, backend)
        N, ends = config.d_state, (config.r_min**2, config.r_max**2)
        # Lemma 3.2: |lambda|^2 is uniform; in float64, where its logarithm is neither 0 nor infinite.
        square = torch.rand(N, dtype=torch.float64) * (ends[1] - ends[0]) + ends[0]
        phase = torch.rand(N, dtype=torch.float64) * config.max_phase
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(square)).float())
        self.theta = nn.Parameter(torch.log(phase).float())
        self.B = nn.Parameter(torch.randn(N, heads, 2) / math.sqrt(2 * heads))
        self.C = nn.Parameter(torch.randn(self.directions, heads, N, 2) / math.sqrt(N))
        self.D = nn.Parameter(torch.randn(heads))
        if config.init == "random":
            randomize(self)
        self.optim = own_rate(config.lr, "nu", "theta")

    def forward(self, u: Tensor) -> Tensor:
        poles, C = (self.nu, self.theta, torch.view_as_complex(self.B)), torch.view_as_complex(self.C)
        y = scan.lru(*poles, C[0], self.D, u, backend=self.backend)
        if self.causal:
            return y
        # Reversed, the padding comes first: zeros, which leave the state at zero.
        late = scan.lru(*poles, C[1], torch.zeros_like(self.D), u.flip(1), backend=self.backend)
        return y + late.flip(1)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """(the state (B, N), zero)."""
        return (torch.view_as_complex(self.C.new_zeros(batch, *self.B.shape[::2])),)

    def step(self, u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        B, C = torch.view_as_complex(self.B), torch.view_as_complex(self.C[0])
        y, x = scan.lru_step(self.nu, self.theta, B, C, self.D, u, *state)
        return y, (x,)
