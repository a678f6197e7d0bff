"""Tasks: one file per name, each with `SPEC`, `Config` and `prepare`; what they share is here.

A task turns raw files into three memory-mappable token tables, a description and a split manifest:

    {train,validation,test}.arrow   Arrow IPC file, uncompressed: id, tokens, label (table_schema)
    submission.arrow                GLUE alone: the benchmark's own test sets, labels hidden (-1), to be predicted last
    meta.json                       what a model must know: kind, classes, metrics, vocabulary, special ids, length
    splits.json                     which examples are in which split: the rule, count and sha256 over the sorted ids;
                                    quarantine: files that hold no example because they cannot be read, and why

A task has variants: `image-jpeg` in params.yaml is image.py under another Config. A variant may name its `source`, one
that takes the place of SPEC.sources, and say `partial: true` where a partial form of the source will do; any other
task is blocked by a source that is there in part only.

The same configuration and raw files give the same bytes, whatever the machine.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noscratch.errors import NoscratchError

SPLITS = ("train", "validation", "test")
SUBMISSION = "submission"
PAD = 0
BATCH_TOKENS = 2**28  # most tokens of one record batch that tasks write, which bounds memory
QUARANTINE = 10  # most files of one source that may be set aside: more are no accident, and the source is refused

# Holding out and keeping a prefix are pure functions of an example's id, so that no list has to be drawn or stored.
HOLD_OUT_SEED = 0
HOLD_OUT_SHARE = 10  # one in ten
ORDER_SEED = 1
LISTED = 10_000  # a committed manifest lists the validation ids up to this number, and their digest in any case
HOLD_OUT_RULE = (
    f"validation: the official training examples for which sha256('{HOLD_OUT_SEED}:' + id), read as a big-endian "
    f"number, is below 2**256 / {HOLD_OUT_SHARE}; train: the other official training examples"
)


class TaskError(NoscratchError):
    """A task that does not exist, or raw data that break a rule of their official form."""


@dataclass(frozen=True)
class Pretraining:
    """The self-pretraining objective: the share of positions that is masked and the loss on them."""

    ratio: float
    loss: Literal["cross-entropy", "l1"]


@dataclass(frozen=True)
class Spec:
    """What is fixed about a task. `sources` is empty where the data are generated; `classes` is 1 for regression;
    the first of `metrics` is the primary one (names of noscratch.metrics); `pairs`: an example is two texts, each
    encoded alone; protocol: "clean", or "legacy" where a paper's own rule is kept. kind "corpus": text to pretrain on,
    with neither classes nor metrics (noscratch.corpora)."""

    title: str
    sources: tuple[str, ...]
    kind: Literal["classification", "regression", "corpus"]
    classes: int
    metrics: tuple[str, ...]
    inputs: Literal["tokens", "pixels"]
    pretraining: Pretraining
    citation: str
    pairs: bool = False
    protocol: Literal["clean", "legacy"] = "clean"


class Task(Protocol):
    """What the file of a task holds."""

    SPEC: Spec
    Config: type[Any]

    def prepare(self, config: Any, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """Write the prepared task into the folder `out`, from one folder per source name; return the summary of it."""
        ...


def names() -> tuple[str, ...]:
    """Every task, by the name of its file, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def load(name: str) -> Task:
    """The task's module. An unknown name is an error that lists the known ones and the nearest match."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TaskError(f"unknown task {name!r}: {hint}the tasks are {', '.join(known)}")
    return cast(Task, importlib.import_module(f"{__name__}.{name}"))


# ---------------------------------------------------------------- splits


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest(), "big")


def held_out(ids: Sequence[str]) -> NDArray[np.bool_]:
    """Which official training examples form the validation set of the `clean` protocol (HOLD_OUT_RULE)."""
    limit = 2**256 // HOLD_OUT_SHARE
    return np.fromiter((_hash(HOLD_OUT_SEED, name) < limit for name in ids), bool, len(ids))


def prefix(ids: Sequence[str], limit: int) -> NDArray[np.int64]:
    """Rows of the first `limit` examples (0: all) in the seeded order of ids, ascending.

    A smaller limit keeps a subset of what a larger one keeps.
    """
    if limit < 0:
        raise TaskError(f"a limit of examples is 0 (all) or more, got {limit}: correct it in params.yaml")
    rows = np.arange(len(ids), dtype=np.int64)
    if limit == 0 or limit >= len(ids):
        return rows
    order = sorted(range(len(ids)), key=lambda i: _hash(ORDER_SEED, ids[i]))
    return np.sort(rows[order[:limit]])


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """torch.randperm(n, generator=torch.Generator().manual_seed(seed)) without torch: what `random_split` draws from.

    Both libraries seed the same Mersenne Twister; the shuffle is Fisher and Yates' with one 32-bit draw per place.
    """
    generator = np.random.MT19937()
    generator.state = cast(Any, np.random.RandomState(seed).get_state(legacy=False))
    order = list(range(n))
    for i, draw in enumerate(generator.random_raw(max(n - 1, 0)).tolist()):
        j = i + draw % (n - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)


def manifest(rule: str, splits: Mapping[str, Sequence[str]], legacy: bool = False) -> dict[str, Any]:
    """The split manifest: the rule and, for each split, the number of examples and the sha256 over the sorted ids
    (UTF-8, each followed by a line feed). An id that occurs twice is an error: in any two splits, or (`legacy`, where
    the test set may serve for selection) in one."""
    for group in [[ids] for ids in splits.values()] if legacy else [list(splits.values())]:
        every = sorted(name for ids in group for name in ids)
        twice = next((name for name, following in pairwise(every) if name == following), None)
        if twice is not None:
            raise TaskError(f"an id names one example of one split, but {twice!r} occurs more than once")
    return {
        "rule": rule,
        "splits": {
            split: {
                "examples": len(ids),
                "sha256": hashlib.sha256("".join(f"{name}\n" for name in sorted(ids)).encode()).hexdigest(),
            }
            for split, ids in splits.items()
        },
    }


def committed(task: str, rule: str, splits: Mapping[str, Sequence[str]], legacy: bool = False) -> str:
    """The text of splits/<task>.json: the manifest of the full splits with the sorted validation ids (null where they
    are more than LISTED: the rule gives them, the digest holds them), compact JSON."""
    listed = sorted(splits["validation"]) if len(splits["validation"]) <= LISTED else None
    value = {**manifest(rule, splits, legacy), "task": task, "validation": listed}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def check_manifest(task: str, rule: str, splits: Mapping[str, Sequence[str]], legacy: bool = False) -> None:
    """Assert that the full splits (before any limit) are those of the committed manifest splits/<task>.json."""
    path = Path(__file__).parent / "splits" / f"{task}.json"
    if not path.is_file():
        raise TaskError(
            f"{task}: no committed manifest tasks/splits/{task}.json; commit what tasks.committed() returns"
        )
    expected, got = json.loads(path.read_text(encoding="utf-8")), json.loads(committed(task, rule, splits, legacy))
    for key in sorted(expected | got):
        if expected.get(key) != got.get(key):
            raise TaskError(
                f"{task}: the splits differ from the committed manifest tasks/splits/{task}.json in {key!r}: "
                "the official data or the rule of the splits changed; fetch the official data again or restore the rule"
            )


def duplicates(
    train: Sequence[Hashable], test: Sequence[Hashable], train_ids: Sequence[str], test_ids: Sequence[str]
) -> dict[str, Any]:
    """Repeated inputs within and between the official sets, counted and listed.

    train, test: the examples that repeat an earlier one of their set. shared: the distinct inputs that are in both;
    shared_ids: the first train and the first test example of each.
    """
    first_train: dict[Hashable, str] = {}
    first_test: dict[Hashable, str] = {}
    for inputs, ids, first in ((train, train_ids, first_train), (test, test_ids, first_test)):
        for value, name in zip(inputs, ids, strict=True):
            first.setdefault(value, name)
    shared = [[name, first_test[value]] for value, name in first_train.items() if value in first_test]
    return {
        "train": len(train) - len(first_train),
        "test": len(test) - len(first_test),
        "shared": len(shared),
        "shared_ids": sorted(shared),
    }


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Examples:
    """Examples of one split, in order: n ids, their tokens end to end, and where each begins and ends.

    `tokens` is flat, `offsets` has n + 1 entries (example i is tokens[offsets[i]:offsets[i + 1]]), `labels` has n.
    second, second_offsets: the other text of each example, where the task is one of pairs.
    """

    ids: Sequence[str]
    tokens: NDArray[Any]
    offsets: NDArray[Any]
    labels: NDArray[Any]
    second: NDArray[Any] | None = None
    second_offsets: NDArray[Any] | None = None


def write(
    out: Path,
    task: str,
    spec: Spec,
    splits: Mapping[str, Examples | Iterable[Examples]],
    *,
    vocabulary: int,
    eos: int | None,
    length: int,
    rule: str,
    channels: int = 1,
    quarantine: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Write the tables, meta.json and splits.json into the folder `out`; return the summary.

    splits: each split at once, or in parts that are written as they come (one record batch each, so that a split need
    not fit into memory). vocabulary: number of ids, special ones included: pad is 0 and, for tokens, mask is
    vocabulary - 1. channels: numbers at each position (3 for red, green and blue, which follow one another in tokens).
    length: the most positions that an example may have; a longer one, an empty one or an id outside is an error.
    quarantine: (file, reason) of what was set aside. A corpus has the split train alone, and its labels are -1.
    Summary: examples, label counts (mean, least and greatest for a regression) and lengths of each split; quarantine.
    """
    whole = SPLITS[:1] if spec.kind == "corpus" else SPLITS
    if tuple(splits) not in (whole, (*SPLITS, SUBMISSION)):
        raise TaskError(f"{task}: the splits are {', '.join(whole)} in this order, got {', '.join(splits)}")
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    ids: dict[str, list[str]] = {}
    schema = table_schema(spec, vocabulary)
    for split, parts in splits.items():
        labelled = split != SUBMISSION and spec.kind != "corpus"
        described = _Described(f"{task}/{split}", spec, vocabulary, length, channels, labelled)
        with pa.OSFile(str(out / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for part in (parts,) if isinstance(parts, Examples) else parts:
                described.add(part)
                writer.write_batch(_record_batch(part, schema))
        summary[split], ids[split] = described.summary(), described.ids
    meta = {
        "task": task,
        "title": spec.title,
        "sources": list(spec.sources),
        "protocol": spec.protocol,
        "kind": spec.kind,
        "classes": spec.classes,
        "metrics": list(spec.metrics),
        "inputs": spec.inputs,
        "channels": channels,
        "pairs": spec.pairs,
        "submission": SUBMISSION in splits,
        "vocabulary": vocabulary,
        "pad": PAD,
        "mask": vocabulary - 1 if spec.inputs == "tokens" else None,
        "eos": eos,
        "length": length,
        "pretraining": {"ratio": spec.pretraining.ratio, "loss": spec.pretraining.loss},
    }
    write_json(out / "meta.json", meta)
    aside = {"quarantine": [list(entry) for entry in sorted(quarantine)]}
    write_json(out / "splits.json", manifest(rule, ids, spec.protocol == "legacy") | aside)
    return {"vocabulary": vocabulary, "length": length, "splits": summary, **aside}


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, two blanks of indentation and a final line feed."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


class _Described:
    """What is checked about the parts of one split, and their sum."""

    def __init__(self, where: str, spec: Spec, vocabulary: int, length: int, channels: int, labelled: bool) -> None:
        self.where, self.spec, self.vocabulary, self.length = where, spec, vocabulary, length
        self.channels, self.labelled = channels, labelled
        self.ids: list[str] = []
        self.positions = self.longest = 0
        self.shortest = length
        self.counts = np.zeros(spec.classes, np.int64)
        self.values: list[float] = []

    def add(self, part: Examples) -> None:
        n = len(part.ids)
        texts = [(part.tokens, part.offsets)]
        if self.spec.pairs:
            assert part.second is not None
            assert part.second_offsets is not None
            texts.append((part.second, part.second_offsets))
        if n == 0 or part.labels.shape != (n,) or any(offsets.shape != (n + 1,) for _, offsets in texts):
            raise TaskError(
                f"{self.where}: a split has one label and one token list for each of its examples and at least one "
                f"example, got {n} ids, {len(part.labels)} labels, {len(part.offsets) - 1} token lists"
            )
        for tokens, offsets in texts:
            self._add_tokens(tokens, offsets)
        if self.labelled:
            self._add_labels(part.labels)
        elif (part.labels != -1).any():
            raise TaskError(f"{self.where}: these labels are hidden and stored as -1, got others")
        self.ids += part.ids

    def _add_tokens(self, tokens: NDArray[Any], offsets: NDArray[Any]) -> None:
        if offsets[0] != 0 or offsets[-1] != len(tokens):
            raise TaskError(f"{self.where}: the token lists do not cover the {len(tokens)} tokens")
        lengths, odd = np.divmod(np.diff(offsets), self.channels)
        if odd.any():
            raise TaskError(f"{self.where}: a position has {self.channels} tokens, got lists of other lengths")
        if lengths.min() < 1 or lengths.max() > self.length:
            raise TaskError(
                f"{self.where}: an example has 1 to {self.length} tokens, got {lengths.min()} to {lengths.max()}"
            )
        # Among tokens the first id is padding and the last one the mask: neither ever occurs in the data.
        least, most = (1, self.vocabulary - 2) if self.spec.inputs == "tokens" else (0, self.vocabulary - 1)
        if tokens.min() < least or tokens.max() > most:
            raise TaskError(f"{self.where}: a token is one of {least} to {most}, got {tokens.min()} to {tokens.max()}")
        self.positions += int(lengths.sum())
        self.shortest = min(self.shortest, int(lengths.min()))
        self.longest = max(self.longest, int(lengths.max()))

    def _add_labels(self, labels: NDArray[Any]) -> None:
        if self.spec.kind == "regression":
            self.values += labels.tolist()
        elif labels.min() < 0 or labels.max() >= self.spec.classes:
            raise TaskError(
                f"{self.where}: a label is one of 0 to {self.spec.classes - 1}, got {labels.min()} to {labels.max()}"
            )
        else:
            self.counts += np.bincount(labels, minlength=self.spec.classes)

    def summary(self) -> dict[str, Any]:
        n = len(self.ids)
        if n == 0:
            raise TaskError(f"{self.where}: a split has at least one example, got none")
        texts = 2 * n if self.spec.pairs else n
        described: dict[str, Any] = {
            "examples": n,
            "tokens": self.positions,
            "lengths": {"min": self.shortest, "mean": self.positions / texts, "max": self.longest},
        }
        if self.labelled and self.spec.kind == "regression":
            mean = math.fsum(self.values) / n
            described["labels"] = {"min": min(self.values), "mean": mean, "max": max(self.values)}
        elif self.labelled:
            described["labels"] = {str(c): count for c, count in enumerate(self.counts.tolist())}
        return described


def table_schema(spec: Spec, vocabulary: int) -> pa.Schema:
    """id: string; tokens (and, of pairs, second): list of the smallest of uint8, uint16 that holds the vocabulary;
    label: int64, or float32 for a regression. Nothing is ever null."""
    token = pa.field("item", pa.uint8() if vocabulary <= 2**8 else pa.uint16(), nullable=False)
    label = pa.float32() if spec.kind == "regression" else pa.int64()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *(pa.field(name, pa.list_(token), nullable=False) for name in ("tokens", "second")[: 1 + spec.pairs]),
            pa.field("label", label, nullable=False),
        ]
    )


def _record_batch(part: Examples, schema: pa.Schema) -> pa.RecordBatch:
    tokens, label = schema.field("tokens").type, schema.field("label").type

    def lists(values: NDArray[Any], offsets: NDArray[Any]) -> pa.ListArray:
        array = pa.array(values.astype(tokens.value_type.to_pandas_dtype(), copy=False))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array, type=tokens)

    columns = [pa.array(list(part.ids), pa.string()), lists(part.tokens, part.offsets)]
    if part.second is not None and part.second_offsets is not None:
        columns.append(lists(part.second, part.second_offsets))
    columns.append(pa.array(part.labels.astype(label.to_pandas_dtype(), copy=False)))
    return pa.record_batch(columns, schema=schema)
