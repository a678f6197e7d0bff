"""Prepared tasks of a few hundred short sequences, in the form that `prepare` writes, for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SIZES = {"train": 96, "validation": 24, "test": 24}


def write_task(
    folder: Path,
    *,
    inputs: str = "tokens",
    kind: str = "classification",
    length: int = 24,
    shortest: int = 6,
    vocabulary: int = 12,
    loss: str = "cross-entropy",
    channels: int = 1,
    pairs: bool = False,
    sizes: dict[str, int] | None = None,
    **meta: Any,
) -> Path:
    """A task that can be learned: the class says whether ids of the upper half prevail, a value is their share.

    Pixels all have `length`, tokens from `shortest` to `length`. The class of a pair says whether they prevail in both
    texts or in neither. Labels of a split `submission` are hidden (-1). A file has parts of 40 examples. `meta`
    replaces entries of meta.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = inputs == "pixels"
    vocabulary = 256 if pixels else vocabulary
    low, high = (0, 256) if pixels else (1, vocabulary - 1)
    for number, (split, size) in enumerate((sizes or SIZES).items()):
        random = np.random.default_rng([number, length])
        columns: dict[str, pa.Array] = {"id": pa.array([f"{split}-{i}" for i in range(size)])}
        shares = []
        for column in ("tokens", "second")[: 1 + pairs]:
            lengths = np.full(size, channels * length) if pixels else random.integers(shortest, length + 1, size)
            tokens = [random.integers(low, high, n) for n in lengths]
            columns[column] = pa.array(tokens, pa.list_(pa.uint8() if pixels else pa.uint16()))
            shares.append(np.array([np.sum(row >= (low + high) / 2) / max(len(row), 1) for row in tokens]))
        hidden = split == "submission"
        classes = (shares[0] > 0.5) == (shares[1] > 0.5) if pairs else shares[0] > 0.5
        regression = kind == "regression"
        label = shares[0] if regression else classes.astype(np.int64)
        columns["label"] = pa.array(np.full(size, -1) if hidden else label, pa.float32() if regression else pa.int64())
        table = pa.table(columns)
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=40)
    described = {
        "task": "tiny",
        "kind": kind,
        "classes": 1 if kind == "regression" else 2,
        "metrics": ["pearson", "spearman"] if kind == "regression" else ["accuracy", "matthews", "f1"],
        "inputs": inputs,
        "channels": channels,
        "pairs": pairs,
        "vocabulary": vocabulary,
        "pad": 0,
        "mask": None if pixels else vocabulary - 1,
        "eos": None,
        "length": length,
        "pretraining": {"ratio": 0.3, "loss": loss},
        "submission": "submission" in (sizes or SIZES),
    }
    (folder / "meta.json").write_text(json.dumps(described | meta))
    return folder


def settings(
    phase: str = "finetune", objective: str = "classify", backbone: str = "transformer", **changes: Any
) -> dict[str, Any]:
    """What `train.run` is told, small; `changes` replace entries, those of model and train by their own names."""
    made: dict[str, Any] = {
        "phase": phase,
        "objective": objective,
        "tier": "smoke",
        "task": "tiny",
        "backbone": backbone,
        "protocol": "scratch",
        "seed": 0,
        "backbone_config": {"heads": 2} if backbone == "transformer" else {"d_state": 8} if backbone == "s4d" else {},
        "model": {"d_model": 16, "layers": 1, "dropout": 0.1},
        "train": {
            "steps": 12,
            "batch_tokens": 256,
            "lr": 0.01,
            "weight_decay": 0.01,
            "warmup": 2,
            "schedule": "cosine",
            "clip": 1.0,
            "evaluate_every": 4,
            "micro_tokens": None,
        },
        "dtype": "float32",
        "threads": 1,
        "deterministic": True,
        "backend": "auto",
    }
    for key, value in changes.items():
        section = next((made[part] for part in ("model", "train") if key in made[part]), made)
        section[key] = value
    return made
