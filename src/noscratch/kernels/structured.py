"""The dense linear map, and structured ones for feedforward layers (Wei et al. 2024, "Building on Efficient Foundations
for Effectively Training LLMs with Structured Feedforward Layers", section 3).

The reference form of a structured map multiplies by its dense matrix, `dense_of`; the fast form never builds that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from noscratch.kernels import ONE_FORM, KernelError, resolve
from noscratch.kernels._layout import transposed

STRUCTURED_BACKENDS = ("reference", "fast")
LINEAR_BACKENDS = ("reference", "fast")
GATED_BACKENDS = ("reference", "fast")
GELU_PRODUCT_BACKENDS = ("reference", "fast")

ROWS = 1024  # of two operands whose rows are summed over; longer sums run up to twice as slow


def linear(x: Tensor, w: Tensor, b: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """y = w x + b: x (..., in), w (out, in), b (out,) -> (..., out).

    "reference" is PyTorch's product. "fast" has forms of its own for float32 on a CPU, outside autocast: for an x that
    lies channels first, and of oneDNN where that has wider instructions than the MKL inside PyTorch.
    """
    chosen = resolve("linear", backend, LINEAR_BACKENDS, x.device)
    if x.shape[-1] != w.shape[1]:
        raise KernelError(f"linear with this weight takes {w.shape[1]} features; got {x.shape[-1]}.")
    if chosen == "fast" and _is_single_on_cpu(x, w):
        if _is_channels_first(x):
            whole: Tensor = _ChannelsFirst.apply(x, w, b)
            return whole
        if _onednn_pays():
            rows: Tensor = _OneDNN.apply(x.reshape(-1, x.shape[-1]), w, b)
            return rows.view(*x.shape[:-1], w.shape[0])
    return functional.linear(x, w, b)


def gated(x: Tensor, w: Tensor, b: Tensor, residual: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """y = residual + p sigmoid(q) with (p, q) = w gelu(x) + b: x (..., in), w (2 out, in), b (2 out,), residual
    (..., out), nothing if not given -> (..., out).

    "reference" takes these steps one after the other. "fast" takes them together for a few positions at a time, so that
    nothing in between leaves the cache: float32 on a CPU, outside autocast. Elsewhere it is the same as "reference".
    """
    chosen = resolve("gated", backend, GATED_BACKENDS, x.device)
    out = len(w) // 2
    if x.shape[-1] != w.shape[1] or len(w) % 2:
        raise KernelError(
            f"gated with this weight takes {w.shape[1]} features and makes an even number of values; "
            f"got {x.shape[-1]} and {len(w)}."
        )
    if residual is not None and residual.shape != (*x.shape[:-1], out):
        raise KernelError(f"gated adds a residual of shape {(*x.shape[:-1], out)}; got {tuple(residual.shape)}.")
    if chosen == "reference" or not _is_single_on_cpu(x, w) or (residual is not None and residual.dtype != x.dtype):
        y = functional.glu(functional.linear(functional.gelu(x), w, b))
        return y if residual is None else residual + y
    rows = x if _is_channels_first(x) else x.contiguous().view(1, -1, x.shape[-1])
    whole: Tensor = _Gated.apply(rows, w, b, None if residual is None else residual.reshape(*rows.shape[:2], out))
    return whole.view(*x.shape[:-1], out)


def gelu_product(
    u: Tensor,
    v: Tensor,
    w_u: Tensor,
    b_u: Tensor,
    w_v: Tensor,
    b_v: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """y = w (gelu(w_u u + b_u) gelu(w_v v + b_v)) + b (BiGS, section 3): u and v (..., in), w_u and w_v (width, in),
    w (out, width) -> (..., out).

    "reference" takes these steps one after the other. "fast" takes them together for a few positions at a time and
    keeps two arrays of `width` channels for the backward pass, not five: float32 on a CPU, outside autocast. Elsewhere
    it is the same as "reference".
    """
    chosen = resolve("gelu_product", backend, GELU_PRODUCT_BACKENDS, u.device)
    if u.shape != v.shape or w_u.shape != w_v.shape or u.shape[-1] != w_u.shape[1] or w.shape[1] != len(w_u):
        raise KernelError(
            "gelu_product takes u and v (..., in), w_u and w_v (width, in), w (out, width); got "
            + ", ".join(str(tuple(x.shape)) for x in (u, v, w_u, w_v, w))
        )
    if chosen == "reference" or not _is_single_on_cpu(u, w):
        p, q = functional.linear(u, w_u, b_u), functional.linear(v, w_v, b_v)
        return functional.linear(functional.gelu(p) * functional.gelu(q), w, b)
    rows = (x.reshape(1, -1, x.shape[-1]) for x in (u, v))
    y: Tensor = _GeluProduct.apply(*rows, w_u, b_u, w_v, b_v, w, b)
    return y.view(*u.shape[:-1], len(w))


def _is_single_on_cpu(x: Tensor, w: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == w.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@functools.cache
def _onednn_pays() -> bool:
    """oneDNN uses AVX-512 on any maker's processor, the MKL inside PyTorch on Intel's alone. In equal instructions MKL
    is as fast or, where an operand lies transposed, twice as fast."""
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.mkl.is_available():
        return True
    intel = "Intel" in torch.cpu.get_capabilities()["cpu_name"]
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel


class _OneDNN(torch.autograd.Function):
    """x (rows, in), w (out, in), b (out,) or None -> (rows, out). Operands are dense or transposed: slices are slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        x, w = x.contiguous(), w.contiguous()
        ctx.save_for_backward(x, w)
        return _onednn(x, w, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_w = None
        if needs_w:
            for g, rows in zip(grad.split(ROWS), x.split(ROWS), strict=True):
                grad_w = _add_product(grad_w, g.T, rows.T)
        return _onednn(grad, w.T, None) if needs_x else None, grad_w, grad.sum(0) if needs_b else None


class _ChannelsFirst(torch.autograd.Function):
    """The same for x (batch, rows, in) that lies in memory as (batch, in, rows), as convolutions leave it: no copy of
    it is made, and its gradient lies as it does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        w = w.contiguous()
        ctx.save_for_backward(x, w)
        y = x.new_empty(*x.shape[:2], len(w))
        for rows, out in zip(x, y, strict=True):
            _product(rows, w, b, out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        needs_x, needs_w, needs_b = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x = grad_w = None
        if needs_x:
            grad_x = torch.empty_like(x)  # lies as x does
            w_t = w.T.contiguous()
            for g, out in zip(grad, grad_x, strict=True):
                _product(w_t, g, None, out.T)
        if needs_w:
            for g, rows in zip(grad, x, strict=True):
                grad_w = _add_product(grad_w, g.T, rows.T)
        return grad_x, grad_w, grad.sum((0, 1)) if needs_b else None


class _Gated(torch.autograd.Function):
    """x (batch, rows, in), which may lie channels first, w (2 out, in), b (2 out,), residual (batch, rows, out) or None
    -> (batch, rows, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, residual: Tensor | None) -> Tensor:
        w = w.contiguous()
        y = x.new_empty(*x.shape[:2], len(w) // 2)
        saved = []
        for piece, rows, *added in _pieces(y, x, *(() if residual is None else (residual,))):
            z = _product(functional.gelu(rows), w, b)
            torch.ops.aten.glu.out(z, -1, out=piece)
            for r in added:
                piece.add_(r)
            saved.append(z)
        ctx.save_for_backward(x, w, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, *saved = ctx.saved_tensors
        channels_first = x.stride(2) != 1
        w_t = w.T.contiguous() if channels_first else w.T
        grad_x = torch.empty_like(x)  # lies as x does
        grad_w, grad_b = None, torch.zeros_like(w[:, 0])
        for (g, rows, out), z in zip(_pieces(grad.contiguous(), x, grad_x), saved, strict=True):
            dz = torch.ops.aten.glu_backward(g, z, -1)
            grad_b += dz.sum(0)
            grad_w = _add_product(grad_w, dz.T, functional.gelu(rows).T)
            dh = _product(w_t, dz, None).T if channels_first else _product(dz, w_t, None)
            torch.ops.aten.gelu_backward.grad_input(dh, rows, grad_input=out)
        return grad_x, grad_w, grad_b, grad if ctx.needs_input_grad[3] else None


class _GeluProduct(torch.autograd.Function):
    """u and v (1, rows, in), w_u and w_v (width, in), w (out, width) -> (1, rows, out)."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, v: Tensor, w_u: Tensor, b_u: Tensor, w_v: Tensor, b_v: Tensor, w: Tensor, b: Tensor
    ) -> Tensor:
        y = u.new_empty(*u.shape[:2], len(w))
        saved = []
        for piece, u_rows, v_rows in _pieces(y, u, v):
            p, q = _product(u_rows, w_u, b_u), _product(v_rows, w_v, b_v)
            _product(functional.gelu(p).mul_(functional.gelu(q)), w, b, piece)
            saved += [p, q]
        ctx.save_for_backward(u, v, w_u, w_v, w, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, v, w_u, w_v, w, *saved = ctx.saved_tensors
        grad_u, grad_v = torch.empty_like(u), torch.empty_like(v)
        grad_w_u = grad_w_v = grad_w = None
        grad_b_u, grad_b_v = torch.zeros_like(w_u[:, 0]), torch.zeros_like(w_v[:, 0])
        pieces = _pieces(grad.contiguous(), u, v, grad_u, grad_v)
        for (g, u_rows, v_rows, u_out, v_out), p, q in zip(pieces, saved[::2], saved[1::2], strict=True):
            gelu_p, gelu_q, dh = functional.gelu(p), functional.gelu(q), _product(g, w.T, None)
            grad_w = _add_product(grad_w, g.T, (gelu_p * gelu_q).T)
            dp = torch.ops.aten.gelu_backward(gelu_q.mul_(dh), p)
            dq = torch.ops.aten.gelu_backward(gelu_p.mul_(dh), q)
            grad_b_u += dp.sum(0)
            grad_b_v += dq.sum(0)
            grad_w_u = _add_product(grad_w_u, dp.T, u_rows.T)
            grad_w_v = _add_product(grad_w_v, dq.T, v_rows.T)
            _product(dp, w_u.T, None, u_out)
            _product(dq, w_v.T, None, v_out)
        return grad_u, grad_v, grad_w_u, grad_b_u, grad_w_v, grad_b_v, grad_w, grad.sum((0, 1))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same ROWS rows of each (batch, rows, any), sequence by sequence."""
    for sequences in zip(*tensors, strict=True):
        yield from zip(*(sequence.split(ROWS) for sequence in sequences), strict=True)


def _is_channels_first(x: Tensor) -> bool:
    return x.ndim == 3 and not x.is_contiguous() and x.shape[1] >= ROWS // 4 and x.transpose(1, 2).is_contiguous()


def _add_product(total: Tensor | None, g: Tensor, x: Tensor) -> Tensor:
    """total + g x^T, g (out, rows), x (in, rows), in place."""
    if not _onednn_pays():
        return g @ x.T if total is None else total.addmm_(g, x.T)
    # It is faster with the narrower operand first.
    product = _onednn(x, g, None).T if len(x) < len(g) else _onednn(g, x, None)
    return product if total is None else total.add_(product)


def _product(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x w^T + b by the faster library, into `out` if given: x (rows, in), w (o, in), b (o,) or None -> (rows, o)."""
    if _onednn_pays():
        dense = x if x.is_contiguous() else transposed(x.T.unsqueeze(0))[0]
        y = _onednn(dense, w, b)
        return y if out is None else out.copy_(y)
    return torch.mm(x, w.T, out=out) if b is None else torch.addmm(b, x, w.T, out=out)


def _onednn(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
    return y


def dense_of(kind: str, first: Tensor, second: Tensor, *, backend: str = "auto") -> Tensor:
    """The matrix (out, in) that the map called `kind` multiplies by, from the two weights that it takes."""
    resolve("dense_of", backend, ONE_FORM, first.device)
    if kind not in _DENSE:
        raise KernelError(f"dense_of knows the kinds {', '.join(_DENSE)}; got {kind!r}. Ask for one of them.")
    return _DENSE[kind](first, second)


def low_rank(x: Tensor, a: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    """y = b a x: x (..., in), a (rank, in), b (out, rank) -> (..., out)."""
    _check_width("low_rank", x, a.shape[1], b.shape[1], a.shape[0])
    if resolve("low_rank", backend, STRUCTURED_BACKENDS, x.device) == "reference":
        return functional.linear(x, _dense_low_rank(a, b))
    return linear(linear(x, a), b)


def block_dense(x: Tensor, w1: Tensor, w2: Tensor, *, backend: str = "auto") -> Tensor:
    """y = w2 blkdiag(w1) x: x (..., in), w1 (blocks, rank / blocks, in / blocks), w2 (out, rank) -> (..., out)."""
    _check_width("block_dense", x, w1.shape[0] * w1.shape[2], w2.shape[1], w1.shape[0] * w1.shape[1])
    if resolve("block_dense", backend, STRUCTURED_BACKENDS, x.device) == "reference":
        return functional.linear(x, _dense_block_dense(w1, w2))
    return linear(_block_diagonal(x, w1).flatten(-2), w2)


def block_shuffle(x: Tensor, w1: Tensor, w2: Tensor, *, backend: str = "auto") -> Tensor:
    """y = S2 blkdiag(w2) S1 blkdiag(w1) x, so that every output meets every input (Monarch matrices, Dao et al. 2022).

    x (..., in), w1 (b1, rank / b1, in / b1), w2 (b2, out / b2, rank / b2) -> (..., out). S1 deals the rank values out
    to the b2 blocks in turn; S2 takes the first value of every block, then the second, and so on.
    """
    _check_width("block_shuffle", x, w1.shape[0] * w1.shape[2], w2.shape[0] * w2.shape[2], w1.shape[0] * w1.shape[1])
    if resolve("block_shuffle", backend, STRUCTURED_BACKENDS, x.device) == "reference":
        return functional.linear(x, _dense_block_shuffle(w1, w2))
    dealt = _block_diagonal(x, w1).flatten(-2).unflatten(-1, (-1, w2.shape[0])).transpose(-1, -2)
    return _block_diagonal(dealt.flatten(-2), w2).transpose(-1, -2).flatten(-2)


def _block_diagonal(x: Tensor, w: Tensor) -> Tensor:
    """blkdiag(w) x, blocks kept apart: x (..., blocks i), w (blocks, o, i) -> (..., blocks, o)."""
    blocks, o, i = w.shape
    rows = x.reshape(-1, blocks, i).transpose(0, 1)
    if _is_single_on_cpu(x, w) and _onednn_pays():
        pairs = zip(rows.contiguous().unbind(0), w.unbind(0), strict=True)
        products = torch.stack([_OneDNN.apply(row, block, None) for row, block in pairs], dim=1)
    else:
        products = torch.bmm(rows, w.transpose(1, 2)).transpose(0, 1)
    return products.reshape(*x.shape[:-1], blocks, o)


def _check_width(kernel: str, x: Tensor, width: int, second: int, rank: int) -> None:
    if x.shape[-1] != width:
        raise KernelError(f"{kernel} with these weights takes {width} features; got {x.shape[-1]}.")
    if second != rank:
        raise KernelError(
            f"The first weight of {kernel} makes {rank} values, the second takes {second}; make them equal."
        )


def _dense_low_rank(a: Tensor, b: Tensor) -> Tensor:
    return b @ a


def _dense_block_dense(w1: Tensor, w2: Tensor) -> Tensor:
    return w2 @ torch.block_diag(*w1)


def _dense_block_shuffle(w1: Tensor, w2: Tensor) -> Tensor:
    blocks, out, rank = w2.shape
    deal = torch.arange(blocks * rank, device=w2.device).view(rank, blocks).T.reshape(-1)
    gather = torch.arange(blocks * out, device=w2.device).view(blocks, out).T.reshape(-1)
    return torch.block_diag(*w2)[gather] @ torch.block_diag(*w1)[deal]


_DENSE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "low_rank": _dense_low_rank,
    "block_dense": _dense_block_dense,
    "block_shuffle": _dense_block_shuffle,
}
