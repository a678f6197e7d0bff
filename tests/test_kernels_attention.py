"""Laws of rotary positions and of softmax attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import strategies as own
from laws import norm, run, wide
from noscratch.kernels import KernelError, attention
from noscratch.kernels.attention import attend, rotary
from tolerances import GOLDEN, assert_close, tolerance

rotary_backends = st.sampled_from(attention.ROTARY_BACKENDS)
attend_backends = st.sampled_from(attention.ATTEND_BACKENDS)
bases = st.sampled_from((10.0, 10000.0, 500000.0))
VALUES = ("normal", "uniform", "constant")
# Each power of two has a table of its own, and long ones take long to make.
positions = st.one_of(st.integers(0, 30), st.integers(0, 200), st.integers(0, 200), st.integers(0, 5000))


@st.composite
def heads(draw: st.DrawFn, count: int = 1, most: int = 40) -> list[Tensor]:
    """`count` tensors (batch, heads, L, d), d even."""
    make = own.Source(draw)
    shape = (draw(own.sizes(2)), draw(own.sizes(2)), draw(own.lengths(most)), 2 * draw(own.sizes(4)))
    return [make.reals(*shape, families=VALUES) for _ in range(count)]


def mask_of(x: Tensor, seed: int) -> Tensor:
    """Right padding, at least one token left."""
    batch, L = x.shape[0], x.shape[2]
    tokens = torch.randint(1, L + 1, (batch, 1), generator=torch.Generator().manual_seed(seed))
    return torch.arange(L) < tokens


def turned(dtype: torch.dtype, positions: int) -> float:
    """Angles are rounded in float64, so by up to eps times the position."""
    return tolerance(dtype) + tolerance(torch.float64, condition=positions)


@given(heads(2), bases, positions)
def test_rotary_fast_is_reference_values_and_gradients(x: list[Tensor], base: float, offset: int) -> None:
    got = run(lambda x: rotary(x, base, offset=offset, backend="fast"), x[:1], x[1])
    want = run(lambda x: rotary(x, base, offset=offset, backend="reference"), [wide(x[0])], wide(x[1]))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, turned(x[0].dtype, offset + x[0].shape[-2]), 4.0)


@given(heads(), bases, rotary_backends)
def test_rotary_turns_pairs_by_the_stated_angle(x: list[Tensor], base: float, backend: str) -> None:
    y = wide(rotary(x[0], base, backend=backend))
    L, d = x[0].shape[-2:]
    for t in {0, L // 2, L - 1}:
        for m in range(d // 2):
            angle = torch.tensor(t * base ** (-2 * m / d), dtype=torch.float64)
            turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
            want = wide(x[0])[..., t, 2 * m : 2 * m + 2] @ turn.T
            assert_close(y[..., t, 2 * m : 2 * m + 2], want, turned(x[0].dtype, L), 4.0)


@given(heads(), bases, rotary_backends, positions)
def test_rotary_keeps_norms_and_position_zero(x: list[Tensor], base: float, backend: str, offset: int) -> None:
    bound = tolerance(x[0].dtype)
    assert_close(rotary(x[0], base, offset=offset, backend=backend).norm(dim=-1), x[0].norm(dim=-1), bound)
    assert torch.equal(rotary(x[0], base, backend=backend)[..., 0, :], x[0][..., 0, :])
    assert not rotary(0 * x[0], base, offset=offset, backend=backend).any()


@given(heads(2), bases, rotary_backends, positions)
def test_rotary_products_depend_on_distance_only(x: list[Tensor], base: float, backend: str, offset: int) -> None:
    def scores(offset: int) -> Tensor:
        q, k = (rotary(v, base, offset=offset, backend=backend) for v in x)
        return q @ k.mT

    d = x[0].shape[-1]
    size = x[0].norm(dim=-1).max().item() * x[1].norm(dim=-1).max().item()
    bound = 2 * tolerance(x[0].dtype, d) + turned(x[0].dtype, offset + x[0].shape[-2])
    assert_close(scores(offset), scores(0), bound, size)


@given(heads(), bases, rotary_backends, own.places())
def test_rotary_offset_continues(x: list[Tensor], base: float, backend: str, place: int) -> None:
    cut = place % x[0].shape[-2]
    whole = rotary(x[0], base, backend=backend)
    rest = rotary(x[0][..., cut:, :], base, offset=cut, backend=backend)
    assert_close(rest, whole[..., cut:, :], tolerance(x[0].dtype), 4.0)


def test_rotary_table_made_in_inference_serves_training() -> None:
    attention._rotations.cache_clear()
    x = torch.ones(1, 1, 5, 4)
    with torch.inference_mode():
        want = rotary(x)
    leaf = x.clone().requires_grad_()
    y = rotary(leaf)
    y.sum().backward()
    assert torch.equal(y, want)
    assert leaf.grad is not None


@given(heads(4), st.booleans(), st.booleans(), own.seeds())
def test_attend_fast_is_explicit_values_and_gradients(x: list[Tensor], causal: bool, masked: bool, seed: int) -> None:
    *qkv, g = x
    mask = mask_of(g, seed) if masked else None
    got = run(lambda q, k, v: attend(q, k, v, causal, mask=mask, backend="fast"), qkv, g)
    want = run(lambda q, k, v: attend(q, k, v, causal, mask=mask, backend="reference"), [wide(t) for t in qkv], wide(g))
    # Scores of size |q| |k| / sqrt(d) are rounded before exp, so their absolute error is a relative one of the weights.
    L, d = g.shape[-2:]
    rows = [t.norm(dim=-1).max().item() for t in qkv]
    score = 1 + rows[0] * rows[1] / d**0.5
    bound = tolerance(g.dtype, L, condition=score)
    through = norm(g) * rows[2]
    scales = (rows[2], through * rows[1], through * rows[0], norm(g))
    for name, a, b, scale in zip(("y", "dq", "dk", "dv"), got, want, scales, strict=True):
        assert_close(a, b, bound, max(scale, 1.0), name)


@given(heads(3), own.places(), attend_backends)
def test_attend_causality(x: list[Tensor], place: int, backend: str) -> None:
    t = place % (x[0].shape[-2] + 1)
    later = [w.clone() for w in x]
    for w in later:
        w[..., t:, :] += 3.0
    before, after = (attend(*w, True, backend=backend)[..., :t, :] for w in (x, later))
    assert_close(after, before, tolerance(x[0].dtype, x[0].shape[-2]), max(x[2].abs().max().item(), 1.0))


@given(heads(3), st.booleans(), attend_backends, own.seeds())
def test_attend_ignores_padding(x: list[Tensor], causal: bool, backend: str, seed: int) -> None:
    mask = mask_of(x[0], seed)
    hidden = ~mask[:, None, :, None]
    noise = [w.masked_fill(hidden, 7.0) for w in x]
    real = mask[:, None, :, None].expand_as(x[0])
    got, want = (attend(*w, causal, mask=mask, backend=backend)[real] for w in (noise, x))
    assert_close(got, want, tolerance(x[0].dtype, x[0].shape[-2]), max(x[2].abs().max().item(), 1.0))
    longer = [torch.cat([w, w], dim=-2) for w in x]
    wider = torch.cat([mask, torch.zeros_like(mask)], dim=-1)
    more = attend(*longer, causal, mask=wider, backend=backend)[..., : mask.shape[-1], :][real]
    assert_close(more, want, tolerance(x[0].dtype, x[0].shape[-2]), max(x[2].abs().max().item(), 1.0))


@given(heads(3), st.booleans(), attend_backends)
def test_a_sequence_without_tokens_gives_zero(x: list[Tensor], causal: bool, backend: str) -> None:
    mask = torch.zeros(x[0].shape[0], x[0].shape[2], dtype=torch.bool)
    y, *gradients = run(lambda q, k, v: attend(q, k, v, causal, mask=mask, backend=backend), x, x[0])
    assert not y.any()
    assert all(g.isfinite().all() for g in gradients)


@given(heads(3), st.booleans(), attend_backends)
def test_attend_averages(x: list[Tensor], causal: bool, backend: str) -> None:
    """Weights sum to 1, so constant values come back; with equal keys they are equal, so the mean comes out."""
    q, k, v = x
    L = q.shape[-2]
    bound = tolerance(q.dtype, L)
    assert_close(attend(q, k, torch.ones_like(v), causal, backend=backend), torch.ones_like(v), bound)
    mean = attend(q, torch.ones_like(k), v, causal, backend=backend)
    counts = torch.arange(1, L + 1, dtype=torch.float64).unsqueeze(-1)
    want = wide(v).cumsum(-2) / counts if causal else wide(v).mean(-2, keepdim=True).expand_as(v)
    assert_close(mean, want, 2 * bound, max(v.abs().max().item(), 1.0))


@given(heads(3), attend_backends, own.seeds())
def test_attend_ignores_the_order_of_keys(x: list[Tensor], backend: str, seed: int) -> None:
    q, k, v = x
    order = torch.randperm(q.shape[-2], generator=torch.Generator().manual_seed(seed))
    got = attend(q, k[..., order, :], v[..., order, :], False, backend=backend)
    want = attend(q, k, v, False, backend=backend)
    assert_close(got, want, 2 * tolerance(q.dtype, q.shape[-2]), max(v.abs().max().item(), 1.0))


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", attention.ATTEND_BACKENDS)
def test_golden_attention(vectors: Callable[[str], dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    z = vectors("attn_rope")
    q, k, v = (z[name].to(dtype) for name in ("q", "k", "v"))
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, q.shape[-2])
    q, k = rotary(q, backend=backend), rotary(k, backend=backend)
    for name, got in (
        ("q_rot", q),
        ("k_rot", k),
        ("out_full", attend(q, k, v, False, backend=backend)),
        ("out_causal", attend(q, k, v, True, backend=backend)),
    ):
        assert_close(got, z[name], bound, what=name)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: rotary(x[..., :3]), "got 3"),
        (lambda x: rotary(x, backend="triton"), "rotary has the backends reference, fast"),
        (lambda x: attend(x, x, x, False, backend="triton"), "attend has the backends reference, fast"),
    ],
)
def test_what_does_not_fit_is_an_error(call: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        call(torch.ones(1, 1, 2, 4))


@pytest.mark.filterwarnings("error")
def test_rotary_compiles() -> None:
    x = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(rotary, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), rotary(x))
