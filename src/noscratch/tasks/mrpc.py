"""MRPC: do two sentences say the same?

GLUE may not pass this corpus on, and makes its splits anew from the original files: the pairs of
msr_paraphrase_train.txt that mrpc_dev_ids.tsv lists are dev, the others train, both in the order of the file. The
original test file shows its labels; they are hidden here, as the benchmark hides them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from noscratch.tasks import Pretraining, Spec, _glue
from noscratch.tasks._glue import CITATION, Config, Table, Total, broken, check_header, lines_of

SPEC = Spec(
    title="MRPC: paraphrases",
    sources=("mrpc",),
    kind="classification",
    classes=2,
    metrics=("accuracy", "f1"),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    citation=f"Dolan and Brockett, Automatically Constructing a Corpus of Sentential Paraphrases, IWP 2005; {CITATION}",
)
COLUMNS = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
LABELS = {"0": 0, "1": 1}  # not equivalent, equivalent
TOTALS = {
    "train": Total(rows=3668, text=870_483, labels=(1194, 2474)),
    "dev": Total(rows=408, text=97_719, labels=(129, 279)),
    "test": Total(rows=1725, text=407_910),
}


def read(folder: Path) -> dict[str, Table]:
    """train, dev and test, from the three original files."""
    listed = folder / "mrpc_dev_ids.tsv"
    dev: dict[tuple[str, ...], int] = {}
    for row, line in enumerate(lines_of(listed, any_end=True), 1):
        pair = tuple(line.split("\t"))
        if len(pair) == 2 and all(name.isdecimal() for name in pair):
            dev[pair] = row
        elif row > 1:  # the first line may name the columns
            raise broken(listed, row, "a row is a pair of numbers, tab separated", line)
    rows = _rows(folder / "msr_paraphrase_train.txt")
    lost = dev.keys() - {pair for pair, _, _ in rows}
    if lost:
        pair = min(lost, key=dev.__getitem__)
        raise broken(listed, dev[pair], "every pair is one of msr_paraphrase_train.txt", "\t".join(pair))
    return {
        "train": _table("train", [row for row in rows if row[0] not in dev]),
        "dev": _table("dev", [row for row in rows if row[0] in dev]),
        "test": _table("test", [(pair, texts, -1) for pair, texts, _ in _rows(folder / "msr_paraphrase_test.txt")]),
    }


Row = tuple[tuple[str, ...], tuple[str, ...], int]  # the pair of ids, the two sentences, the label


def _rows(path: Path) -> list[Row]:
    lines = lines_of(path, any_end=True, mark=True)
    check_header(path, lines, COLUMNS)
    rows = []
    for row, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(COLUMNS) or not all(cells):
            raise broken(path, row, f"a row has {len(COLUMNS)} cells, none empty ({', '.join(COLUMNS)})", line)
        if cells[0] not in LABELS:
            raise broken(path, row, "a label is one of 0, 1", cells[0])
        rows.append((tuple(cells[1:3]), tuple(cells[3:]), LABELS[cells[0]]))
    return rows


def _table(split: str, rows: list[Row]) -> Table:
    labels = np.array([label for _, _, label in rows], np.int64)
    return Table([f"{split}/{i}" for i in range(len(rows))], [texts for _, texts, _ in rows], labels)


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the three original files in the folder raw["mrpc"], make the splits of GLUE, check them, write them."""
    return _glue.finish("mrpc", "mrpc", SPEC, TOTALS, config, read(raw["mrpc"]), "dev", out, raw.get("corpus"))
