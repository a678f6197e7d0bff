"""QQP: do two questions of Quora ask the same?

The archive as it is since September 2020. The one before it, under the same address, has 363,849 training rows, some of
them broken; its totals are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="QQP: the same question?",
    sources=("qqp",),
    kind="classification",
    classes=2,
    metrics=("accuracy", "f1"),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Iyer et al., First Quora Dataset Release: Question Pairs, 2017; {CITATION}",
)
LAYOUT = Layout(
    labelled=("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    test=("id", "question1", "question2"),
    sentences=("question1", "question2"),
    label="is_duplicate",
    labels={"0": 0, "1": 1},
    seen=False,
)
TOTALS = {
    "train": Total(rows=363_846, text=43_396_783),
    "dev": Total(rows=40_430, text=4_819_916),
    "test": Total(rows=390_965, text=47_107_768),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["qqp"], check them, split them, write them."""
    return _glue.prepare("qqp", SPEC, LAYOUT, TOTALS, config, raw, out)
