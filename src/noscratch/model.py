"""The network around a backbone: embed, N blocks, norm, head. What a task needs is read from its meta.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch import backbones
from noscratch.backbones import without_padding
from noscratch.backbones._norm import BatchNorm, norm

PIXEL_VALUES = 256


class TokenEmbedding(nn.Module):
    """Rows of a table; hidden positions get the mask token's row, padding is zero."""

    def __init__(self, vocabulary: int, pad: int, mask: int, d_model: int) -> None:
        super().__init__()
        self.mask = mask
        self.table = nn.Embedding(vocabulary, d_model, padding_idx=pad)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        return self.table(tokens if hidden is None else tokens.masked_fill(hidden, self.mask))


class PixelEmbedding(nn.Module):
    """A linear map of the channels of the pixel, 0 where it is hidden, and of whether it is hidden.

    That flag is there in every phase, so that weights are handed over whole.
    """

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.map = nn.Linear(channels + 1, d_model)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        value = pixel_value(tokens).reshape(*tokens.shape[:2], -1).to(self.map.weight.dtype)
        flag = torch.zeros_like(value[..., :1], dtype=torch.bool) if hidden is None else hidden.unsqueeze(-1)
        return self.map(torch.cat([value.masked_fill(flag, 0.0), flag.to(value.dtype)], dim=-1))


def pixel_value(tokens: Tensor) -> Tensor:
    """0 ... 255 to [-1, 1]: as if the mean were 0.5 and the standard deviation 0.5 of [0, 1]."""
    return tokens.float() / (PIXEL_VALUES - 1) * 2.0 - 1.0


def sinusoids(length: int, d_model: int, device: torch.device) -> Tensor:
    """(L, D): sine and cosine of each position at wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al., section
    3.5)."""
    rate = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64, device=device) / d_model)
    angle = torch.arange(length, dtype=torch.float64, device=device).outer(rate)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model].float()


class MatchHead(nn.Module):
    """Pooled texts (2 B, D), all first ones before all second ones, to outputs (B, outputs) for the pairs.

    Two layers over u, v, u - v and u v: the head for Retrieval of Nystromformer (Xiong et al., arXiv 2102.03902), which
    S4 (Gu et al., arXiv 2111.00396) uses with GELU.
    """

    def __init__(self, d_model: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4 * d_model, d_model), nn.Linear(d_model, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        u, v = pooled.chunk(2)
        return self.outer(functional.gelu(self.inner(torch.cat([u, v, u - v, u * v], dim=-1))))


class MlpHead(nn.Module):
    """Pooled features (B, D) to outputs (B, outputs) in two layers."""

    def __init__(self, d_model: int, outputs: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(d_model, d_model), nn.Linear(d_model, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.outer(functional.gelu(self.inner(pooled)))


class Model(nn.Module):
    """tokens (B, L) and mask (B, L), or None without padding, to features (B, L, D), and features to outputs.

    Dropout acts on the embedded input and on the features before the head; what is inside a block is the block's.
    """

    def __init__(
        self,
        embed: nn.Module,
        blocks: list[nn.Module],
        head: nn.Module,
        d_model: int,
        dropout: float,
        causal: bool,
        absolute: bool = False,
        last: str | None = "layer",
        readout: str | None = None,
    ) -> None:
        """last: the norm after the blocks; None where they end in one. readout: mean, last or max of the real
        positions; None: the mean or, in a causal model, the last, which alone has seen all."""
        super().__init__()
        self.embed, self.blocks, self.causal, self.absolute = embed, nn.ModuleList(blocks), causal, absolute
        self.d_model, self.readout = d_model, readout or ("last" if causal else "mean")
        self.norm = None if last is None else norm(last, d_model)
        self.head = head
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """Features (B, L, D). hidden (B, L), bool: the positions whose content is concealed."""
        x = self.embed(tokens, hidden)
        if self.absolute:
            x = x + sinusoids(x.shape[1], x.shape[2], x.device)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.dropout(self.normed(x, mask))

    def normed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the blocks gave, (..., D), as the head takes it."""
        y: Tensor = x if self.norm is None else self.norm(x, mask)
        return y

    def pool(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """(B, D): the readout of real positions."""
        if self.readout == "last":
            if mask is None:
                return features[:, -1]
            return features[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        if self.readout == "max":
            seen = features if mask is None else features.masked_fill(~mask.unsqueeze(-1), -torch.inf)
            return seen.amax(1)
        real = features.shape[1] if mask is None else mask.sum(1, keepdim=True)
        return without_padding(features, mask).sum(1) / real

    def set_progress(self, fraction: float) -> bool:
        """Tell the modules that change in the course of a training which share of it is over. Are there any?"""
        changing = [module for module in self.blocks.modules() if hasattr(module, "set_progress")]
        for module in changing:
            module.set_progress(fraction)  # type: ignore[operator]
        return bool(changing)

    @property
    def batch_norm(self) -> bool:
        """Does what it makes of an example depend, in training, on the others of its batch?"""
        return any(isinstance(module, BatchNorm) for module in self.modules())

    @property
    def weight(self) -> Tensor:
        """One of its parameters: their type and device are the model's."""
        return next(self.embed.parameters())

    def kernels(self) -> dict[str, str]:
        """The form of every kernel that the blocks run."""
        return {name: form for block in self.blocks for name, form in block.kernels.items()}  # type: ignore[operator, union-attr]


def outputs(meta: Mapping[str, Any], objective: str) -> int:
    """The width of the head: classes, 1 for a regression; for each channel of pixels 1 under L1 and else its values;
    for tokens the vocabulary."""
    if objective == "classify":
        assert meta["kind"] == "classification" or meta["classes"] == 1, meta["classes"]
        return int(meta["classes"])
    assert objective in ("masked", "causal"), objective
    if meta["inputs"] == "pixels":
        assert meta["vocabulary"] == PIXEL_VALUES, meta["vocabulary"]
        return int(meta["channels"]) * (1 if meta["pretraining"]["loss"] == "l1" else PIXEL_VALUES)
    assert meta["pretraining"]["loss"] == "cross-entropy", "tokens have no distance for an L1 loss"
    return int(meta["vocabulary"])


def is_causal(backbone: backbones.Backbone, protocol: str) -> bool:
    """spt-causal runs both of its phases causally, the other protocols only where the backbone knows nothing else."""
    causal = protocol == "spt-causal" or not backbone.BIDIRECTIONAL_OK
    backbones.require(
        backbone.CAUSAL_OK or not causal,
        f"Protocol {protocol} needs a causal backbone; {backbone.__name__} is bidirectional only. "  # type: ignore[attr-defined]
        "Take it out of that block of the grid.",
    )
    return causal


def build_model(meta: Mapping[str, Any], settings: Mapping[str, Any], seed: int) -> Model:
    """The model of one phase, its parameters drawn from `seed` alone."""
    backbone = backbones.load(settings["backbone"])
    config = backbones.configure(backbone, settings["backbone_config"])
    causal = is_causal(backbone, settings["protocol"])
    size, objective = settings["model"], settings["objective"]
    d_model = int(size["d_model"])
    assert not (objective == "causal" and not causal), "next-element prediction needs a causal model"
    torch.default_generator.manual_seed(seed)
    embed: nn.Module
    if meta["inputs"] == "pixels":
        embed = PixelEmbedding(meta["channels"], d_model)
    else:
        embed = TokenEmbedding(meta["vocabulary"], meta["pad"], meta["mask"], d_model)
    blocks = [
        backbone.build(config, d_model, meta["length"], causal, backend=settings["backend"])
        for _ in range(size["layers"])
    ]
    pairs = objective == "classify" and meta["pairs"]
    mlp = objective == "classify" and size.get("head") == "mlp"
    head = (MatchHead if pairs else MlpHead if mlp else nn.Linear)(d_model, outputs(meta, objective))
    absolute = getattr(config, "positions", None) == "sinusoidal"
    last = None if getattr(config, "norm", "pre") == "post" else getattr(config, "normalization", "layer")
    return Model(embed, blocks, head, d_model, size["dropout"], causal, absolute, last, size.get("readout"))
