"""WNLI: does a sentence entail itself with a pronoun replaced by a noun?

The labels run the other way round than in RTE. The test set (the official development set) repeats training sentences
with the opposite label, so that what is learnt by heart counts against a model; a majority vote is the usual baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="WNLI: Winograd schemas as inference",
    sources=("wnli",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Levesque et al., The Winograd Schema Challenge, KR 2012; {CITATION}",
)
LAYOUT = Layout(
    labelled=("index", "sentence1", "sentence2", "label"),
    test=("index", "sentence1", "sentence2"),
    sentences=("sentence1", "sentence2"),
    label="label",
    labels={"0": 0, "1": 1},  # not_entailment, entailment
)
TOTALS = {
    "train": Total(rows=635, text=94_409, labels=(323, 312)),
    "dev": Total(rows=71, text=10_742, labels=(40, 31)),
    "test": Total(rows=146, text=34_969),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["wnli"], check them, split them, write them."""
    return _glue.prepare("wnli", SPEC, LAYOUT, TOTALS, config, raw, out)
