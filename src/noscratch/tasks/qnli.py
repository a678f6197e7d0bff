"""QNLI, version 2: does the sentence hold the answer to the question?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, TaskError, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="QNLI: question and answer",
    sources=("qnli",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Rajpurkar et al., SQuAD, EMNLP 2016; {CITATION}",
)
LAYOUT = Layout(
    labelled=("index", "question", "sentence", "label"),
    test=("index", "question", "sentence"),
    sentences=("question", "sentence"),
    label="label",
    labels={"entailment": 0, "not_entailment": 1},
    seen=False,
)
TOTALS = {
    "train": Total(rows=104_743, text=23_517_591),
    "dev": Total(rows=5463, text=1_259_044, labels=(2702, 2761)),
    "test": Total(rows=5463, text=1_263_833),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["qnli"], check them, split them, write them."""
    if not (raw["qnli"] / "train.tsv").is_file():
        raise TaskError(
            "qnli: train.tsv is missing; the copy at hand is a partial one (dev and test alone), which makes no task. "
            "Fetch the official archive"
        )
    return _glue.prepare("qnli", SPEC, LAYOUT, TOTALS, config, raw, out)
