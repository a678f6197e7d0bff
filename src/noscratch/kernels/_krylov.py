"""K_l = Re(c . T^l b) for T x = D x + sum_r U_r Re(V_r . x): a diagonal plus a rank r, real-linear on complex states.

Two levels: with l = a M + b, K = Y X of rows Y_a = c T^{aM} and columns X_b = T^b b.

- Columns, and T^M, come from tables of powers of D alone. The outputs w_i = Re(V . T^i x) of the correction obey the
  convolution w_i = Re(V . D^i x) + sum_{j<i} h_{i-1-j} w_j with h_k = Re(V . D^k U): a triangular Toeplitz system of
  r M rows. Then T^i x = D^i x + sum_{j<i} D^{i-1-j} U w_j.
- Rows come by doubling from E = T^M, Y <- [Y, Y E] and E <- E E, until STEPS products with one E give all. Errors of E
  add up in T^{aM}: this is done in float64, and rounded only for the last product, K = Y X.

A state is complex (n) or, its parts interleaved, real (2 n); the functional Re(f . x) is a real dot product with the
view of conj(f). Kept for the backward pass: X, Y, the tables and log2(L / M) matrices E, of (2 n)^2 values per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from noscratch.kernels._vandermonde import (
    blocks,
    complex_view,
    full_precision,
    powers,
    real_view,
    without_subnormals,
)

STEPS = 32  # a squaring of E costs as much as a product of E with 2 n rows, and two more in the backward pass
ROWS = 32  # r M at most: the triangular system grows with its square, the number of rows Y falls with it


def _toeplitz(x: Tensor) -> Tensor:
    """x (H, M, s, r) -> (H, M s, M r), lower block Toeplitz: block (i, j) is x_{i-j}, and 0 above the diagonal."""
    H, M, s, r = x.shape
    # A row of period 2 M blocks, read with a stride of 2 M - 1 blocks, moves right by one block per line.
    row = torch.cat((x[:, :1], x.new_zeros(H, M, s, r), x[:, 1:].flip(1)), 1).transpose(1, 2).reshape(H, s, 1, -1)
    lines = row.expand(-1, -1, M, -1).flatten(2)[..., : M * (2 * M - 1) * r].unflatten(-1, (M, -1))[..., : M * r]
    return lines.transpose(1, 2).reshape(H, M * s, M * r)


def _toeplitz_adjoint(g: Tensor, s: int, r: int) -> Tensor:
    """The adjoint of `_toeplitz`: x_k collects the blocks with i - j = k."""
    H, M = g.shape[0], g.shape[1] // s
    lines = pad(g.view(H, M, s, M * r).transpose(1, 2), (0, (M - 1) * r)).flatten(2)
    row = pad(lines, (0, M * r)).unflatten(-1, (M, 2 * M * r)).sum(2).view(H, s, 2 * M, r).transpose(1, 2)
    return torch.cat((row[:, :1], row[:, M + 1 :].flip(1)), 1)


def _inverse(system: Tensor, r: int) -> Tensor:
    """Of a lower block Toeplitz matrix (H, M r, M r) with identities on its diagonal: by halves, which are alike."""
    inverse = system[:, :r, :r]
    while (m := inverse.shape[-1]) < system.shape[-1]:
        below = inverse @ system[:, m : 2 * m, :m] @ inverse
        inverse = torch.cat((pad(inverse, (0, m)), torch.cat((-below, inverse), -1)), 1)
    return inverse


def _hankel(w: Tensor, r: int) -> Tensor:
    """w (H, M r) -> (H, M, M r): block (i, j) is w_{i+j-M}, 0 where that is negative."""
    return pad(w, (w.shape[-1], -r)).unfold(-1, w.shape[-1], r).contiguous()


def _hankel_adjoint(g: Tensor, r: int) -> Tensor:
    """The adjoint of `_hankel`: w_k collects the blocks with i + j - M = k."""
    H, M, Mr = g.shape
    lines = pad(g, (0, Mr)).flatten(1)[:, : M * (2 * M - 1) * r].view(H, M, -1).sum(1)
    return pad(lines[:, Mr:], (0, r))


def _diagonal(E: Tensor) -> Tensor:
    """The 2 x 2 blocks of E (H, 2 n, 2 n) that act inside one complex state: (H, 2, 2, n), a view."""
    H, N, _ = E.shape
    return E.view(H, N // 2, 2, N // 2, 2).diagonal(dim1=1, dim2=3)


class _Krylov(torch.autograd.Function):
    """D, b (H, n), U, V (H, r, n), c (H, R, n), all complex128 -> K (H, R, L) in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, D: Tensor, b: Tensor, U: Tensor, V: Tensor, c: Tensor, length: int, dtype: torch.dtype
    ) -> Tensor:
        H, r, n = U.shape
        R = c.shape[1]
        M = 1
        while 2 * M * r <= ROWS and length > M:
            M *= 2
        A = -(-length // M)
        table = powers(D, M)
        tu = real_view(table.flip(1)[:, :, None] * U[:, None]).view(H, M * r, 2 * n)  # D^(M-1-k) U, rows (k, rank)
        tv = real_view((table[:, :, None] * V[:, None]).conj_physical()).view(H, M * r, 2 * n)  # functionals V D^k
        ub = real_view(torch.cat((U, b[:, None]), 1))
        seen = (tv @ ub.mT).view(H, M, r, r + 1)  # h, and Re(V . D^i b)
        identity = torch.eye(r, dtype=seen.dtype, device=seen.device).expand(H, 1, r, r)
        inverse = _inverse(_toeplitz(torch.cat((identity, -seen[:, :-1, :, :r]), 1)), r)
        solution = inverse @ torch.cat((seen[..., r:].reshape(H, M * r, 1), tv), -1)
        w, outputs = solution[..., 0], solution[..., 1:]
        X = torch.baddbmm(real_view(table * b[:, None]), _hankel(w, r), tu).to(dtype)

        E = tu.mT @ outputs
        DM = table[:, -1] * D
        _diagonal(E).add_(torch.stack((DM.real, -DM.imag, DM.imag, DM.real), 1).view(H, 2, 2, n))
        rows = real_view(c.conj().resolve_conj())
        steps: list[Tensor] = []
        while STEPS * rows.shape[1] < A * R:
            steps.append(E)
            rows = torch.cat((rows, rows @ E), 1)
            E = without_subnormals(E @ E, dtype)
        found = [rows]
        if rows.shape[1] < A * R:
            steps.append(E)
            for _ in range(rows.shape[1], A * R, rows.shape[1]):
                rows = without_subnormals(torch.bmm(rows, E), dtype)
                found.append(rows)
        Y = torch.cat(found, 1)[:, : A * R].to(dtype)
        rounded = dtype.to_complex()
        kept = (table.to(rounded), *(x.to(dtype) for x in (tu, tv, ub, inverse, solution)))
        ctx.save_for_backward(b, U, V, X, Y, *kept, *(without_subnormals(E.to(dtype)) for E in steps))
        ctx.R, ctx.M = R, M
        return (Y @ X.mT).view(H, A, R, M).transpose(1, 2).reshape(H, R, A * M)[..., :length]

    @staticmethod
    @once_differentiable
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        b, U, V, X, Y, table, tu, tv, ub, inverse, solution, *steps = ctx.saved_tensors
        H, r, n = U.shape
        R, M = ctx.R, ctx.M
        grad = blocks(grad, M).transpose(1, 2).reshape(H, -1, M)  # (H, A R, M)
        dX = grad.mT @ Y
        dY = grad @ X
        dE = None
        for level in range(len(steps) - 1, -1, -1):
            E_t = steps[level].mT.contiguous()
            size = R << level
            end = 2 * size if dE is not None else dY.shape[1]
            for start in range((end - 1) // size * size, 0, -size):
                piece = dY[:, start : min(start + size, end)]
                dY[:, start - size : start - size + piece.shape[1]] += torch.bmm(piece, E_t)
            from_rows = Y[:, : end - size].mT @ dY[:, size:end]
            dE = from_rows if dE is None else from_rows.baddbmm_(dE, E_t).baddbmm_(E_t, dE)
        dc = complex_view(dY[:, :R]).conj()

        w, outputs = solution[..., 0], solution[..., 1:]
        dE = X.new_zeros(H, 2 * n, 2 * n) if dE is None else dE
        d_solution = torch.cat((_hankel_adjoint(dX @ tu.mT, r)[..., None], tu @ dE), -1)
        d_tu = _hankel(w, r).mT @ dX + outputs @ dE.mT
        d_right = inverse.mT @ d_solution
        d_system = _toeplitz_adjoint(d_right @ solution.mT, r, r)  # of 1, -h_0, -h_1, ..., and minus that of the matrix
        d_h = pad(d_system[:, 1:], (0, 0, 0, 0, 0, 1)).reshape(H, M * r, r)
        d_seen = torch.cat((d_h, d_right[..., :1]), -1)
        d_tv = d_seen @ ub
        d_tv += d_right[..., 1:]
        d_ub = complex_view(d_seen.mT @ tv)

        g_b = complex_view(dX)
        g_u = complex_view(d_tu.view(H, M, r, 2 * n))
        g_v = complex_view(d_tv.view(H, M, r, 2 * n)).conj()
        forward = table.conj_physical()
        backward = forward.flip(1)
        d_forward = b.conj()[:, None].to(forward.dtype) * g_b + (V.conj()[:, None].to(forward.dtype) * g_v).sum(2)
        d_backward = (U.conj()[:, None].to(forward.dtype) * g_u).sum(2)
        d_powers = d_forward[:, 1:] + d_backward[:, :-1].flip(1)
        order = torch.arange(1, M, dtype=dX.dtype, device=dX.device)[:, None]
        dDM = _diagonal(dE)
        dD = (order * forward[:, :-1] * d_powers).sum(1)
        dD += M * forward[:, -1] * torch.complex(dDM[:, 0, 0] + dDM[:, 1, 1], dDM[:, 1, 0] - dDM[:, 0, 1])
        db = (forward * g_b).sum(1) + d_ub[:, r]
        dU = (backward[:, :, None] * g_u).sum(1) + d_ub[:, :r]
        dV = (forward[:, :, None] * g_v).sum(1)
        return *(d.to(b.dtype) for d in (dD, db, dU, dV, dc)), None, None


def krylov(D: Tensor, b: Tensor, U: Tensor, V: Tensor, c: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Re(c . T^l b), l < length: D, b (H, n), U, V (H, r, n), c (H, R, n), complex128 -> (H, R, length) in `dtype`."""
    return _Krylov.apply(D, b, U, V, c, length, dtype)
