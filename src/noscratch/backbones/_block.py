"""What blocks with one mixer share: the block, long convolutions and state spaces as mixers, checks, initial values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import require, without_padding
from noscratch.backbones._linear import Linear
from noscratch.backbones._norm import norm
from noscratch.kernels import conv, resolve, ssm, structured


@dataclass(frozen=True)
class Settings:
    """What every block of this kind sets: a part of a backbone's Config."""

    norm: Literal["pre", "post"] = "pre"
    normalization: Literal["layer", "batch"] = "layer"
    """batch (S4 and SGConv on most tasks): its statistics see later positions while a causal block trains, too."""
    dropout: float = 0.0
    tied: bool = False
    """Dropout takes whole channels of a sequence, not single numbers (S4's on images)."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class StateSpaceSettings(Settings):
    """What every state space sets besides."""

    d_state: int = 64
    """N: states of one head. S4 and S4D count real ones and store N / 2 conjugate pairs; DSS and DLR N complex ones."""
    dt_min: float = 0.001
    dt_max: float = 0.1
    """The step of each head is drawn log-uniformly between the two."""
    lr: float = 0.001
    """Learning rate of the parameters of the recurrence, which also have no weight decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.d_state >= 1, f"d_state is at least 1; got {self.d_state}.")
        check_steps(self.dt_min, self.dt_max)


class Mixer(nn.Module, ABC):
    """A map of sequences, u (B, L, H), zero at padded positions, to (B, L, H); only positions mix in it."""

    forms: ClassVar[Mapping[str, Sequence[str]]]
    """The kernels that it calls and the backends of each."""

    def __init__(self, causal: bool, backend: str) -> None:
        super().__init__()
        self.causal, self.backend = causal, backend
        self.directions = 1 if causal else 2

    @abstractmethod
    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """The state before the first position, and what every step uses; for causal mixers."""

    @abstractmethod
    def step(self, u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """u (B, H) and the state to y (B, H) and the next state."""


class MixerBlock(nn.Module):
    """Norm, mixer, GELU, a linear layer with a gated linear unit, residual sum."""

    def __init__(self, mixer: Mixer, d_model: int, settings: Settings) -> None:
        super().__init__()
        self.mixer, self.pre = mixer, settings.norm == "pre"
        self.dropout, self.tied = settings.dropout, settings.tied
        self.norm = norm(settings.normalization, d_model)
        self.gate = Linear(d_model, 2 * d_model, mixer.backend)

    @property
    def kernels(self) -> dict[str, str]:
        device, backend = self.gate.weight.device, self.mixer.backend
        forms = {**self.mixer.forms, "gated": structured.GATED_BACKENDS}
        found = {name: resolve(name, backend, available, device) for name, available in forms.items()}
        return found | self.gate.kernels if self.dropout else found

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._leave(x, self.mixer(without_padding(self._enter(x, mask), mask)), mask)

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        return self.mixer.initial_state(batch)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, state = self.mixer.step(self._enter(x), state)
        return self._leave(x, y), state

    def _enter(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(x, mask) if self.pre else x

    def _leave(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """x plus what the channels make of the mixer's output y, (..., D) both."""
        if self.training and self.dropout:  # between the steps that `gated` takes as one
            y = x + self._drop(functional.glu(self.gate(self._drop(functional.gelu(y)))))
        else:
            y = structured.gated(y, self.gate.weight, self.gate.bias, x, backend=self.mixer.backend)
        return y if self.pre else self.norm(y, mask)

    def _drop(self, x: Tensor) -> Tensor:
        if self.tied:
            return functional.dropout1d(x.mT, self.dropout, self.training).mT
        return functional.dropout(x, self.dropout, self.training)


class Convolution(Mixer):
    """y = K u + D u in each head; bidirectional: and a second kernel, which looks back from the next position on."""

    def __init__(self, heads: int, causal: bool, backend: str) -> None:
        super().__init__(causal, backend)
        self.D = nn.Parameter(torch.randn(heads))

    @abstractmethod
    def kernel(self, length: int) -> Tensor:
        """K (directions, H, length)."""

    def forward(self, u: Tensor) -> Tensor:
        # The taps decide over all positions: they keep the parameters' dtype, inside autocast too.
        with torch.autocast(u.device.type, enabled=False):
            taps = self.kernel(u.shape[1])
        reverse = None if self.causal else taps[1]
        return conv.long_conv(u.transpose(1, 2), taps[0], self.D, reverse, backend=self.backend).transpose(1, 2)


class StateSpace(Convolution):
    """A convolution that is also a recurrence of N' complex states per head, read out by C; the two directions of a
    bidirectional one differ only in C. C (directions, H, N') is kept as real and imaginary parts, each N(0, std^2)."""

    advance: ClassVar[Callable[..., tuple[Tensor, Tensor]]]
    """One step: u, the state, what `recurrence` gives, C and D to y and the next state."""

    def __init__(self, heads: int, states: int, std: float, causal: bool, backend: str) -> None:
        super().__init__(heads, causal, backend)
        self.C = nn.Parameter(torch.randn(self.directions, heads, states, 2) * std)

    @abstractmethod
    def recurrence(self) -> tuple[Tensor, ...]:
        """The discretized system, which every step uses."""

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """(the state (B, H, N'), zero, *the discretized system)."""
        zero = torch.zeros_like(torch.view_as_complex(self.C[0]))
        return (zero.expand(batch, -1, -1), *self.recurrence())

    def step(self, u: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, *system = state
        y, x = self.advance(u, x, *system, torch.view_as_complex(self.C[0]), self.D)
        return y, (x, *system)


class ConjugatePairs(StateSpace):
    """A state space that keeps one of each conjugate pair: a step dt (H,) per head, `systems` copies of A (N',)."""

    def __init__(
        self, heads: int, systems: int, A: Tensor, dt: tuple[float, float], causal: bool, backend: str
    ) -> None:
        super().__init__(heads, len(A), math.sqrt(0.5), causal, backend)
        self.log_dt = nn.Parameter(log_uniform(*dt, heads))
        # Re A = -exp(log_decay) stays negative while it is trained (arXiv 2206.11893, section 3.4).
        self.log_decay = nn.Parameter(torch.log(-A.real).float().repeat(systems, 1))
        self.frequency = nn.Parameter(A.imag.float().repeat(systems, 1))

    def eigenvalues(self) -> Tensor:
        """A (systems, N')."""
        return torch.complex(-self.log_decay.exp(), self.frequency)


def check(config: Any) -> None:
    """The rules of every Config: a choice is one of those that its type names, dropout is in [0, 1)."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            require(value in get_args(kind), f"{name} is one of {', '.join(get_args(kind))}; got {value!r}.")
    require(0.0 <= config.dropout < 1.0, f"dropout is in [0, 1); got {config.dropout}.")


def check_steps(dt_min: float, dt_max: float) -> None:
    require(0 < dt_min <= dt_max, f"0 < dt_min <= dt_max; got {dt_min} and {dt_max}.")


def check_pairs(d_state: int) -> None:
    require(d_state >= 2 and d_state % 2 == 0, f"d_state is even and at least 2; got {d_state}.")


def log_uniform(low: float, high: float, count: int) -> Tensor:
    """Logarithms (count,) of numbers between `low` and `high`."""
    return torch.rand(count) * (math.log(high) - math.log(low)) + math.log(low)


def eigenvalues(init: str, d_state: int) -> Tensor:
    """(N / 2,), complex128: one of each conjugate pair, imaginary part of the sign that the initialization gives it.

    S4D-LegS ("legs", and where parameters are drawn anew afterwards), S4D-Inv, S4D-Lin (arXiv 2206.11893, section 4).
    """
    N, n = d_state, torch.arange(d_state // 2, dtype=torch.float64)
    if init == "inv":
        return torch.complex(torch.full_like(n, -0.5), N / math.pi * (N / (2 * n + 1) - 1))
    if init == "lin":
        return torch.complex(torch.full_like(n, -0.5), math.pi * n)
    return ssm.hippo_legs(N).Lambda


def randomize(module: nn.Module) -> None:
    """Every parameter of its own ~ N(0, 0.1^2): the unstructured initialization of arXiv 2310.02980, section 3.3."""
    for parameter in module.parameters(recurse=False):
        nn.init.normal_(parameter, std=0.1)


def own_rate(lr: float, *names: str) -> dict[str, dict[str, float]]:
    """Hints for the optimizer: these parameters have this learning rate and no weight decay."""
    return {name: {"lr": lr, "weight_decay": 0.0} for name in names}
