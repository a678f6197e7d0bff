"""Rotary positions and softmax attention: explicit forms first, then a complex product and the fused attention."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from noscratch.kernels import KernelError, resolve

ROTARY_BACKENDS = ("reference", "fast")
ATTEND_BACKENDS = ("reference", "fast")


def rotary(x: Tensor, base: float = 10000.0, *, offset: int = 0, backend: str = "auto") -> Tensor:
    """Turn each pair (2m, 2m + 1) of x (batch, heads, L, d) at position t by the angle (offset + t) base^(-2m/d).

    Su et al. 2021 (RoFormer), eq. 34. Angles are computed in float64: in float32 they are off by 2e-5 at t = 4096.
    Returns the shape and dtype of x. Raises KernelError for odd d.
    """
    chosen = resolve("rotary", backend, ROTARY_BACKENDS, x.device)
    L, d = x.shape[-2:]
    if d % 2:
        raise KernelError(
            f"rotary turns pairs of features, so their number is even; got {d}. Change the width of a head."
        )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # One table serves every length up to the next power of two: batches differ in length, and a decoder's offset grows.
    # The compiler makes tables part of its graph and warns of caches.
    rotations = _rotations.__wrapped__ if torch.compiler.is_compiling() else _rotations
    table = rotations(1 << (offset + L - 1).bit_length(), d, base, wide, x.device)[offset : offset + L]
    if chosen == "reference":
        cos, sin = table.real, table.imag
        even, odd = x[..., 0::2].to(wide), x[..., 1::2].to(wide)
        return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.to(wide).contiguous().unflatten(-1, (d // 2, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


@functools.lru_cache(maxsize=8)
def _rotations(L: int, d: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(i t base^(-2m/d)), (L, d/2)."""
    with torch.inference_mode(False):  # a table first made in inference must serve training too
        frequencies = base ** (-torch.arange(0, d, 2, dtype=torch.float64, device=device) / d)
        angles = torch.arange(L, dtype=torch.float64, device=device).unsqueeze(-1) * frequencies
        table = torch.polar(torch.ones_like(angles), angles)
        return table.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def attend(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, *, mask: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over q, k, v (batch, heads, L, d); position t sees s <= t only if `causal`. If not, k
    and v may have a length of their own, as for one query against all that came before.

    mask (batch, keys), True at real tokens, hides the others as keys; a query that sees nothing gives 0.
    Returns (batch, heads, L, d) in the dtype of q, inside autocast in its dtype (Vaswani et al. 2017, eq. 1).
    """
    chosen = resolve("attend", backend, ATTEND_BACKENDS, q.device)
    L = q.shape[-2]
    if not (q.ndim == 4 and k.shape == v.shape == (*q.shape[:2], L if causal else k.shape[-2], q.shape[-1])):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise KernelError(f"attend takes q, k and v of (batch, heads, L, d), one L if causal; got {shapes}.")
    visible = None if mask is None else mask[:, None, None, :]
    if chosen == "fast":
        if causal and visible is not None:
            visible = visible & torch.ones(L, L, dtype=torch.bool, device=q.device).tril()
        return scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal and visible is None)
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        seen = torch.ones(L, k.shape[-2], dtype=torch.bool, device=q.device)
        if causal:
            seen = seen.tril()
        if visible is not None:
            seen = seen & visible
        scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])
        finite = scores.masked_fill(~seen, torch.finfo(wide).min)
        return (finite.softmax(-1).masked_fill(~seen, 0.0) @ v.to(wide)).to(q.dtype)
