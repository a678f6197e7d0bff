"""CoLA: is a sentence acceptable English? The official files have no header, but for the test set's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="CoLA: linguistic acceptability",
    sources=("cola",),
    kind="classification",
    classes=2,
    metrics=("matthews", "accuracy"),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Warstadt et al., Neural Network Acceptability Judgments, TACL 2019; {CITATION}",
)
LAYOUT = Layout(
    labelled=("source", "label", "mark", "sentence"),
    test=("index", "sentence"),
    sentences=("sentence",),
    label="label",
    labels={"0": 0, "1": 1},  # unacceptable, acceptable
    header=False,
    codes=("source",),
)
TOTALS = {
    "train": Total(rows=8551, text=348_053, labels=(2528, 6023)),
    "dev": Total(rows=1043, text=43_634, labels=(322, 721)),
    "test": Total(rows=1063, text=43_505),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["cola"], check them, split them, write them."""
    return _glue.prepare("cola", SPEC, LAYOUT, TOTALS, config, raw, out)
