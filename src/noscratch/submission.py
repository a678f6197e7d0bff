"""A submission to the GLUE benchmark: its eleven files, from what finished models predict for its hidden test sets.

Each file has the header `index<tab>prediction` and one row for each example, in the order of the official test set.
One model of MNLI gives three of them: both test sets and the diagnostic set AX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noscratch import tasks
from noscratch.errors import NoscratchError


class SubmissionError(NoscratchError):
    """Predictions that make no submission."""


@dataclass(frozen=True)
class File:
    """One file: the task whose model predicts it, the first part of the ids of its examples, what classes are called
    (None: a score of 0 to 5)."""

    name: str
    task: str
    examples: str
    labels: tuple[str, ...] | None


BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("entailment", "neutral", "contradiction")
FILES = (
    File("CoLA.tsv", "cola", "test", BINARY),
    File("SST-2.tsv", "sst2", "test", BINARY),
    File("MRPC.tsv", "mrpc", "test", BINARY),
    File("STS-B.tsv", "stsb", "test", None),
    File("QQP.tsv", "qqp", "test", BINARY),
    File("MNLI-m.tsv", "mnli", "test_matched", INFERENCE),
    File("MNLI-mm.tsv", "mnli", "test_mismatched", INFERENCE),
    File("QNLI.tsv", "qnli", "test", ENTAILMENT),
    File("RTE.tsv", "rte", "test", ENTAILMENT),
    File("WNLI.tsv", "wnli", "test", BINARY),
    File("AX.tsv", "mnli", "ax", INFERENCE),
)
TASKS = tuple(dict.fromkeys(file.task for file in FILES))


def write(predictions: Mapping[str, Path], out: Path) -> dict[str, int]:
    """Write the eleven files into the folder `out`; return the rows of each.

    predictions: for each of TASKS, a table with the columns id and prediction (a class index, or a score), one row for
    each example of its hidden test sets in any order. Nothing is written unless all of them are complete.
    """
    missing = [task for task in TASKS if task not in predictions]
    if missing:
        raise SubmissionError(
            f"a submission holds every task of GLUE; there are no predictions of {', '.join(missing)}. Train them first"
        )
    tables = {task: _read(task, predictions[task]) for task in TASKS}
    texts = {file.name: _text(file, tables[file.task]) for file in FILES}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="ascii", newline="")
    return {name: text.count("\n") - 1 for name, text in texts.items()}


def _read(task: str, path: Path) -> dict[str, float]:
    if not path.is_file():
        raise SubmissionError(f"{task}: no predictions of the hidden test set at {path}. Run the task again")
    table = pq.read_table(path, columns=["id", "prediction"])
    values: dict[str, float] = dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))
    if len(values) != table.num_rows:
        raise SubmissionError(f"{task}: {path.name} predicts an example more than once. Run the task again")
    return values


def _text(file: File, values: Mapping[str, float]) -> str:
    """One file, examples in the official order."""
    totals: Mapping[str, Any] = vars(tasks.load(file.task))["TOTALS"]
    rows = totals[file.examples].rows
    names = [f"{file.examples}/{i}" for i in range(rows)]
    lost = [name for name in names if name not in values]
    if lost:
        raise SubmissionError(
            f"{file.name}: {rows} examples are predicted, got {rows - len(lost)}; {lost[0]} is the first that is not. "
            "Prepare the task without a limit (submission: 0) and run it again"
        )
    found = np.array([values[name] for name in names], np.float64)
    said = _scores(file, found) if file.labels is None else _labels(file, file.labels, found)
    return "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(said))


def _scores(file: File, found: NDArray[np.float64]) -> list[str]:
    if not np.isfinite(found).all():
        raise SubmissionError(f"{file.name}: a score is a number, got {found[~np.isfinite(found)][0]}")
    return [f"{score:.3f}" for score in np.clip(found, 0.0, 5.0)]


def _labels(file: File, labels: tuple[str, ...], found: NDArray[np.float64]) -> list[str]:
    wrong = ~np.isin(found, np.arange(len(labels)))
    if wrong.any():
        raise SubmissionError(f"{file.name}: a prediction is a class, 0 to {len(labels) - 1}, got {found[wrong][0]}")
    return [labels[int(value)] for value in found]
