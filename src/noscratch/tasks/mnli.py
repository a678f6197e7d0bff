"""MNLI: does the premise entail the hypothesis, contradict it, or neither?

The development set of the training genres is the test set, or (`dev: mismatched`, the variant mnli-mm) that of other
genres. One model is submitted for three rows of the benchmark: both test sets and AX, the diagnostic set, which has no
training data of its own and whose labels are hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noscratch.tasks import Pretraining, Spec, TaskError, _glue
from noscratch.tasks._glue import CITATION, Layout, Total

SPEC = Spec(
    title="MNLI: entailment across genres",
    sources=("mnli", "ax"),
    kind="classification",
    classes=3,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation="Williams, Nangia and Bowman, A Broad-Coverage Challenge Corpus for Sentence Understanding, NAACL 2018; "
    + CITATION,
)
COLUMNS = (
    *("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"),
    *("sentence1_parse", "sentence2_parse", "sentence1", "sentence2"),
)
LAYOUT = Layout(
    labelled=(*COLUMNS, "label1", "gold_label"),
    dev=(*COLUMNS, *(f"label{i}" for i in range(1, 6)), "gold_label"),
    test=COLUMNS,
    sentences=("sentence1", "sentence2"),
    label="gold_label",
    labels={"entailment": 0, "neutral": 1, "contradiction": 2},
    seen=False,
)
DIAGNOSTIC = replace(LAYOUT, test=("index", "sentence1", "sentence2"))
TOTALS = {
    "train": Total(rows=392_702, text=66_765_630),
    "dev_matched": Total(rows=9815, text=1_637_483),
    "dev_mismatched": Total(rows=9832, text=1_752_591),
    "test_matched": Total(rows=9796, text=1_652_734),
    "test_mismatched": Total(rows=9847, text=1_753_763),
    "ax": Total(rows=1104, text=215_614),
}


@dataclass(frozen=True)
class Config(_glue.Config):
    """As of every task of GLUE; dev: which development set is the test set, matched or mismatched."""

    dev: str = "matched"


def read(raw: Mapping[str, Path]) -> dict[str, _glue.Table]:
    """The five files of MNLI and the one of AX (ids ax/0, ax/1, ...)."""
    tables = _glue.read(raw["mnli"], LAYOUT, (name for name in TOTALS if name != "ax"))
    diagnostic = _glue.read_file(raw["ax"] / "test.tsv", "test", DIAGNOSTIC)
    return tables | {"ax": replace(diagnostic, ids=[f"ax/{i}" for i in range(len(diagnostic.ids))])}


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the official files in the folders raw["mnli"] and raw["ax"], check them, split them, write them."""
    if config.dev not in ("matched", "mismatched"):
        raise TaskError(f"mnli: dev is matched or mismatched, got {config.dev!r}: correct it in params.yaml")
    variant, title = ("mnli", SPEC.title) if config.dev == "matched" else ("mnli-mm", f"{SPEC.title}, mismatched")
    spec = replace(SPEC, title=title)
    return _glue.finish("mnli", variant, spec, TOTALS, config, read(raw), f"dev_{config.dev}", out, raw.get("corpus"))
