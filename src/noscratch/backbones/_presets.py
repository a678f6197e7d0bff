"""Published models as data: the blocks of a backbone here, and the parameters that the authors put around them.

No run reads this file; claims on sizes and costs are settled by what it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from noscratch import flops
from noscratch.backbones import configure, load, parallel
from noscratch.backbones._ffn import Feedforward, Settings


@dataclass(frozen=True)
class Preset:
    backbone: str
    config: Mapping[str, Any]
    d_model: int
    layers: int
    around: Mapping[str, int]
    """Parameters outside of the blocks in the authors' model, which this package's model has otherwise or not at all
    (learned positions, token types)."""
    causal: bool = False
    first: Mapping[str, Any] = field(default_factory=dict)
    """What differs in the configuration of the first block."""
    transforms: int = 0
    """Real Fourier transforms of one block for one sequence."""

    def block(self, number: int) -> nn.Module:
        """Block `number`, on the device that is the default."""
        backbone = load(self.backbone)
        changes = self.first if number == 0 else {}
        return backbone.build(configure(backbone, {**self.config, **changes}), self.d_model, 1024, self.causal)


class Ungated(Preset):
    """With the blocks of S4's first version: they end in a plain linear layer, not in a gated one."""

    def block(self, number: int) -> nn.Module:
        block = super().block(number)
        block.gate = nn.Linear(self.d_model, self.d_model)
        return block


class Fed(Preset):
    """Two blocks and a feedforward with its norm make one: S4 as a language model."""

    def block(self, number: int) -> nn.Module:
        feedforward = Feedforward(self.d_model, 4 * self.d_model, Settings(), "auto")
        return nn.Sequential(super().block(number), super().block(number), nn.LayerNorm(self.d_model), feedforward)


@dataclass(frozen=True)
class Wide(Preset):
    """Decoders whose attention is narrower than the model and whose feedforward is wider, of low rank but the first."""

    attention: int = 0
    keys: int = 0
    """Heads of keys and values, each 64 wide."""
    feedforward: int = 0

    def block(self, number: int) -> nn.Module:
        settings = Settings(**{**self.config, **(self.first if number == 0 else {})})
        return _WideBlock(self.d_model, self.attention, self.keys, self.feedforward, settings)


class _WideBlock(nn.Module):
    def __init__(self, d_model: int, attention: int, keys: int, width: int, settings: Settings) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(d_model), nn.LayerNorm(d_model)])
        self.q, self.k, self.v = (nn.Linear(d_model, n) for n in (attention, 64 * keys, 64 * keys))
        self.out = nn.Linear(attention, d_model)
        self.feedforward = Feedforward(d_model, width, settings, "auto")

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        q, k, v = (m(self.norms[0](x)).unflatten(-1, (-1, 64)).transpose(1, 2) for m in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        fed: Tensor = x + self.feedforward(self.norms[1](x))
        return fed


class Size(NamedTuple):
    parameters: int
    feedforward: int
    """Of these, in the weights of feedforwards, biases left out."""


def size(preset: Preset) -> Size:
    """Counted on the meta device: nothing is allocated."""
    total, feedforward = sum(preset.around.values()), 0
    with torch.device("meta"):
        for block, copies in ((preset.block(0), 1), (preset.block(1), preset.layers - 1)):
            total += copies * sum(p.numel() for p in block.parameters())
            weights = [p for m in block.modules() if isinstance(m, Feedforward) for p in m.parameters() if p.ndim > 1]
            feedforward += copies * sum(weight.numel() for weight in weights)
    return Size(total, feedforward)


def forward_flops(preset: Preset, length: int) -> int:
    """Operations of the blocks for one sequence: products and attention, a L + b L^2, from counts at two short lengths,
    and 2.5 n log2 n, n = 2 L, for each real Fourier transform."""

    def counted(block: nn.Module, short: int) -> int:
        x = torch.zeros(1, short, preset.d_model)

        def work() -> None:
            parallel(block, x)

        with torch.no_grad():
            return flops.count(work)

    short, total = 8, 0.0
    transform = preset.transforms * 5 * length * math.log2(2 * length)
    for number, copies in ((0, 1), (1, preset.layers - 1)) if preset.first else ((1, preset.layers),):
        block = preset.block(number).eval()
        once, twice = counted(block, short), counted(block, 2 * short)
        quadratic = (twice - 2 * once) / (2 * short**2)
        linear = once / short - quadratic * short
        total += copies * (linear * length + quadratic * length**2 + transform)
    return round(total)


def training_flops(preset: Preset, length: int) -> float:
    """Operations of training a language model with tied embeddings, for each token: three times those of a forward
    pass of the blocks and of the output layer."""
    return 3 * (forward_flops(preset, length) / length + 2 * preset.around["tokens"])


def guided_training_flops(preset: Wide, length: int, share: float) -> float:
    """The same with self-guided training over the first `share` of the steps, whose tokens are seen again at the end.

    A guided step computes the dense maps too, and does so to half their cost: over half of the steps the authors name
    25 % of a dense feedforward's operations.
    """
    dense = 3 * 4 * preset.d_model * preset.feedforward * (preset.layers - 1)
    return (1 + share) * training_flops(preset, length) + share * dense / 2


def _bert(width: int, positions: int) -> dict[str, int]:
    """What stands below the blocks of BERT, and of BiGS, which took it over; heads are not counted."""
    return {"tokens": 30522 * width, "positions": positions * width, "token types": 2 * width, "norm": 2 * width}


def _banded(width: int, bands: Mapping[int, int]) -> dict[str, int]:
    """Embeddings in bands {width: tokens}, each with its projection, shared with the output layer."""
    return {"tokens": sum(w * n for w, n in bands.items()), "projections": width * sum(bands), "norm": 2 * width}


def _structured() -> dict[str, Preset]:
    """The models of Wei et al. (arXiv 2406.16450): decoders with tied embeddings and a first feedforward left dense.

    63 and 32 are the percents of a dense feedforward's parameters that a structured one has in the paper's names.
    """
    presets = {}
    for name, d_model, layers, heads, rank, blocks in (
        ("s", 768, 12, 12, 2 / 3, 2),
        ("m", 1024, 24, 16, 3 / 4, 4),
        ("l", 1536, 24, 12, 2 / 3, 2),
        ("xl", 2048, 24, 16, 3 / 4, 4),
    ):
        forms: dict[str, dict[str, Any]] = {"dense": {}}
        for percent, share in ((63, 1), (32, 2)):
            forms |= {
                f"lowrank-{percent}": {"ffn": "low_rank", "rank": 0.5 / share},
                f"blockdense-{percent}": {"ffn": "block_dense", "rank": rank / share, "blocks": blocks},
                f"blockshuffle-{percent}": {"ffn": "block_shuffle", "blocks": 2 * share},
            }
        around = {"tokens": 32000 * d_model, "norm": 2 * d_model}
        for form, ffn in forms.items():
            presets[f"structured-{name}-{form}"] = Preset(
                "transformer", {"heads": heads, **ffn}, d_model, layers, around, causal=True, first={"ffn": "dense"}
            )
    low_rank = {"ffn": "low_rank", "rank": 0.5}
    for name, d_model, attention, feedforward in (("m", 1024, 512, 4864), ("l", 1536, 768, 7424)):
        around = {"tokens": 32000 * d_model, "norm": 2 * d_model}
        presets[f"structured-{name}-wide"] = Wide(
            *("", low_rank, d_model, 24, around, True, {"ffn": "dense"}),
            attention=attention,
            keys=4,
            feedforward=feedforward,
        )
    return presets


PRESETS: dict[str, Preset] = {
    # arXiv 2212.10544; the checkpoint for 512 positions
    "bigs": Preset("bigs", {}, 1024, 23, _bert(1024, 512), transforms=4 * 1024),
    "bert-large": Preset("transformer", {"heads": 16, "positions": "none", "norm": "post"}, 1024, 24, _bert(1024, 512)),
    # arXiv 2111.00396: sequential CIFAR-10, Speech Commands of ten classes
    "s4-scifar": Ungated("s4", {"norm": "post"}, 1024, 6, {"encoder": 4 * 1024, "decoder": 1025 * 10}, causal=True),
    "s4-speech-10": Ungated("s4", {}, 128, 6, {"encoder": 2 * 128, "decoder": 129 * 10}, causal=True),
    # WikiText-103: the authors' configuration, whose output layer has biases, clusters and one projection of its own;
    # and the Transformer of Baevski and Auli (arXiv 1809.10853)
    "s4-wikitext": Fed(
        *("s4", {}, 1024, 16),
        _banded(1024, {1024: 19997, 256: 20000, 64: 160000, 16: 67738})
        | {"biases": 267735, "clusters": 3 * 1025, "output": 1024 * 1024},
        causal=True,
    ),
    "transformer-wikitext": Preset(
        *("transformer", {"positions": "none"}, 1024, 16),
        _banded(1024, {1024: 20000, 256: 40000, 64: 207744}),
        causal=True,
    ),
    # example.py of the S4 repository: three colours in, ten classes out
    "s4-example": Preset("s4d", {}, 128, 4, {"encoder": 4 * 128, "decoder": 129 * 10}, causal=True),
    # Speech Commands, 35 classes, S4-LegS as reported with Liquid-S4
    "s4-speech-35": Preset("s4", {"n_ssm": 2}, 128, 6, {"encoder": 2 * 128, "norm": 2 * 128, "decoder": 129 * 35}),
    **_structured(),
}
