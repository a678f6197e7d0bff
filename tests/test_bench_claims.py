"""The benches of claims measure every quantity of their claim, at settings that are what they say; no times."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from noscratch.results.claims import Measured, load

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import _timing
from bench import claims as claim_bench

TINY_CLAIMS = claim_bench.Sizes(0.0, 1, 16, (24,), (1, 8, 32), (8, 24), ((8, 24), (8, 24)), (2, 8, 16, 1))


@pytest.mark.parametrize("claim", claim_bench.MEASUREMENTS)
def test_a_claim_is_measured_in_all_its_quantities(claim: str) -> None:
    """Names, repetitions and units are those of the ledger."""
    ledger = {c.id: c for p in load(Path(__file__).parents[1] / "claims") for c in p.claims if isinstance(c, Measured)}
    measurement = claim_bench.MEASUREMENTS[claim]
    assert measurement.repetitions >= ledger[claim].seeds
    assert ledger[claim].unit == "ratio"
    full = claim_bench.SIZES["cpu"]
    lengths = {f"length-{length}" for length in full.lengths}
    if measurement.measure is claim_bench.transformer_memory:
        assert set(ledger[claim].values) == lengths
        # A process of its own: the heap of this one has room that earlier tests left, and its peak need not rise.
        assert _timing.alone(claim_bench.peak, "s4", 512, "cpu", TINY_CLAIMS) > 0
        return
    found = measurement.measure("cpu", TINY_CLAIMS)
    expected = {"length-24"} if set(ledger[claim].values) == lengths else set(ledger[claim].values)
    assert set(found) == expected
    assert all(0 < value < 1000 for value in found.values())
    assert measurement.setting(full)


def test_the_layers_compared_have_about_as_many_parameters() -> None:
    ours, theirs = (
        sum(p.numel() for layer in make(claim_bench.SIZES["cpu"].width) for p in layer.parameters())
        for make in (claim_bench.s4_layers, claim_bench.attention_layers)
    )
    assert ours == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize("percent", claim_bench.FORMS)
def test_the_feedforwards_have_the_named_share(percent: int) -> None:
    def weights(settings: claim_bench.Settings, width: int) -> int:
        with torch.device("meta"):
            layer = claim_bench.Feedforward(width, 4 * width, settings, "auto")
        return sum(p.numel() for p in layer.parameters() if p.ndim > 1)

    _, width = claim_bench.SIZES["cpu"].feedforward
    for name, settings in claim_bench.FORMS[percent].items():
        share = weights(settings, width) / weights(claim_bench.Settings(), width)
        assert share == pytest.approx(percent / 100, abs=0.035), name
