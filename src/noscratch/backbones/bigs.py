"""BiGS block: one state-space model per direction, which all channels share, and multiplicative gates; bidirectional.

The paper's ablation crosses two choices, and so do the settings: gated or stacked, state spaces or attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import Block, require, without_padding
from noscratch.backbones._block import check, check_steps, eigenvalues, log_uniform, randomize
from noscratch.backbones._ffn import Feedforward, Settings
from noscratch.backbones._linear import Linear
from noscratch.backbones.transformer import Attention, StackedBlock
from noscratch.kernels import conv, resolve, ssm, structured

PAPER = "Wang, Yan, Gu, Rush, Pretraining Without Attention, arXiv 2212.10544"
CAUSAL_OK = False
BIDIRECTIONAL_OK = True
EQUIVALENT = ()

EPS = 1e-12  # of the norm, as published


@dataclass(frozen=True)
class Config(Settings):
    """Defaults: sizes and initial values of the paper's BiGS and of the authors' code (which gives the state spaces the
    learning rate of all other parameters). Dropout is theirs on the embedding only, where the model has it."""

    gated: bool = True
    """False: the mixer and a feedforward in turn, as in a Transformer."""
    mixer: Literal["ssm", "attention"] = "ssm"
    expansion: int = 3
    """Width of the gate over d_model. A stacked block's feedforward is one wider, for about as many parameters."""
    dt_min: float = 0.01
    dt_max: float = 1.0
    """The step of each direction is drawn log-uniformly between the two."""
    d_state: int = 64
    """N: complex states, none of them for its conjugate."""
    init: Literal["legs", "lin", "random"] = "legs"
    """Eigenvalues: all N of skew-symmetric HiPPO-LegS, or -1/2 + i pi n; random: every parameter of the SSM
    ~ N(0, 0.1^2)."""
    heads: int = 8
    """Of attention, which has rotary positions."""
    dropout: float = 0.0
    """On each branch, before the residual sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        require(self.ffn == "dense" or not self.gated, f"A gated block has no feedforward; got ffn {self.ffn!r}.")
        check_steps(self.dt_min, self.dt_max)
        require(self.expansion >= 1, f"expansion is at least 1; got {self.expansion}.")
        require(self.heads >= 1, f"heads is at least 1; got {self.heads}.")
        require(self.d_state >= 2 and self.d_state % 2 == 0, f"d_state is even and at least 2; got {self.d_state}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> nn.Module:
    require(not causal, "BiGS looks both ways in every block; got causal=True. Ask for a bidirectional one.")
    mixer: Attention | StateSpaces
    if config.mixer == "attention":
        mixer = Attention(d_model, config.heads, rotary=True, causal=False, backend=backend)
    else:
        mixer = StateSpaces(config, d_model, backend)
    if config.gated:
        return GatedBlock(mixer, d_model, config.expansion * d_model, config.dropout, backend)
    feedforward = Feedforward(d_model, (config.expansion + 1) * d_model, config, backend)
    return StackedBlock(mixer, feedforward, d_model, "pre", config.dropout)


class StateSpaces(nn.Module):
    """W_f S_f gelu(V_f x) times, or without gates plus, W_b S_b gelu(V_b x): x (B, L, D) to (B, L, D).

    S is x' = A x + u, y = Re(C x) + D u with one A (N,), C (N,), step and D for all channels; S_b runs from the end.
    """

    def __init__(self, config: Config, d_model: int, backend: str) -> None:
        super().__init__()
        self.gated, self.backend = config.gated, backend
        A = _spectrum(config.init, config.d_state)
        self.real, self.frequency = (nn.Parameter(part.float().repeat(2, 1)) for part in (A.real, A.imag))
        self.log_dt = nn.Parameter(log_uniform(config.dt_min, config.dt_max, 2))
        self.C = nn.Parameter(torch.randn(2, config.d_state, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.ones(2))
        if config.init == "random":
            randomize(self)
        self.enter = Linear(d_model, 2 * d_model, backend)
        self.leave = nn.ModuleList(Linear(d_model, d_model, backend) for _ in range(2))

    @property
    def kernels(self) -> dict[str, str]:
        device = self.D.device
        return self.enter.kernels | {
            "dss_kernel": resolve("dss_kernel", self.backend, ssm.KERNEL_BACKENDS, device),
            "long_conv": resolve("long_conv", self.backend, conv.LONG_CONV_BACKENDS, device),
        }

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        streams = without_padding(functional.gelu(self.enter(x)), mask)
        ahead, back = (stream.transpose(1, 2) for stream in streams.chunk(2, dim=-1))
        taps = self.taps(x.shape[1]).unsqueeze(1).expand(-1, x.shape[2], -1)
        skip = self.D[:, None, None].expand(-1, x.shape[2], 1)
        ahead = conv.long_conv(ahead, taps[0], skip[0, :, 0], backend=self.backend)
        # The skip is the tap of lag 0 in one direction, so that all of the other kernel is the reverse one's.
        back = conv.long_conv(back, skip[1], None, taps[1], reverse_offset=0, backend=self.backend)
        left, right = (leave(y.transpose(1, 2)) for leave, y in zip(self.leave, (ahead, back), strict=True))
        mixed: Tensor = left * right if self.gated else left + right
        return mixed

    def taps(self, length: int) -> Tensor:
        """K (2, length), forwards and backwards, K_l = Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n l}."""
        with torch.autocast(self.D.device.type, enabled=False):
            # Authors' code: a real part above -1e-4 counts as that.
            A = torch.complex(self.real.clamp(max=-1e-4), self.frequency)
            C = torch.view_as_complex(self.C)
            return ssm.dss_kernel(self.log_dt.exp(), A, C, length, "exp", backend=self.backend)


class GatedBlock(nn.Module):
    """x + W_o (gelu(W_u m(z)) gelu(W_v z)), z = norm(x), with a mixer m of positions that is called like a block."""

    def __init__(self, mixer: Block, d_model: int, width: int, dropout: float, backend: str) -> None:
        super().__init__()
        self.mixer, self.dropout = mixer, dropout
        self.norm = nn.LayerNorm(d_model, eps=EPS)
        self.gate, self.up = nn.Linear(d_model, width), nn.Linear(d_model, width)
        self.out = nn.Linear(width, d_model)
        self.backend = backend

    @property
    def kernels(self) -> dict[str, str]:
        form = resolve("gelu_product", self.backend, structured.GELU_PRODUCT_BACKENDS, self.out.weight.device)
        return self.mixer.kernels | {"gelu_product": form}

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        z = self.norm(x)
        layers = (tensor for layer in (self.up, self.gate, self.out) for tensor in (layer.weight, layer.bias))
        y = structured.gelu_product(self.mixer(z, mask), z, *layers, backend=self.backend)
        return x + functional.dropout(y, self.dropout, self.training)


def _spectrum(init: str, N: int) -> Tensor:
    """The eigenvalues (N,) that both directions start from."""
    if init == "lin":
        return eigenvalues("lin", 2 * N)
    half = eigenvalues("legs", N)
    return torch.cat([half, half.conj().flip(0)])
