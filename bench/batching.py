"""How much of what is computed is real, and what that is worth: batches of similar length beside padded ones.

    python -m bench.batching --out FOLDER [--mirror FOLDER] [--tasks text ...] [--backbones transformer s4d]
        [--batch-tokens 16384] [--d-model 64] [--layers 2] [--batches 16] [--threads 1]

Each task is prepared from the mirror at full length (a task whose source is not there has no row). The share of real
tokens is that of a whole epoch. Steps are timed in turn in one process, float32: this project's loop on its own
batches, the same loop on batches padded to the task's longest example, and a plain PyTorch loop on those. One thread:
its processor time; more: elapsed time, for which the machine must be idle. Writes FOLDER/batching.json and a record.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import _loops, _timing
from noscratch import data
from noscratch.record import Stopwatch, write_bench
from noscratch.sources import Blocked
from noscratch.stages import MIRROR

MODULES = ("noscratch.train", "noscratch.backbones.transformer", "noscratch.backbones.s4d")
TASKS = ("text", "listops", "retrieval", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
OURS, PADDED, PLAIN = "noscratch", "noscratch, padded to the longest", "plain PyTorch, padded to the longest"
ROUNDS = 2


def shares(split: data.Split, batch_tokens: int) -> tuple[float, float]:
    """The share of computed tokens that is real in an epoch: of this project's batches, and padded to the longest."""
    batches = data.epoch_batches(split.lengths, batch_tokens, seed=0, epoch=0)
    real = sum(split.real(index) for index in batches)
    computed = sum(rows * length for index in batches for rows, length in split.shapes(index))
    longest = int(split.sequence_lengths()[-1])
    return real / computed, real / (len(split) * split.rows * longest)


def measure(
    prepared: Path, backbone: str, batch_tokens: int, d_model: int, layers: int, count: int, threads: int
) -> dict[str, dict[str, float]]:
    """Per candidate: seconds of loading and of the whole step, and real tokens, of the sampled batches."""
    torch.set_num_threads(threads)
    clock = _timing.clock(threads)
    meta, split = data.read_meta(prepared), data.Split(prepared, "train")
    longest = int(split.sequence_lengths()[-1])
    model = _loops.build(meta, backbone, d_model, layers)
    plain = _loops.Plain(_loops.plain_model(model, longest), meta["kind"])
    ours = _loops.Ours(model, meta["kind"])

    def padded(index: _loops.Index) -> data.Batch:
        return _loops.padded(split, index, longest)

    def plain_step(batch: data.Batch) -> None:
        plain.step(batch.tokens, batch.mask, batch.label)

    bucketed = _loops.spread(data.epoch_batches(split.lengths, batch_tokens, 0, 0), split.lengths, count)
    size = max(1, batch_tokens // (longest * split.rows))
    order = np.random.default_rng(0).permutation(len(split))[: 2 * size]
    whole = [order[:size], order[size:]]  # every such batch costs the same
    sides: dict[
        str, tuple[list[_loops.Index], Callable[[_loops.Index], data.Batch], Callable[[data.Batch], object]]
    ] = {
        OURS: (bucketed, split.batch, ours.step),
        PADDED: (whole, padded, ours.step),
        PLAIN: (whole, padded, plain_step),
    }
    found: dict[str, dict[str, float]] = {}
    times: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in sides}
    for batches, load, step in sides.values():
        step(load(batches[0]))
    for _ in range(ROUNDS):
        for name, (batches, load, step) in sides.items():
            for k, index in enumerate(batches):
                start = clock()
                batch = load(index)
                loaded = clock()
                step(batch)
                times[name].setdefault(k, []).append((loaded - start, clock() - start))
    for name, (batches, *_) in sides.items():
        # The rate of a batch padded to the longest is the same for all: what differs is how much of it is real.
        tokens = float(sum(split.real(index) for index in batches))
        if name != OURS:
            tokens = sum(map(len, batches)) * split.real(np.arange(len(split))) / len(split)
        best = [min(seconds, key=lambda pair: pair[1]) for seconds in times[name].values()]
        found[name] = {
            "load_seconds": sum(load for load, _ in best),
            "seconds": sum(step for _, step in best),
            "real_tokens": tokens,
        }
    return found


def rows(task: str, prepared: Path, backbones: list[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each backbone and candidate."""
    split = data.Split(prepared, "train")
    bucketed, padded = shares(split, asked.batch_tokens)
    about = {
        "task": task,
        "examples": len(split),
        "mean_length": split.real(np.arange(len(split))) / (len(split) * split.rows),
        "longest": int(split.sequence_lengths()[-1]),
        "batch_tokens": asked.batch_tokens,
        "threads": asked.threads,
        "device": _timing.device(),
        "torch": torch.__version__,
    }
    made = []
    for backbone in backbones:
        sizes = (asked.batch_tokens, asked.d_model, asked.layers, asked.batches, asked.threads)
        found = _timing.alone(measure, prepared, backbone, *sizes)
        cost = {name: side["seconds"] / side["real_tokens"] for name, side in found.items()}
        for name, side in found.items():
            made.append(
                about
                | {
                    "backbone": backbone,
                    "candidate": name,
                    "real_share": bucketed if name == OURS else padded,
                    "tokens_per_s": 1 / cost[name],
                    "ratio": cost[name] / cost[OURS],
                    "loading_share": side["load_seconds"] / side["seconds"],
                }
            )
    return made


def table(found: list[dict[str, Any]]) -> str:
    """One line per row."""
    head = f"{'task':10}{'backbone':13}{'candidate':38}{'real':>8}{'tokens/s':>11}{'ratio':>8}{'loading':>9}"
    line = "{task:10}{backbone:13}{candidate:38}{real_share:8.1%}{tokens_per_s:11,.0f}{ratio:8.2f}{loading_share:9.2%}"
    return "\n".join([head, *(line.format(**row) for row in found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--mirror", default=os.environ.get(MIRROR), help=f"folder or address of the sources (${MIRROR})"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of batching.json")
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=TASKS)
    parser.add_argument("--backbones", nargs="+", default=["transformer", "s4d"])
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16, help="sampled from an epoch's, by length")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    found: list[dict[str, Any]] = []
    for task in asked.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / task
            try:
                _loops.prepare(task, prepared, asked.mirror, {})
            except Blocked as blocked:
                print(f"{task}: no row, {blocked.reason}", flush=True)
                continue
            found += rows(task, prepared, asked.backbones, asked)
        print(table(found[-3 * len(asked.backbones) :]), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "batching.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    settings = {name: getattr(asked, name) for name in ("backbones", "batch_tokens", "d_model", "layers", "batches")}
    settings |= {"tasks": list(asked.tasks), "threads": asked.threads}
    write_bench(asked.out, "batching", settings, MODULES, watch)


if __name__ == "__main__":
    main()
