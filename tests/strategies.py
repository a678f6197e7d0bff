"""What the laws are drawn from: shapes by Hypothesis, so that they shrink; values by a drawn family and seed: fast."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
FAMILIES = ("normal", "uniform", "impulse", "constant", "alternating", "zero")


def is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def lengths(max_value: int = 300, min_value: int = 1) -> st.SearchStrategy[int]:
    """Small ones, primes, and powers of two and their neighbours: where blocks, radices and off-by-one errors show."""
    primes = [n for n in range(min_value, max_value + 1) if is_prime(n)]
    powers = [2**e + off for e in range(max_value.bit_length() + 1) for off in (-1, 0, 1)]
    near_powers = sorted({n for n in powers if min_value <= n <= max_value})
    small = st.integers(min_value, min(max_value, min_value + 8))
    return st.one_of(small, *(st.sampled_from(group) for group in (primes, near_powers) if group))


def sizes(max_value: int = 4) -> st.SearchStrategy[int]:
    """Numbers of heads, states, sequences."""
    return st.integers(1, max_value)


def dtypes() -> st.SearchStrategy[torch.dtype]:
    return st.sampled_from(DTYPES)


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**31 - 1)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that float32 holds exactly, so that a float64 reference sees the very same numbers."""
    return x.to(torch.complex64 if x.is_complex() else torch.float32).to(dtype)


def complex_of(dtype: torch.dtype) -> torch.dtype:
    return torch.complex64 if dtype == torch.float32 else torch.complex128


@st.composite
def reals(
    draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float64, families: tuple[str, ...] = FAMILIES
) -> Tensor:
    """A real tensor, its values at most about 4, exactly representable in float32."""
    family = draw(st.sampled_from(families))
    generator = torch.Generator().manual_seed(draw(seeds()))
    last = shape[-1] if shape else 1
    if family == "normal":
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
    elif family == "uniform":
        x = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    elif family == "impulse":
        x = torch.zeros(shape, dtype=torch.float64)
        x[..., int(torch.randint(last, (), generator=generator))] = 1.0
    elif family == "constant":
        x = torch.ones(shape, dtype=torch.float64)
    elif family == "alternating":
        x = (1.0 - 2.0 * (torch.arange(last, dtype=torch.float64) % 2)).expand(shape).clone()
    else:
        x = torch.zeros(shape, dtype=torch.float64)
    return _rounded(x, dtype)


@st.composite
def complexes(draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A complex Gaussian tensor of the precision of `dtype` (a real dtype), exactly representable in complex64."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    return _rounded(torch.randn(shape, generator=generator, dtype=torch.complex128), complex_of(dtype))


@st.composite
def steps(
    draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float64, low: float = 1e-4, high: float = 1.0
) -> Tensor:
    """Step sizes dt, log-uniform in [low, high], and the ends themselves."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    x = math.log(low) + (math.log(high) - math.log(low)) * torch.rand(shape, generator=generator, dtype=torch.float64)
    pin = draw(st.sampled_from(("none", "low", "high")))
    if pin != "none" and x.numel():
        x.view(-1)[0] = math.log(low if pin == "low" else high)
    return _rounded(x.exp(), dtype)


@st.composite
def spectra(draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues of a continuous system: Re = -1/2, -1e-6 (near the axis) or -e^x with x uniform in [-12, 3];
    Im = pi n as in S4D-Lin, Gaussian of either sign, or 0."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    real = draw(st.sampled_from(("half", "axis", "any")))
    imaginary = draw(st.sampled_from(("linear", "normal", "zero")))
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    half, axis = torch.full_like(uniform, -0.5), torch.full_like(uniform, -1e-6)
    re = {"half": half, "axis": axis, "any": -torch.exp(15 * uniform - 12)}[real]
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    linear = torch.pi * torch.arange(shape[-1], dtype=torch.float64).expand(shape)
    im = {"linear": linear, "normal": 10 * normal, "zero": torch.zeros_like(normal)}[imaginary]
    return _rounded(torch.complex(re, im), complex_of(dtype))


@st.composite
def poles(draw: st.DrawFn, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues inside or on the unit circle of a discrete system, |a| up to 1."""
    generator = torch.Generator().manual_seed(draw(seeds()))
    radius = 1 - draw(st.sampled_from((0.0, 1e-3, 0.3, 1.0))) * torch.rand(
        shape, generator=generator, dtype=torch.float64
    )
    angle = 2 * torch.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
    shrunk = (1 - 1e-7) * torch.polar(radius, angle)  # rounding must not push a pole outside
    return _rounded(shrunk, complex_of(dtype))
