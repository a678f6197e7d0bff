"""STS-B: how similar are two sentences, from 0 to 5? A regression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="STS-B: semantic textual similarity",
    sources=("stsb",),
    kind="regression",
    classes=1,
    metrics=("pearson", "spearman"),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Cer et al., SemEval-2017 Task 1: Semantic Textual Similarity, SemEval 2017; {CITATION}",
)
COLUMNS = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
LAYOUT = Layout(
    labelled=(*COLUMNS, "score"),
    test=COLUMNS,
    sentences=("sentence1", "sentence2"),
    label="score",
    labels=None,
)
TOTALS = {
    "train": Total(rows=5749, text=662_807, labels=2.701),
    "dev": Total(rows=1500, text=192_064, labels=2.364),
    "test": Total(rows=1379, text=147_910),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["stsb"], check them, split them, write them."""
    return _glue.prepare("stsb", SPEC, LAYOUT, TOTALS, config, raw, out)
