"""Laws of linear recurrences. With |a| <= 1 no state exceeds the sum of what entered, so errors scale with that sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import strategies as own
from laws import norm, run, wide
from noscratch.kernels import KernelError, scan
from noscratch.kernels.conv import long_conv
from noscratch.kernels.scan import linear_scan, lru, lru_step
from tolerances import GOLDEN, assert_close, tolerance

backends = st.sampled_from(scan.LINEAR_SCAN_BACKENDS)
A_SHAPES = ("N", "1", "LN", "L1", "BLN", "B1N")


@st.composite
def systems(draw: st.DrawFn, most: int = 70, shapes: tuple[str, ...] = A_SHAPES) -> tuple[Tensor, Tensor, Tensor]:
    """a (every shape that broadcasts), b (batch, L, N), an initial state; complex, or all real."""
    make = own.Source(draw)
    batch, L, N = draw(own.sizes(3)), draw(own.lengths(most)), draw(own.sizes(4))
    kind = draw(own.choice(shapes))
    shape = tuple({"B": batch, "L": L, "N": N, "1": 1}[letter] for letter in kind)
    a, b, initial = make.poles(*shape), make.complexes(batch, L, N), make.complexes(batch, N)
    if draw(st.booleans()):
        a, b, initial = a.real.clone(), b.real.clone(), initial.real.clone()
    if draw(st.booleans()):
        initial = torch.zeros_like(initial)
    return a, b, initial


def real_of(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype in (torch.float64, torch.complex128) else torch.float32


def entered(b: Tensor, initial: Tensor) -> float:
    """The largest that a state can be while |a| <= 1."""
    return (b.abs().sum(1) + initial.abs()).max().item()


def stepped(a: Tensor, L: int) -> float:
    """Errors of a product of L rounded factors add up."""
    return tolerance(real_of(a), L, condition=L)


@given(systems(), own.seeds())
def test_fast_is_stepwise_values_and_gradients(x: tuple[Tensor, ...], seed: int) -> None:
    a, b, initial = x
    L = b.shape[1]
    g = own.normal(seed, *b.shape, dtype=b.dtype)

    def form(backend: str) -> Callable[..., Tensor]:
        return lambda a, b, initial: linear_scan(a, b, initial=initial, backend=backend)

    got = run(form("fast"), x, g)
    want = run(form("reference"), [wide(t) for t in x], wide(g))
    sizes = entered(b, initial), entered(g, 0 * initial)
    scales = (sizes[0], sizes[0] * sizes[1] * b[:, 0].numel(), sizes[1], sizes[1])
    for name, i, j, scale in zip(("x", "da", "db", "dinitial"), got, want, scales, strict=True):
        assert_close(i, j, stepped(a, L), scale, name)


@given(systems(shapes=("N", "LN")), backends)
def test_every_state_follows_from_the_one_before(x: tuple[Tensor, ...], backend: str) -> None:
    a, b, initial = (wide(t) for t in x)
    states = linear_scan(*x[:2], initial=x[2], backend=backend)
    before = torch.cat([initial.unsqueeze(1), wide(states)[:, :-1]], dim=1)
    assert_close(states, a * before + b, stepped(x[0], b.shape[1]), entered(b, initial))


@given(systems(shapes=("N",)))
def test_scan_is_a_convolution_with_powers(x: tuple[Tensor, ...]) -> None:
    a, b, initial = x
    if a.is_complex():
        a, b, initial = a.real.clone(), b.real.clone(), initial.real.clone()
    L = b.shape[1]
    powers = wide(a).unsqueeze(-1) ** torch.arange(L + 1, dtype=torch.float64)
    want = long_conv(wide(b).mT, powers[:, :L], backend="reference").mT + wide(initial).unsqueeze(1) * powers[:, 1:].T
    assert_close(linear_scan(a, b, initial=initial), want, stepped(a, L), entered(b, initial))


@given(systems(), own.places(), backends)
def test_causality_is_exact(x: tuple[Tensor, ...], place: int, backend: str) -> None:
    a, b, initial = x
    t = place % (b.shape[1] + 1)
    later = b.clone()
    later[:, t:] += 1000.0
    before, after = (linear_scan(a, v, initial=initial, backend=backend)[:, :t] for v in (b, later))
    assert torch.equal(before, after)


@given(systems(), st.floats(-4, 4, width=16), backends)
def test_linear_in_what_enters(x: tuple[Tensor, ...], c: float, backend: str) -> None:
    a, b, initial = x
    other = b.flip(1)

    def apply(b: Tensor, initial: Tensor) -> Tensor:
        return linear_scan(a, b, initial=initial, backend=backend)

    want = c * apply(b, initial) + apply(other, -initial)
    scale = (abs(c) + 1) * entered(b, initial)
    assert_close(apply(c * b + other, (c - 1) * initial), want, 2 * stepped(a, b.shape[1]), scale)


@given(systems(shapes=("N", "LN", "BLN")), own.places(), backends)
def test_state_passing(x: tuple[Tensor, ...], place: int, backend: str) -> None:
    a, b, initial = x
    L = b.shape[1]
    cut = place % L + 1

    def part(where: slice) -> Tensor:
        return a if a.ndim == 1 else a[..., where, :]

    whole = linear_scan(a, b, initial=initial, backend=backend)
    head = linear_scan(part(slice(cut)), b[:, :cut], initial=initial, backend=backend)
    parts = [head]
    if cut < L:
        tail = slice(cut, None)
        parts.append(linear_scan(part(tail), b[:, tail], initial=head[:, -1], backend=backend))
    assert_close(torch.cat(parts, dim=1), whole, stepped(a, L), entered(b, initial))


@given(systems(shapes=("N",)), backends)
def test_constant_coefficients_broadcast(x: tuple[Tensor, ...], backend: str) -> None:
    a, b, initial = x
    spread = a.expand(b.shape).clone()
    got, want = (linear_scan(c, b, initial=initial, backend=backend) for c in (spread, a))
    assert_close(got, want, stepped(a, b.shape[1]), entered(b, initial))


@given(systems(), backends)
def test_zero_in_zero_out(x: tuple[Tensor, ...], backend: str) -> None:
    a, b, _ = x
    states, *gradients = run(lambda a, b: linear_scan(a, b, backend=backend), (a, 0 * b), 0 * b)
    assert not states.any()
    assert not any(g.any() for g in gradients)


@given(systems(most=300, shapes=("N",)), backends)
def test_stability(x: tuple[Tensor, ...], backend: str) -> None:
    a, b, initial = x
    states = linear_scan(a, b, initial=initial, backend=backend)
    assert states.abs().max().item() <= entered(b, initial) * (1 + stepped(a, b.shape[1]))


@given(own.lengths(3000, 1000), own.seeds())
def test_errors_do_not_grow_with_length(L: int, seed: int) -> None:
    """Without decay a product of L rounded factors is off by L eps; here only about sqrt(L) of them are rounded."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.polar(torch.ones(4), torch.rand(4, generator=generator))
    a = a / a.abs().clamp(min=1)
    b = torch.randn(1, L, 4, generator=generator, dtype=torch.complex64)
    want = linear_scan(wide(a), wide(b))
    assert_close(linear_scan(a, b), want, tolerance(torch.float32, L, condition=2))


@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 7, 3), (2, 1, 3), (7, 1), (1,)])
def test_gradcheck(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(s, generator=generator, dtype=torch.complex128, requires_grad=True)
        for s in (shape, (2, 7, 3), (2, 3))
    ]
    assert torch.autograd.gradcheck(lambda a, b, i: linear_scan(a, b, initial=i), leaves)


@pytest.mark.parametrize(
    ("a", "b", "initial", "says"),
    [
        (torch.ones(3), torch.ones(4, 3), None, r"\(batch, L, N\)"),
        (torch.ones(3), torch.ones(1, 0, 3), None, "none of them 0"),
        (torch.ones(2), torch.ones(1, 4, 3), None, "broadcasts to b"),
        (torch.ones(2, 4, 3), torch.ones(1, 4, 3), None, "broadcasts to b"),
        (torch.ones(3), torch.ones(1, 4, 3), torch.ones(3), "initial state"),
    ],
)
def test_what_does_not_fit_is_an_error(a: Tensor, b: Tensor, initial: Tensor | None, says: str) -> None:
    with pytest.raises(KernelError, match=says):
        linear_scan(a, b, initial=initial)


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(KernelError, match=r"linear_scan has the backends reference, fast; got 'triton'"):
        linear_scan(torch.ones(3), torch.ones(1, 4, 3), backend="triton")


@st.composite
def units(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """nu, theta, B, C, D, u of an LRU, |lambda| from nearly 0 to 1 - 1e-5."""
    make = own.Source(draw)
    batch, L, H, N = draw(own.sizes(2)), draw(own.lengths(70)), draw(own.sizes(3)), draw(own.sizes(5))
    return (
        make.steps(N, low=1e-5, high=3.0).log(),
        make.steps(N, low=1e-3, high=3.0).log(),
        make.complexes(N, H),
        make.complexes(H, N),
        make.reals(H),
        make.reals(batch, L, H),
    )


def lru_scale(B: Tensor, C: Tensor, D: Tensor, u: Tensor) -> float:
    return norm(u) * (norm(B) * norm(C) * u.shape[1] ** 0.5 + norm(D))


@given(units(), own.seeds())
def test_lru_fast_is_reference_values_and_gradients(x: tuple[Tensor, ...], seed: int) -> None:
    _, _, B, C, D, u = x
    L = u.shape[1]
    g = own.normal(seed, *u.shape, dtype=u.dtype)
    got = run(lambda *x: lru(*x, backend="fast"), x, g)
    want = run(lambda *x: lru(*x, backend="reference"), [wide(t) for t in x], wide(g))
    # Each block rounds lambda, an angle of up to 3, and takes it about sqrt(L) times; dy/dlambda has another factor L.
    bound = tolerance(u.dtype, L, condition=4 * math.sqrt(L))
    through = norm(g) * norm(u) * L**0.5
    scales = (
        lru_scale(B, C, D, u),
        *[through * norm(B) * norm(C) * L] * 2,
        through * norm(C),
        through * norm(B),
        norm(g) * norm(u),
        lru_scale(B, C, D, g),
    )
    for name, i, j, scale in zip(("y", "dnu", "dtheta", "dB", "dC", "dD", "du"), got, want, scales, strict=True):
        assert_close(i, j, bound, scale, name)


@given(units(), st.sampled_from(scan.LRU_BACKENDS))
def test_lru_steps_are_the_scan(x: tuple[Tensor, ...], backend: str) -> None:
    *parameters, u = x
    state = torch.zeros(u.shape[0], len(parameters[0]), dtype=parameters[2].dtype)
    outputs = []
    for t in range(u.shape[1]):
        y, state = lru_step(*parameters, u[:, t], state)
        outputs.append(y)
    bound = tolerance(u.dtype, u.shape[1], condition=4 * u.shape[1])
    assert_close(torch.stack(outputs, dim=1), lru(*x, backend=backend), bound, lru_scale(*parameters[2:], u))


@given(units(), st.sampled_from(scan.LRU_BACKENDS))
def test_lru_autocast_keeps_precision_and_dtype(x: tuple[Tensor, ...], backend: str) -> None:
    *parameters, u = (t.to(torch.complex64 if t.is_complex() else torch.float32) for t in x)
    want = lru(*parameters, u, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lru(*parameters, u, backend=backend), want)
        assert lru(*parameters, u.bfloat16(), backend=backend).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", scan.LRU_BACKENDS)
def test_golden_lru(vectors: Callable[[str], dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    z = vectors("lru")
    cast = {torch.float64: dtype, torch.complex128: own.complex_of(dtype)}
    nu, theta, B, C, D, u = (z[name].to(cast[z[name].dtype]) for name in ("nu", "theta", "B", "C", "D", "u"))
    L = u.shape[1]
    phase = L * z["theta"].exp().max().item()  # of an angle that was rounded to float32
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, L, condition=phase)
    assert_close(lru(nu, theta, B, C, D, u, backend=backend), z["y"], bound)
    decay = nu.exp()
    driven = (-torch.expm1(-2 * decay)).sqrt() * (u.to(B.dtype) @ B.T)
    assert_close(linear_scan(torch.polar((-decay).exp(), theta.exp()), driven, backend=backend), z["x"], bound)
