"""K_l = Re(c . T^l b) for T x = D x + sum_r U_r Re(V_r . x): a diagonal plus a rank r, real-linear on complex half states.

Two levels: l = a M + b, K = Y X with rows Y_a = c T^{aM} and columns X_b = T^b b.
- The columns and T^M come from tables of powers of D alone. The outputs w_i = Re(V . T^i x) of the correction obey the convolution
  equation w_i = Re(V . D^i x) + sum_{j<i} h_{i-1-j} w_j, h_k = Re(V . D^k U): one triangular Toeplitz solve of r M rows. Then
  T^M x = D^M x + sum_j D^{M-1-j} U w_j.
- The rows come by doubling, Y <- [Y, Y E], E <- E^2 from E = T^M. Squaring doubles the error of E at every level, so it is done in
  float64; products with Y or X only round once and are done in the dtype of the result.

States are complex (n) or, interleaved, real (2 n); a functional Re(f . x) is the real dot product with the view of conj(f).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noscratch.kernels._vandermonde import blocks, complex_view, powers, real_view

ROWS = 64  # r M at most: the solve costs (r M)^2 per state, each squaring that it saves costs (2 n)^2


class _Columns(NamedTuple):
    """The first level, all float64: rows are (time, rank) pairs, flattened."""

    table: Tensor  # (H, M, n) powers of D, complex
    tu: Tensor  # (H, M r, 2 n) D^k U
    tv: Tensor  # (H, M r, 2 n) functionals V D^k
    system: Tensor  # (H, M r, M r) I - Toeplitz(h)
    solution: Tensor  # (H, M r, 1 + 2 n): w for b, and the functionals V T^i


def toeplitz(x: Tensor) -> Tensor:
    """x (H, M, s, r) -> (H, M s, M r), strictly lower block Toeplitz: block (i, j) is x_{i-1-j}."""
    H, M, s, r = x.shape
    windows = torch.nn.functional.pad(x.permute(0, 2, 3, 1), (M, -1)).unfold(-1, M, 1).flip(-1)  # (H, s, r, i, j)
    return windows.permute(0, 3, 1, 4, 2).reshape(H, M * s, M * r)


def toeplitz_adjoint(g: Tensor, M: int, s: int, r: int) -> Tensor:
    """The adjoint of `toeplitz`: block k is the sum over i - 1 - j = k."""
    H = g.shape[0]
    g = (
        g.view(H, M, s, M, r).permute(0, 2, 4, 1, 3).flip(-1)
    )  # (H, s, r, i, M - 1 - j): rows shifted by i line up the diagonals
    skewed = torch.nn.functional.pad(g, (0, M)).flatten(-2)[..., : M * (2 * M - 1)].unflatten(-1, (M, 2 * M - 1))
    return torch.nn.functional.pad(skewed.sum(-2)[..., M:], (0, 1)).permute(0, 3, 1, 2)


def _columns(D: Tensor, b: Tensor, U: Tensor, V: Tensor, M: int) -> _Columns:
    H, r, n = U.shape
    table = powers(D, M)
    tu = real_view(table[:, :, None] * U[:, None]).reshape(H, M * r, 2 * n)
    tv = real_view((table[:, :, None] * V[:, None]).conj().resolve_conj()).reshape(H, M * r, 2 * n)
    seen = tv @ real_view(torch.cat((U, b[:, None]), 1)).mT  # (H, M r, r + 1): h and Re(V . D^i b)
    h = seen[..., :r].reshape(H, M, r, r)
    system = torch.eye(M * r, dtype=tv.dtype, device=tv.device) - toeplitz(h)
    right = torch.cat((seen[..., r:], tv), -1)
    solution = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    return _Columns(table, tu, tv, system, solution)


def _diagonal_blocks(E: Tensor) -> Tensor:
    """The 2 x 2 blocks of E (H, 2 n, 2 n) that act inside one complex state: (H, 2, 2, n), a view."""
    H, N, _ = E.shape
    return E.view(H, N // 2, 2, N // 2, 2).diagonal(dim1=1, dim2=3)


def reversed_blocks(x: Tensor, M: int) -> Tensor:
    """Time reversed in (H, M r, m), rank order kept."""
    return x.unflatten(1, (M, -1)).flip(1).flatten(1, 2)


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
        first = _columns(D, b, U, V, M)
        w = first.solution[..., 0].view(H, M, 1, r)
        X = real_view(first.table * b[:, None]) + toeplitz(w) @ first.tu
        E = reversed_blocks(first.tu, M).mT @ first.solution[..., 1:]
        DM = first.table[:, -1] * D
        _diagonal_blocks(E).add_(torch.stack((DM.real, -DM.imag, DM.imag, DM.real), 1).view(H, 2, 2, n))

        X = X.to(dtype)
        Y = torch.empty(H, A * R, 2 * n, dtype=dtype, device=c.device)
        Y[:, :R] = real_view(c.conj().resolve_conj())
        steps = []
        filled = 1
        while filled < A:
            if steps:
                E = E @ E
            steps.append(E.to(dtype))
            more = min(filled, A - filled)
            torch.bmm(Y[:, : more * R], steps[-1], out=Y[:, filled * R : (filled + more) * R])
            filled *= 2
        ctx.save_for_backward(D, b, U, V, X, Y, first.system, first.solution, *steps)
        ctx.R, ctx.M = R, M
        K = (Y @ X.mT).view(H, A, R, M).transpose(1, 2)
        return K.reshape(H, R, A * M)[..., :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        D, b, U, V, X, Y, system, solution, *steps = ctx.saved_tensors
        H, r, n = U.shape
        R, M = ctx.R, ctx.M
        grad = blocks(grad, M).transpose(1, 2)  # (H, A, R, M)
        A = grad.shape[1]
        grad = grad.reshape(H, A * R, M)
        dX = (grad.mT @ Y).double()
        dY = grad @ X

        dE = None  # of the level above, E^2
        for level in range(len(steps) - 1, -1, -1):
            E = steps[level]
            rows = (1 << level) * R
            above = dY[:, rows : 2 * rows]  # the last level may be cut short
            dE_here = Y[:, : above.shape[1]].mT @ above
            if dE is not None:
                dE_here.baddbmm_(dE, E.mT).baddbmm_(E.mT, dE)
            dY[:, : above.shape[1]].baddbmm_(above, E.mT)
            dE = dE_here
        dc = complex_view(dY[:, :R].double()).conj()

        table = powers(D, M)
        tu = real_view(table[:, :, None] * U[:, None]).reshape(H, M * r, 2 * n)
        tv = real_view((table[:, :, None] * V[:, None]).conj().resolve_conj()).reshape(H, M * r, 2 * n)
        w = solution[..., 0].view(H, M, 1, r)
        dtu = toeplitz(w).mT @ dX
        d_solution = torch.zeros_like(solution)
        d_solution[..., 0] = toeplitz_adjoint(dX @ tu.mT, M, 1, r).reshape(H, M * r)
        dDM = None
        if dE is not None:
            dE = dE.double()
            dtu += reversed_blocks(solution[..., 1:] @ dE.mT, M)
            torch.bmm(reversed_blocks(tu, M), dE, out=d_solution[..., 1:])
            (p, q), (s, t) = _diagonal_blocks(dE).unbind(1)[0].unbind(1), _diagonal_blocks(dE).unbind(1)[1].unbind(1)
            dDM = torch.complex(p + t, s - q)
        d_right = torch.linalg.solve_triangular(system.mT, d_solution, upper=True, unitriangular=True)
        dh = toeplitz_adjoint(d_right @ solution.mT, M, r, r).reshape(H, M * r, r)
        seen = torch.cat((dh, d_right[..., :1]), -1)
        dtv = seen @ real_view(torch.cat((U, b[:, None]), 1))
        dtv += d_right[..., 1:]
        from_seen = complex_view(seen.mT @ tv)  # (H, r + 1, n)

        gb = complex_view(dX)
        gu = complex_view(dtu.view(H, M, r, 2 * n))
        gv = complex_view(dtv.view(H, M, r, 2 * n)).conj()
        conj = table.conj().resolve_conj()
        db = (conj * gb).sum(1) + from_seen[:, r]
        dU = (conj[:, :, None] * gu).sum(1) + from_seen[:, :r]
        dV = (conj[:, :, None] * gv).sum(1)
        d_table = b[:, None].conj() * gb + (U[:, None].conj() * gu + V[:, None].conj() * gv).sum(2)
        index = torch.arange(1, M, dtype=torch.float64, device=D.device)[:, None]
        dD = (index * conj[:, :-1] * d_table[:, 1:]).sum(1)
        if dDM is not None:
            dD = dD + M * conj[:, -1] * dDM
        return dD, db, dU, dV, dc, None, None


def krylov(D: Tensor, b: Tensor, U: Tensor, V: Tensor, c: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Re(c . T^l b) for l < length; D, b (H, n), U, V (H, r, n), c (H, R, n), complex128 -> (H, R, length) in `dtype`."""
    return _Krylov.apply(D, b, U, V, c, length, dtype)
