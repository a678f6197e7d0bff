"""A checkout with results but no training: records, predictions and curves made up, reports by collect and judge."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from noscratch.results import parquet_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = 200
BLOCKED = "not asked for (network off, no mirror)"
DIVERGED = "the loss is not finite at step 12"

CLAIMS = """\
paper: spt
title: Never Train from Scratch
arxiv: "2310.02980"
sources:
  P1text: the paper's text
claims:
  - id: spt-gain
    version: 1
    statement: Self-pretraining lifts the Transformer on ListOps by more than 8 points.
    where: Table 2
    source: P1text
    status: S1
    kind: difference
    unit: points
    test: {rule: greater, margin: 0.0, why: the paper's least gain}
    cells: {backbone: transformer, protocol: spt-masked}
    against: {backbone: transformer, protocol: scratch}
    values: {listops: 8.0, pathfinder: 8.0}
    seeds: 2
    tier: mini
  - id: spt-s4d
    version: 1
    statement: A diagonal state-space model from scratch reaches 60.2 on ListOps.
    where: Table 1
    source: P1text
    status: S1
    kind: accuracy
    unit: percent
    test: {rule: equivalent, margin: 2.0, why: twice the spread over seeds that the paper reports}
    cells: {backbone: s4d, protocol: scratch}
    values: {listops: 60.2}
    seeds: 2
    tier: mini
  - id: spt-cola
    version: 1
    statement: The Transformer from scratch does not solve CoLA.
    where: Section 4
    source: P1text
    status: S1
    kind: accuracy
    unit: percent
    test: {rule: less, margin: 5.0, why: half of what a pretrained model gains}
    cells: {backbone: transformer, protocol: scratch}
    values: {cola: 20.0}
    seeds: 2
    tier: mini
  - id: spt-pathfinder
    version: 1
    statement: The Transformer from scratch reaches 58 on Pathfinder.
    where: Table 1
    source: P1text
    status: S1
    kind: accuracy
    unit: percent
    test: {rule: equivalent, margin: 3.0, why: the spread over seeds}
    cells: {backbone: transformer, protocol: scratch}
    values: {pathfinder: 58.0}
    seeds: 2
    tier: mini
  - id: spt-sources
    version: 1
    statement: Text and table give two means.
    where: Table 1 and section 4
    source: P1text
    status: S1
    kind: conflict
    unit: percent
    test: {rule: disagree, margin: 0.0, why: one number is printed twice}
    readings: {mean: {"P1text, table": 86.2, "P1text, section 4": 86.1}}
  - id: spt-image
    version: 1
    statement: S4 from scratch reaches 88.65 on sequential images.
    where: Table 1
    source: P1text
    status: S1
    kind: accuracy
    unit: percent
    test: {rule: equivalent, margin: 1.0, why: the spread over seeds}
    cells: {backbone: s4, protocol: scratch}
    values: {image: 88.65}
    seeds: 3
    tier: paper
"""


MINI = {
    ("listops", "transformer", "scratch"): 0.40,
    ("listops", "transformer", "spt-masked"): 0.60,
    ("listops", "s4d", "scratch"): 0.40,
    ("pathfinder", "transformer", "scratch"): 0.60,
    ("pathfinder", "transformer", "spt-masked"): 0.80,
}


# A gap that closes, and one that does not.
GAP = {
    (task, backbone, protocol): skill
    for task, skills in {"listops": (0.4, 0.6, 0.75, 0.8), "pathfinder": (0.5, 0.6, 0.5, 0.6)}.items()
    for (backbone, protocol), skill in zip(
        [(b, p) for p in ("scratch", "spt-masked") for b in ("transformer", "s4d")], skills, strict=True
    )
}


def checkout(root: Path, mini: int = 0) -> Path:
    """The repository's hand-written site, a small ledger, and 30 smoke runs of which some did not finish, with reports.

    mini: so many seeds at tier mini too, with scores that support one claim, contradict one and leave one open.
    """
    shutil.copytree(REPOSITORY / "site", root / "site", ignore=shutil.ignore_patterns("generated", ".tmp-*"))
    shutil.copy(REPOSITORY / "CITATION.cff", root)
    (root / "claims").mkdir()
    (root / "claims" / "spt.yaml").write_text(CLAIMS, encoding="utf-8")
    source(root, "cola", "blocked", BLOCKED)
    source(root, "imdb", "done", None, ("aclImdb.tar.gz",))
    source(root, "lra-listops", "done", None, ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv"), "official tree")
    for name, classes in {"listops": 10, "pathfinder": 2}.items():
        prepared(root, name, classes)
    prepared(root, "cola", 2, state="blocked", reason=f"cola: {BLOCKED}", sources=("cola",))
    prepared(root, "text", 2, sources=("imdb",))
    folders = []
    for task in ("cola", "listops", "pathfinder"):
        for backbone in ("s4d", "transformer"):
            for protocol in ("scratch", "spt-causal", "spt-masked"):
                for seed in (0, 1) if task != "cola" else (0,):
                    state, reason = "done", None
                    if task == "cola":
                        state, reason = "blocked", f"cola: {BLOCKED}"
                    elif (task, backbone, protocol, seed) == ("pathfinder", "s4d", "spt-causal", 1):
                        state, reason = "diverged", DIVERGED
                    folders += run(root, "smoke", task, backbone, protocol, seed, state, reason)
    for (task, backbone, protocol), skill in MINI.items():
        for seed in range(mini):
            folders += run(root, "mini", task, backbone, protocol, seed, skill=skill)
    for seed in range(mini):
        folders += run(root, "mini", "cola", "transformer", "scratch", seed, "blocked", f"cola: {BLOCKED}")
    report(root, folders)
    return root


def thousand(root: Path) -> int:
    """Add runs of one seed each at tier paper until there are a thousand, with reports; returns how many there are."""
    grid = itertools.product(
        ("listops", "text", "retrieval", "image", "pathfinder", "pathx", "cola", "sst2", "mrpc", "qqp"),
        [f"s4d-v{k}" for k in range(25)],
        ("scratch", "scratch-matched", "spt-masked", "spt-causal"),
    )
    place = root / "data" / "runs"
    there = len({path.parent.parent for path in place.rglob("record.json")})
    for task, backbone, protocol in itertools.islice(grid, 1000 - there):
        run(root, "paper", task, backbone, protocol, 0, steps=40)
    folders = sorted(path.parent for path in place.rglob("record.json"))
    report(root, folders)
    return len({folder.parent for folder in folders})


def report(root: Path, folders: list[Path]) -> None:
    from noscratch.results import compute, flags
    from noscratch.results.collect import collect
    from noscratch.results.judge import judge

    collect(folders, root / "reports")
    judge(root / "reports", root / "claims")
    compute.report(root / "reports", root / "claims")
    flags.report(root / "reports", root / "claims", {})


def measurements(root: Path) -> None:
    """Measurements as bench/ commits them, made up: kernels, error growth, generators, training."""
    draw = np.random.default_rng(0)
    rows = []
    for item, power in (("s4d", 1.0), ("attention", 2.0)):
        for environment in ("plain", "equal"):
            for threads in (1, 2):
                for batch, length in ((8, 1024), (8, 2048), (4, 4096), (2, 16384)):
                    ours = 1e-6 * batch * length**power / threads
                    for candidate, ratio in (("noscratch", 1.0), ("plain PyTorch", 0.9), ("state-spaces/s4", 13.0)):
                        ratio *= 1 + 0.01 * float(draw.random()) * (ratio != 1.0)
                        memory = int(4096 * batch * length * ratio) if threads == 2 else None
                        rows.append(
                            {
                                "item": item,
                                "batch": batch,
                                "heads": 128,
                                "length": length,
                                "states": 64,
                                "environment": environment,
                                "threads": threads,
                                "candidate": candidate,
                                "revision": "e757cef57d89" * 3 if "/" in candidate else "",
                                "best": ours * ratio,
                                "median": 1.1 * ours * ratio,
                                "rounds": 12,
                                "ratio": ratio,
                                "peak": memory,
                                "peak_ratio": ratio if memory else None,
                                "device": "A processor, 2 processors",
                                "torch": "2.13.0",
                            }
                        )
    growth = [
        {
            "kernel": kernel,
            "backend": backend,
            "dtype": dtype,
            "length": 2**k,
            "max": eps * (1 + k) * (k > 0),
            "rms": eps,
        }
        for kernel in ("s4_kernel", "long_conv")
        for dtype, eps in (("float32", 6e-8), ("float64", 1.1e-16))
        for backend in ("reference", "fast")
        for k in range(0, 17, 2)
    ]
    made = [
        {"data": "listops", "compile_s": 2.0, "fast_per_s": 41234.5, "straightforward_per_s": 900.0, "ratio": 45.8},
        {"data": "pathfinder-32", "compile_s": 9.0, "fast_per_s": 812.3, "straightforward_per_s": 1.5, "ratio": 541.5},
    ]
    steps = [
        {
            "part": "lengths",
            "backbone": "s4d",
            "length": 1024,
            "candidate": "noscratch",
            "step_s": 0.0123,
            "tokens_per_s": 83_456.7,
            "ratio": 1.0,
            "flops": 45_600_000,
            "utilization": 0.1234,
            "real_share": 0.9876,
            "times_transformer": 61.23,
        }
    ]
    for name, file, content in (
        ("bench-training", "lengths.json", json.dumps(steps).encode()),
        ("bench-kernels", "kernels.parquet", parquet_bytes(pa.Table.from_pylist(rows))),
        ("bench-error-growth", "growth.parquet", parquet_bytes(pa.Table.from_pylist(growth))),
        ("bench-generators", "generators.json", json.dumps(made).encode()),
    ):
        folder = root / "reports" / "records" / name
        folder.mkdir(parents=True)
        (folder / file).write_bytes(content)
        record(folder, "bench", name, {"seconds": 5.0}, {}, "done", None, {})
        about = {"commit": "38ac6de2" * 5, "dirty": False, "processor": "A processor", "python": "3.11.9"}
        about |= {"libraries": {"torch": "2.13.0", "numpy": "2.4.0"}, "started": "2026-11-20T11:00:00+00:00"}
        (folder / "provenance.json").write_text(json.dumps(about), encoding="utf-8")


def source(
    root: Path,
    name: str,
    state: str,
    reason: str | None,
    files: Sequence[str] = (),
    form: str = "official archive",
) -> None:
    folder = root / "data" / "raw" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text(f"{name} {file}" * 100, encoding="utf-8")
    record(folder, "fetch", name, {"source": name}, {}, state, reason, {"source": name, "form": form})


def prepared(
    root: Path,
    task: str,
    classes: int,
    state: str = "done",
    reason: str | None = None,
    sources: Sequence[str] = (),
) -> None:
    folder = root / "data" / "prepared" / task
    folder.mkdir(parents=True)
    labels = {str(c): EXAMPLES // classes for c in range(classes)}
    lengths = {"min": 32, "mean": 100.5, "max": 256}
    split = {"examples": EXAMPLES, "tokens": 20100, "lengths": lengths, "labels": labels}
    result = {"vocabulary": 18, "length": 256, "splits": dict.fromkeys(("train", "validation", "test"), split)}
    if state == "done":
        (folder / "meta.json").write_text(
            json.dumps({"task": task, "kind": "classification", "classes": classes}), encoding="utf-8"
        )
    needs = {name: _address(name) for name in sources}
    record(folder, "prepare", task, {"task": task, "data": {"length": 256}}, needs, state, reason, result)


def run(
    root: Path,
    tier: str,
    task: str,
    backbone: str,
    protocol: str,
    seed: int,
    state: str = "done",
    reason: str | None = None,
    skill: float | None = None,
    steps: int = 20,
) -> list[Path]:
    """The folders of a run's phases: pretraining where the protocol has it, then fine-tuning."""
    cell = {"tier": tier, "task": task, "backbone": backbone, "protocol": protocol, "seed": seed}
    place = root / "data" / "runs" / tier / task / backbone / protocol / f"seed{seed}"
    draw = np.random.default_rng(int.from_bytes(hashlib.sha256(json.dumps(cell).encode()).digest()[:8], "big"))
    folders, needs = [], {"prepared": _address(task)}
    for phase in ("pretrain", "finetune") if protocol.startswith("spt") else ("finetune",):
        folder = place / phase
        folder.mkdir(parents=True)
        name = "-".join([phase, *map(str, cell.values())])
        settings = {
            "phase": phase,
            **cell,
            "objective": "classify" if phase == "finetune" else "masked",
            "model": {"d_model": 32, "layers": 2, "dropout": 0.0},
            "train": {"steps": steps, "batch_tokens": 2048, "lr": 1e-3, "schedule": "cosine"},
            "dtype": "float32",
            "threads": 1,
        }
        failed = state if phase == "finetune" or state == "blocked" else "done"
        result = _train(folder, phase, draw, skill, steps) if failed == "done" else {}
        record(folder, phase, name, settings, needs, failed, reason if failed != "done" else None, result, cell)
        folders.append(folder)
        needs = {**needs, "pretrained": _address(name)}
    return folders


def _train(folder: Path, phase: str, draw: np.random.Generator, skill: float | None, steps: int) -> dict[str, Any]:
    """Write curves and predictions as a run would; return its result, the metrics computed from those predictions."""
    share = draw.uniform(0.3, 0.6) if skill is None else skill + draw.normal(0, 0.004)
    lines = ["step,split,metric,value"]
    evaluated = range(0, steps + 1, max(1, steps // 20))
    for step in evaluated:
        loss = 2.3 * np.exp(-2 * step / steps) + 0.4 + 0.05 * draw.random()
        lines.append(f"{step},train,loss,{loss!r}".replace("np.float64(", "").replace(")", ""))
        if phase == "finetune":
            lines.append(
                f"{step},validation,accuracy,{float(share * (1 - np.exp(-4 * step / steps)) + 0.02 * draw.random())!r}"
            )
            lines.append(f"{step},validation,loss,{float(loss + 0.1)!r}")
    (folder / "curves.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(draw.bytes(64))
    counts = {
        "parameters": 15_890,
        "steps": steps,
        "tokens_real": steps * 1990,
        "tokens_computed": steps * 2048,
        "flops": 1.5e9 * steps,
    }
    common = {"phase": phase, "primary": "accuracy", "counts": counts, "kernels": {"s4d_kernel": "fast"}}
    if phase == "pretrain":
        selection = {"rule": "last step", "step": steps, "value": 0.9}
        return {
            **common,
            "metrics": {"train": {"accuracy": 0.5, "loss": 0.9}},
            "examples": {"train": EXAMPLES},
            "selection": selection,
        }
    columns: dict[str, list[Any]] = {"id": [], "split": [], "target": [], "prediction": []}
    metrics: dict[str, dict[str, float]] = {}
    for split in ("validation", "test"):
        target = draw.integers(0, 2, EXAMPLES).astype(float)
        prediction = np.where(draw.random(EXAMPLES) < share, target, 1 - target)
        columns["id"] += [f"{split}-{k}" for k in range(EXAMPLES)]
        columns["split"] += [split] * EXAMPLES
        columns["target"] += target.tolist()
        columns["prediction"] += prediction.tolist()
        metrics[split] = {"accuracy": float(np.mean(target == prediction)), "loss": 0.7}
    (folder / "predictions.parquet").write_bytes(parquet_bytes(pa.table(columns)))
    selection = {
        "rule": "best validation accuracy, the earlier step at a tie",
        "step": steps,
        "value": metrics["validation"]["accuracy"],
    }
    return {**common, "metrics": metrics, "examples": dict.fromkeys(metrics, EXAMPLES), "selection": selection}


def record(
    folder: Path,
    kind: str,
    name: str,
    settings: Mapping[str, Any],
    needs: Mapping[str, str],
    state: str,
    reason: str | None,
    result: Mapping[str, Any],
    cell: Mapping[str, Any] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    }
    content = {
        "schema": 1,
        "kind": kind,
        "address": _address(name),
        "name": f"{_address(name)}-{kind}-{name}",
        "cell": cell,
        "settings": settings,
        "code": hashlib.sha256(b"code").hexdigest(),
        "modules": ["noscratch.train", "noscratch.backbones.s4d"],
        "needs": needs,
        "inputs": {role: hashlib.sha256(address.encode()).hexdigest() for role, address in needs.items()},
        "state": state,
        "reason": reason,
        "artifacts": artifacts,
        "result": result if state == "done" else {},
    }
    (folder / "record.json").write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def _address(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]
