"""Linear recurrences over positions: step by step first, then a blocked scan that is its own gradient; the LRU."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from noscratch.kernels import ONE_FORM, KernelError, resolve

LINEAR_SCAN_BACKENDS = ("reference", "fast")
LRU_BACKENDS = ("reference", "fast")


def linear_scan(a: Tensor, b: Tensor, *, initial: Tensor | None = None, backend: str = "auto") -> Tensor:
    """x_t = a_t x_{t-1} + b_t along dimension -2, elementwise; x_{-1} is `initial`, 0 if not given. Real or complex.

    b (batch, L, N); a broadcasts to b, and with one position, (N,) or (..., 1, N), it is the same at all of them;
    initial (batch, N). Returns all states, (batch, L, N). Raises KernelError for shapes that do not fit.
    """
    chosen = resolve("linear_scan", backend, LINEAR_SCAN_BACKENDS, b.device)
    if b.ndim != 3 or not b.numel():
        raise KernelError(f"linear_scan takes b of shape (batch, L, N), none of them 0; got {tuple(b.shape)}.")
    if initial is not None and initial.shape != (b.shape[0], b.shape[2]):
        raise KernelError(f"The initial state has shape {(b.shape[0], b.shape[2])}; got {tuple(initial.shape)}.")
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    a = a.view((1,) * (3 - a.ndim) + a.shape)
    try:
        fits = torch.broadcast_shapes(a.shape, b.shape) == b.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise KernelError(f"linear_scan takes a that broadcasts to b, {tuple(b.shape)}; got {tuple(a.shape)}.")
    if initial is not None:  # the first step, so that what follows starts from 0
        b = torch.cat([b[:, :1] + a[:, :1] * initial.to(dtype).unsqueeze(1), b[:, 1:]], dim=1)
    if chosen == "reference":
        states = [b[:, 0]]
        every = a.expand(-1, b.shape[1], -1)
        for t in range(1, b.shape[1]):
            states.append(every[:, t] * states[-1] + b[:, t])
        return torch.stack(states, dim=1)
    x: Tensor = _Scan.apply(a, b)
    return x


class _Scan(torch.autograd.Function):
    """a (1 or batch, 1 or L, 1 or N), b (batch, L, N), from x_{-1} = 0. With g_t = dL/dx_t the adjoint is a scan too:
    s_t = g_t + conj(a_{t+1}) s_{t+1};  dL/db_t = s_t;  dL/da_t = s_t conj(x_{t-1}), summed to the shape of a.
    An a of one position may have a higher precision than b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        x = _blocked_scan(a, b, reverse=False)
        ctx.save_for_backward(a, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        a, x = ctx.saved_tensors
        following = a if a.shape[1] == 1 else torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
        s = _blocked_scan(following.conj().resolve_conj(), grad, reverse=True)
        if not ctx.needs_input_grad[0]:
            return None, s
        pairs = s[:, 1:] * x[:, :-1].conj()
        if a.shape[1] == 1:
            return pairs.sum(1, keepdim=True).sum_to_size(a.shape).to(a.dtype), s
        return torch.cat([torch.zeros_like(s[:, :1]), pairs], dim=1).sum_to_size(a.shape), s


def _blocked_scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """x_t = a_t x_{t-1} + b_t, or x_t = a_t x_{t+1} + b_t if `reverse`, in blocks of about sqrt(L) positions.

    All blocks advance together from 0, in place; then the last state of each block is carried to the next; then every
    position takes what its block was handed, times the product of the coefficients up to there. What is carried far,
    and products that all blocks share, are in double precision: their errors would add up over the whole length.
    """
    batch, L, N = b.shape
    width = math.isqrt(L)
    blocks = -(-L // width)
    wide = torch.promote_types(b.dtype, torch.float64)
    x = _in_blocks(b, blocks, width)
    if a.shape[1] == 1:
        a = a.unsqueeze(1).expand(-1, 1, width, -1)
        products = a.to(wide, memory_format=torch.contiguous_format, copy=True)
        a = a.to(x.dtype)
    else:
        a = _in_blocks(a, blocks, width)
        products = a.clone()
    rows = range(width)[::-1] if reverse else range(width)
    for before, row in itertools.pairwise(rows):
        x[:, :, row].addcmul_(a[:, :, row], x[:, :, before])
        products[:, :, row].mul_(products[:, :, before])
    last = rows[-1]
    carried = x[:, :, last].to(wide)
    factors = products[:, :, last].to(wide).expand(-1, blocks, -1)
    for before, block in itertools.pairwise(range(blocks)[::-1] if reverse else range(blocks)):
        carried[:, block].addcmul_(factors[:, block], carried[:, before])
    x[:, :, last] = carried
    early, late = slice(None, -1), slice(1, None)
    handing, receiving, inner = (late, early, late) if reverse else (early, late, early)
    taken = products.to(x.dtype).expand(-1, blocks, -1, -1)[:, receiving, inner]
    x[:, receiving, inner].addcmul_(taken, carried[:, handing].unsqueeze(2).to(x.dtype))
    return x.view(batch, blocks * width, N)[:, :L]


def _in_blocks(x: Tensor, blocks: int, width: int) -> Tensor:
    """A copy of x (batch, L, N) as (batch, blocks, width, N), zeros after the end."""
    batch, L, N = x.shape
    padded = x.new_zeros(batch, blocks * width, N)
    padded[:, :L] = x
    return padded.view(batch, blocks, width, N)


def lru(nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor, u: Tensor, *, backend: str = "auto") -> Tensor:
    """y_t = Re(C x_t) + D u_t with x_t = lambda x_{t-1} + gamma B u_t (Orvieto et al. 2023, eq. 6 to 8).

    lambda = exp(-e^nu + i e^theta), gamma = sqrt(1 - |lambda|^2). nu, theta (N,); B (N, H), C (H, N) complex; D (H,);
    u (batch, L, H). Returns (batch, L, H) in the dtype of u, computed in that of nu, inside autocast too.
    """
    chosen = resolve("lru", backend, LRU_BACKENDS, u.device)
    with torch.autocast(u.device.type, enabled=False):
        lam, driving = _lru_transition(nu, theta, B)
        wide = u.to(nu.dtype)
        if chosen == "reference":
            x = linear_scan(lam, wide.to(driving.dtype) @ driving.T, backend="reference").to(C.dtype)
            return ((x @ C.T).real + D * wide).to(u.dtype)
        # Products of real matrices: (Re, Im) of each state side by side, against (Re, -Im) of C.
        pairs = torch.view_as_real(driving).transpose(1, 2).flatten(0, 1)
        driven = torch.view_as_complex(linear(wide, pairs).unflatten(-1, (-1, 2)))
        x = torch.view_as_real(_Scan.apply(lam.view(1, 1, -1), driven)).flatten(-2)
        return (linear(x, torch.view_as_real(C.conj().resolve_conj()).flatten(-2)) + D * wide).to(u.dtype)


def lru_step(
    nu: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor, u: Tensor, x: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """One position of `lru`: u (batch, H) and the state x (batch, N), zeros at first -> (y (batch, H), next state)."""
    resolve("lru_step", backend, ONE_FORM, u.device)
    with torch.autocast(u.device.type, enabled=False):
        lam, driving = _lru_transition(nu, theta, B)
        wide = u.to(nu.dtype)
        x = (lam * x + wide.to(driving.dtype) @ driving.T).to(x.dtype)
        return ((x @ C.T).real + D * wide).to(u.dtype), x


def _lru_transition(nu: Tensor, theta: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """lambda (N,) in double precision and gamma B (N, H); expm1 keeps gamma right where |lambda| rounds to 1."""
    decay = nu.double().exp()
    lam = torch.polar((-decay).exp(), theta.double().exp())
    gamma = torch.sqrt(-torch.expm1(-2 * decay)).to(nu.dtype)
    return lam, gamma.unsqueeze(-1) * B
