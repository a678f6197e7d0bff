"""The same layers as their papers write them, in ordinary PyTorch: complex (H, N, L) arrays, FFTs of whole batches,
every step under autograd. They share the parameters of the layer that they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch.backbones import without_padding
from noscratch.backbones._block import Convolution, MixerBlock
from noscratch.backbones.bigs import GatedBlock, StateSpaces
from noscratch.backbones.dlr import DLR
from noscratch.backbones.dss import DSS
from noscratch.backbones.lru import LRU
from noscratch.backbones.s4 import S4
from noscratch.backbones.s4d import S4D
from noscratch.backbones.sgconv import SGConv
from noscratch.backbones.transformer import Attention as RotaryAttention
from noscratch.backbones.transformer import StackedBlock
from noscratch.kernels import ssm


def convolve(u: Tensor, taps: Tensor, D: Tensor) -> Tensor:
    """u (B, H, L) with taps (directions, H, L), the second from the next position back, plus D (H,) times u."""
    L = u.shape[-1]
    k = functional.pad(taps[0], (0, L))
    if len(taps) == 2:
        k = k + functional.pad(taps[1].flip(-1), (L, 0))
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L), n=2 * L)[..., :L]
    return y + u * D.unsqueeze(-1)


def diagonal_taps(z: Tensor, c: Tensor, length: int) -> Tensor:
    """Re sum_n c_n e^{z_n l}: z (H, N), c (directions, H, N) -> (directions, H, length)."""
    powers = torch.exp(z.unsqueeze(-1) * torch.arange(length, device=z.device))
    return torch.einsum("dhn,hnl->dhl", c, powers).real


class Core(nn.Module):
    """u (B, H, L) convolved with the mixer's kernel, plus D u."""

    def __init__(self, mixer: Convolution) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, u: Tensor) -> Tensor:
        return convolve(u, self.taps(u.shape[-1]), self.mixer.D)

    def taps(self, length: int) -> Tensor:
        """K (directions, H, length)."""
        raise NotImplementedError


class S4DCore(Core):
    """S4D, eq. 5 of arXiv 2206.11893."""

    mixer: S4D

    def taps(self, length: int) -> Tensor:
        dt, A, B = self.mixer.system()
        z = dt.unsqueeze(-1) * A
        return 2 * diagonal_taps(z, torch.view_as_complex(self.mixer.C) * B * (torch.exp(z) - 1) / A, length)


class DSSCore(Core):
    """DSS-EXP, proposition 1a of arXiv 2203.14343."""

    mixer: DSS

    def taps(self, length: int) -> Tensor:
        dt, Lambda = self.mixer.system()
        z = dt.unsqueeze(-1) * Lambda
        return diagonal_taps(z, torch.view_as_complex(self.mixer.C) * (torch.exp(z) - 1) / Lambda, length)


class DLRCore(Core):
    """DLR, section 3 of arXiv 2212.00768."""

    mixer: DLR

    def taps(self, length: int) -> Tensor:
        z = torch.complex(-self.mixer.a.square(), self.mixer.w)
        return diagonal_taps(z.unsqueeze(0), torch.view_as_complex(self.mixer.C), length)


class S4Core(Core):
    """S4, algorithm 1 of arXiv 2111.00396: four Cauchy sums at the roots of unity, C (I - Abar^L) as the parameter.

    Fractions are multiplied through by 1 + w, which is 0 at one root.
    """

    mixer: S4

    def __init__(self, mixer: S4, length: int) -> None:
        super().__init__(mixer)
        with torch.no_grad():
            Abar, _ = ssm.s4_discretize(*(part.to(_wide(part)) for part in mixer.system()))
            row = torch.view_as_real(torch.view_as_complex(mixer.C).conj().resolve_conj()).flatten(-2).double()
            row = row - torch.einsum("dhi,hij->dhj", row, torch.linalg.matrix_power(Abar, length))
            C = torch.view_as_complex(row.unflatten(-1, (-1, 2))).conj()
        self.C = nn.Parameter(torch.view_as_real(C.resolve_conj()).to(mixer.C.dtype))
        self.length = length

    def taps(self, length: int) -> Tensor:
        dt, Lambda, P, B = self.mixer.system()
        P, C = P[0], torch.view_as_complex(self.C)
        angle = torch.arange(length // 2 + 1, dtype=torch.float64, device=dt.device) * (-2 * math.pi / length)
        w = torch.polar(torch.ones_like(angle), angle).to(C.dtype)

        def cauchy(v: Tensor) -> Tensor:
            """sum_n over both of each conjugate pair of v_n / (2 (1 - w) / dt - (1 + w) Lambda_n): (..., H, L/2 + 1)"""
            node = (2 * (1 - w) / dt.unsqueeze(-1)).unsqueeze(1)
            pole = (1 + w) * Lambda.unsqueeze(-1), (1 + w) * Lambda.conj().unsqueeze(-1)
            return (v.unsqueeze(-1) / (node - pole[0])).sum(-2) + (v.conj().unsqueeze(-1) / (node - pole[1])).sum(-2)

        correction = cauchy(C * P) * cauchy(P.conj() * B) * (1 + w) / (1 + (1 + w) * cauchy(P.conj() * P))
        return torch.fft.irfft(2 * (cauchy(C * B) - correction), n=length)


class SGConvCore(Core):
    """SGConv, section 3.2 of arXiv 2210.09298."""

    mixer: SGConv

    def taps(self, length: int) -> Tensor:
        W = self.mixer.W * self.mixer.scale
        parts = [
            functional.interpolate(part, scale_factor=2 ** max(0, i - 1), mode="linear") for i, part in enumerate(W)
        ]
        norm = self.mixer.first_norm.view(len(W[0]), -1, 1)
        return torch.cat(parts, dim=-1)[..., :length] / norm


class LRUCore(nn.Module):
    """The linear recurrent unit, eq. 6 to 8 of arXiv 2303.06349, of u (B, H, L); the second direction by flipping."""

    def __init__(self, mixer: LRU) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, u: Tensor) -> Tensor:
        u = u.transpose(1, 2)
        y = self.direction(0, u) + self.mixer.D * u
        if not self.mixer.causal:
            y = y + self.direction(1, u.flip(1)).flip(1)
        return y.transpose(1, 2)

    def direction(self, index: int, u: Tensor) -> Tensor:
        """Re C x of u (B, L, H), without the skip."""
        mixer = self.mixer
        decay = mixer.nu.exp()
        factor = torch.polar(torch.exp(-decay), mixer.theta.exp())
        B = torch.sqrt(1 - factor.abs().square()).unsqueeze(-1) * torch.view_as_complex(mixer.B)
        x = doubling_scan(factor, u.to(B.dtype) @ B.T)
        return (x @ torch.view_as_complex(mixer.C)[index].T).real


class Mix(nn.Module):
    """GLU(W gelu(core(u))) for u (B, L, H), with the parameters of the linear map `gate`."""

    def __init__(self, core: Core | LRUCore, gate: nn.Linear) -> None:
        super().__init__()
        self.core, self.gate = core, gate

    def forward(self, u: Tensor) -> Tensor:
        y = self.core(u.transpose(1, 2)).transpose(1, 2)
        return functional.glu(functional.linear(functional.gelu(y), self.gate.weight, self.gate.bias))


class Block(nn.Module):
    """x + GLU(W gelu(core(norm(x)))) for x (B, L, H), with the parameters of `block`."""

    def __init__(self, block: MixerBlock, core: Core | LRUCore) -> None:
        super().__init__()
        self.norm, self.mix = block.norm, Mix(core, block.gate)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.mix(without_padding(self.norm(x), mask))


class BiGS(nn.Module):
    """x (B, L, H); figure 1 and appendix of arXiv 2212.10544: seven linear maps, the second direction by flipping."""

    def __init__(self, block: GatedBlock, mixer: StateSpaces) -> None:
        super().__init__()
        self.block, self.mixer = block, mixer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        block, enter = self.block, self.mixer.enter
        z = block.norm(x)
        w, b = enter.weight.chunk(2), enter.bias.chunk(2)
        first, second = (without_padding(functional.gelu(functional.linear(z, w[k], b[k])), mask) for k in (0, 1))
        ahead, back = self.direction(0, first), self.direction(1, second.flip(1)).flip(1)
        up = functional.gelu(functional.linear(ahead * back, block.up.weight, block.up.bias))
        gate = functional.gelu(functional.linear(z, block.gate.weight, block.gate.bias))
        return x + functional.linear(up * gate, block.out.weight, block.out.bias)

    def direction(self, index: int, u: Tensor) -> Tensor:
        """The state space called `index` of u (B, L, H), and the linear map after it."""
        mixer = self.mixer
        A = torch.complex(mixer.real[index].clamp(max=-1e-4), mixer.frequency[index])
        z = (mixer.log_dt[index].exp() * A).unsqueeze(0)
        c = torch.view_as_complex(mixer.C[index]) * (torch.exp(z) - 1) / A
        taps = diagonal_taps(z, c.unsqueeze(0), u.shape[1])
        y = convolve(u.transpose(1, 2), taps, mixer.D[index : index + 1]).transpose(1, 2)
        weight, bias = mixer.leave[index].parameters()
        return functional.linear(y, weight, bias)


class LogStepScan(nn.Module):
    """x_t = a x_{t-1} + b_t for b (B, L, N) by doubling the reach log2 L times."""

    def __init__(self, a: nn.Parameter) -> None:
        super().__init__()
        self.a = a

    def forward(self, b: Tensor) -> Tensor:
        return doubling_scan(torch.view_as_complex(self.a), b)


def doubling_scan(factor: Tensor, b: Tensor) -> Tensor:
    """x_t = factor x_{t-1} + b_t for b (B, L, N) by doubling the reach log2 L times."""
    reach, x = 1, b
    while reach < b.shape[1]:
        x = x + functional.pad(factor * x[:, :-reach], (0, 0, reach, 0))
        reach, factor = 2 * reach, factor * factor
    return x


class Rotary(nn.Module):
    """x (B, heads, L, d) with adjacent pairs turned by matrices [[cos, -sin], [sin, cos]]."""

    def forward(self, x: Tensor) -> Tensor:
        L, d = x.shape[-2:]
        frequency = 10000.0 ** (-torch.arange(0, d, 2, dtype=x.dtype, device=x.device) / d)
        angle = torch.arange(L, dtype=x.dtype, device=x.device).unsqueeze(-1) * frequency
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2))
        return torch.einsum("lpij,bhlpj->bhlpi", turn, x.unflatten(-1, (-1, 2))).flatten(-2)


class Attention(nn.Module):
    """PyTorch's own causal attention of qkv (B, 3, heads, L, d)."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unbind(1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Transformer(nn.Module):
    """x (B, L, D): rotary attention by PyTorch's own kernel and a feedforward of two layers, both behind a norm."""

    def __init__(self, block: StackedBlock) -> None:
        super().__init__()
        self.block, self.rotary = block, Rotary()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        block, attention = self.block, self.block.mixer
        assert isinstance(attention, RotaryAttention)
        B, L, D = x.shape
        qkv = functional.linear(block.norm_mixer(x), attention.qkv.weight, attention.qkv.bias)
        q, k, v = qkv.view(B, L, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None, :]
        y = functional.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, attn_mask=keys)
        x = x + functional.linear(y.transpose(1, 2).reshape(B, L, D), attention.out.weight, attention.out.bias)
        up, down = block.feedforward.up, block.feedforward.down
        assert isinstance(up, nn.Linear) and isinstance(down, nn.Linear)  # noqa: PT018
        h = functional.gelu(functional.linear(block.norm_feedforward(x), up.weight, up.bias))
        return x + functional.linear(h, down.weight, down.bias)


CORES: dict[type[nn.Module], Callable[[Any], Core | LRUCore]] = {
    S4D: S4DCore,
    DSS: DSSCore,
    DLR: DLRCore,
    SGConv: SGConvCore,
    LRU: LRUCore,
}


def block_of(block: nn.Module, length: int) -> nn.Module:
    """The plain form of a block for sequences of `length`, forward(x, mask), with the parameters of `block`."""
    if isinstance(block, StackedBlock):
        return Transformer(block)
    if isinstance(block, GatedBlock):
        assert isinstance(block.mixer, StateSpaces)
        return BiGS(block, block.mixer)
    assert isinstance(block, MixerBlock)
    mixer = block.mixer
    if isinstance(mixer, S4):
        return Block(block, S4Core(mixer, length))
    return Block(block, CORES[type(mixer)](mixer))


def _wide(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64
