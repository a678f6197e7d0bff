"""Speed and memory that claims speak of, as far as one machine can measure them: observations for the judge.

    python -m bench.claims [--out reports/records/bench-claims] [--device cpu] [--claims sgconv-faster-than-s4 ...]

Every repetition is a process of its own, in which what is compared runs in turn; the least time of its rounds counts:
on the CPU processor time of one thread, on a GPU elapsed time at the papers' sizes. Float32, but for feedforwards on a
GPU, which are in bfloat16 as in their paper. What was compared stands in each observation's `setting`. Four minutes of
one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import _timing, generation
from noscratch import generate
from noscratch.backbones import parallel, s4, sgconv, transformer
from noscratch.backbones._ffn import Feedforward, Settings
from noscratch.record import Stopwatch, write_bench
from noscratch.results.claims import load, units
from noscratch.results.observations import FILE, Observation, as_bytes

ROOT = Path(__file__).parents[1]
MODULES = ("noscratch.generate", *(f"noscratch.backbones.{name}" for name in ("s4", "sgconv", "transformer")))

Quantities = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """What is measured at; the papers' sizes keep a GPU busy, smaller ones a processor."""

    seconds: float
    batch: int
    width: int
    lengths: tuple[int, ...]
    convolution: tuple[int, int, int]
    """Batch, width and length at which SGConv meets S4."""
    feedforward: tuple[int, int]
    """Tokens and width."""
    decoding: tuple[tuple[int, int], tuple[int, int]]
    """Tokens and width for low rank and for BlockDense."""
    generation: tuple[int, int, int, int] | None
    """Batch, length, width and layers; None: not measured there."""


SIZES = {
    "cpu": Sizes(
        1.5, 1, 256, (1024, 4096), (2, 128, 4096), (1024, 1536), ((256, 5120), (192, 6144)), (16, 1024, 256, 6)
    ),
    "cuda": Sizes(3.0, 16, 256, (1024, 4096), (16, 256, 16384), (30720, 2048), ((2048, 5120), (1536, 6144)), None),
}
# The forms of a feedforward at the papers' settings for these widths, by the percent of a dense one's parameters.
FORMS = {
    63: {
        "lowrank": Settings("low_rank", rank=1 / 2),
        "blockdense": Settings("block_dense", rank=2 / 3, blocks=2),
        "blockshuffle": Settings("block_shuffle", blocks=2),
    },
    32: {
        "lowrank": Settings("low_rank", rank=1 / 4),
        "blockdense": Settings("block_dense", rank=1 / 3, blocks=2),
        "blockshuffle": Settings("block_shuffle", blocks=4),
    },
}


# ---------------------------------------------------------------- what is compared


def s4_layers(width: int) -> list[nn.Module]:
    """Four blocks, which have about the parameters of one Transformer block."""
    return [s4.build(s4.Config(), width, 0, False) for _ in range(4)]


def attention_layers(width: int) -> list[nn.Module]:
    return [transformer.build(transformer.Config(heads=4, positions="none"), width, 0, False)]


def training_step(layers: list[nn.Module], x: Tensor) -> Callable[[], None]:
    """Forwards through the blocks, and backwards to every parameter."""

    def call() -> None:
        y = x
        for layer in layers:
            layer.zero_grad(set_to_none=True)
            y = parallel(layer, y)
        y.sum().backward()

    return call


def feedforward(tokens: int, width: int, settings: Settings, device: str) -> Callable[[], None]:
    """A forward pass. Its time does not depend on the weights, which are constants: drawing them would take longer."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device("meta"):
        layer = Feedforward(width, 4 * width, settings, "auto")
    layer = layer.to_empty(device=device).to(dtype).eval()
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 1e-2)
    x = torch.ones(tokens, width, device=device, dtype=dtype)

    def call() -> None:
        with torch.inference_mode():
            layer(x)

    return call


# ---------------------------------------------------------------- one repetition each, in a process of its own


def times(calls: Mapping[str, Callable[[], None]], device: str, seconds: float) -> dict[str, float]:
    """Least seconds of each."""
    if device == "cpu":
        torch.set_num_threads(1)
        return {name: timing.best for name, timing in _timing.round_robin(calls, seconds, 1).items()}

    def finished(call: Callable[[], None]) -> Callable[[], None]:
        def waiting() -> None:
            call()
            torch.cuda.synchronize()

        return waiting

    timed = {name: finished(call) for name, call in calls.items()}
    return {name: timing.best for name, timing in _timing.round_robin(timed, seconds, 2).items()}


def transformer_speedup(device: str, sizes: Sizes) -> Quantities:
    found = {}
    for length in sizes.lengths:
        x = torch.randn(sizes.batch, length, sizes.width, device=device)
        calls = {
            name: training_step([layer.to(device) for layer in make(sizes.width)], x)
            for name, make in (("s4", s4_layers), ("transformer", attention_layers))
        }
        took = times(calls, device, sizes.seconds)
        found[f"length-{length}"] = took["transformer"] / took["s4"]
    return found


def peak(name: str, length: int, device: str, sizes: Sizes) -> int:
    """Bytes that one training step needs beyond parameters and input."""
    torch.set_num_threads(1)
    make = {"s4": s4_layers, "transformer": attention_layers}[name]
    layers = [layer.to(device) for layer in make(sizes.width)]
    training_step(layers, torch.randn(1, 16, sizes.width, device=device))()  # libraries are loaded before
    for layer in layers:
        layer.zero_grad(set_to_none=True)
    call = training_step(layers, torch.randn(sizes.batch, length, sizes.width, device=device))
    if device == "cpu":
        return _timing.peak_bytes(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def transformer_memory(device: str, sizes: Sizes) -> Quantities:
    """Peaks are of processes, so that each has its own."""
    found = {}
    for length in sizes.lengths:
        ours, theirs = (_timing.alone(peak, name, length, device, sizes) for name in ("s4", "transformer"))
        found[f"length-{length}"] = ours / theirs
    return found


def sgconv_speedup(device: str, sizes: Sizes) -> Quantities:
    batch, width, length = sizes.convolution
    x = torch.randn(batch, length, width, device=device)
    layers = {
        "s4": s4.build(s4.Config(), width, length, False),
        "sgconv": sgconv.build(sgconv.Config(), width, length, False),
    }
    took = times({n: training_step([layer.to(device)], x) for n, layer in layers.items()}, device, sizes.seconds)
    return {"step-speedup": took["s4"] / took["sgconv"]}


def latency(percent: int, device: str, sizes: Sizes) -> Quantities:
    settings = {"dense": Settings(), **FORMS[percent]}
    took = times({n: feedforward(*sizes.feedforward, s, device) for n, s in settings.items()}, device, sizes.seconds)
    return {name: took["dense"] / took[name] for name in FORMS[percent]}


def latency_63(device: str, sizes: Sizes) -> Quantities:
    return latency(63, device, sizes)


def latency_32(device: str, sizes: Sizes) -> Quantities:
    return latency(32, device, sizes)


def decoding(device: str, sizes: Sizes) -> Quantities:
    found = {}
    for name, shape in zip(("lowrank", "blockdense"), sizes.decoding, strict=True):
        calls = {n: feedforward(*shape, s, device) for n, s in (("dense", Settings()), (name, FORMS[32][name]))}
        took = times(calls, device, sizes.seconds)
        found[name] = took["dense"] / took[name]
    return found


def generation_speedup(device: str, sizes: Sizes) -> Quantities:
    """Tokens per second of S4's recurrence over those of a Transformer with its keys and values kept."""
    assert sizes.generation is not None
    batch, length, width, layers = sizes.generation
    torch.set_num_threads(1)

    def seconds(backbone: str, carried: type[generate.Carried]) -> float:
        model = generation.build(backbone, length, width, layers)
        make = partial(carried, model, batch, length)
        return generation.carried_course(make, length, batch, 1, sizes.seconds).seconds

    return {"speedup": seconds("transformer", generation.Reserved) / seconds("s4", generate.Carried)}


class Measurement(NamedTuple):
    measure: Callable[[str, Sizes], Quantities]
    setting: Callable[[Sizes], str]
    repetitions: int = 5


def _steps(sizes: Sizes) -> str:
    return (
        f"four S4 blocks against one Transformer block of as many parameters, width {sizes.width}, "
        f"batch {sizes.batch}, forward and backward"
    )


def _latency(sizes: Sizes) -> str:
    tokens, width = sizes.feedforward
    return f"a feedforward of width {width} on {tokens} tokens, forward"


def _generation(sizes: Sizes) -> str:
    assert sizes.generation is not None
    return "batch {}, {} tokens, width {}, {} layers; the Transformer keeps keys and values".format(*sizes.generation)


MEASUREMENTS = {
    "s4-transformer-speedup": Measurement(transformer_speedup, _steps),
    "s4-transformer-memory": Measurement(transformer_memory, lambda sizes: _steps(sizes) + ", peak memory", 3),
    "s4-wikitext-generation-speedup": Measurement(generation_speedup, _generation),
    "sgconv-faster-than-s4": Measurement(
        sgconv_speedup,
        lambda sizes: "one block of each, batch {}, width {}, length {}, forward and backward".format(
            *sizes.convolution
        ),
    ),
    "structured_ffn-latency-63": Measurement(latency_63, _latency),
    "structured_ffn-latency-32": Measurement(latency_32, _latency),
    "structured_ffn-decoding": Measurement(
        decoding,
        lambda sizes: (
            "feedforwards with 32 %, forward; tokens and width "
            + ", ".join(f"{tokens} and {width}" for tokens, width in sizes.decoding)
        ),
    ),
}


def observe(claim: str, device: str, sizes: Sizes, unit: str) -> list[Observation]:
    """Every quantity of a claim, one value for each repetition."""
    measure, setting, repetitions = MEASUREMENTS[claim]
    # A measurement of memory starts its own processes.
    run = measure if measure is transformer_memory else lambda *asked: _timing.alone(measure, *asked)
    found = [run(device, sizes) for _ in range(repetitions)]
    about: dict[str, Any] = {
        "device": "cpu" if device == "cpu" else "gpu",
        "model": _timing.device() if device == "cpu" else torch.cuda.get_device_name(),
        "setting": setting(sizes) + (", float32, one thread" if device == "cpu" else ""),
    }
    return [
        Observation(claim=claim, quantity=name, unit=unit, values=[each[name] for each in found], **about)
        for name in found[0]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "records" / "bench-claims", help="a folder")
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("--claims", choices=MEASUREMENTS, nargs="+", default=list(MEASUREMENTS))
    asked = parser.parse_args()
    if SIZES[asked.device].generation is None:
        asked.claims = [claim for claim in asked.claims if MEASUREMENTS[claim].measure is not generation_speedup]
    watch = Stopwatch(ROOT, "cpu")
    claimed = units(load(ROOT / "claims"))
    seen: list[Observation] = []
    for claim in asked.claims:
        new = observe(claim, asked.device, SIZES[asked.device], claimed[claim])
        seen += new
        for each in new:
            print(f"{claim:28} {each.quantity:14} " + " ".join(f"{value:.3f}" for value in each.values), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / FILE).write_bytes(as_bytes(seen))
    write_bench(asked.out, "claims", {"claims": asked.claims, "device": asked.device}, MODULES, watch)


if __name__ == "__main__":
    main()
