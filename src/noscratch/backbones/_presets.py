"""Published models as data: the blocks of a backbone here, and the parameters that the authors put around them.

No run reads this file; claims on sizes and costs are settled by what it counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from noscratch import flops
from noscratch.backbones import configure, load, parallel
from noscratch.backbones._ffn import Feedforward


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

    def counted(short: int) -> int:
        x = torch.zeros(1, short, preset.d_model)

        def work() -> None:
            parallel(block, x)

        with torch.no_grad():
            return flops.count(work)

    block = preset.block(0).eval()
    short = 8
    quadratic = (counted(2 * short) - 2 * counted(short)) / (2 * short**2)
    linear = counted(short) / short - quadratic * short
    transform = 5 * length * math.log2(2 * length)
    return round(preset.layers * (linear * length + quadratic * length**2 + preset.transforms * transform))


def _bert(width: int, positions: int) -> dict[str, int]:
    """What stands below the blocks of BERT, and of BiGS, which took it over; heads are not counted."""
    return {"tokens": 30522 * width, "positions": positions * width, "token types": 2 * width, "norm": 2 * width}


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
    return presets


PRESETS: dict[str, Preset] = {
    # arXiv 2212.10544; the checkpoint for 512 positions
    "bigs": Preset("bigs", {}, 1024, 23, _bert(1024, 512), transforms=4 * 1024),
    "bert-large": Preset("transformer", {"heads": 16, "positions": "none", "norm": "post"}, 1024, 24, _bert(1024, 512)),
    # example.py of the S4 repository: three colours in, ten classes out
    "s4-example": Preset("s4d", {}, 128, 4, {"encoder": 4 * 128, "decoder": 129 * 10}, causal=True),
    # Speech Commands, 35 classes, S4-LegS as reported with Liquid-S4
    "s4-speech-35": Preset("s4", {"n_ssm": 2}, 128, 6, {"encoder": 2 * 128, "norm": 2 * 128, "decoder": 129 * 35}),
    **_structured(),
}
