"""SST-2: is a phrase of a film review negative or positive?

The official training set holds every phrase of its sentences, so that held-out phrases overlap with kept ones; the test
set (the official development set) holds whole sentences of other reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="SST-2: sentiment of film reviews",
    sources=("sst2",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Socher et al., Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank, EMNLP 2013"
    f"; {CITATION}",
)
LAYOUT = Layout(
    labelled=("sentence", "label"),
    test=("index", "sentence"),
    sentences=("sentence",),
    label="label",
    labels={"0": 0, "1": 1},  # negative, positive
)
TOTALS = {
    "train": Total(rows=67_349, text=3_604_019, labels=(29_780, 37_569)),
    "dev": Total(rows=872, text=92_300, labels=(428, 444)),
    "test": Total(rows=1821, text=187_504),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["sst2"], check them, split them, write them."""
    return _glue.prepare("sst2", SPEC, LAYOUT, TOTALS, config, raw, out)
