"""Tokens per second of generation with carried state: S4 and other state spaces beside the Transformer.

    python -m bench.generation --out FOLDER [--backbones s4 s4d ...] [--batches 1 16] [--lengths 1024 4096]
        [--d-model 256] [--layers 6] [--threads 1] [--seconds 5]

Each model generates whole sequences from an empty start, greedily, in float32; every step takes the batch one position
further. The Transformer keeps keys and values: as its block does, which appends to them, and in room that is set aside
beforehand. Without a cache it reads the whole sequence again for every token: that costs the sum of the forward passes
of all lengths, measured at a few and interpolated. The time of a step is measured at positions spread over the length,
several steps each, and integrated. One thread: its processor time; more: elapsed time. Paper S4 (arXiv 2111.00396,
table 8) states 60 times the tokens per second of a Transformer, for models of 249 and 247 million parameters on a GPU.
Writes FOLDER/generation.json and a record.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import _timing
from noscratch import backbones, generate
from noscratch.backbones.sgconv import SGConv
from noscratch.backbones.transformer import Attention, StackedBlock
from noscratch.kernels import attention
from noscratch.model import Model, build_model
from noscratch.plan import resolved_backend
from noscratch.record import Stopwatch, write_bench

MODULES = ("noscratch.generate", *(f"noscratch.backbones.{name}" for name in backbones.names()))
APPENDED, RESERVED, WITHOUT = "cache, appended to", "cache, room set aside", "no cache"
STATE = "carried state"
TRANSFORMER = "transformer"
VOCABULARY = 259
PLACES = 7  # positions at which a step is timed
FORWARDS = 3  # lengths at which a forward pass is timed


def build(backbone: str, length: int, d_model: int, layers: int) -> Model:
    meta = {
        "inputs": "tokens",
        "vocabulary": VOCABULARY,
        "pad": 0,
        "mask": VOCABULARY - 1,
        "length": length,
        "pairs": False,
        "pretraining": {"loss": "cross-entropy"},
    }
    settings = {
        "backbone": backbone,
        "backbone_config": {},
        "protocol": "spt-causal",
        "objective": "causal",
        "model": {"d_model": d_model, "layers": layers, "dropout": 0.0},
        "backend": resolved_backend("auto"),
    }
    return build_model(meta, settings, 0).eval()


class Reserved(generate.Carried):
    """A Transformer whose keys and values have their room from the start."""

    @torch.no_grad()
    def __init__(self, model: Model, batch: int, length: int) -> None:
        super().__init__(model, batch, length)
        self.room = []
        for block in model.blocks:
            assert isinstance(block, StackedBlock)
            assert isinstance(block.mixer, Attention)
            width = block.mixer.out.in_features // block.mixer.heads
            self.room.append(torch.zeros(2, batch, block.mixer.heads, length, width))

    @torch.no_grad()
    def step(self, elements: Tensor) -> Tensor:
        x = self.model.embed(elements.unsqueeze(1), None)
        for block, room in zip(self.model.blocks, self.room, strict=True):
            assert isinstance(block, StackedBlock)
            mixer = block.mixer
            assert isinstance(mixer, Attention)
            q, k, v = mixer._heads(block.norm_mixer(x), offset=self.position)
            room[0, :, :, self.position], room[1, :, :, self.position] = k[:, :, 0], v[:, :, 0]
            keys, values = room[..., : self.position + 1, :]
            x = block._feed(x + mixer._join(attention.attend(q, keys, values, causal=False, backend=mixer.backend)))
        self.position += 1
        outputs: Tensor = self.model.head(self.model.normed(x))[:, 0]
        return outputs


def jump(carried: generate.Carried, position: int) -> None:
    """As if `position` positions were over: attention has keys and values of that many, SGConv inputs, and a state
    space one state."""
    carried.position = position
    for i, state in enumerate(carried.states):
        mixer = carried.model.blocks[i].mixer
        if isinstance(mixer, Attention):
            carried.states[i] = tuple(part.new_zeros(*part.shape[:2], position, part.shape[3]) for part in state)
        elif isinstance(mixer, SGConv):
            carried.states[i] = (state[0].new_zeros(*state[0].shape[:2], position), state[1])


class Course(NamedTuple):
    """Seconds of a whole generation, and of a step at its start and its end."""

    seconds: float
    first: float
    last: float


def carried_course(
    make: Callable[[], generate.Carried], length: int, batch: int, threads: int, seconds: float
) -> Course:
    """Steps timed at PLACES positions for about `seconds` in all, then integrated; what comes before counts once."""
    clock = _timing.clock(threads)
    places = np.linspace(0, length - 1, PLACES).round().astype(int).tolist()
    start = clock()
    carried = make()
    before = clock() - start
    costs = []
    elements = torch.ones(batch, dtype=torch.int64)
    for place in places:
        times: list[float] = []
        end = time.perf_counter() + seconds / PLACES
        while len(times) < 1 + _timing.LEAST_ROUNDS or time.perf_counter() < end:
            jump(carried, place)
            start = clock()
            elements = carried.step(elements).argmax(-1)
            times.append(clock() - start)
        costs.append(min(times[1:]))
    return Course(before + float(np.trapezoid(costs, places)) + costs[-1], costs[0], costs[-1])


def uncached_course(model: Model, length: int, batch: int, threads: int) -> Course:
    """Every token from a pass over the whole sequence: FORWARDS lengths are timed, a parabola gives the others, since
    linear maps cost as the length and attention as its square."""
    clock = _timing.clock(threads)
    places = np.linspace(1, length, FORWARDS).round().astype(int).tolist()
    costs = []
    for place in places:
        tokens, mask = torch.ones(batch, place, dtype=torch.int64), torch.ones(batch, place, dtype=torch.bool)
        times = []
        for _ in range(_timing.LEAST_ROUNDS):
            start = clock()
            with torch.no_grad():
                model.head(model(tokens, mask)[:, -1]).argmax(-1)
            times.append(clock() - start)
        costs.append(min(times))
    parabola = np.polynomial.Polynomial.fit(places, costs, 2)
    return Course(float(parabola(np.arange(1, length + 1)).sum()), costs[0], costs[-1])


def measure(
    backbone: str, batch: int, length: int, d_model: int, layers: int, threads: int, seconds: float
) -> tuple[dict[str, Course], int, int]:
    """Per candidate its course; the model's parameters; the bytes carried from step to step at the end."""
    torch.set_num_threads(threads)
    model = build(backbone, length, d_model, layers)
    made: dict[str, type[generate.Carried]] = {STATE: generate.Carried}
    if backbone == TRANSFORMER:
        made = {APPENDED: generate.Carried, RESERVED: Reserved}
    found = {
        name: carried_course(partial(kind, model, batch, length), length, batch, threads, seconds)
        for name, kind in made.items()
    }
    if backbone == TRANSFORMER:
        found[WITHOUT] = uncached_course(model, length, batch, threads)
    carried = generate.Carried(model, batch, length)
    jump(carried, length)
    # What a state space discretized once and never changes is no state: the first of its tensors is.
    kept = [state if backbone == TRANSFORMER else state[:1] for state in carried.states]
    size = sum(part.numel() * part.element_size() for state in kept for part in state)
    return found, sum(parameter.numel() for parameter in model.parameters()), size


def rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each batch, length, backbone and candidate."""
    made = []
    for batch in asked.batches:
        for length in asked.lengths:
            base: dict[str, float] = {}
            for backbone in [TRANSFORMER, *asked.backbones]:
                sizes = (batch, length, asked.d_model, asked.layers, asked.threads)
                found, parameters, size = _timing.alone(measure, backbone, *sizes, asked.seconds)
                base = base or {name: course.seconds for name, course in found.items()}
                for name, course in found.items():
                    made.append(
                        {
                            "backbone": backbone,
                            "candidate": name,
                            "batch": batch,
                            "length": length,
                            "d_model": asked.d_model,
                            "layers": asked.layers,
                            "parameters": parameters,
                            "tokens_per_s": batch * length / course.seconds,
                            "times_transformer": base[RESERVED] / course.seconds,
                            "times_uncached": base[WITHOUT] / course.seconds,
                            "first_step_s": course.first,
                            "last_step_s": course.last,
                            "state_bytes": 0 if name == WITHOUT else size,
                            "threads": asked.threads,
                            "device": _timing.device(),
                            "torch": torch.__version__,
                        }
                    )
            print(table([row for row in made if (row["batch"], row["length"]) == (batch, length)]), flush=True)
    return made


def table(found: list[dict[str, Any]]) -> str:
    """One line per row."""
    head = f"{'backbone':13}{'candidate':24}{'batch':>6}{'length':>8}{'tokens/s':>11}{'x cached':>10}{'x uncached':>12}"
    line = "{backbone:13}{candidate:24}{batch:6}{length:8}{tokens_per_s:11,.0f}"
    line += "{times_transformer:10.2f}{times_uncached:12.1f}"
    return "\n".join([head, *(line.format(**row) for row in found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of generation.json")
    causal = [name for name in backbones.names() if backbones.load(name).CAUSAL_OK and name != TRANSFORMER]
    parser.add_argument("--backbones", choices=causal, nargs="+", default=causal, help="beside the Transformer")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each candidate")
    asked = parser.parse_args()
    watch = Stopwatch(Path(__file__).parents[1], "cpu")
    found = rows(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "generation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    write_bench(asked.out, "generation", settings, MODULES, watch)


if __name__ == "__main__":
    main()
