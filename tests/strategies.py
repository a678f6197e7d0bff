"""What the laws are drawn from: shapes by Hypothesis, so that they shrink; values by drawn families and one seed.

A strategy costs more to make than to draw from, and a draw more than a small tensor: strategies are made once, and all
values of an example come from one generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

R = TypeVar("R")

DTYPES = (torch.float32, torch.float64)
FAMILIES = ("normal", "uniform", "impulse", "constant", "alternating", "zero")
GENERIC = ("normal", "uniform")


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


@functools.cache
def lengths(max_value: int = 300, min_value: int = 1) -> st.SearchStrategy[int]:
    """Mostly small ones, then primes, and powers of two and their neighbours: where blocks, radices and off-by-one
    errors show."""
    primes = [n for n in range(min_value, max_value + 1) if is_prime(n)]
    powers = [2**e + off for e in range(max_value.bit_length() + 1) for off in (-1, 0, 1)]
    near_powers = sorted({n for n in powers if min_value <= n <= max_value})
    small = [st.integers(min_value, min(max_value, min_value + width)) for width in (8, 16)]
    return st.one_of(*small, *(st.sampled_from(group) for group in (primes, near_powers) if group))


@functools.cache
def sizes(max_value: int = 4) -> st.SearchStrategy[int]:
    """Numbers of heads, states, sequences."""
    return st.integers(1, max_value)


@functools.cache
def dtypes() -> st.SearchStrategy[torch.dtype]:
    return st.sampled_from(DTYPES)


@functools.cache
def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**31 - 1)


@functools.cache
def places() -> st.SearchStrategy[int]:
    """One of `count` places is `draw(places()) % count`, where only the example says how many there are."""
    return st.integers(0, 2**20)


@functools.cache
def choice(choices: tuple[R, ...]) -> st.SearchStrategy[R]:
    return st.sampled_from(choices)


def complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex64 if dtype == torch.float32 else torch.complex128


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A Gaussian tensor, exactly representable in float32 (or complex64)."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return _rounded(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide), dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that float32 holds exactly, so that a float64 reference sees the very same numbers."""
    return x.to(torch.complex64 if x.is_complex() else torch.float32).to(dtype)


class Source:
    """Makes the tensors of one example, all of one precision, float32 or float64; every number is exact in float32."""

    def __init__(self, draw: st.DrawFn, dtype: torch.dtype | None = None) -> None:
        self.draw = draw
        self.dtype = draw(dtypes()) if dtype is None else dtype
        self.generator = torch.Generator().manual_seed(draw(seeds()))

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def reals(self, *shape: int, families: tuple[str, ...] = FAMILIES) -> Tensor:
        """A real tensor, its values at most about 4."""
        family = self.draw(choice(families))
        last = shape[-1] if shape else 1
        if family == "normal":
            x = self._normal(*shape)
        elif family == "uniform":
            x = 2 * self._uniform(*shape) - 1
        elif family == "impulse":
            x = torch.zeros(shape, dtype=torch.float64)
            x[..., int(torch.randint(last, (), generator=self.generator))] = 1.0
        elif family == "constant":
            x = torch.ones(shape, dtype=torch.float64)
        elif family == "alternating":
            x = (1.0 - 2.0 * (torch.arange(last, dtype=torch.float64) % 2)).expand(shape).clone()
        else:
            x = torch.zeros(shape, dtype=torch.float64)
        return _rounded(x, self.dtype)

    def complexes(self, *shape: int) -> Tensor:
        """A complex Gaussian tensor."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.complex128)
        return _rounded(x, complex_of(self.dtype))

    def steps(self, *shape: int, low: float = 1e-4, high: float = 1.0) -> Tensor:
        """Step sizes dt, log-uniform in [low, high], and the ends themselves."""
        x = math.log(low) + (math.log(high) - math.log(low)) * self._uniform(*shape)
        pin = self.draw(choice(("none", "low", "high")))
        if pin != "none" and x.numel():
            x.view(-1)[0] = math.log(low if pin == "low" else high)
        return _rounded(x.exp(), self.dtype)

    def spectra(self, *shape: int) -> Tensor:
        """Eigenvalues of a continuous system: Re = -1/2, -1e-6 (near the axis) or -e^x with x uniform in [-12, 3];
        Im = pi n as in S4D-Lin, Gaussian of either sign, or 0."""
        real = self.draw(choice(("half", "axis", "any")))
        imaginary = self.draw(choice(("linear", "normal", "zero")))
        if real == "any":
            re = -torch.exp(15 * self._uniform(*shape) - 12)
        else:
            re = torch.full(shape, -0.5 if real == "half" else -1e-6, dtype=torch.float64)
        if imaginary == "linear":
            im = torch.pi * torch.arange(shape[-1], dtype=torch.float64).expand(shape)
        else:
            im = 10 * self._normal(*shape) if imaginary == "normal" else torch.zeros_like(re)
        return _rounded(torch.complex(re, im), complex_of(self.dtype))

    def poles(self, *shape: int) -> Tensor:
        """Eigenvalues inside or on the unit circle of a discrete system, |a| up to 1."""
        radius = 1 - self.draw(choice((0.0, 1e-3, 0.3, 1.0))) * self._uniform(*shape)
        angle = 2 * torch.pi * self._uniform(*shape)
        shrunk = (1 - 1e-7) * torch.polar(radius, angle)  # rounding must not push a pole outside
        return _rounded(shrunk, complex_of(self.dtype))


@st.composite
def made(draw: st.DrawFn, make: Callable[[Source], R], dtype: torch.dtype | None = None) -> R:
    """What `make` makes of a source."""
    return make(Source(draw, dtype))
