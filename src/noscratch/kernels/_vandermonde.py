"""Sums of powers K_l = Re sum_n c_n z_n^l in two levels, so that no array of H N L values is ever made.

With l = a M + b, z^l = z^{aM} z^b: a table of L / M powers, one of M powers and a real matrix product replace N L
exponentials. The tables are made by doubling in complex128 (relative error about l eps64) and rounded once, so float32
results keep their digits at every length, where exp(z l) in float32 has a phase error of l |z| eps32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noscratch.kernels import KernelError
from noscratch.kernels.structured import linear

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with autocast off: its matrix products are kernels' taps and states, which bfloat16 would ruin."""

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(x.device.type for x in chain(args, kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return inner


class _Phi1(torch.autograd.Function):
    """phi1 = (e^z - 1) / z; phi2 = (phi1 - 1) / z comes from its series at small z, and phi1' = phi1 - phi2."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        small = z.abs() < 0.5
        s = torch.where(small, z, 0)
        series = torch.full_like(s, 1 / math.factorial(16))
        for k in range(15, 1, -1):  # phi2 = 1/2! + z/3! + z^2/4! + ...; the first term left out is below 1e-17
            series.mul_(s).add_(1 / math.factorial(k))
        t = torch.where(small, 1, z)
        direct = (torch.exp(t) - 1) / t
        value = torch.where(small, 1 + s * series, direct)
        ctx.save_for_backward(value - torch.where(small, series, (direct - 1) / t))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return grad * derivative.conj()


def phi1(z: Tensor) -> Tensor:
    """(e^z - 1) / z for complex128 z; all digits of value and derivative at small z and at 0."""
    return _Phi1.apply(z)


def powers(z: Tensor, count: int) -> Tensor:
    """z^0, ..., z^(count-1) on a new axis before the last: (..., n) -> (..., count, n)."""
    table = z.new_empty(*z.shape[:-1], count, z.shape[-1])
    table[..., 0, :] = 1
    filled, ratio = 1, z[..., None, :]
    while filled < count:
        more = min(filled, count - filled)
        torch.mul(table[..., :more, :], ratio, out=table[..., filled : filled + more, :])
        filled, ratio = 2 * filled, ratio * ratio
    return table


def block_length(length: int) -> int:
    """The power of two at or above sqrt(length): M + L / M table rows are then fewest."""
    return 1 << ((length - 1).bit_length() + 1) // 2


def real_view(x: Tensor) -> Tensor:
    """(..., n) complex -> (..., 2 n) real, parts interleaved; no copy."""
    return torch.view_as_real(x).flatten(-2)


def complex_view(x: Tensor) -> Tensor:
    """The inverse of real_view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def without_subnormals(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x, in place, with 0 for what is so small that its products can be subnormal in `dtype` (by default its own), as
    decayed powers are: many processors take a hundred times as long for those."""
    parts = torch.view_as_real(x) if x.is_complex() else x
    info = torch.finfo(dtype or x.dtype)
    torch.ops.aten.hardshrink.out(parts, info.tiny / info.eps, out=parts)
    return x


def blocks(x: Tensor, block: int) -> Tensor:
    """(..., L) -> (..., ceil(L / block), block), padded by zeros."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))


class _PowerSum(torch.autograd.Function):
    """z (H, n), c (H, R, n) complex128 -> K (H, R, L), K_l = Re sum_n c_n z_n^l, in `dtype`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, c: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        H, R, n = c.shape
        M = block_length(length)
        fine = powers(z, M)
        coarse = powers(fine[:, -1] * z, -(-length // M))
        rounded = dtype.to_complex()
        left = without_subnormals((c[:, :, None] * coarse[:, None]).conj_physical_().to(rounded))
        fine, coarse = (without_subnormals(x.to(rounded)) for x in (fine, coarse))
        K = real_view(left).reshape(H, -1, 2 * n) @ real_view(fine).mT
        ctx.save_for_backward(c, fine, coarse)
        ctx.length = length
        return K.view(H, R, -1)[..., :length]

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        c, fine, coarse = ctx.saved_tensors
        H, R, n = c.shape
        M, A = fine.shape[1], coarse.shape[1]
        # d z^{aM+b} = (aM z^{aM-1}) z^b + z^{aM} (b z^{b-1}); no division by z, which bilinear steps can make 0
        index = torch.arange(M, dtype=grad.dtype, device=grad.device)
        table = fine.new_zeros(H, M, 2 * n)  # z^b and its derivative
        table[..., :n] = fine
        torch.mul(fine[:, :-1], index[1:, None], out=table[:, 1:, n:])
        d_coarse = torch.zeros_like(coarse)
        torch.mul(coarse[:, :-1], M * fine[:, -1:], out=d_coarse[:, 1:])
        d_coarse *= torch.arange(A, dtype=grad.dtype, device=grad.device)[:, None]
        sums = complex_view(blocks(grad, M).reshape(H, -1, M) @ real_view(table)).view(H, R, A, 2 * n)
        value, derivative = sums[..., :n], sums[..., n:]
        grad_c = grad_z = None
        if ctx.needs_input_grad[1]:
            grad_c = (coarse[:, None] * value).sum(2).conj().to(c.dtype)
        if ctx.needs_input_grad[0]:
            slope = torch.addcmul(d_coarse[:, None] * value, coarse[:, None], derivative).sum(2)
            grad_z = (c * slope).sum(1).conj()
        return grad_z, grad_c, None, None


def power_sum(z: Tensor, c: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Re sum_n c_n z_n^l for l < length: z (H, n), c (H, R, n), both complex128 -> (H, R, length) in `dtype`."""
    return _PowerSum.apply(z, c, length, dtype)


class _SharedPowerSum(torch.autograd.Function):
    """log_z (n) complex128, W (H, n) -> K (H, L), K_l = Re sum_n W_hn e^{log_z_n l}: all heads share one table.

    The table is not kept: block a of K is (W z^{aM}) times it.
    """

    BLOCK = 128  # entries of the table per state; with DLR's thousands of states it still fits a cache

    @staticmethod
    def forward(ctx: Any, log_z: Tensor, W: Tensor, length: int) -> Tensor:
        M = min(_SharedPowerSum.BLOCK, length)
        fine, coarse = _SharedPowerSum.tables(log_z, M, -(-length // M), W.dtype)
        table = real_view(fine)
        K = torch.cat([linear(real_view((W * z).conj().resolve_conj()), table) for z in coarse], -1)
        ctx.save_for_backward(log_z, W)
        ctx.M = M
        return K[:, :length].contiguous()

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        log_z, W = ctx.saved_tensors
        M = ctx.M
        H = W.shape[0]
        grads = blocks(grad, M).transpose(0, 1)  # (A, H, M)
        fine, coarse = _SharedPowerSum.tables(log_z, M, grads.shape[0], W.dtype)
        table = real_view(fine).T.contiguous()
        index = torch.arange(M, dtype=grad.dtype, device=grad.device)
        value = torch.zeros_like(W)
        slope = torch.zeros_like(W)
        for a, z in enumerate(coarse):
            sums = complex_view(linear(torch.cat((grads[a], index * grads[a])), table))
            value.addcmul_(sums[:H], z)
            slope.addcmul_(sums[H:] + (a * M) * sums[:H], z)
        return (W * slope).sum(0).conj_physical().to(log_z.dtype), value.conj_physical(), None

    @staticmethod
    def tables(log_z: Tensor, M: int, A: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        fine = powers(torch.exp(log_z), M)
        coarse = powers(torch.exp(M * log_z), A)
        return without_subnormals(fine.to(dtype)), without_subnormals(coarse.to(dtype))


def shared_power_sum(log_z: Tensor, W: Tensor, length: int) -> Tensor:
    """Re sum_n W_n e^{log_z_n l}, l < length: log_z (n) complex128, W (H, n) -> (H, length) in W's precision."""
    return _SharedPowerSum.apply(log_z, W, length)


def phases(method: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """(Abar, Bbar / (dt B)) of a diagonal system with z = dt A, complex128."""
    if method == "zoh":
        return torch.exp(z), phi1(z)
    if method == "bilinear":
        inverse = 1 / (1 - z / 2)
        return (1 + z / 2) * inverse, inverse
    raise KernelError(f'The discretizations are "zoh" and "bilinear"; got {method!r}.')
