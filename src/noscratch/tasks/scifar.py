"""sCIFAR: the class of a CIFAR-10 image in colour, read pixel by pixel: 1024 positions of red, green and blue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from noscratch.tasks import Examples, Pretraining, Spec, _cifar, write

SPEC = Spec(
    title="sCIFAR: CIFAR-10 in colour, pixel by pixel",
    sources=("cifar10",),
    kind="classification",
    classes=10,
    metrics=("accuracy",),
    inputs="pixels",
    pretraining=Pretraining(ratio=0.5, loss="l1"),
    citation=_cifar.CITATION,
)
CHANNELS = 3


@dataclass(frozen=True)
class Config:
    """source: cifar10, or cifar10-jpeg (another task: its pixels are not the official ones). partial: only the first
    1,017 images of each batch. protocol: clean, or legacy for the random split of S4. train, validation, test: examples
    kept, 0 for all."""

    source: str = "cifar10"
    partial: bool = False
    protocol: str = "clean"
    train: int = 0
    validation: int = 0
    test: int = 0


def prepare(config: Config, raw: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Read the batches in the folder raw[config.source], check them, split them, write three numbers per pixel."""
    title = SPEC.title + _cifar.variant(config)
    spec = replace(SPEC, title=title, sources=(config.source,), protocol=cast(Any, config.protocol))
    splits, rule = _cifar.prepare(config, raw)
    examples = {
        name: Examples(
            part.ids, part.pixels.reshape(-1), np.arange(len(part.ids) + 1) * CHANNELS * _cifar.PIXELS, part.labels
        )
        for name, part in splits.items()
    }
    return write(
        out, "scifar", spec, examples, vocabulary=256, eos=None, length=_cifar.PIXELS, rule=rule, channels=CHANNELS
    )
