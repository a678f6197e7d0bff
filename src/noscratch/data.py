"""Prepared examples: one split memory-mapped at a time, and batches as a pure function of (seed, epoch)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from noscratch.errors import NoscratchError

WINDOW = 64
"""Batches per shuffled window, within which examples are sorted by length: longer windows pad less, but mix less."""

REAL = 0.95
"""Least share of what is computed together that is real: a batch, or a part of one of pairs, ends before it is less."""

ORDER, MASK = 1, 2
"""First keys of `uniform`: what the numbers are for."""


class DataError(NoscratchError):
    """A prepared task that is missing or not in the form that `prepare` writes."""


def uniform(*keys: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each combination of keys, broadcast; a pure function of them on every platform.

    The finalizer of SplitMix64 (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195) folded over the keys.
    """
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = (state ^ np.asarray(key, np.int64).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def read_meta(prepared: Path) -> dict[str, Any]:
    """meta.json of a prepared task."""
    path = prepared / "meta.json"
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"A prepared task has a meta.json; reading {path} gave: {error}. Run `noscratch prepare` again."
        ) from error
    return meta


@dataclass(frozen=True)
class Batch:
    """B examples as R sequences, padded on the right to the longest of them.

    R is B, or 2 B for pairs: all first texts, then all second ones, for one encoder.
    """

    index: NDArray[np.int64]
    """(B,): which examples of the split."""
    tokens: Tensor
    """(R, L), or (R, L, channels) for pixels of several numbers each; int64, 0 at padding."""
    mask: Tensor
    """(R, L), bool; True at real positions."""
    label: Tensor
    """(B,): int64 class or float32 value."""
    real: int
    """Number of real positions."""
    parts: tuple[tuple[Tensor, int], ...]
    """Which rows are encoded together, and the length that does for them: one part, but for pairs, where a text may be
    much longer than its partner."""

    @property
    def padding(self) -> Tensor | None:
        """The mask, or None where it would hide nothing."""
        return None if self.real == self.mask.numel() else self.mask

    def to(self, device: torch.device) -> Batch:
        tokens, mask, label = (part.to(device, non_blocking=True) for part in (self.tokens, self.mask, self.label))
        parts = tuple((rows.to(device, non_blocking=True), length) for rows, length in self.parts)
        return Batch(self.index, tokens, mask, label, self.real, parts)


class Split:
    """One split of a prepared task. Only its own file is opened; tokens stay on disk until a batch needs them.

    `alone`: each text of a pair is an example by itself, first all first ones, then all second ones; both have the
    label of the pair.
    """

    def __init__(self, prepared: Path, name: str, alone: bool = False) -> None:
        self.name = name
        path = prepared / f"{name}.arrow"
        meta = read_meta(prepared)
        columns = ("tokens", "second") if meta["pairs"] else ("tokens",)
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            # A file has several parts where it is large: joining them would copy it into memory.
            parts = [self._table.column(column).chunks for column in columns]
            # to_numpy() would do the same and import pandas, which costs every process half a second.
            texts = [[(np.from_dlpack(part.offsets), np.from_dlpack(part.values)) for part in text] for text in parts]
            labels = np.from_dlpack(self._table.column("label").combine_chunks())
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(
                f"A prepared split is an Arrow file with id, {', '.join(columns)} and label; reading {path} gave: "
                f"{error}. Run `noscratch prepare` again."
            ) from error
        self._texts: list[list[tuple[NDArray[Any], NDArray[Any]]]] = texts
        self._labels: NDArray[Any] = labels
        self._channels: int = meta["channels"]
        self.rows = 1 if alone else len(texts)
        """Sequences of an example: two for a pair."""
        self._firsts = list(itertools.accumulate(map(len, parts[0][:-1]), initial=0))
        sizes = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for text in texts for offsets, _ in text)])
        if not len(sizes) or sizes.min() < 1:
            raise DataError(f"A split has examples, each of at least one token; {path} does not. Prepare it again.")
        self._lengths = sizes // self._channels
        self.lengths: NDArray[np.int64] = self.rows * self._lengths.reshape(self.rows, -1).max(axis=0)
        """(n,): positions of each example in a batch of which it is the longest: of a pair, twice the longer text."""

    def __len__(self) -> int:
        return len(self.lengths)

    def sequence_lengths(self) -> NDArray[np.int64]:
        """Every length that a part of a batch can have, ascending."""
        return np.unique(self._lengths)

    def real(self, index: NDArray[np.int64]) -> int:
        """Number of real positions of these examples."""
        return int(self._lengths[self._sequences(index)].sum())

    def shapes(self, index: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Sequences and length of each part of the batch of these examples, without reading them."""
        lengths = self._lengths[self._sequences(index)]
        return [(len(rows), int(lengths[rows].max())) for rows in self._parts(lengths)]

    def _sequences(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        # Texts are numbered through both columns, whether they come in pairs or alone.
        return np.concatenate([index + row * len(self) for row in range(self.rows)])

    def _parts(self, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        if self.rows == 1:
            return [np.arange(len(lengths))]
        return cut(np.argsort(lengths, kind="stable"), lengths, len(lengths) * int(lengths.max()))

    def ids(self) -> pa.StringArray:
        return self._table.column("id").combine_chunks()

    def targets(self) -> NDArray[np.float64]:
        """(n,): class indices or values."""
        return self._labels.astype(np.float64)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        sequences = self._sequences(index)
        lengths = self._lengths[sequences]
        mask = np.arange(lengths.max()) < lengths[:, None]
        tokens: NDArray[np.int64] = np.zeros((*mask.shape, self._channels), np.int64)
        columns, examples = np.divmod(sequences, len(self._labels))
        pieces = np.searchsorted(self._firsts, examples, side="right") - 1
        # One copy for each piece of the file, not for each row: a batch of short texts has a thousand of them.
        for column, piece in sorted({*zip(columns.tolist(), pieces.tolist(), strict=True)}):
            here = (columns == column) & (pieces == piece)
            offsets, values = self._texts[column][piece]
            sizes = self._channels * lengths[here]
            starts = offsets[examples[here] - self._firsts[piece]] - (sizes.cumsum() - sizes)
            found = values[np.repeat(starts, sizes) + np.arange(sizes.sum())]
            tokens[mask & here[:, None]] = found.reshape(-1, self._channels)
        if self._channels == 1:
            tokens = tokens.squeeze(-1)
        label = torch.from_numpy(self._labels[index % len(self._labels)])
        parts = tuple((torch.from_numpy(rows), int(lengths[rows].max())) for rows in self._parts(lengths))
        return Batch(index, torch.from_numpy(tokens), torch.from_numpy(mask), label, int(lengths.sum()), parts)


def cut(order: NDArray[np.int64], lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Consecutive runs of `order`, whose lengths ascend, as long as count times longest stays within batch_tokens and
    the sum of the lengths is at least REAL of that.

    An example that is longer than batch_tokens is a batch by itself.
    """
    batches, start, real = [], 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        computed = (end + 1 - start) * length
        if end > start and (computed > batch_tokens or real + length < REAL * computed):
            batches.append(order[start:end])
            start, real = end, 0
        real += length
    return [*batches, order[start:]]


def epoch_batches(lengths: NDArray[np.int64], batch_tokens: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Every example once, in batches of similar length: shuffle, sort within windows, cut, shuffle the batches."""
    n = len(lengths)
    order = np.argsort(uniform(ORDER, seed, epoch, np.arange(n)), kind="stable")
    window = max(1, int(WINDOW * batch_tokens / lengths.mean()))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, n, window):
        part = order[start : start + window]
        batches += cut(part[np.argsort(lengths[part], kind="stable")], lengths, batch_tokens)
    shuffled = np.argsort(uniform(ORDER, seed, epoch, n + np.arange(len(batches))), kind="stable")
    return [batches[i] for i in shuffled]


def training_batches(
    lengths: NDArray[np.int64], batch_tokens: int, seed: int, step: int
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(epoch, number of batches in the epoch, examples) for `step`, step + 1, ... without end."""
    epoch = 0
    while True:
        batches = epoch_batches(lengths, batch_tokens, seed, epoch)
        for index in batches[step:]:
            yield epoch, len(batches), index
        step = max(0, step - len(batches))
        epoch += 1


def evaluation_batches(lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Every example once, sorted by length."""
    return cut(np.argsort(lengths, kind="stable"), lengths, batch_tokens)
