"""Tasks: one file per name, each with `SPEC`, `Config` and `prepare`; what they share is here.

A task turns raw files into three memory-mappable token tables, a description and a split manifest:

    {train,validation,test}.arrow   Arrow IPC file, uncompressed: id, tokens, label (table_schema)
    meta.json                       what a model must know: kind, classes, metrics, vocabulary, special ids, length
    splits.json                     which examples are in which split: the rule, count and sha256 over the sorted ids

The same configuration and raw files give the same bytes, whatever the machine.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import math
import pkgutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noscratch.errors import NoscratchError

SPLITS = ("train", "validation", "test")
PAD = 0

# Holding out and keeping a prefix are pure functions of an example's id, so that no list has to be drawn or stored.
HOLD_OUT_SEED = 0
HOLD_OUT_SHARE = 10  # one in ten
ORDER_SEED = 1
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
    the first of `metrics` is the primary one (names of noscratch.metrics)."""

    title: str
    sources: tuple[str, ...]
    kind: Literal["classification", "regression"]
    classes: int
    metrics: tuple[str, ...]
    inputs: Literal["tokens", "pixels"]
    pretraining: Pretraining
    citation: str
    protocol: str = "clean"


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


def manifest(rule: str, splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The split manifest: the rule and, for each split, the number of examples and the sha256 over the sorted ids
    (UTF-8, each followed by a line feed). An id that occurs twice is an error."""
    every = sorted(name for ids in splits.values() for name in ids)
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


def committed(task: str, rule: str, splits: Mapping[str, Sequence[str]]) -> str:
    """The text of splits/<task>.json: the manifest of the full splits with the sorted validation ids, compact JSON."""
    value = {**manifest(rule, splits), "task": task, "validation": sorted(splits["validation"])}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"


def check_manifest(task: str, rule: str, splits: Mapping[str, Sequence[str]]) -> None:
    """Assert that the full splits (before any limit) are those of the committed manifest splits/<task>.json."""
    path = Path(__file__).parent / "splits" / f"{task}.json"
    if not path.is_file():
        raise TaskError(
            f"{task}: no committed manifest tasks/splits/{task}.json; commit what tasks.committed() returns"
        )
    expected, got = json.loads(path.read_text(encoding="utf-8")), json.loads(committed(task, rule, splits))
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
    """The examples of one split, in order: n ids, their tokens end to end, and where each begins and ends.

    `tokens` is flat, `offsets` has n + 1 entries (example i is tokens[offsets[i]:offsets[i + 1]]), `labels` has n.
    """

    ids: Sequence[str]
    tokens: NDArray[Any]
    offsets: NDArray[Any]
    labels: NDArray[Any]


def write(
    out: Path,
    task: str,
    spec: Spec,
    splits: Mapping[str, Examples],
    *,
    vocabulary: int,
    eos: int | None,
    length: int,
    rule: str,
) -> dict[str, Any]:
    """Write the three tables, meta.json and splits.json into the folder `out`; return the summary.

    vocabulary: number of ids, special ones included: pad is 0 and, for tokens, mask is vocabulary - 1.
    length: the most tokens that an example may have; a longer one, an empty one or an id outside is an error.
    Summary: examples, label counts (mean, least and greatest for a regression) and token lengths of each split.
    """
    if tuple(splits) != SPLITS:
        raise TaskError(f"{task}: the splits are {', '.join(SPLITS)} in this order, got {', '.join(splits)}")
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {}
    for split, examples in splits.items():
        summary[split] = _describe(f"{task}/{split}", spec, examples, vocabulary, length)
        _write_table(out / f"{split}.arrow", examples, table_schema(spec, vocabulary))
    meta = {
        "task": task,
        "kind": spec.kind,
        "classes": spec.classes,
        "metrics": list(spec.metrics),
        "inputs": spec.inputs,
        "vocabulary": vocabulary,
        "pad": PAD,
        "mask": vocabulary - 1 if spec.inputs == "tokens" else None,
        "eos": eos,
        "length": length,
        "pretraining": {"ratio": spec.pretraining.ratio, "loss": spec.pretraining.loss},
    }
    write_json(out / "meta.json", meta)
    write_json(out / "splits.json", manifest(rule, {split: examples.ids for split, examples in splits.items()}))
    return {"vocabulary": vocabulary, "length": length, "splits": summary}


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, two blanks of indentation and a final line feed."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe(where: str, spec: Spec, examples: Examples, vocabulary: int, length: int) -> dict[str, Any]:
    """Check one split and sum it up."""
    n = len(examples.ids)
    lengths = np.diff(examples.offsets)
    if n == 0 or examples.labels.shape != (n,) or examples.offsets.shape != (n + 1,):
        raise TaskError(
            f"{where}: a split has one label and one token list for each of its examples and at least one example, "
            f"got {n} ids, {len(examples.labels)} labels, {len(lengths)} token lists"
        )
    if examples.offsets[0] != 0 or examples.offsets[-1] != len(examples.tokens):
        raise TaskError(f"{where}: the token lists do not cover the {len(examples.tokens)} tokens")
    if lengths.min() < 1 or lengths.max() > length:
        raise TaskError(f"{where}: an example has 1 to {length} tokens, got {lengths.min()} to {lengths.max()}")
    # Among tokens the first id is padding and the last one the mask: neither ever occurs in the data.
    least, most = (1, vocabulary - 2) if spec.inputs == "tokens" else (0, vocabulary - 1)
    if examples.tokens.min() < least or examples.tokens.max() > most:
        raise TaskError(
            f"{where}: a token is one of {least} to {most}, got {examples.tokens.min()} to {examples.tokens.max()}"
        )
    described: dict[str, Any] = {
        "examples": n,
        "tokens": int(lengths.sum()),
        "lengths": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
    }
    labels = examples.labels
    if spec.kind == "regression":
        mean = math.fsum(labels.tolist()) / n
        described["labels"] = {"min": float(labels.min()), "mean": mean, "max": float(labels.max())}
        return described
    if labels.min() < 0 or labels.max() >= spec.classes:
        raise TaskError(f"{where}: a label is one of 0 to {spec.classes - 1}, got {labels.min()} to {labels.max()}")
    described["labels"] = {str(c): int(count) for c, count in enumerate(np.bincount(labels, minlength=spec.classes))}
    return described


def table_schema(spec: Spec, vocabulary: int) -> pa.Schema:
    """id: string; tokens: list of the smallest of uint8, uint16 that holds the vocabulary; label: int64, or float32
    for a regression. Nothing is ever null."""
    token = pa.field("item", pa.uint8() if vocabulary <= 2**8 else pa.uint16(), nullable=False)
    label = pa.float32() if spec.kind == "regression" else pa.int64()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(token), nullable=False),
            pa.field("label", label, nullable=False),
        ]
    )


def _write_table(path: Path, examples: Examples, schema: pa.Schema) -> None:
    """One Arrow IPC file with one record batch."""
    tokens, label = schema.field("tokens").type, schema.field("label").type
    values = pa.array(examples.tokens.astype(tokens.value_type.to_pandas_dtype(), copy=False))
    offsets = pa.array(examples.offsets, pa.int32())
    columns = [
        pa.array(list(examples.ids), pa.string()),
        pa.ListArray.from_arrays(offsets, values, type=tokens),
        pa.array(examples.labels.astype(label.to_pandas_dtype(), copy=False)),
    ]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
