"""Published sizes and costs, from the blocks of this package and the authors' own surroundings."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from noscratch import flops
from noscratch.backbones import parallel
from noscratch.backbones._presets import (
    PRESETS,
    Preset,
    Wide,
    forward_flops,
    guided_training_flops,
    size,
    training_flops,
)

# As printed: (all parameters, those of feedforwards) in millions
STRUCTURED = {
    "structured-m-dense": (335, None),
    "structured-l-dense": (729, None),
    "structured-m-wide": (219, None),
    "structured-l-wide": (464, None),
    "structured-xl-dense": (1274, 805),
    "structured-xl-lowrank-63": (985, 516),
    "structured-xl-blockdense-63": (955, 486),
    "structured-xl-blockshuffle-63": (985, 516),
    "structured-xl-lowrank-32": (744, 275),
    "structured-xl-blockdense-32": (728, 260),
    "structured-xl-blockshuffle-32": (744, 275),
}


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_feedforwards_have_the_printed_sizes(name: str) -> None:
    found, (total, feedforward) = size(PRESETS[name]), STRUCTURED[name]
    assert round(found.parameters / 1e6) == total
    if feedforward is not None:
        assert round(found.feedforward / 1e6) == feedforward


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if name.startswith("structured-") and not name.endswith("-wide")]
)
def test_structured_feedforwards_have_the_named_share(name: str) -> None:
    """The names are rounded: block-dense ones in four blocks have 59 and 29 %."""
    preset = PRESETS[name]
    dense = preset.layers * 2 * preset.d_model * 4 * preset.d_model
    layers = preset.layers - 1  # the first feedforward is dense
    share = (size(preset).feedforward - dense / preset.layers) / (dense / preset.layers * layers)
    named = int(name.rpartition("-")[2]) / 100 if preset.config.get("ffn") else 1.0
    assert share == pytest.approx(named, rel=0.1)


def test_bigs_has_346_million_parameters() -> None:
    preset = PRESETS["bigs"]
    assert preset.layers == 23
    assert size(preset).parameters == 345_625_180


def test_s4_has_the_printed_sizes() -> None:
    assert round(size(PRESETS["s4-example"]).parameters, -4) == 200_000
    assert round(size(PRESETS["s4-speech-35"]).parameters, -3) == 307_000
    assert round(size(PRESETS["s4-scifar"]).parameters, -5) == 7_900_000
    assert round(size(PRESETS["s4-speech-10"]).parameters, -5) == 300_000
    assert round(size(PRESETS["transformer-wikitext"]).parameters, -6) == 247_000_000
    assert size(PRESETS["s4-wikitext"]).parameters == pytest.approx(249e6, rel=0.005)


@pytest.mark.parametrize(
    ("length", "bigs", "bert", "ratio"),
    [
        (128, 8.1e10, 7.9e10, 1.02),
        (512, 3.2e11, 3.4e11, 0.97),
        (1024, 6.5e11, 7.2e11, 0.90),
        (4096, 2.6e12, 4.1e12, 0.63),
    ],
)
def test_bigs_costs_what_is_printed(length: int, bigs: float, bert: float, ratio: float) -> None:
    """Two printed digits each; the ratio of the exact counts."""
    found = [forward_flops(PRESETS[name], length) for name in ("bigs", "bert-large")]
    assert [float(f"{value:.1e}") for value in found] == [bigs, bert]
    assert found[0] / found[1] == pytest.approx(ratio, abs=0.005)


def test_training_costs_what_is_printed() -> None:
    """Three printed digits, for the tokens beside them."""
    with torch.device("meta"):
        found = {
            name: round(tokens * training_flops(PRESETS[f"structured-{name}"], 1024), -17)
            for name, tokens in {"m-dense": 6.7e9, "l-dense": 14.58e9, "xl-lowrank-63": 25.5e9}.items()
        }
        guided = guided_training_flops(cast(Wide, PRESETS["structured-m-wide"]), 1024, 0.4)
    assert found == pytest.approx({"m-dense": 1.55e19, "l-dense": 7.03e19, "xl-lowrank-63": 1.66e20}, rel=0.005)
    assert 6.7e9 * guided == pytest.approx(1.56e19, rel=0.005)


def test_a_first_block_of_its_own_is_counted_once() -> None:
    """The first feedforward is dense, and the others cost what they are."""
    whole, rest = (Preset("transformer", {"heads": 2, "ffn": "low_rank"}, 16, layers, {}) for layers in (3, 2))
    dense = Preset("transformer", {"heads": 2}, 16, 1, {})
    mixed = replace(whole, first={"ffn": "dense"})
    single = Preset("transformer", {"heads": 2, "ffn": "low_rank"}, 16, 1, {})
    assert forward_flops(mixed, 32) == forward_flops(rest, 32) + forward_flops(dense, 32)
    assert forward_flops(whole, 32) == forward_flops(rest, 32) + forward_flops(single, 32)


@pytest.mark.parametrize("backbone", ["bigs", "transformer"])
def test_short_counts_give_the_long_one(backbone: str) -> None:
    """But for the taps of a state space, which grow more slowly than the length."""
    preset = Preset(backbone, {"heads": 2}, 16, 3, {})
    block = preset.block(0)
    counted = flops.count(lambda: parallel(block, torch.zeros(1, 50, 16)))
    assert forward_flops(preset, 50) == pytest.approx(3 * counted, rel=0.01)
