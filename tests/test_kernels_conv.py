"""Laws of the long convolution and of SGConv's kernel. Errors of a convolution scale with |u| |k| (Euclidean norms)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

import strategies as own
from laws import norm, run, wide
from noscratch.kernels import KernelError, conv
from noscratch.kernels.conv import long_conv, sgconv_kernel, sgconv_norm
from tolerances import GOLDEN, assert_close, error, tolerance

BACKENDS = conv.LONG_CONV_BACKENDS
backends = st.sampled_from(BACKENDS)
offsets = st.sampled_from((0, 1))


@st.composite
def inputs(draw: st.DrawFn, most: int = 70) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, k, D, k_reverse; kernels shorter, equal and longer than the input."""
    make = own.Source(draw)
    batch, H, L = draw(own.sizes(3)), draw(own.sizes(3)), draw(own.lengths(most))
    taps, reverse_taps = (L if draw(st.booleans()) else draw(own.lengths(most)) for _ in range(2))
    return make.reals(batch, H, L), make.reals(H, taps), make.reals(H), make.reals(H, reverse_taps)


def size_of(u: Tensor, *kernels: Tensor) -> float:
    return norm(u) * sum(norm(k) for k in kernels)


@given(inputs(), offsets, own.seeds())
def test_fast_is_direct_values_and_gradients(x: tuple[Tensor, ...], offset: int, seed: int) -> None:
    def form(backend: str) -> Callable[..., Tensor]:
        return lambda u, k, D, r: long_conv(u, k, D, r, offset, backend=backend)

    u, k, D, r = x
    g = own.normal(seed, *u.shape, dtype=torch.float32)
    got = run(form("fast"), x, g)
    want = run(form("reference"), [wide(t) for t in x], g.double())
    bound = tolerance(u.dtype, u.shape[-1])
    names = ("y", "du", "dk", "dD", "dk_reverse")
    scales = (size_of(u, k, D, r), size_of(g, k, D, r), *[norm(g) * norm(u)] * 3)
    for name, a, b, scale in zip(names, got, want, scales, strict=True):
        assert_close(a, b, bound, scale, name)


@given(inputs(), backends)
def test_causal_form_is_numpy_convolve(x: tuple[Tensor, ...], backend: str) -> None:
    u, k, D, _ = x
    y = long_conv(u, k, D, backend=backend)
    full = np.stack([[np.convolve(wide(row), wide(k[h])) for h, row in enumerate(rows)] for rows in u])
    want = torch.from_numpy(full)[..., : u.shape[-1]] + wide(D)[:, None] * wide(u)
    assert_close(y, want, tolerance(u.dtype, u.shape[-1]), size_of(u, k, D))


@given(inputs(), own.places(), backends)
def test_causality(x: tuple[Tensor, ...], place: int, backend: str) -> None:
    u, k, D, _ = x
    t = place % (u.shape[-1] + 1)
    change = torch.zeros_like(u)
    change[..., t:] = 1000.0
    before, after = (long_conv(v, k, D, backend=backend)[..., :t] for v in (u, u + change))
    # FFTs leak rounding errors of the change into the past; direct sums do not.
    bound = 0.0 if backend == "reference" else tolerance(u.dtype, u.shape[-1])
    assert_close(after, before, bound, size_of(u + change, k, D) + size_of(u, k, D))


@given(inputs(), own.places(), offsets)
def test_reverse_kernel_sees_only_the_future(x: tuple[Tensor, ...], place: int, offset: int) -> None:
    u, k, _, r = x
    t = place % (u.shape[-1] + 1)
    change = torch.zeros_like(u)
    change[..., :t] = 1000.0
    before, after = (long_conv(v, 0 * k, None, r, offset)[..., t:] for v in (u, u + change))
    assert_close(after, before, tolerance(u.dtype, u.shape[-1]), size_of(u + change, r) + size_of(u, r))


@given(inputs(), backends, offsets, st.floats(-4, 4, width=16), own.seeds())
def test_linear_in_u(x: tuple[Tensor, ...], backend: str, offset: int, c: float, seed: int) -> None:
    u, k, D, r = x
    v = own.normal(seed, *u.shape, dtype=u.dtype)

    def apply(w: Tensor) -> Tensor:
        return long_conv(w, k, D, r, offset, backend=backend)

    scale = size_of(u, k, D, r) * abs(c) + size_of(v, k, D, r)
    assert_close(apply(c * u + v), c * apply(u) + apply(v), 2 * tolerance(u.dtype, u.shape[-1]), scale)


@given(inputs(), backends, offsets, st.floats(-4, 4, width=16), own.seeds())
def test_linear_in_kernels(x: tuple[Tensor, ...], backend: str, offset: int, c: float, seed: int) -> None:
    u, *first = x
    second = [own.normal(seed + i, *k.shape, dtype=u.dtype) for i, k in enumerate(first)]

    def apply(kernels: list[Tensor]) -> Tensor:
        return long_conv(u, *kernels, offset, backend=backend)

    both = apply([c * a + b for a, b in zip(first, second, strict=True)])
    scale = size_of(u, *first) * abs(c) + size_of(u, *second)
    assert_close(both, c * apply(first) + apply(second), 2 * tolerance(u.dtype, u.shape[-1]), scale)


@given(inputs(), own.places(), backends)
def test_shift(x: tuple[Tensor, ...], place: int, backend: str) -> None:
    u, k, D, _ = x
    L = u.shape[-1]
    by = place % (L + 1)
    late = torch.cat([torch.zeros_like(u[..., :by]), u[..., : L - by]], dim=-1)
    y, y_late = (long_conv(v, k, D, backend=backend) for v in (u, late))
    want = torch.cat([torch.zeros_like(y[..., :by]), y[..., : L - by]], dim=-1)
    assert_close(y_late, want, 2 * tolerance(u.dtype, L), size_of(u, k, D))


@given(inputs(), own.seeds())
def test_adjoint(x: tuple[Tensor, ...], seed: int) -> None:
    """<K u, v> = <u, K* v>, where K* reads the kernel backwards from the same position."""
    u, k, _, r = x
    v = own.normal(seed, *u.shape, dtype=u.dtype)
    forward = long_conv(u, k, None, r, 1)
    shifted = torch.cat([torch.zeros_like(r[:, :1]), r], dim=-1)  # lag 1 of the reverse kernel, as a causal kernel
    backward = long_conv(v, shifted, None, k, 0)
    scale = size_of(u, k, r) * norm(v)
    got, want = ((wide(a) * wide(b)).sum() for a, b in ((forward, v), (u, backward)))
    assert_close(got, want, 2 * tolerance(u.dtype, u.numel()), scale)


@given(inputs(), backends, offsets)
def test_bidirectional_is_forward_plus_reversed(x: tuple[Tensor, ...], backend: str, offset: int) -> None:
    u, k, D, r = x
    flipped = long_conv(u.flip(-1), r, backend=backend).flip(-1)
    if offset == 1:
        flipped = torch.cat([flipped[..., 1:], torch.zeros_like(flipped[..., :1])], dim=-1)
    want = long_conv(u, k, D, backend=backend) + flipped
    got = long_conv(u, k, D, r, offset, backend=backend)
    assert_close(got, want, 2 * tolerance(u.dtype, u.shape[-1]), size_of(u, k, D, r))


@given(inputs(), offsets, st.integers(1, 200), st.integers(1, 4), own.seeds())
def test_blocks_do_not_matter(x: tuple[Tensor, ...], offset: int, block: int, rows: int, seed: int) -> None:
    g = own.normal(seed, *x[0].shape, dtype=x[0].dtype)
    whole = run(lambda u, k, D, r: long_conv(u, k, D, r, offset), x, g)
    with mock.patch.object(conv, "BLOCK", block), mock.patch.object(conv, "LEAST_ROWS", rows):
        parts = run(lambda u, k, D, r: long_conv(u, k, D, r, offset), x, g)
    scale = max(size_of(x[0], *x[1:]), size_of(g, *x))
    for a, b in zip(parts, whole, strict=True):
        assert_close(a, b, tolerance(a.dtype, x[0].shape[-1]), scale)


@given(inputs(), backends, offsets, st.integers(1, 60))
def test_taps_beyond_the_input_have_no_effect(x: tuple[Tensor, ...], backend: str, offset: int, more: int) -> None:
    u, k, D, r = x
    L = u.shape[-1]
    long_k, long_r = (torch.cat([t, t.new_zeros(len(t), L), t.new_ones(len(t), more)], dim=-1) for t in (k, r))
    got, grad_u, grad_k, grad_r = run(
        lambda u, k, r: long_conv(u, k, D, r, offset, backend=backend), (u, long_k, long_r), u
    )
    want = long_conv(u, k, D, r, offset, backend=backend)
    assert_close(got, want, tolerance(u.dtype, L), size_of(u, k, D, r))
    assert not grad_k[:, L:].any()
    assert not grad_r[:, L:].any()
    assert grad_u.isfinite().all()


@given(inputs(), backends, offsets)
def test_zero_in_zero_out(x: tuple[Tensor, ...], backend: str, offset: int) -> None:
    u, k, D, r = x
    y, *gradients = run(lambda u, k, D, r: long_conv(u, k, D, r, offset, backend=backend), (0 * u, k, D, r), 0 * u)
    assert not y.any()
    assert not any(g.any() for g in gradients)


@given(inputs(), backends)
def test_strided_input(x: tuple[Tensor, ...], backend: str) -> None:
    u, k, D, r = x
    strided = u.transpose(1, 2).contiguous().transpose(1, 2)
    got, want = (long_conv(v, k, D, r, backend=backend) for v in (strided, u))
    assert_close(got, want, tolerance(u.dtype, u.shape[-1]), size_of(u, k, D, r))


@given(inputs(), backends)
def test_autocast_keeps_the_input_dtype_and_float32_ffts(x: tuple[Tensor, ...], backend: str) -> None:
    u, k, D, r = (t.float() for t in x)
    half = u.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = long_conv(u, k, D, r, backend=backend)
        got = long_conv(half, k, D, r, backend=backend)
    assert outside.dtype == torch.float32
    assert torch.equal(outside, long_conv(u, k, D, r, backend=backend))
    assert got.dtype == torch.bfloat16
    want = long_conv(wide(half), wide(k), wide(D), wide(r), backend="reference")
    # One rounding of the result to bfloat16, and the float32 error.
    allowed = torch.finfo(torch.bfloat16).eps / 2 * want.abs().max().item()
    assert error(got, want, 1.0).max <= allowed + tolerance(torch.float32, u.shape[-1]) * size_of(u, k, D, r)


@given(st.integers(1, 5000))
def test_fft_size_is_the_smallest_even_smooth_one(least: int) -> None:
    def smooth(n: int) -> bool:
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    size = conv._fft_size(least)
    assert size >= least
    assert size % 2 == 0
    assert smooth(size)
    assert not any(smooth(n) for n in range(least + least % 2, size, 2))


@pytest.mark.parametrize("offset", [0, 1])
def test_gradcheck(offset: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, 5), (2, 7), (2,), (2, 3))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(lambda u, k, D, r: long_conv(u, k, D, r, offset), leaves)


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_convolutions(vectors: Callable[[str], dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    z = vectors("conv")
    u, k0, k1, D = (z[name].to(dtype) for name in ("u", "k0", "k1", "D"))
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, u.shape[-1])
    for name, y in (
        ("y_causal", long_conv(u, k0, D, backend=backend)),
        ("y_bidi_off1", long_conv(u, k0, D, k1, backend=backend)),
        ("y_bidi_off0", long_conv(u, k0, D, k1, 0, backend=backend)),
    ):
        assert_close(y, z[name], bound, what=name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"u": torch.ones(2, 4)}, r"\(batch, H, L\)"),
        ({"u": torch.ones(1, 2, 0)}, "none of them 0"),
        ({"k": torch.ones(3, 4)}, r"k of shape \(2, taps"),
        ({"k": torch.ones(2, 0)}, "taps >= 1"),
        ({"k_reverse": torch.ones(1, 4)}, "k_reverse of shape"),
        ({"D": torch.ones(2, 1)}, r"D of shape \(2,\)"),
        ({"reverse_offset": 2}, "reverse_offset is 0"),
        ({"backend": "triton"}, "reference, fast"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        long_conv(**{"u": torch.ones(1, 2, 4), "k": torch.ones(2, 4)} | change)


@st.composite
def segments(draw: st.DrawFn) -> Tensor:
    S, H, d = draw(own.sizes(5)), draw(own.sizes(3)), draw(own.lengths(9))
    return own.Source(draw).reals(S, H, d)


multipliers = st.sampled_from((0.5, 1.0, 1.5, 2.0))


def taps(W: Tensor) -> int:
    return W.shape[2] * 2 ** (W.shape[0] - 1)


@given(segments(), multipliers, own.places(), own.seeds())
def test_sgconv_fast_is_reference(W: Tensor, multiplier: float, place: int, seed: int) -> None:
    length = place % taps(W) + 1
    g = own.normal(seed, W.shape[1], length, dtype=W.dtype)
    got = run(lambda w: sgconv_kernel(w, multiplier, length, backend="fast"), (W,), g)
    want = run(lambda w: sgconv_kernel(w, multiplier, length, backend="reference"), (wide(W),), wide(g))
    # The norm has at least the size of one head; dK/dW at least 1 / norm, times weights up to multiplier^(S - 1).
    largest = max(multiplier, 1.0) ** (W.shape[0] - 1) / sgconv_norm(wide(W), multiplier).min().item()
    for a, b, scale in zip(got, want, (1.0, largest * norm(g)), strict=True):
        assert_close(a, b, tolerance(W.dtype, taps(W)), scale)


@given(segments(), multipliers)
def test_sgconv_is_interpolation(W: Tensor, multiplier: float) -> None:
    S = W.shape[0]
    parts = [interpolate(W[i : i + 1], scale_factor=2 ** max(0, i - 1), mode="linear") for i in range(S)]
    row = torch.cat([multiplier ** (S - 1 - i) * part[0] for i, part in enumerate(parts)], dim=-1)
    got = sgconv_kernel(W, multiplier, taps(W))
    size = row.norm(dim=-1, keepdim=True)
    assert_close(got, row / size.where(size > 0, 1), tolerance(W.dtype, taps(W)))
    assert_close(got.norm(dim=-1), (size > 0).to(W.dtype).squeeze(-1), tolerance(W.dtype, taps(W)))


@given(segments(), multipliers, own.places(), backends)
def test_sgconv_shorter_is_a_prefix(W: Tensor, multiplier: float, place: int, backend: str) -> None:
    length = place % taps(W) + 1
    whole, part = (sgconv_kernel(W, multiplier, n, backend=backend) for n in (taps(W), length))
    assert torch.equal(part, whole[:, :length])


@given(segments(), multipliers, st.sampled_from((0.25, 2.0, 8.0)), backends)
def test_sgconv_norm_is_own_or_kept(W: Tensor, multiplier: float, c: float, backend: str) -> None:
    kernel = sgconv_kernel(W, multiplier, taps(W), backend=backend)
    assert_close(sgconv_kernel(c * W, multiplier, taps(W), backend=backend), kernel, tolerance(W.dtype, taps(W)))
    kept = sgconv_kernel(c * W, multiplier, taps(W), norm=sgconv_norm(W, multiplier), backend=backend)
    assert_close(kept, c * kernel, tolerance(W.dtype, taps(W)))


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", conv.SGCONV_BACKENDS)
def test_golden_sgconv(vectors: Callable[[str], dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    z = vectors("sgconv_cat")
    multiplier, L = z["meta"]["multiplier"], z["meta"]["L"]
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, L)
    assert_close(sgconv_kernel(z["W"].to(dtype), multiplier, L, backend=backend), z["K"], bound)
    assert_close(sgconv_norm(z["W"].to(dtype), multiplier), z["Z"], bound)


@pytest.mark.parametrize("backend", conv.SGCONV_BACKENDS)
def test_sgconv_of_zeros_is_zeros_and_learns_nothing_wrong(backend: str) -> None:
    W = torch.zeros(3, 2, 4, requires_grad=True)
    kernel = sgconv_kernel(W, 2.0, 16, backend=backend)
    kernel.sum().backward()
    assert W.grad is not None
    assert not kernel.any()
    assert W.grad.isfinite().all()


def test_sgconv_longer_than_its_segments_is_an_error() -> None:
    with pytest.raises(KernelError, match="3 segments of 4 taps make 1 to 16 taps; got length 17"):
        sgconv_kernel(torch.ones(3, 1, 4), 2.0, 17)
    with pytest.raises(KernelError, match=r"\(segments, heads, taps\)"):
        sgconv_kernel(torch.ones(3, 4), 2.0, 4)


@pytest.mark.parametrize("positions_first", [True, False])
def test_the_gradient_lies_in_memory_as_the_input(positions_first: bool) -> None:
    """Elementwise steps of two layouts at once are 20 times slower than of one."""
    leaf = torch.randn((2, 9, 3) if positions_first else (2, 3, 9), requires_grad=True)
    u = leaf.transpose(1, 2) if positions_first else leaf
    y = long_conv(u, torch.randn(3, 9))
    (grad,) = torch.autograd.grad(y, u, torch.randn(2, 3, 9))
    assert grad.stride() == u.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1), (2, 1, 9), (2, 33, 300), (5, 70, 4099)])
def test_the_layout_in_memory_changes_no_bit(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, H, L = shape
    u, g = (torch.randn(batch, H, L).to(dtype) for _ in range(2))
    taps = [torch.randn(*size, dtype=torch.promote_types(dtype, torch.float32)) for size in ((H, L), (H,))]
    results = []
    for leaf in (u, u.mT.contiguous().mT):
        inputs = [x.detach().requires_grad_() for x in (leaf, *taps)]
        y = long_conv(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, g)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
