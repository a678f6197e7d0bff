"""ListOps: the value, 0 to 9, of nested operations on lists of digits. Generated as in Long Range Arena."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from noscratch.tasks import SPLITS, Examples, Pretraining, Spec, TaskError, write

SPEC = Spec(
    title="ListOps",
    sources=(),
    kind="classification",
    classes=10,
    metrics=("accuracy",),
    inputs="tokens",
    pretraining=Pretraining(ratio=0.10, loss="cross-entropy"),
    citation="Nangia and Bowman 2018, arXiv:1804.06028; Tay et al. 2020, arXiv:2011.04006",
)
RULE = "examples in the order in which they were made, repetitions dropped: first train, then validation, then test"

# Token ids: 0 pad, 1 to 15 the symbols of the generator, 16 the end of the sequence, 17 mask.
EOS = 16
VOCABULARY = 18
PART = 1000


@dataclass(frozen=True)
class Config:
    """Examples per split; the lengths, end mark not counted, are strictly between the two; seed of the data."""

    train: int = 96_000
    validation: int = 2_000
    test: int = 2_000
    min_length: int = 500
    max_length: int = 2_000
    seed: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Generate the three splits. Raises TaskError where there are too few different expressions of these lengths."""
    from noscratch.generators import in_parts, listops

    wanted = [config.train, config.validation, config.test]
    ids: list[str] = []
    seen: set[bytes] = set()
    tokens, labels = [], []
    make = partial(listops.generate, config.seed, min_length=config.min_length, max_length=config.max_length)
    parts = in_parts(make, 0, 10 * sum(wanted), PART)
    index = 0
    for part in parts:
        for symbols, length, label in zip(*part, strict=True):
            key = hashlib.blake2b(symbols[:length].tobytes(), digest_size=16).digest()
            if key not in seen and len(ids) < sum(wanted):
                seen.add(key)
                tokens.append(np.append(symbols[:length] + np.uint8(1), np.uint8(EOS)))
                labels.append(label)
                ids.append(f"{index:07d}")
            index += 1
        if len(ids) == sum(wanted):
            break
    else:
        raise TaskError(
            f"ListOps needs {sum(wanted)} different expressions of lengths between {config.min_length} and "
            f"{config.max_length}; found {len(ids)} in {index}. Widen the lengths or ask for fewer examples."
        )
    ends = np.cumsum(wanted)
    splits = {}
    for split, stop, count in zip(SPLITS, ends, wanted, strict=True):
        own = slice(stop - count, stop)
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens[own]])])
        splits[split] = Examples(ids[own], np.concatenate(tokens[own]), offsets, np.array(labels[own]))
    return write(out, "listops", SPEC, splits, vocabulary=VOCABULARY, eos=EOS, length=config.max_length, rule=RULE)
