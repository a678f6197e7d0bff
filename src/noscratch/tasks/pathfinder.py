"""Pathfinder: are the two marked ends those of one dashed contour? Generated as in Long Range Arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from noscratch.tasks import SPLITS, Examples, Pretraining, Spec, write

SPEC = Spec(
    title="Pathfinder",
    sources=(),
    kind="classification",
    classes=2,
    metrics=("accuracy",),
    inputs="pixels",
    pretraining=Pretraining(ratio=0.5, loss="cross-entropy"),
    citation="Linsley et al. 2018, arXiv:1805.08315; Tay et al. 2020, arXiv:2011.04006",
)
RULE = "examples in the order in which they were made: first train, then validation, then test"
PART = 100


@dataclass(frozen=True)
class Config:
    """Side of the image (32, 64, 128 or 256); examples per split; distractor snakes (null: the resolution's own number,
    5, 5, 8 or 7); seed of the data."""

    resolution: int = 32
    train: int = 160_000
    validation: int = 20_000
    test: int = 20_000
    distractors: int | None = None
    seed: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Generate the three splits: images row by row, one token per pixel."""
    from noscratch.generators import in_parts, pathfinder

    make = partial(pathfinder.generate, config.seed, size=config.resolution, distractors=config.distractors)
    length = config.resolution**2
    splits = {}
    start = 0
    for split, count in zip(SPLITS, (config.train, config.validation, config.test), strict=True):
        tokens = np.empty(count * length, np.uint8)
        labels = np.empty(count, np.int64)
        done = 0
        for part in in_parts(make, start, start + count, PART):
            labels[done : done + len(part.labels)] = part.labels
            tokens[done * length : (done + len(part.labels)) * length] = part.images.ravel()
            done += len(part.labels)
        ids = [f"{index:07d}" for index in range(start, start + count)]
        splits[split] = Examples(ids, tokens, np.arange(count + 1) * length, labels)
        start += count
    return write(out, "pathfinder", SPEC, splits, vocabulary=256, eos=None, length=length, rule=RULE)
