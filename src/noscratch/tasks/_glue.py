"""GLUE files in their official layout: read strictly, held against the published totals, split, tokenized.

Layout of the benchmark's own archives: tab separated, UTF-8, a line feed ends each line (the last one may lack it).
No quoting: a quote is a character like any other. Cells are kept as they are, blanks at their ends included.

The test sets of GLUE have no labels: the development set is the test set here, and the test sets are kept beside it,
to be predicted by the finished model for a submission to the benchmark.

The published totals are those of the Hugging Face card of `glue` (dataset_infos.json, revision 040102f100). Its
`num_bytes` is the size of an Arrow table, so it pins the bytes of text in a split of n rows with k sentences:

    text = num_bytes - n * (label + 4 + 4 k) - 4 k - (k + 3) * ceil(n / 8)      label = 8, or 4 for a score
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from noscratch.subwords import encode, train_unigram, train_wordpiece
from noscratch.tasks import (
    HOLD_OUT_RULE,
    SUBMISSION,
    Examples,
    Spec,
    TaskError,
    check_manifest,
    duplicates,
    held_out,
    prefix,
    write,
)
from noscratch.tokenize import BYT5_EOS, BYT5_VOCABULARY, byt5_tokens

OFFICIAL = ("train", "dev", "test")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CITATION = (
    "Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019"
)
RULE = f"{HOLD_OUT_RULE}; test: the official development set (the labels of GLUE's own test sets are hidden)"


@dataclass(frozen=True)
class Config:
    """length: most tokens of an example, marks included (512: BiGS, Wang et al. 2023, section 5).
    tokens: pieces of words (WordPiece or unigram, learned from the training texts that are kept), bytes as ByT5 numbers
    them, or those of the corpus that a model was pretrained on, whose length holds too. vocabulary: most ids of
    learned pieces. train, validation, test, submission: examples kept, 0 for all."""

    length: int = 512
    tokens: Literal["wordpiece", "unigram", "bytes", "corpus"] = "wordpiece"
    vocabulary: int = 8192
    train: int = 0
    validation: int = 0
    test: int = 0
    submission: int = 0


@dataclass(frozen=True)
class Layout:
    """Columns of the official files.

    labelled: the columns of train and dev; header: whether these two files name them in a first line.
    test: the columns of the file without labels, which always names them. sentences: the one or two columns of text.
    labels: ids of the label strings, in the official order; None: a score of 0 to 5.
    codes: columns without a blank, which tell swapped columns where no header does.
    dev: the columns of dev where they are not those of train.
    seen: the official files were read with these rules, and nothing in them breaks one. Where they were not, the
    published totals decide: a row is read as their makers did, by Python's csv module without quoting (any line end,
    rows that lack a cell or the label left out), a sentence may be empty, and an index is any text.
    """

    labelled: tuple[str, ...]
    test: tuple[str, ...]
    sentences: tuple[str, ...]
    label: str
    labels: Mapping[str, int] | None
    header: bool = True
    codes: tuple[str, ...] = ()
    dev: tuple[str, ...] | None = None
    seen: bool = True

    def columns(self, split: str) -> tuple[str, ...]:
        """Of the file <split>.tsv, where split is train, dev..., or test...."""
        if split.startswith("test"):
            return self.test
        return self.dev if self.dev is not None and split.startswith("dev") else self.labelled


@dataclass(frozen=True)
class Total:
    """What is published about one official file: rows, bytes of text, and rows by label id (or the mean score, to three
    decimals; None where labels are hidden)."""

    rows: int
    text: int
    labels: tuple[int, ...] | float | None = None


TOTAL_NAMES = {"rows": "rows", "text": "bytes of text", "labels": "labels (rows by id, or the mean score)"}


@dataclass(frozen=True)
class Table:
    """One official file: an id for each row (`<file>/<row>`, from 0), its one or two texts, its label (-1: hidden).
    left_out: rows of the file, from 1, that lack a cell."""

    ids: list[str]
    texts: list[tuple[str, ...]]
    labels: NDArray[Any]
    left_out: tuple[int, ...] = ()

    def take(self, rows: NDArray[np.int64]) -> Table:
        return Table([self.ids[i] for i in rows], [self.texts[i] for i in rows], self.labels[rows])


# ---------------------------------------------------------------- reading


def read(folder: Path, layout: Layout, files: Iterable[str] = OFFICIAL) -> dict[str, Table]:
    """The official files of a task, by name."""
    return {name: read_file(folder / f"{name}.tsv", name, layout) for name in files}


def read_file(path: Path, split: str, layout: Layout) -> Table:
    """One official file; anything that breaks the layout is an error with the file, the row and the rule."""
    labelled = not split.startswith("test")
    columns = layout.columns(split)
    lines = lines_of(path, any_end=not layout.seen)
    first = 1
    if layout.header or not labelled:
        check_header(path, lines, columns)
        lines, first = lines[1:], 2
    sentences = [columns.index(name) for name in layout.sentences]
    marked = columns.index(layout.label) if labelled else 0
    labels: list[float] = []
    texts: list[tuple[str, ...]] = []
    left_out = []
    for i, line in enumerate(lines):
        cells = line.split("\t")
        if not layout.seen and (len(cells) < len(columns) or (labelled and cells[marked] == "")):
            left_out.append(first + i)
            continue
        if len(cells) != len(columns):
            raise broken(
                path, first + i, f"a row has {len(columns)} cells ({' '.join(columns)})", f"{len(cells)} cells"
            )
        if layout.seen and columns[0] == "index" and cells[0] != str(i):
            raise broken(path, first + i, f"the index counts from 0, here {i}", cells[0])
        if layout.seen and not all(cells[j] for j in sentences):
            raise broken(path, first + i, "a sentence is not empty", line)
        for name in layout.codes if labelled else ():
            if " " in cells[columns.index(name)]:
                raise broken(path, first + i, f"the column {name} holds a code without a blank", line)
        labels.append(_label(path, first + i, cells[marked], layout.labels) if labelled else -1)
        texts.append(tuple(cells[j] for j in sentences))
    dtype = np.float32 if layout.labels is None else np.int64
    return Table([f"{split}/{i}" for i in range(len(texts))], texts, np.array(labels, dtype), tuple(left_out))


def lines_of(path: Path, *, any_end: bool = False, mark: bool = False) -> list[str]:
    """The lines of an official file. any_end: a carriage return ends a line as well, alone or before a line feed.
    mark: the file begins with a byte order mark."""
    if not path.is_file():
        raise TaskError(f"{path.parent.name}/{path.name} is missing: fetch the source again")
    data = path.read_bytes()
    if data.startswith(BYTE_ORDER_MARK) != mark:
        rule = "the file begins" if mark else "the file does not begin"
        raise broken(path, 1, f"{rule} with a byte order mark", "none" if mark else "one")
    data = data.removeprefix(BYTE_ORDER_MARK)
    if any_end:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    carriage = data.find(b"\r")
    if carriage >= 0:
        row = data.count(b"\n", 0, carriage) + 1
        raise broken(path, row, "lines end in a line feed alone", "a carriage return")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise broken(path, row, "the text is UTF-8", f"the byte 0x{data[error.start]:02x}") from error
    return text.removesuffix("\n").split("\n") if text else []


def check_header(path: Path, lines: Sequence[str], columns: tuple[str, ...]) -> None:
    """Assert that the first line names the columns."""
    if not lines or tuple(lines[0].split("\t")) != columns:
        raise broken(path, 1, f"the header is {' '.join(columns)!r}, tab separated", lines[0] if lines else "")


def _label(path: Path, row: int, cell: str, labels: Mapping[str, int] | None) -> float:
    if labels is not None:
        if cell not in labels:
            raise broken(path, row, f"a label is one of {', '.join(labels)}", cell)
        return labels[cell]
    try:
        score = float(cell)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise broken(path, row, "a score is a number from 0 to 5", cell)
    return score


def broken(path: Path, row: int, rule: str, got: str) -> TaskError:
    """The error for a file that breaks a rule."""
    shown = got if len(got) <= 80 else got[:77] + "..."
    return TaskError(
        f"{path.parent.name}/{path.name}, row {row}: {rule}; got {shown!r}. "
        "This is not the official file: fetch the source again"
    )


def check_totals(task: str, tables: Mapping[str, Table], totals: Mapping[str, Total]) -> None:
    """Assert rows, bytes of text and labels of every official file."""
    for split, total in totals.items():
        table = tables[split]
        got = Total(len(table.ids), text_bytes(table), _label_total(table, total))
        for what, name in TOTAL_NAMES.items():
            if getattr(got, what) != getattr(total, what):
                short = ", ".join(map(str, table.left_out[:5])) or "none"
                raise TaskError(
                    f"{task}/{split}.tsv: {name} of the official file: {getattr(total, what)}; "
                    f"got {getattr(got, what)} (rows left out for a missing cell: {short}). "
                    "This is not the official file: fetch the source again"
                )


def text_bytes(table: Table) -> int:
    """UTF-8 bytes of all sentences."""
    return sum(len(text.encode()) for texts in table.texts for text in texts)


def _label_total(table: Table, total: Total) -> tuple[int, ...] | float | None:
    if isinstance(total.labels, tuple):
        return tuple(int(count) for count in np.bincount(table.labels, minlength=len(total.labels)))
    if isinstance(total.labels, float):
        return round(float(table.labels.mean(dtype=np.float64)), 3)
    return None


# ---------------------------------------------------------------- preparing


def prepare(
    task: str,
    spec: Spec,
    layout: Layout,
    totals: Mapping[str, Total],
    config: Config,
    raw: Mapping[str, Path],
    out: Path,
) -> dict[str, Any]:
    """Read and check the official files of `task`, then build it."""
    return finish(task, task, spec, totals, config, read(raw[task], layout, totals), "dev", out, raw.get("corpus"))


def finish(
    task: str,
    variant: str,
    spec: Spec,
    totals: Mapping[str, Total],
    config: Config,
    tables: Mapping[str, Table],
    dev: str,
    out: Path,
    corpus: Path | None = None,
) -> dict[str, Any]:
    """Check tables that were read, and build the task with `dev` as its test set.

    variant: the task's name in the committed manifests. corpus: the prepared corpus, where its tokenizer is taken.
    """
    check_totals(task, tables, totals)
    splits = split(tables, dev)
    train, test = tables["train"], tables[dev]
    check_manifest(variant, RULE, {name: table.ids for name, table in splits.items()})
    return {
        "official": {
            name: {"rows": len(t.ids), "text_bytes": text_bytes(t), "left_out": len(t.left_out)}
            for name, t in tables.items()
        },
        "duplicates": duplicates(train.texts, test.texts, train.ids, test.ids),
        **build(task, spec, config, splits | hidden(tables), out, corpus),
    }


def split(tables: Mapping[str, Table], dev: str = "dev") -> dict[str, Table]:
    """The `clean` protocol (RULE)."""
    train = tables["train"]
    held = held_out(train.ids)
    return {
        "train": train.take(np.flatnonzero(~held)),
        "validation": train.take(np.flatnonzero(held)),
        "test": tables[dev],
    }


def hidden(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The benchmark's own test sets, one after the other, as one more split."""
    parts = [table for name, table in tables.items() if name.startswith(("test", "ax"))]
    labels = np.concatenate([part.labels for part in parts])
    return {SUBMISSION: Table([i for p in parts for i in p.ids], [t for p in parts for t in p.texts], labels)}


def build(
    task: str, spec: Spec, config: Config, splits: Mapping[str, Table], out: Path, corpus: Path | None = None
) -> dict[str, Any]:
    """Keep the asked number of examples, encode, write. corpus: the prepared corpus, whose tokenizer `tokens: corpus`
    takes."""
    kept = {name: table.take(prefix(table.ids, getattr(config, name))) for name, table in splits.items()}
    tokenizer, length = _tokenizer(task, config, kept["train"], corpus)
    examples = {}
    for name, table in kept.items():
        if tokenizer is None:
            texts = [tuple(text.encode() for text in texts) for texts in table.texts]
            ids, offsets = byt5_tokens(texts, length)
        else:
            ids, offsets = encode(tokenizer, table.texts, length)
        examples[name] = Examples(table.ids, ids, offsets, table.labels)
    size, eos = (BYT5_VOCABULARY, BYT5_EOS) if tokenizer is None else (tokenizer.get_vocab_size(), None)
    said = {"wordpiece": "", "unigram": ", unigram pieces", "bytes": ", byte by byte", "corpus": ", pieces of a corpus"}
    spec = replace(spec, title=spec.title + said[config.tokens])
    summary = write(out, task, spec, examples, vocabulary=size, eos=eos, length=length, rule=RULE)
    if tokenizer is not None:
        (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    return summary


def _tokenizer(task: str, config: Config, train: Table, corpus: Path | None) -> tuple[Tokenizer | None, int]:
    """What encodes the texts (None: bytes), and the most tokens of an example."""
    if config.tokens == "corpus":
        if corpus is None:
            raise TaskError(f"{task}: tokens: corpus takes the tokenizer of a corpus, and there is none")
        meta = json.loads((corpus / "meta.json").read_text(encoding="utf-8"))
        return Tokenizer.from_file(str(corpus / "tokenizer.json")), meta["length"]
    if config.tokens == "bytes":
        return None, config.length
    train_pieces = {"wordpiece": train_wordpiece, "unigram": train_unigram}[config.tokens]
    return train_pieces([text for texts in train.texts for text in texts], config.vocabulary), config.length
