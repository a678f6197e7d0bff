"""ListOps: the value, 0 to 9, of nested operations on lists of digits.

Generated as in Long Range Arena; or (`source: lra-listops`) the files of the release, which are another task: the two
are never mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from noscratch.tasks import SPLITS, Examples, Pretraining, Spec, TaskError, check_manifest, prefix, write

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

RELEASE = "lra-listops"
FILES = dict(zip(SPLITS, ("train", "val", "test"), strict=True))
ROWS = {"train": 96_000, "validation": 2_000, "test": 2_000}
RELEASE_RULE = "the three files of the release: train, val (validation), test"


@dataclass(frozen=True)
class Config:
    """source: generated, or lra-listops. Examples per split, at most those of the release. min_length, max_length,
    seed: of generated examples, whose lengths, end mark not counted, are strictly between the two."""

    source: str | None = None
    train: int = 96_000
    validation: int = 2_000
    test: int = 2_000
    min_length: int = 500
    max_length: int = 2_000
    seed: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Generate or read the three splits. Raises TaskError where there are too few different expressions of these
    lengths, or for files that are not those of the release."""
    if config.source is not None:
        return _prepare_release(config, raw, out)
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
    spec = replace(SPEC, title="ListOps, generated")
    return write(out, "listops", spec, splits, vocabulary=VOCABULARY, eos=EOS, length=config.max_length, rule=RULE)


def _prepare_release(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read basic_{train,val,test}.tsv and write the rows that are kept."""
    from noscratch.generators import listops

    if config.source != RELEASE or (config.min_length, config.max_length, config.seed) != (500, 2_000, 0):
        raise TaskError(
            f"the source of ListOps is {RELEASE}, whose lengths are 500 to 2000 and which has no seed; got "
            f"{config.source!r}: correct it in params.yaml"
        )
    ids = {split: [f"{FILES[split]}/{row}" for row in range(count)] for split, count in ROWS.items()}
    check_manifest("listops-official", RELEASE_RULE, ids)
    splits = {}
    for split in SPLITS:
        path = raw[RELEASE] / f"basic_{FILES[split]}.tsv"
        kept = set(prefix(ids[split], getattr(config, split)).tolist())
        names, tokens, labels = [], [], []
        row = -1
        for row, (symbols, label) in enumerate(listops.read_tsv(path)):
            if row in kept:
                names.append(ids[split][row])
                tokens.append(np.append(symbols + np.uint8(1), np.uint8(EOS)))
                labels.append(label)
        if row + 1 != ROWS[split]:
            raise TaskError(f"{path.name}: the official file has {ROWS[split]} rows, got {row + 1}. Fetch it again")
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
        splits[split] = Examples(names, np.concatenate(tokens), offsets, np.array(labels))
    spec = replace(SPEC, title="ListOps, the release", sources=(RELEASE,))
    return write(
        out, "listops", spec, splits, vocabulary=VOCABULARY, eos=EOS, length=config.max_length, rule=RELEASE_RULE
    )
