"""Laws of the structured maps: each is its dense matrix, in values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import strategies as own
from laws import norm, run, wide
from noscratch.kernels import KernelError, structured
from noscratch.kernels.structured import block_dense, block_shuffle, dense_of, linear, low_rank
from tolerances import GOLDEN, assert_close, tolerance

MAPS: dict[str, Callable[..., Tensor]] = {
    "low_rank": low_rank,
    "block_dense": block_dense,
    "block_shuffle": block_shuffle,
}
leading = st.lists(own.sizes(3), max_size=2)
backends = st.sampled_from(structured.STRUCTURED_BACKENDS)


@st.composite
def maps(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(MAPS)) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    """A kind, x (with 1 to 3 dimensions) and the two weights of that kind."""
    kind, make = draw(own.choice(kinds)), own.Source(draw)
    b1, b2, i, o, unit = (draw(own.sizes(4)) for _ in range(5))
    if kind != "block_shuffle":
        b2 = 1
    rank = b1 * b2 * unit
    first = (b1, rank // b1, i) if kind != "low_rank" else (rank, b1 * i)
    second = (b2, o, rank // b2) if kind == "block_shuffle" else (o, rank)
    lead = draw(leading)
    shapes = ((*lead, b1 * i), first, second)
    x, w1, w2 = (make.reals(*shape) for shape in shapes)
    return kind, (x, w1, w2)


@given(maps(), own.seeds())
def test_fast_is_the_dense_matrix_values_and_gradients(
    drawn: tuple[str, tuple[Tensor, Tensor, Tensor]], seed: int
) -> None:
    kind, inputs = drawn
    x, w1, w2 = inputs
    g = own.normal(seed, *MAPS[kind](*inputs).shape, dtype=x.dtype)
    got = run(MAPS[kind], inputs, g)
    want = run(lambda x, w1, w2: x @ dense_of(kind, w1, w2).T, [wide(t) for t in inputs], wide(g))
    a, b, c, d = (norm(t) for t in (x, w1, w2, g))
    scales = (a * b * c, b * c * d, a * c * d, a * b * d)
    for name, i, j, scale in zip(("y", "dx", "dw1", "dw2"), got, want, scales, strict=True):
        assert_close(i, j, tolerance(x.dtype, x.shape[-1]), scale, name)


@pytest.fixture(params=["onednn", "mkl"], scope="module", autouse=True)
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    """The library that is the faster one on some processors, and the other."""
    with mock.patch.object(structured, "_onednn_pays", return_value=request.param == "onednn"):
        yield


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (1 to 4 dimensions), w, b and a cotangent of w x + b."""
    make, lead, i, o = own.Source(draw), draw(leading), draw(own.lengths(40)), draw(own.lengths(40))
    lead = [1] * draw(st.booleans()) + lead
    return make.reals(*lead, i), make.reals(o, i), make.reals(o), make.reals(*lead, o, families=("normal",))


@given(layers(), st.booleans())
def test_linear_is_a_sum_of_products(drawn: tuple[Tensor, Tensor, Tensor, Tensor], strided: bool) -> None:
    x, w, b, g = drawn
    o, i = w.shape
    if strided:
        x, w = torch.stack([x, -x], dim=-1)[..., 0], w.T.contiguous().T
    scales = (norm(x) * norm(w) + norm(b), norm(g) * norm(w), norm(g) * norm(x), norm(g) * (g.numel() / o) ** 0.5)
    want = run(lambda x, w, b: (x.unsqueeze(-2) * w).sum(-1) + b, [wide(t) for t in (x, w, b)], wide(g))
    for backend in structured.LINEAR_BACKENDS:
        got = run(lambda x, w, b, backend=backend: linear(x, w, b, backend=backend), (x, w, b), g)
        for name, j, k, scale in zip(("y", "dx", "dw", "db"), got, want, scales, strict=True):
            assert_close(j, k, tolerance(x.dtype, max(i, o, g.numel())), scale, f"{name}, {backend}")
        assert_close(linear(x, w, backend=backend) + b, got[0], tolerance(x.dtype, i), scales[0])


LAYOUTS = [(3, 256, 4, 8), (1, 300, 7, 4), (2, 1201, 5, 6), (2, 7, 3, 2)]


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(("batch", "rows", "i", "o"), LAYOUTS)
def test_gated_in_either_layout(batch: int, rows: int, i: int, o: int, channels_first: bool) -> None:
    """Values and gradients; what lies channels first in memory has a gradient that does, too, unless it is short."""
    shape = (batch, i, rows) if channels_first else (batch, rows, i)
    y = (batch, rows, o // 2)
    leaf, w, b, residual, g = (torch.randn(*size) for size in (shape, (o, i), (o,), y, y))

    def apply(leaf: Tensor, w: Tensor, b: Tensor, residual: Tensor) -> Tensor:
        x = leaf.transpose(1, 2) if channels_first else leaf
        if x.dtype == torch.float32:
            return structured.gated(x, w, b, residual)
        p, q = ((functional.gelu(x).unsqueeze(-2) * w).sum(-1) + b).chunk(2, dim=-1)
        return residual + p * torch.sigmoid(q)

    drawn = (leaf, w, b, residual)
    got, want = run(apply, drawn, g), run(apply, [wide(t) for t in drawn], wide(g))
    size = norm(leaf) * norm(w) + norm(b) + norm(residual)
    scales = (size, size * norm(g), size * norm(g) * norm(leaf), size * norm(g), norm(g))
    for name, j, k, scale in zip(("y", "dx", "dw", "db", "dr"), got, want, scales, strict=True):
        assert_close(j, k, tolerance(torch.float32, batch * rows), min(scale, 10 * k.abs().max().item()), name)
    assert got[0].is_contiguous()
    assert got[1].is_contiguous() or rows < structured.ROWS // 4


@st.composite
def gates(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """x (batch, rows, in), w (2 out, in), b (2 out,) and perhaps a residual (batch, rows, out)."""
    batch, rows, i, o = draw(own.sizes(3)), draw(own.lengths(40)), draw(own.sizes(6)), draw(own.sizes(6))
    source = own.Source(draw)
    found = source.reals(batch, rows, i), source.reals(2 * o, i), source.reals(2 * o)
    return (*found, source.reals(batch, rows, o)) if draw(st.booleans()) else found


@given(gates(), backends, own.seeds())
def test_gated_is_its_steps(drawn: tuple[Tensor, ...], backend: str, seed: int) -> None:
    """Values and gradients, written out without the kernel."""
    x, w, b, *added = drawn

    def steps(x: Tensor, w: Tensor, b: Tensor, *added: Tensor) -> Tensor:
        p, q = ((functional.gelu(x).unsqueeze(-2) * w).sum(-1) + b).chunk(2, -1)
        return sum(added, p / (1 + torch.exp(-q)))

    g = own.normal(seed, *x.shape[:2], len(w) // 2, dtype=x.dtype)
    got = run(lambda *drawn: structured.gated(*drawn, backend=backend), drawn, g)
    want = run(steps, [wide(t) for t in drawn], wide(g))
    size = 1 + norm(x) * norm(w) + norm(b) + sum(map(norm, added))
    scales = [size, size * norm(w) * norm(g), size * norm(g) * (1 + norm(x)), size * norm(g), *[norm(g)] * len(added)]
    for name, j, k, scale in zip(("y", "dx", "dw", "db", "dr")[: len(scales)], got, want, scales, strict=True):
        assert_close(j, k, tolerance(x.dtype, x.shape[0] * x.shape[1] + x.shape[2]), scale, name)


PRODUCT = ("u", "v", "w_u", "b_u", "w_v", "b_v", "w", "b")


def product_steps(
    u: Tensor, v: Tensor, w_u: Tensor, b_u: Tensor, w_v: Tensor, b_v: Tensor, w: Tensor, b: Tensor
) -> Tensor:
    """`gelu_product` written out without the kernel."""
    p, q = ((x.unsqueeze(-2) * weight).sum(-1) + bias for x, weight, bias in ((u, w_u, b_u), (v, w_v, b_v)))
    return ((functional.gelu(p) * functional.gelu(q)).unsqueeze(-2) * w).sum(-1) + b


@st.composite
def factors(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """What `gelu_product` takes, u and v of 1 to 4 dimensions."""
    make, lead = own.Source(draw), draw(leading)
    i, width, o = draw(own.sizes(6)), draw(own.sizes(9)), draw(own.sizes(6))
    shapes = (*lead, i), (*lead, i), (width, i), (width,), (width, i), (width,), (o, width), (o,)
    return tuple(make.reals(*shape) for shape in shapes)


@given(factors(), backends, own.seeds())
def test_gelu_product_is_its_steps(drawn: tuple[Tensor, ...], backend: str, seed: int) -> None:
    """Values and gradients."""
    u, v, w_u, b_u, w_v, b_v, w, b = drawn
    g = own.normal(seed, *u.shape[:-1], len(w), dtype=u.dtype)
    got = run(lambda *x: structured.gelu_product(*x, backend=backend), drawn, g)
    want = run(product_steps, [wide(t) for t in drawn], wide(g))
    p, q = 1 + norm(u) * norm(w_u) + norm(b_u), 1 + norm(v) * norm(w_v) + norm(b_v)
    size = 1 + p * q * norm(w) + norm(b)
    inner = size * norm(g) * (1 + norm(w))  # of a derivative by p or q
    bound = tolerance(u.dtype, u.numel() + w.numel())
    scales = [size, *(inner * (1 + norm(x)) for x in (w_u, w_v, u, b_u, v, b_v)), p * q * norm(g), size * norm(g)]
    for name, j, k, scale in zip(("y", *PRODUCT), got, want, scales, strict=True):
        assert_close(j, k, bound, scale, name)


@pytest.mark.parametrize("rows", [3, 2 * structured.ROWS + 7])
def test_gelu_product_in_pieces(rows: int) -> None:
    shapes = ((2, rows, 5), (2, rows, 5), (8, 5), (8,), (8, 5), (8,), (4, 8), (4,))
    drawn, g = [torch.randn(*shape) for shape in shapes], torch.randn(2, rows, 4)
    drawn[0] = torch.randn(2, 5, rows).mT  # as convolutions leave it
    got, want = run(structured.gelu_product, drawn, g), run(product_steps, [wide(t) for t in drawn], wide(g))
    for name, j, k in zip(("y", *PRODUCT), got, want, strict=True):
        assert_close(j, k, tolerance(torch.float32, 2 * rows), 10 * k.abs().max().item(), name)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize(("batch", "rows", "i", "o"), LAYOUTS)
def test_linear_of_many_rows_in_either_layout(batch: int, rows: int, i: int, o: int, channels_first: bool) -> None:
    """Values and gradients; what lies channels first in memory has a gradient that does, too, unless it is short."""
    shape = (batch, i, rows) if channels_first else (batch, rows, i)
    leaf, w, b, g = (torch.randn(*size) for size in (shape, (o, i), (o,), (batch, rows, o)))

    def apply(leaf: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = leaf.transpose(1, 2) if channels_first else leaf
        return linear(x, w, b) if x.dtype == torch.float32 else (x.unsqueeze(-2) * w).sum(-1) + b

    got, want = run(apply, (leaf, w, b), g), run(apply, [wide(t) for t in (leaf, w, b)], wide(g))
    scales = (norm(leaf) * norm(w) + norm(b), norm(g) * norm(w), norm(g) * norm(leaf), norm(g) * (batch * rows) ** 0.5)
    for name, j, k, scale in zip(("y", "dx", "dw", "db"), got, want, scales, strict=True):
        assert_close(j, k, tolerance(torch.float32, batch * rows), scale, name)
    assert got[0].is_contiguous()
    assert got[1].is_contiguous() or rows < structured.ROWS // 4


@pytest.mark.parametrize("backend", structured.LINEAR_BACKENDS)
def test_linear_follows_autocast(backend: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 3), torch.ones(4, 3), backend=backend).dtype == torch.bfloat16


@given(maps())
def test_backends_agree(drawn: tuple[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    kind, inputs = drawn
    fast, reference = (MAPS[kind](*inputs, backend=backend) for backend in structured.STRUCTURED_BACKENDS)
    scale = norm(inputs[0]) * norm(inputs[1]) * norm(inputs[2])
    assert_close(fast, reference, tolerance(fast.dtype, inputs[0].shape[-1]), scale)


@given(maps(), backends, st.floats(-4, 4, width=16))
def test_linear(drawn: tuple[str, tuple[Tensor, Tensor, Tensor]], backend: str, c: float) -> None:
    kind, (x, w1, w2) = drawn
    other = x.flip(-1)

    def apply(x: Tensor) -> Tensor:
        return MAPS[kind](x, w1, w2, backend=backend)

    scale = (abs(c) + 1) * norm(x) * norm(w1) * norm(w2)
    want = c * apply(x) + apply(other)
    assert_close(apply(c * x + other), want, 2 * tolerance(x.dtype, x.shape[-1]), scale)
    assert not apply(0 * x).any()


@given(maps(("low_rank",)))
def test_one_block_is_low_rank(drawn: tuple[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    _, (x, a, b) = drawn
    scale = norm(x) * norm(a) * norm(b)
    want = low_rank(x, a, b)
    for got in (block_dense(x, a.unsqueeze(0), b), block_shuffle(x, a.unsqueeze(0), b.unsqueeze(0))):
        assert_close(got, want, tolerance(x.dtype, x.shape[-1]), scale)


@given(own.sizes(4), own.sizes(4))
def test_shuffles_deal_in_turn(b1: int, b2: int) -> None:
    """With identity blocks only the two shuffles are left: rank value j goes to block j mod b2, place j div b2."""
    n = b1 * b2
    x = torch.arange(n, dtype=torch.float64)
    y = block_shuffle(x, torch.eye(n // b1).double().expand(b1, -1, -1), torch.eye(n // b2).double().expand(b2, -1, -1))
    dealt = torch.stack([x[block::b2] for block in range(b2)])
    assert torch.equal(y, dealt.T.reshape(-1))


@pytest.mark.parametrize("dtype", own.DTYPES)
@pytest.mark.parametrize("backend", structured.STRUCTURED_BACKENDS)
@pytest.mark.parametrize(
    ("kind", "first", "second", "stored"),
    [
        ("low_rank", "lr_a", "lr_b", "lr"),
        ("block_dense", "bd_w1", "bd_w2", "bd"),
        ("block_shuffle", "bs_w1", "bs_w2", "bs"),
    ],
)
def test_golden_structured(
    vectors: Callable[[str], dict[str, Any]],
    kind: str,
    first: str,
    second: str,
    stored: str,
    backend: str,
    dtype: torch.dtype,
) -> None:
    z = vectors("structured_ffn")
    x, w1, w2 = (z[name].to(dtype) for name in ("x", first, second))
    bound = GOLDEN if dtype == torch.float64 else tolerance(dtype, x.shape[-1])
    assert_close(MAPS[kind](x, w1, w2, backend=backend), z[f"{stored}_y"], bound)
    assert_close(dense_of(kind, w1, w2), z[f"{stored}_dense"], bound)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: linear(torch.ones(3), torch.ones(2, 4)), "linear with this weight takes 4 features; got 3"),
        (lambda: structured.gated(torch.ones(3), torch.ones(2, 4), torch.ones(2)), "takes 4 features .* got 3 and 2"),
        (lambda: structured.gated(torch.ones(4), torch.ones(3, 4), torch.ones(3)), "an even number .* got 4 and 3"),
        (
            lambda: structured.gated(torch.ones(5, 4), torch.ones(6, 4), torch.ones(6), torch.ones(3)),
            r"residual of shape \(5, 3\); got \(3,\)",
        ),
        (
            lambda: structured.gelu_product(
                *(torch.ones(3), torch.ones(3), torch.ones(6, 3), torch.ones(6), torch.ones(6, 3), torch.ones(6)),
                *(torch.ones(2, 5), torch.ones(2)),
            ),
            r"w \(out, width\); got \(3,\), \(3,\), \(6, 3\), \(6, 3\), \(2, 5\)",
        ),
        (lambda: low_rank(torch.ones(3), torch.ones(2, 4), torch.ones(5, 2)), "low_rank with these weights takes 4"),
        (lambda: low_rank(torch.ones(4), torch.ones(2, 4), torch.ones(5, 3)), "makes 2 values, the second takes 3"),
        (
            lambda: block_dense(torch.ones(4), torch.ones(2, 3, 2), torch.ones(5, 2)),
            "makes 6 values, the second takes 2",
        ),
        (lambda: block_shuffle(torch.ones(4), torch.ones(2, 3, 2), torch.ones(2, 5, 2)), "makes 6 values"),
        (lambda: dense_of("dense", torch.ones(1), torch.ones(1)), "low_rank, block_dense, block_shuffle; got 'dense'"),
        (lambda: low_rank(torch.ones(4), torch.ones(2, 4), torch.ones(5, 2), backend="compiled"), "reference, fast"),
    ],
)
def test_what_does_not_fit_is_an_error(call: Callable[[], Tensor], says: str) -> None:
    with pytest.raises(KernelError, match=says):
        call()
