"""Folders of runs by the contract, without training: record.json, curves.csv, predictions.parquet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noscratch.metrics import score

EXAMPLES = 200
BLOCKED = "not asked for (network off, no mirror)"


def write_run(
    root: Path,
    cell: tuple[str, str, str, str, int],
    phase: str = "finetune",
    state: str = "done",
    right: int = EXAMPLES // 2,
    metrics: tuple[str, ...] = ("accuracy",),
) -> Path:
    """Write one run of `cell` (tier, task, backbone, protocol, seed) below `root`; returns its folder.

    Its test predictions name `right` of 200 classes rightly; with right=0 they are one constant.
    """
    names = dict(zip(("tier", "task", "backbone", "protocol", "seed"), cell, strict=True))
    folder = root.joinpath(*map(str, cell[:-1]), f"seed{cell[-1]}", phase)
    folder.mkdir(parents=True)
    draw = np.random.default_rng(int.from_bytes(_digest(repr(cell).encode())[:4].encode(), "big"))
    result: dict[str, Any] = {}
    if state == "done":
        splits = ("train",) if phase == "pretrain" else ("validation", "test")
        result = {
            "phase": phase,
            "metrics": {split: {"loss": draw.uniform(0.5, 2.0)} for split in splits},
            "primary": "loss" if phase == "pretrain" else metrics[0],
            "selection": {"rule": "highest validation, the earliest of equals", "step": 10, "value": 0.5},
            "examples": dict.fromkeys(splits, EXAMPLES),
            "counts": {"parameters": 1234, "steps": 20, "tokens_real": 4000, "tokens_computed": 4100, "flops": 1.5e9},
            "kernels": {"attention": "fast"},
        }
        curve = [f"{step},train,loss,{draw.uniform()!r}" for step in (0, 10, 20)]
        if phase == "finetune":
            curve += [f"{step},validation,{metrics[0]},{draw.uniform()!r}" for step in (0, 10, 20)]
        (folder / "curves.csv").write_text("\n".join(["step,split,metric,value", *curve]) + "\n")
        if phase == "finetune":
            target = np.arange(EXAMPLES, dtype=np.float64) % 2
            guess = np.where(np.arange(EXAMPLES) < right, target, 1 - target) if right else np.ones(EXAMPLES)
            for split in splits:
                result["metrics"][split] |= {metric: score(metric, target, guess) for metric in metrics}
            columns = {
                "id": [f"{cell[1]}-{split}-{i}" for split in splits for i in range(EXAMPLES)],
                "split": [split for split in splits for _ in range(EXAMPLES)],
                "target": np.tile(target, 2),
                "prediction": np.tile(guess, 2),
            }
            pq.write_table(pa.table(columns), folder / "predictions.parquet")
    needs = {"prepared": _digest(str(cell[1]).encode())[:12]}
    if phase == "finetune" and str(cell[3]).startswith("spt"):
        needs["pretrained"] = _address(cell, "pretrain")
    record = {
        "schema": 1,
        "kind": phase,
        "address": _address(cell, phase),
        "name": "-".join([phase, *map(str, cell)]),
        "cell": names,
        "settings": {"phase": phase, **names},
        "code": "0" * 64,
        "modules": [],
        "needs": needs,
        "inputs": {},
        "state": state,
        "reason": None if state == "done" else BLOCKED,
        "artifacts": {},
        "result": result,
    }
    write_record(folder, record)
    return folder


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write record.json with the digests of what lies beside it."""
    files = sorted(path for path in folder.iterdir() if path.name != "record.json")
    record["artifacts"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path.read_bytes())} for path in files
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _address(cell: tuple[Any, ...], phase: str) -> str:
    return _digest(f"{phase} {cell}".encode())[:12]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
