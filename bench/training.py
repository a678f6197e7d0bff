"""Training steps beside ordinary PyTorch against length, with the compiler, and several seeds at once.

    python -m bench.training --out FOLDER [--parts lengths compiler ensembles] [--backbones transformer ...]
        [--lengths 1024 ... 16384] [--tokens 16384] [--d-model 64] [--layers 2] [--threads 1] [--seconds 10]

All in float32, without padding, on batches of `tokens` tokens; bench/batching.py measures what padding costs. What is
compared runs in turn in one process, and the least time counts: processor time with one thread, elapsed time with more.
lengths: this project's step and a plain PyTorch one, with the share of the machine's measured rate of matrix products
that the counted operations of the model make use of (Fourier transforms count 0). compiler: this project's step as it
is and under torch.compile, where PyTorch's matrix products take the place of oneDNN's, which the compiler cannot read.
ensembles: one step of each of 4 seeds, one after the other, in two processes side by side, and as one model of stacked
parameters (torch.func); elapsed time. Writes FOLDER/{lengths,compiler,ensembles}.json and a record.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adamw import adamw

from bench import _loops, _timing
from noscratch import backbones, flops
from noscratch.data import Batch
from noscratch.kernels import structured
from noscratch.model import Model
from noscratch.optim import BETAS, EPS, groups
from noscratch.record import Stopwatch, write_bench

MODULES = ("noscratch.train", *(f"noscratch.backbones.{name}" for name in backbones.names()))
PARTS = ("lengths", "compiler", "ensembles")
OURS, PLAIN = "noscratch", "plain PyTorch"
AS_IT_IS, COMPILED = "as it is", "compiled"
SEQUENTIAL, PROCESSES, STACKED = "one after the other", "two processes", "stacked parameters"
SEEDS = 4
ENSEMBLES = ((16, 128), (16, 512), (4, 1024))  # batch, length
PRODUCT = 2048  # width of the matrices whose product is timed

Row = dict[str, Any]


def meta_of(length: int) -> dict[str, Any]:
    """A task of bytes in two classes."""
    return {
        "inputs": "tokens",
        "kind": "classification",
        "classes": 2,
        "pairs": False,
        "vocabulary": 259,
        "pad": 0,
        "mask": 258,
        "length": length,
    }


def product_rate(threads: int, seconds: float = 3.0) -> float:
    """Operations per second of a large float32 matrix product, the best of PyTorch's and this project's."""
    torch.set_num_threads(threads)
    x, w = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    calls = {form: partial(structured.linear, x, w, backend=form) for form in structured.LINEAR_BACKENDS}
    found = _timing.round_robin(calls, seconds, threads)
    return 2 * PRODUCT**3 / min(timing.best for timing in found.values())


def plain_step(loop: _loops.Plain, batch: Batch) -> Callable[[], object]:
    return lambda: loop.step(batch.tokens, batch.mask, batch.label)


# ---------------------------------------------------------------- against length


def lengths(
    backbone: str, size: int, length: int, d_model: int, layers: int, threads: int, seconds: float
) -> tuple[dict[str, _timing.Timing], int]:
    """Times of both steps, and the counted operations of one."""
    torch.set_num_threads(threads)
    meta = meta_of(length)
    batch, model = _loops.fixed(meta, size, length), _loops.build(meta, backbone, d_model, layers)
    plain = _loops.Plain(_loops.plain_model(model, length), meta["kind"])
    ours = _loops.Ours(model, meta["kind"])
    found = _timing.round_robin({OURS: lambda: ours.step(batch), PLAIN: plain_step(plain, batch)}, seconds, threads)

    def once() -> None:
        ours.step(batch)

    return found, flops.count(once)


def length_rows(asked: argparse.Namespace) -> list[Row]:
    rate = _timing.alone(product_rate, asked.threads)
    rows = []
    for backbone in asked.backbones:
        for length in asked.lengths:
            sizes = (max(1, asked.tokens // length), length, asked.d_model, asked.layers)
            found, operations = _timing.alone(lengths, backbone, *sizes, asked.threads, asked.seconds)
            for name, timing in found.items():
                rows.append(
                    {
                        **about(asked, "lengths", backbone, *sizes[:2]),
                        "candidate": name,
                        "step_s": timing.best,
                        "rounds": timing.rounds,
                        "tokens_per_s": sizes[0] * length / timing.best,
                        "ratio": timing.best / found[OURS].best,
                        "flops": operations,
                        "product_flops_per_s": rate,
                        "utilization": operations / timing.best / rate,
                    }
                )
                say(rows[-1])
    return rows


def say(row: Row) -> None:
    print("{backbone:13}{length:7}  {candidate:20}{step_s:9.4f} s{ratio:7.2f}".format(**row), flush=True)


def about(asked: argparse.Namespace, part: str, backbone: str, size: int, length: int) -> Row:
    return {
        "part": part,
        "backbone": backbone,
        "batch": size,
        "length": length,
        "d_model": asked.d_model,
        "layers": asked.layers,
        "threads": asked.threads,
        "device": _timing.device(),
        "torch": torch.__version__,
    }


# ---------------------------------------------------------------- the compiler


def compiler(
    backbone: str, size: int, length: int, d_model: int, layers: int, threads: int, seconds: float, maker: str
) -> tuple[dict[str, _timing.Timing], float]:
    """Times of the step as it is and compiled by `maker`, and the seconds of its first compiled one."""
    torch.set_num_threads(threads)
    meta = meta_of(length)
    batch = _loops.fixed(meta, size, length)
    eager, compiled = (_loops.Ours(_loops.build(meta, backbone, d_model, layers), meta["kind"]) for _ in range(2))
    compiled.model.compile(backend=maker)
    suits = structured._is_single_on_cpu

    def suits_unless_compiling(x: Tensor, w: Tensor) -> bool:
        return not torch.compiler.is_compiling() and suits(x, w)

    # Once for all steps: a function that is put in anew makes the compiler begin anew.
    with mock.patch.object(structured, "_is_single_on_cpu", suits_unless_compiling), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complex numbers are left to eager code, it says
        start = time.perf_counter()
        compiled.step(batch)
        first = time.perf_counter() - start
        calls = {AS_IT_IS: lambda: eager.step(batch), COMPILED: lambda: compiled.step(batch)}
        return _timing.round_robin(calls, seconds, threads), first


def compiler_rows(asked: argparse.Namespace) -> list[Row]:
    rows = []
    for backbone in asked.small:
        for length in asked.lengths[:1]:
            sizes = (max(1, asked.tokens // length), length, asked.d_model, asked.layers)
            found, first = _timing.alone(compiler, backbone, *sizes, asked.threads, asked.seconds, asked.maker)
            for name, timing in found.items():
                rows.append(
                    {
                        **about(asked, "compiler", backbone, *sizes[:2]),
                        "candidate": name,
                        "step_s": timing.best,
                        "rounds": timing.rounds,
                        "ratio": timing.best / found[AS_IT_IS].best,
                        "first_s": first if name == COMPILED else None,
                    }
                )
                say(rows[-1])
    return rows


# ---------------------------------------------------------------- several seeds


class Stacked:
    """Models of several seeds as one of stacked parameters, each on a batch of its own. The blocks are plain ones:
    torch.func adds an axis to PyTorch's derivatives, and not to this project's own."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.model = models[0]
        self.parameters, self.buffers = torch.func.stack_module_state(list(models))
        self.groups = groups(self.model, _loops.LR, _loops.WEIGHT_DECAY)
        self.average, self.square = (
            {name: torch.zeros_like(p) for name, p in self.parameters.items()} for _ in range(2)
        )
        self.steps = 0
        self.gradients = torch.func.vmap(torch.func.grad(self._loss, has_aux=True))

    def _loss(
        self, parameters: Any, buffers: Any, tokens: Tensor, mask: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        features = torch.func.functional_call(self.model, (parameters, buffers), (tokens, mask))
        pooled = self.model.pool(features, mask)
        output = functional.linear(pooled, parameters["head.weight"], parameters["head.bias"])
        total = functional.cross_entropy(output, label, reduction="sum")
        return total / len(label), total

    def step(self, tokens: Tensor, mask: Tensor, label: Tensor) -> list[float]:
        """One update of each: tokens and mask (seeds, B, L), label (seeds, B); the sums of the losses."""
        gradients, totals = self.gradients(self.parameters, self.buffers, tokens, mask, label)
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
        scale = (_loops.CLIP / (norm + 1e-6)).clamp(max=1.0)
        for group in self.groups:
            names = list(group.parameters)
            with torch.no_grad():
                adamw(
                    [self.parameters[name] for name in names],
                    [gradients[name] * scale.view(-1, *[1] * (gradients[name].ndim - 1)) for name in names],
                    [self.average[name] for name in names],
                    [self.square[name] for name in names],
                    [],
                    [torch.full((), float(self.steps)) for _ in names],
                    fused=True,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=group.lr,
                    weight_decay=group.weight_decay,
                    eps=EPS,
                    maximize=False,
                )
        self.steps += 1
        found: list[float] = totals.tolist()
        return found


def models(backbone: str, length: int, d_model: int, layers: int, seeds: Sequence[int]) -> list[Model]:
    return [_loops.build(meta_of(length), backbone, d_model, layers, seed) for seed in seeds]


def batches(size: int, length: int, seeds: Sequence[int]) -> list[Batch]:
    return [_loops.fixed(meta_of(length), size, length, seed) for seed in seeds]


def in_one_process(
    backbone: str, size: int, length: int, d_model: int, layers: int, threads: int, seconds: float
) -> dict[str, _timing.Timing]:
    """Elapsed times of a step of every seed, one after the other and stacked."""
    torch.set_num_threads(threads)
    given = batches(size, length, range(SEEDS))
    made = models(backbone, length, d_model, layers, range(SEEDS))
    stacked = Stacked([_loops.plain_model(model, length) for model in made])
    loops = [_loops.Ours(model, "classification") for model in made]
    tokens, mask, label = (torch.stack([getattr(b, part) for b in given]) for part in ("tokens", "mask", "label"))

    def sequential() -> None:
        for loop, batch in zip(loops, given, strict=True):
            loop.step(batch)

    calls = {SEQUENTIAL: sequential, STACKED: lambda: stacked.step(tokens, mask, label)}
    warnings.simplefilter("ignore")  # attention is called seed by seed, it says
    return _timing.round_robin(calls, seconds, threads, elapsed=True)


def side_by_side(*sizes: Any) -> float:
    """Elapsed seconds of a step of every seed where two processes have half of them each."""
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(2), context.SimpleQueue()
    halves = [context.Process(target=_half, args=(seeds, start, found, *sizes)) for seeds in ((0, 1), (2, 3))]
    for half in halves:
        half.start()
    times = [found.get() for _ in halves]
    for half in halves:
        half.join()
    # The later of the two ends each step.
    return max(times)


def _half(
    seeds: Sequence[int],
    start: Any,
    found: Any,
    backbone: str,
    size: int,
    length: int,
    d_model: int,
    layers: int,
    threads: int,
    seconds: float,
) -> None:
    torch.set_num_threads(threads)
    loops = [_loops.Ours(model, "classification") for model in models(backbone, length, d_model, layers, seeds)]
    given = batches(size, length, seeds)

    def step() -> None:
        for loop, batch in zip(loops, given, strict=True):
            loop.step(batch)

    step()
    start.wait()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _timing.LEAST_ROUNDS:
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    found.put(statistics.median(times))


def ensemble_rows(asked: argparse.Namespace) -> list[Row]:
    rows = []
    for backbone in asked.small:
        for size, length in asked.ensembles:
            sizes = (backbone, size, length, asked.d_model, asked.layers, asked.threads, asked.seconds)
            timings = _timing.alone(in_one_process, *sizes)
            # The median, not the least time: two processes disturb each other, and that counts.
            found = {name: timing.median for name, timing in timings.items()} | {PROCESSES: side_by_side(*sizes)}
            for name, seconds in found.items():
                row = {"candidate": name, "seeds": SEEDS, "step_s": seconds, "ratio": found[SEQUENTIAL] / seconds}
                rows.append(about(asked, "ensembles", backbone, size, length) | row)
                say(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--backbones", choices=backbones.names(), nargs="+", default=backbones.names())
    parser.add_argument("--small", choices=backbones.names(), nargs="+", default=["transformer", "s4d"],
                        help="backbones of the parts compiler and ensembles")  # fmt: skip
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--tokens", type=int, default=16384, help="of one batch, at the least one sequence")
    parser.add_argument("--ensembles", type=_pair, nargs="+", default=ENSEMBLES, metavar="BATCH,LENGTH")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison, at least 3 rounds")
    parser.add_argument("--maker", default="inductor", help="what torch.compile makes machine code with")
    asked = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    asked.out.mkdir(parents=True, exist_ok=True)
    parts = {"lengths": length_rows, "compiler": compiler_rows, "ensembles": ensemble_rows}
    for part in asked.parts:
        rows = parts[part](asked)
        (asked.out / f"{part}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    write_bench(asked.out, "training", settings, MODULES, watch)


def _pair(text: str) -> tuple[int, int]:
    batch, length = map(int, text.split(","))
    return batch, length


if __name__ == "__main__":
    main()
