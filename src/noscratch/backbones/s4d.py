"""S4D block: a diagonal state-space model as one long convolution, or as a recurrence with carried state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import parallel, recurrent, require
from noscratch.kernels import conv, resolve, ssm

PAPER = (
    "Gu, Gupta, Goel, Ré, On the Parameterization and Initialization of Diagonal State Space Models, arXiv 2206.11893"
)
CAUSAL_OK = True
BIDIRECTIONAL_OK = True
EQUIVALENT = ((parallel, recurrent),)


@dataclass(frozen=True)
class Config:
    """Defaults: the paper's S4D-LegS (sections 4 and 5), the bidirectional form with a GLU mix used for LRA."""

    d_state: int = 64
    """N: real size of the state of one head; N / 2 conjugate pairs are stored."""
    init: Literal["legs", "inv", "lin", "random"] = "legs"
    """Eigenvalues: S4D-LegS, S4D-Inv, S4D-Lin (section 4); random: every parameter of the SSM ~ N(0, 0.1^2)."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    dt_min: float = 0.001
    dt_max: float = 0.1
    """The step of each head is drawn log-uniformly between the two."""
    train_b: bool = False
    """B = 1 is absorbed by C unless it is trained."""
    lr: float = 0.001
    """Learning rate of A, dt and B, which also have no weight decay."""
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require(self.d_state >= 2 and self.d_state % 2 == 0, f"d_state is even and at least 2; got {self.d_state}.")
        require(self.init in ("legs", "inv", "lin", "random"), f"init is legs, inv, lin or random; got {self.init!r}.")
        require(
            self.discretization in ("zoh", "bilinear"),
            f"discretization is zoh or bilinear; got {self.discretization!r}.",
        )
        require(0 < self.dt_min <= self.dt_max, f"0 < dt_min <= dt_max; got {self.dt_min} and {self.dt_max}.")
        require(self.norm in ("pre", "post"), f"norm is pre or post; got {self.norm!r}.")
        require(0.0 <= self.dropout < 1.0, f"dropout is in [0, 1); got {self.dropout}.")


def build(config: Config, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> S4DBlock:
    return S4DBlock(config, d_model, causal, backend)


def eigenvalues(init: str, d_state: int) -> Tensor:
    """(N / 2,), complex128: one of each conjugate pair, imaginary part of the sign that the initialization gives it."""
    N, n = d_state, torch.arange(d_state // 2, dtype=torch.float64)
    if init == "legs":
        return ssm.hippo_legs(N).Lambda.to(torch.complex128)
    if init == "inv":
        return torch.complex(torch.full_like(n, -0.5), N / math.pi * (N / (2 * n + 1) - 1))
    return torch.complex(torch.full_like(n, -0.5), math.pi * n)


class S4D(nn.Module):
    """x' = A x + B u, y = 2 Re(C x) + D u for each of `heads` channels; the two directions share A, B and dt."""

    def __init__(self, config: Config, heads: int, causal: bool, backend: str) -> None:
        super().__init__()
        self.config, self.causal, self.backend = config, causal, backend
        directions, pairs = (1 if causal else 2), config.d_state // 2
        span = math.log(config.dt_max) - math.log(config.dt_min)
        A = eigenvalues(config.init, config.d_state)
        self.log_dt = nn.Parameter(torch.rand(heads) * span + math.log(config.dt_min))
        # Re A = -exp(log_decay) stays negative while it is trained (section 3.4).
        self.log_decay = nn.Parameter(torch.log(-A.real).float().repeat(heads, 1))
        self.frequency = nn.Parameter(A.imag.float().repeat(heads, 1))
        B = torch.view_as_real(torch.ones(heads, pairs, dtype=torch.complex64))
        if config.train_b:
            self.B = nn.Parameter(B)
        else:
            self.register_buffer("B", B, persistent=False)
        self.C = nn.Parameter(torch.randn(directions, heads, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(heads))
        if config.init == "random":
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.1)
        special = ["log_dt", "log_decay", "frequency"] + ["B"] * config.train_b
        self.optim = {name: {"lr": config.lr, "weight_decay": 0.0} for name in special}

    def forward(self, u: Tensor) -> Tensor:
        """u (B, H, L), zero at padded positions, to (B, H, L)."""
        dt, A, B, C = self.system()
        kernels = ssm.s4d_kernel(dt, A, B, C, u.shape[-1], self.config.discretization, backend=self.backend)
        reverse = None if self.causal else kernels[1]
        return conv.long_conv(u, kernels[0], self.D, reverse, backend=self.backend)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """(state (B, H, N/2), zero; Abar and Bbar (H, N/2), which every step uses)."""
        dt, A, B, C = self.system()
        Abar, Bbar = ssm.discretize(dt, A, B, self.config.discretization)
        return torch.zeros_like(C).expand(batch, -1, -1), Abar, Bbar

    def step(self, u: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """u (B, H) and the state to y (B, H) and the next state."""
        x, Abar, Bbar = state
        y, x = ssm.s4d_step(u, x, Abar, Bbar, torch.view_as_complex(self.C)[0], self.D)
        return y, (x, Abar, Bbar)

    def system(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt (H,), A (H, N/2), B (H, N/2), C (directions, H, N/2)."""
        A = torch.complex(-self.log_decay.exp(), self.frequency)
        return self.log_dt.exp(), A, torch.view_as_complex(self.B), torch.view_as_complex(self.C)


class S4DBlock(nn.Module):
    """Norm, SSM, GELU, a linear layer with a gated linear unit, residual sum."""

    def __init__(self, config: Config, d_model: int, causal: bool, backend: str) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(d_model)
        self.ssm = S4D(config, d_model, causal, backend)
        self.mix = nn.Linear(d_model, 2 * d_model)

    @property
    def kernels(self) -> dict[str, str]:
        device, backend = self.mix.weight.device, self.ssm.backend
        return {
            "s4d_kernel": resolve("s4d_kernel", backend, ssm.KERNEL_BACKENDS, device),
            "long_conv": resolve("long_conv", backend, conv.LONG_CONV_BACKENDS, device),
        }

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        u = self._enter(x) * mask.unsqueeze(-1)
        return self._leave(x, self.ssm(u.transpose(1, 2)).transpose(1, 2))

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.ssm.initial_state(batch)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        y, state = self.ssm.step(self._enter(x), state)
        return self._leave(x, y), state

    def _enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.config.norm == "pre" else x

    def _leave(self, x: Tensor, y: Tensor) -> Tensor:
        """x plus the mix of the SSM's output y, (..., D) both."""
        y = functional.glu(self.mix(self._drop(functional.gelu(y))))
        y = x + self._drop(y)
        return y if self.config.norm == "pre" else self.norm(y)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.config.dropout, self.training)
