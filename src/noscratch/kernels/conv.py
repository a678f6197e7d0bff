"""Long convolutions: the direct sum first, then row-blocked FFTs with a hand-written backward pass; SGConv's kernel.

FFTs run in float32 or float64 whatever the dtype of the input, inside autocast too; results have the input's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from noscratch.kernels import KernelError, resolve
from noscratch.kernels._layout import transposed

LONG_CONV_BACKENDS = ("reference", "fast")
SGCONV_BACKENDS = ("reference", "fast")

BLOCK = 2**18  # values in one batch of FFTs: their spectra stay in the cache
LEAST_ROWS = 32  # rows in it: each call makes its FFT plan anew, for the time of some 20 rows


def long_conv(
    u: Tensor,
    k: Tensor,
    D: Tensor | None = None,
    k_reverse: Tensor | None = None,
    reverse_offset: int = 1,
    *,
    backend: str = "auto",
) -> Tensor:
    """y_t = sum_{s<=t} k_{t-s} u_s + D u_t + sum_{s>=t+o} r_{s-t-o} u_s with r = k_reverse and o = reverse_offset.

    u (batch, H, L); k (H, M) and k_reverse (H, R) of any length, taps beyond L have no effect; D (H,). Returns
    (batch, H, L) in the dtype of u. reverse_offset 1: the reverse kernel starts at the next position (S4, SGConv);
    0: at the same one, so that the diagonal counts twice (flip, convolve, flip: BiGS). Raises KernelError for shapes or
    offsets that do not fit.
    """
    chosen = resolve("long_conv", backend, LONG_CONV_BACKENDS, u.device)
    H, L = _check(u, k, D, k_reverse, reverse_offset)
    with torch.autocast(u.device.type, enabled=False):
        wide = torch.float64 if torch.float64 in (u.dtype, k.dtype) else torch.float32
        causal = k[:, :L].to(wide)
        skip = causal.new_zeros(H) if D is None else D.to(wide)
        anticausal = causal.new_zeros(H, 0)  # lags -1, -2, ...
        if k_reverse is not None:
            anticausal = k_reverse[:, : L - reverse_offset].to(wide)
            if reverse_offset == 0:
                causal = torch.cat([causal[:, :1] + anticausal[:, :1], causal[:, 1:]], dim=-1)
                anticausal = anticausal[:, 1:]
        if chosen == "reference":
            return (_direct(u.to(wide), causal, anticausal) + skip.unsqueeze(-1) * u).to(u.dtype)
        n = _fft_size(L + max(causal.shape[-1] - 1, anticausal.shape[-1]))
        if k_reverse is not None:
            gap = causal.new_zeros(H, n - causal.shape[-1] - anticausal.shape[-1])
            causal = torch.cat([causal, gap, anticausal.flip(-1)], dim=-1)
        y: Tensor = _CircularConv.apply(u, causal, skip, n)
        return y


def _check(u: Tensor, k: Tensor, D: Tensor | None, k_reverse: Tensor | None, reverse_offset: int) -> tuple[int, int]:
    if u.ndim != 3 or not u.numel():
        raise KernelError(f"long_conv takes u of shape (batch, H, L), none of them 0; got {tuple(u.shape)}.")
    H, L = u.shape[1:]
    if reverse_offset not in (0, 1):
        raise KernelError(f"reverse_offset is 0 (same position) or 1 (next position); got {reverse_offset}.")
    for name, kernel in (("k", k), ("k_reverse", k_reverse)):
        if kernel is not None and (kernel.ndim != 2 or kernel.shape[0] != H or kernel.shape[1] == 0):
            raise KernelError(
                f"long_conv takes {name} of shape ({H}, taps >= 1) for {H} heads; got {tuple(kernel.shape)}."
            )
    if D is not None and D.shape != (H,):
        raise KernelError(f"long_conv takes D of shape ({H},) for {H} heads; got {tuple(D.shape)}.")
    return H, L


def _direct(u: Tensor, causal: Tensor, anticausal: Tensor) -> Tensor:
    """The sum over the Toeplitz matrix T[h, t, s] = kernel at lag t - s."""
    L = u.shape[-1]
    lags = torch.arange(L, device=u.device)
    lag = lags.unsqueeze(-1) - lags
    taps = torch.cat([causal, causal.new_zeros(causal.shape[0], 1), anticausal.flip(-1)], dim=-1)  # index lag mod size
    zero = causal.shape[-1]
    inside = (lag < causal.shape[-1]) & (-lag <= anticausal.shape[-1])
    T = taps[:, torch.where(inside, lag % taps.shape[-1], zero)]
    return torch.einsum("hts,bhs->bht", T, u)


def _fft_size(least: int) -> int:
    """The smallest even 2^a 3^b 5^c >= least: FFT libraries are fastest on small factors, real FFTs on even sizes."""
    best = 1 << max(1, (least - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            size = 2 * three
            while size < least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def _blocks(u: Tensor) -> Iterator[tuple[slice, slice]]:
    """(sequences, heads) of about BLOCK values, at least LEAST_ROWS rows, on the CPU; one block elsewhere. Whole
    sequences where one fits, which lie in one piece; else heads of all sequences, which share the kernel's spectrum."""
    batch, H, L = u.shape
    rows = max(LEAST_ROWS, BLOCK // L) if u.device.type == "cpu" else batch * H
    if rows >= H:
        sequences, heads = rows // H, H
    else:
        sequences, heads = min(batch, rows), max(1, rows // batch)
    for h in range(0, H, heads):
        for b in range(0, batch, sequences):
            yield slice(b, b + sequences), slice(h, h + heads)


def _lies_positions_first(u: Tensor) -> bool:
    """Does u (batch, H, L) lie in memory as (batch, L, H)?"""
    return u.stride(1) == 1 and u.stride(2) > 1


class _Transform:
    """FFTs of size n of blocks of rows, by way of two buffers that serve one block after the other."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        self.n, self.dtype = n, dtype
        self.padded: Tensor | None = None
        self.product: Tensor | None = None

    def spectrum(self, rows: Tensor) -> Tensor:
        """rows (batch, heads, L), padded by zeros -> (batch, heads, n // 2 + 1)."""
        *shape, L = rows.shape
        if self.padded is None or self.padded.shape[:-1] != rows.shape[:-1]:
            self.padded = rows.new_zeros(*shape, self.n, dtype=self.dtype)
        self.padded[..., :L] = rows
        return torch.fft.rfft(self.padded)

    def filtered(self, spectrum: Tensor, response: Tensor) -> Tensor:
        """The rows (batch, heads, n) whose spectrum is `spectrum` times `response` (heads, n // 2 + 1)."""
        if self.product is None or self.product.shape != spectrum.shape:
            self.product = torch.empty_like(spectrum)
        return torch.fft.irfft(torch.mul(spectrum, response, out=self.product), n=self.n)


class _CircularConv(torch.autograd.Function):
    """u (batch, H, L) convolved with kernel (H, M <= n) at circular size n, cut to L; at that n nothing wraps.

    The skip (H,) counts as a tap of lag 0, which adds the same to every frequency.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor, skip: Tensor, n: int) -> Tensor:
        spectrum = torch.fft.rfft(kernel, n=n).add_(skip.unsqueeze(-1))
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        ctx.positions_first = _lies_positions_first(u)
        saved = []
        transform = _Transform(n, kernel.dtype)
        for b, h in _blocks(u):
            U = transform.spectrum(transposed(u[b, h].mT) if ctx.positions_first else u[b, h])
            y[b, h] = transform.filtered(U, spectrum[h])[..., : u.shape[-1]]
            if any(ctx.needs_input_grad[1:3]):
                saved.append(U)
        ctx.save_for_backward(spectrum.conj_physical_(), *saved)  # of the kernel read backwards
        ctx.n, ctx.taps = n, kernel.shape[-1]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mirrored, *saved = ctx.saved_tensors
        batch, H, L = grad.shape
        needs_u = ctx.needs_input_grad[0]
        needs_kernel = any(ctx.needs_input_grad[1:3])
        grad_u = None
        if needs_u:  # lies in memory as u does: elementwise steps before this one are slow where the two differ
            grad_u = grad.new_empty(batch, L, H).mT if ctx.positions_first else grad.new_empty(batch, H, L)
        total = torch.zeros_like(mirrored) if needs_kernel else None  # sum over the batch of conj(dL/dspectrum)
        transform = _Transform(ctx.n, mirrored.real.dtype)
        for i, (b, h) in enumerate(_blocks(grad)):
            G = transform.spectrum(grad[b, h])
            if grad_u is not None:
                rows = transform.filtered(G, mirrored[h])[..., :L]
                grad_u[b, h] = transposed(rows).mT if ctx.positions_first else rows
            if total is not None:
                G.conj_physical_()
                for row in range(G.shape[0]):
                    total[h].addcmul_(G[row], saved[i][row])
        if total is None:
            return grad_u, None, None, None
        grad_kernel = torch.fft.irfft(total.conj_physical_(), n=ctx.n)[..., : ctx.taps]
        return grad_u, grad_kernel, grad_kernel[:, 0], None


def sgconv_kernel(
    W: Tensor, multiplier: float, length: int, norm: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """K (H, length): the segments W (S, H, d), segment i stretched 2^max(0, i - 1) times and scaled by
    multiplier^(S - 1 - i), in a row, divided by `norm` (H,), cut to `length` (Li et al. 2023, "What Makes Convolutional
    Models Great on Long Sequence Modeling?", 3.2; linear between half-pixel centres, clamped at the ends).

    `norm` is the L2 norm of the whole row if not given; a layer keeps the one of its initial W, from `sgconv_norm`.
    A row of zeros stays zeros. Raises KernelError for a length beyond the d 2^(S - 1) taps.
    """
    whole = _segments(W, multiplier, resolve("sgconv_kernel", backend, SGCONV_BACKENDS, W.device))
    if not 1 <= length <= whole.shape[-1]:
        S, _, d = W.shape
        raise KernelError(
            f"{S} segments of {d} taps make 1 to {whole.shape[-1]} taps; got length {length}. Add segments."
        )
    scale = _norm(whole, dim=-1) if norm is None else norm
    return whole[:, :length] / scale.unsqueeze(-1)


def sgconv_norm(W: Tensor, multiplier: float, *, backend: str = "auto") -> Tensor:
    """The L2 norm (H,) of the whole row of segments that `sgconv_kernel` divides by."""
    return _norm(_segments(W, multiplier, resolve("sgconv_norm", backend, SGCONV_BACKENDS, W.device)), dim=-1)


def _norm(x: Tensor, dim: int) -> Tensor:
    """The L2 norm; 1 for zeros, which stay zeros. `sum` adds in pairs, where `vector_norm` adds in order and loses the
    small taps at the end."""
    squares = x.square().sum(dim)
    return torch.where(squares > 0, squares, 1).sqrt()


def _segments(W: Tensor, multiplier: float, backend: str) -> Tensor:
    """The stretched and scaled segments in a row, (H, d 2^(S - 1))."""
    if W.ndim != 3 or not W.numel():
        raise KernelError(f"Segments have the shape (segments, heads, taps), none of them 0; got {tuple(W.shape)}.")
    S = W.shape[0]
    factors = [2 ** max(0, i - 1) for i in range(S)]
    scales = [multiplier ** (S - 1 - i) for i in range(S)]
    if backend == "reference":
        return torch.cat([c * _stretched(w, f) for w, f, c in zip(W, factors, scales, strict=True)], dim=-1)
    # One product each: (previous, own, next) tap against their weights at the places around a tap.
    ends = torch.nn.functional.pad(W, (1, 1), mode="replicate")
    taps = torch.stack([ends[..., :-2], W, ends[..., 2:]], dim=-1).unbind(0)
    weights = _hats(factors, scales, W).split(factors, dim=-1)
    return torch.cat([(t @ w).flatten(-2) for t, w in zip(taps, weights, strict=True)], dim=-1)


def _stretched(w: Tensor, factor: int) -> Tensor:
    """w (H, d) at (j + 1/2) / factor - 1/2 for j < d factor, linear between its two neighbours, clamped at the ends."""
    d = w.shape[-1]
    position = ((torch.arange(d * factor, device=w.device, dtype=w.dtype) + 0.5) / factor - 0.5).clamp(0, d - 1)
    left = position.long()
    right = (left + 1).clamp(max=d - 1)
    return torch.lerp(w[:, left], w[:, right], position - left)


def _hats(factors: Sequence[int], scales: Sequence[float], like: Tensor) -> Tensor:
    """(3, sum of factors): for each factor, the weights of the previous, own and next tap at the `factor` places around
    a tap, times its scale."""
    places = [(j + 0.5) / factor - 0.5 for factor in factors for j in range(factor)]
    repeated = [scale for factor, scale in zip(factors, scales, strict=True) for _ in range(factor)]
    place, scale = like.new_tensor([places, repeated])
    return (1 - (like.new_tensor([[-1], [0], [1]]) - place).abs()).clamp(min=0) * scale
