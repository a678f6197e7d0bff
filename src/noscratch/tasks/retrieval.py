"""Retrieval of Long Range Arena: is one of two papers of the ACL Anthology linked to the other? Read byte by byte.

A row of the release is label, id, id, text, text, tab separated, without a header and without quoting. Each text is
encoded alone; a model reads both with one encoder and compares what it made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from noscratch.tasks import SPLITS, Examples, Pretraining, Spec, TaskError, check_manifest, prefix, write
from noscratch.tokenize import BYTES_EOS, BYTES_VOCABULARY, byte_tokens

SPEC = Spec(
    title="Retrieval: pairs of papers, byte by byte",
    sources=("lra-aan",),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.15, loss="cross-entropy"),
    pairs=True,
    citation="Radev et al., The ACL Anthology Network Corpus, LREC 2013; Tay et al., Long Range Arena, ICLR 2021",
)
FILES = dict(zip(SPLITS, ("train", "eval", "test"), strict=True))
ROWS = {"train": 147_086, "validation": 18_090, "test": 17_437}  # configuration of S4; the same in LRA's own listing
RULE = "the three files of the release: train, eval (validation), test"
LABELS = {b"0": 0, b"1": 1, b"0.0": 0, b"1.0": 1}
CELLS = 5
PART = 4096  # rows held at a time


@dataclass(frozen=True)
class Config:
    """length: most tokens of each text, the end included (4000: Long Range Arena). train, validation, test: examples
    kept, 0 for all."""

    length: int = 4000
    train: int = 0
    validation: int = 0
    test: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Stream the three files in the folder raw["lra-aan"], check them, write the rows that are kept."""
    ids = {split: [f"{FILES[split]}/{i}" for i in range(ROWS[split])] for split in SPLITS}
    check_manifest("retrieval", RULE, ids)
    splits = {}
    for split in SPLITS:
        kept = set(prefix(ids[split], getattr(config, split)).tolist())
        splits[split] = _parts(raw["lra-aan"] / f"new_aan_pairs.{FILES[split]}.tsv", split, kept, config.length)
    return write(out, "retrieval", SPEC, splits, vocabulary=BYTES_VOCABULARY, eos=BYTES_EOS, length=config.length,
                 rule=RULE)  # fmt: skip


def _parts(path: Path, split: str, kept: set[int], length: int) -> Iterator[Examples]:
    """The rows of one file that are kept, PART at a time; an error where the file is not the official one."""
    if not path.is_file():
        raise TaskError(f"{path.parent.name}/{path.name} is missing: fetch the source again")
    held: list[tuple[int, int, bytes, bytes]] = []
    row = -1
    with path.open("rb") as file:
        for row, line in enumerate(file):
            cells = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
            if len(cells) != CELLS or cells[0] not in LABELS:
                rule = f"a row has {CELLS} cells" if len(cells) != CELLS else "a label is one of 0, 1, 0.0, 1.0"
                got = f"{len(cells)} cells" if len(cells) != CELLS else repr(cells[0][:20])
                raise TaskError(f"{path.parent.name}/{path.name}, row {row + 1}: {rule}; got {got}. Fetch it again")
            if row in kept:
                held.append((row, LABELS[cells[0]], cells[3][:length], cells[4][:length]))
            if len(held) == PART:
                yield _examples(split, held, length)
                held = []
    if row + 1 != ROWS[split]:
        raise TaskError(
            f"{path.parent.name}/{path.name}: the official file has {ROWS[split]} rows, got {row + 1}. Fetch it again"
        )
    if held:
        yield _examples(split, held, length)


def _examples(split: str, held: list[tuple[int, int, bytes, bytes]], length: int) -> Examples:
    rows, labels, first, second = zip(*held, strict=True)
    one, two = byte_tokens(first, length), byte_tokens(second, length)
    ids = [f"{FILES[split]}/{row}" for row in rows]
    return Examples(ids, one.ids, one.offsets, np.array(labels, np.int64), two.ids, two.offsets)
