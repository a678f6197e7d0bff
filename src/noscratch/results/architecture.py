"""Count what needs no training: parameters, layers and operations of published models, and identities of forms.

Sizes and operations are those of the package's own blocks inside the surroundings that the authors describe
(backbones/_presets.py). An identity is computed both ways in double precision; its error is rounded up to a power of
ten, 1e-12 at least, so that machines whose last digits differ agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor

from noscratch.backbones import bigs, parallel, recurrent, s4
from noscratch.backbones._ffn import Feedforward, Settings
from noscratch.backbones._presets import (
    PRESETS,
    Wide,
    forward_flops,
    guided_training_flops,
    size,
    training_flops,
)
from noscratch.kernels import ssm
from noscratch.results.claims import Paper, units
from noscratch.results.observations import Observation

FORMS = ("dense", *(f"{form}-{share}" for share in (63, 32) for form in ("lowrank", "blockdense", "blockshuffle")))
# Tokens that the Transformers of the structured feedforwards' tables are trained on, sequences of 1024.
TOKENS = {"m": 6.7e9, "l": 14.6e9, "xl": 25.5e9}
LENGTH = 1024
BIGS_LENGTHS = (128, 512, 1024, 4096)

Counts = dict[str, float]


def _size(name: str) -> float:
    return float(size(PRESETS[name]).parameters)


def _training(name: str) -> float:
    with torch.device("meta"):
        return training_flops(PRESETS[name], LENGTH)


def _guided(name: str, share: float) -> float:
    with torch.device("meta"):
        return guided_training_flops(cast(Wide, PRESETS[name]), LENGTH, share)


def _bigs_layers() -> Counts:
    """The number of blocks with which the model comes nearest to its 346M parameters."""
    preset = PRESETS["bigs"]
    with torch.device("meta"):
        block = sum(p.numel() for p in preset.block(0).parameters())
    return {"layers": float(round((346e6 - sum(preset.around.values())) / block))}


def _bigs_positions() -> Counts:
    """How many of 4096 positions have the output of the direct sum over all positions."""
    length, width = 4096, 4
    x = _normal(0, 1, length, width)
    outputs = []
    for backend in ("reference", "fast"):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(parallel(bigs.build(bigs.Config(), width, length, False, backend).double(), x))
    error = (outputs[0] - outputs[1]).abs().amax(dim=(0, 2)) / outputs[0].abs().max()
    return {"positions": float((error < 1e-9).sum())}


@cache
def _bigs_flops() -> Counts:
    names = {"bigs": "bigs", "bert": "bert-large"}
    return {f"{n}-{length}": forward_flops(PRESETS[p], length) for length in BIGS_LENGTHS for n, p in names.items()}


def _bigs_ratios() -> Counts:
    counted = _bigs_flops()
    return {f"length-{length}": counted[f"bigs-{length}"] / counted[f"bert-{length}"] for length in BIGS_LENGTHS}


def _wide_tokens() -> Counts:
    """Tokens for the operations that the dense Transformer takes for its own."""
    return {
        f"wide-{name}": TOKENS[name] * _training(f"structured-{name}-dense") / _training(f"structured-{name}-wide")
        for name in ("m", "l")
    }


def _convolution_is_recurrence() -> Counts:
    torch.manual_seed(0)
    block = s4.build(s4.Config(), 8, LENGTH, True).double()
    x = _normal(1, 2, LENGTH, 8)
    with torch.no_grad():
        return _identity(parallel(block, x), recurrent(block, x))


def _dplr_is_dense() -> Counts:
    """K_l = c Abar^l Bbar of the HiPPO matrix itself, against the kernel of its diagonal and rank one."""
    states, heads, length = 64, 4, 256
    legs, c = ssm.hippo_legs(states), _normal(2, heads, states)
    dt = torch.logspace(-3, -1, heads, dtype=torch.float64)
    half, identity = dt[:, None, None] / 2 * legs.A, torch.eye(states, dtype=torch.float64)
    state = torch.linalg.solve(identity - half, dt[:, None] * legs.B)
    step = torch.linalg.solve(identity - half, identity + half)
    taps = []
    for _ in range(length):
        taps.append((c * state).sum(-1))
        state = (step @ state[:, :, None])[:, :, 0]
    fast = ssm.s4_kernel(dt, legs.Lambda, legs.P_t[None], legs.B_t, c.to(legs.V.dtype) @ legs.V, length, backend="fast")
    return _identity(torch.stack(taps, dim=-1), fast)


def _merged_is_structured() -> Counts:
    """Each structured feedforward, and the dense one that it is merged into for generation."""
    found = {}
    for kind in ("low_rank", "block_dense", "block_shuffle"):
        torch.manual_seed(0)
        layer = Feedforward(32, 128, Settings(kind), "auto").double()
        x = _normal(3, 16, 32)
        with torch.no_grad():
            before = layer(x)
            layer.merge()
            found[kind.replace("_", "")] = _identity(before, layer.double()(x))["float64"]
    return found


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _identity(a: Tensor, b: Tensor) -> Counts:
    """The largest difference over the largest value, rounded up to a power of ten."""
    error = float((a - b).abs().max() / a.abs().max())
    return {"float64": 10.0 ** math.ceil(math.log10(max(error, 1e-12)))}


ERROR = "error over largest value, rounded up to a power of ten, 1e-12 at least"
# claim -> how it is counted, in words, and its quantities
COUNTED: dict[str, tuple[str, Callable[[], Counts]]] = {
    "s4-resnet-parameters": (
        "6 blocks of width 1024, a system for each channel, ungated",
        lambda: {"parameters": _size("s4-scifar")},
    ),
    "s4-example-parameters": ("4 blocks of width 128", lambda: {"parameters": _size("s4-example")}),
    "s4-speech-10-parameters": (
        "6 blocks of width 128, a system for each channel, ungated",
        lambda: {"parameters": _size("s4-speech-10")},
    ),
    "s4-speech-35-parameters": ("6 blocks of width 128, two systems", lambda: {"parameters": _size("s4-speech-35")}),
    "s4-wikitext-parameters": (
        "16 blocks of width 1024, of which one of S4 is two S4 layers and a feedforward; banded embeddings",
        lambda: {"transformer": _size("transformer-wikitext"), "s4": _size("s4-wikitext")},
    ),
    "s4-convolution-is-recurrence": (
        f"a block of width 8 on 1024 positions; {ERROR}",
        _convolution_is_recurrence,
    ),
    "s4-dplr-is-dense": (
        f"64 states, 4 step sizes, 256 taps; {ERROR}",
        _dplr_is_dense,
    ),
    "bigs-parameters": ("23 blocks and BERT's embeddings", lambda: {"parameters": _size("bigs")}),
    "bigs-layers": ("blocks that bring the model nearest to 346M parameters", _bigs_layers),
    "bigs-length": (
        "positions of 4096 whose output equals that of the direct sum, in double precision",
        _bigs_positions,
    ),
    "bigs-flops": (
        "a forward pass of the blocks for one sequence: products, attention, Fourier transforms",
        _bigs_flops,
    ),
    "bigs-flop-ratios": ("BiGS over BERT, from the exact counts", _bigs_ratios),
    "structured_ffn-xl-parameters": (
        "24 blocks of width 2048, the first feedforward dense, tied embeddings",
        lambda: {form: _size(f"structured-xl-{form}") for form in FORMS},
    ),
    "structured_ffn-xl-ffn-parameters": (
        "weights of the feedforwards, the first of them dense",
        lambda: {form: float(size(PRESETS[f"structured-xl-{form}"]).feedforward) for form in FORMS},
    ),
    "structured_ffn-xl-flops": (
        "three forward passes of blocks and output layer for each of 25.5B tokens, sequences of 1024",
        lambda: {form: TOKENS["xl"] * _training(f"structured-xl-{form}") for form in FORMS},
    ),
    "structured_ffn-wide-parameters": (
        "24 blocks, tied embeddings",
        lambda: {f"{form}-{name}": _size(f"structured-{name}-{form}") for form in ("dense", "wide") for name in "ml"},
    ),
    "structured_ffn-wide-tokens": ("tokens for the operations of the dense Transformer", _wide_tokens),
    "structured_ffn-wide-flops": (
        "three forward passes for each token, sequences of 1024; guided: over 40 % of the steps, repeated at the end",
        lambda: {
            "dense-m": TOKENS["m"] * _training("structured-m-dense"),
            "guided-m": TOKENS["m"] * _guided("structured-m-wide", 0.40),
            "dense-l": TOKENS["l"] * _training("structured-l-dense"),
        },
    ),
    "structured_ffn-merged": (
        f"width 32, 16 tokens; {ERROR}",
        _merged_is_structured,
    ),
}


def count(papers: Sequence[Paper]) -> list[Observation]:
    """Every quantity that is counted for a claim of the ledger; the same code counts the same on every machine."""
    claimed = units(papers)
    return [
        Observation(
            claim=claim, quantity=name, unit=claimed[claim], values=[value], device="any", model="", setting=setting
        )
        for claim, (setting, counted) in COUNTED.items()
        if claim in claimed
        for name, value in counted().items()
    ]
