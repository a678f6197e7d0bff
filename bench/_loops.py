"""Training steps on the same model and data: this project's, and one as people write it in ordinary PyTorch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench import plain
from noscratch import model as models
from noscratch import sources, tasks
from noscratch.data import Batch, Split
from noscratch.objectives import classify
from noscratch.optim import AdamW
from noscratch.plan import resolved_backend

LR, WEIGHT_DECAY, CLIP = 1e-3, 0.01, 1.0

Index = NDArray[np.int64]


def build(meta: Mapping[str, Any], backbone: str, d_model: int, layers: int, seed: int = 0) -> models.Model:
    """A model that classifies from scratch, its parameters drawn from the seed."""
    settings = {
        "backbone": backbone,
        "backbone_config": {},
        "protocol": "scratch",
        "objective": "classify",
        "model": {"d_model": d_model, "layers": layers, "dropout": 0.0},
        "backend": resolved_backend("auto"),
    }
    return models.build_model(meta, settings, seed)


def plain_model(model: models.Model, length: int) -> models.Model:
    """A copy of the model, its blocks in ordinary PyTorch for sequences of `length`."""
    made = copy.deepcopy(model)
    made.blocks = nn.ModuleList(plain.block_of(block, length) for block in made.blocks)
    return made


class Ours:
    """The step of noscratch.train: kernels, fused optimizer and all."""

    def __init__(self, model: models.Model, kind: str) -> None:
        self.model, self.kind = model.train(), kind
        self.optimizer = AdamW(model, LR, WEIGHT_DECAY)

    def step(self, batch: Batch, weight: float = 1.0) -> float:
        """One update on the mean loss times `weight`; the sum of the losses."""
        outcome = classify(self.model, batch, self.kind)
        outcome.total.backward()
        total = outcome.total.item()
        self.optimizer.scale(weight / outcome.terms)
        norm = self.optimizer.norm()
        assert norm.isfinite()
        self.optimizer.clip(norm, CLIP)
        self.optimizer.step()
        return total


class Plain:
    """The step of a loop in ordinary PyTorch, eager, float32."""

    def __init__(self, model: models.Model, kind: str) -> None:
        self.model, self.kind = model.train(), kind
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)

    def step(self, tokens: Tensor, mask: Tensor, label: Tensor) -> float:
        """One update on the mean loss of tokens (B, L); the mean loss."""
        self.optimizer.zero_grad()
        output = self.model.head(self.model.pool(self.model(tokens, mask), mask))
        if self.kind == "classification":
            loss = functional.cross_entropy(output, label)
        else:
            loss = functional.mse_loss(output.squeeze(-1), label.float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()


def padded(split: Split, index: Index, longest: int) -> Batch:
    """The batch of these examples, padded to the longest of the task."""
    batch = split.batch(index)
    more = (0, longest - batch.mask.shape[1])
    tokens, mask = functional.pad(batch.tokens, more), functional.pad(batch.mask, more)
    return Batch(index, tokens, mask, batch.label, batch.real, ((torch.arange(len(index)), longest),))


def fixed(meta: Mapping[str, Any], size: int, length: int, seed: int = 0) -> Batch:
    """A batch of random tokens without padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, meta["vocabulary"] - 1, (size, length), generator=generator)
    label = torch.randint(0, meta["classes"], (size,), generator=generator)
    mask = torch.ones(size, length, dtype=torch.bool)
    return Batch(np.arange(size), tokens, mask, label, size * length, ((torch.arange(size), length),))


def spread(batches: Sequence[Index], lengths: Index, count: int) -> list[Index]:
    """`count` of the batches (all, if fewer), spread evenly over their order by longest example."""
    ordered = sorted(batches, key=lambda index: int(lengths[index].max()))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def prepare(task: str, out: Path, mirror: str | None, data: Mapping[str, Any]) -> None:
    """Prepare a task from the mirror's sources into the folder `out`; raises sources.Blocked where one is missing."""
    module = tasks.load(task)
    with tempfile.TemporaryDirectory() as scratch:
        raw = {name: Path(scratch) / name for name in module.SPEC.sources}
        for name, folder in raw.items():
            sources.fetch(name, folder, network=False, mirror=mirror, progress=False)
        module.prepare(module.Config(**data), raw, out)
