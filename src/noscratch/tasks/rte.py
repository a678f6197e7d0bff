"""RTE: does the first text entail the second?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Layout, Total

SPEC = Spec(
    title="RTE: recognizing textual entailment",
    sources=("rte",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Dagan et al., The PASCAL Recognising Textual Entailment Challenge, 2006; Bar Haim et al. 2006; "
    f"Giampiccolo et al. 2007; Bentivogli et al. 2009; {CITATION}",
)
LAYOUT = Layout(
    labelled=("index", "sentence1", "sentence2", "label"),
    test=("index", "sentence1", "sentence2"),
    sentences=("sentence1", "sentence2"),
    label="label",
    labels={"entailment": 0, "not_entailment": 1},
)
TOTALS = {
    "train": Total(rows=2490, text=797_520, labels=(1249, 1241)),
    "dev": Total(rows=277, text=85_188, labels=(146, 131)),
    "test": Total(rows=3000, text=914_053),
}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three official files in the folder raw["rte"], check them, split them, write them."""
    return _glue.prepare("rte", SPEC, LAYOUT, TOTALS, config, raw, out)
