"""The backbone contract: one file, one residual block; what stands around it (embedding, pooling, heads) exists once.

A file `backbones/<name>.py` that follows `Backbone` is a backbone: plan, contract test and site find it by its name.
A name with a dash is the same file under other settings: `s4-random` is `s4.py`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from noscratch.errors import NoscratchError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Form = Callable[[nn.Module, Tensor], Tensor]  # a block and x (B, L, D) without padding to (B, L, D)


class BackboneError(NoscratchError):
    """An unknown backbone, or one asked for what it does not offer."""


class Block(Protocol):
    """One residual block: norm, mixer, channel mix and the residual sum are all inside.

    `forward` maps x (B, L, D), floating, and mask (B, L), bool, True at real tokens, or None where all are, to
    (B, L, D). Padding stands on the right. Outputs at real positions do not depend on how much padding follows; those
    at padded positions are finite and otherwise unspecified, so a mixer that looks ahead zeroes (or masks) padded
    positions of its input. With causal=True the output at position l depends on inputs at positions <= l only.

    A submodule with special parameters declares them: `optim: dict[str, dict[str, float]]` maps names of its own
    parameters to {"lr": ..., "weight_decay": ...}, which `noscratch.optim` reads. Every parameter is real: a complex
    one is stored as its real and imaginary parts. A submodule that changes in the course of a training has
    `set_progress(fraction)`, called before each step with the share of the steps that is over.
    """

    @property
    def kernels(self) -> dict[str, str]:
        """Which form of each kernel runs on the block's device: {"s4d_kernel": "fast", ...}."""

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor: ...


class CausalBlock(Block, Protocol):
    """A block built with causal=True also generates: `step` along a sequence gives what `forward` gives at once."""

    def initial_state(self, batch: int) -> Any:
        """The state before the first position: a tensor, or a tuple of tensors, on the block's device."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position: x (B, D) and the state give the output (B, D) and the next state."""


class Backbone(Protocol):
    """What a backbone file defines."""

    Config: type[Any]
    """Where it has a field `positions`, the value "sinusoidal" asks the model to add absolute positions to the
    embedding. The model ends in a norm like the blocks': of the kind in `normalization`, and with `norm` "post" none,
    since then they end in their own."""
    PAPER: str
    """Authors, title, arXiv number."""
    CAUSAL_OK: bool
    BIDIRECTIONAL_OK: bool
    EQUIVALENT: Sequence[tuple[Form, Form]]
    """Forms of a causal block that must agree, such as (parallel, recurrent)."""

    def build(self, config: Any, d_model: int, max_length: int, causal: bool, backend: str = "auto") -> nn.Module:
        """One `Block` (a `CausalBlock` if causal) for sequences of at most max_length, with its initial parameters."""


def parallel(block: nn.Module, x: Tensor) -> Tensor:
    """x (B, L, D) without padding through the block, all positions at once."""
    return block(x, x.new_ones(x.shape[:2]).bool())


def recurrent(block: nn.Module, x: Tensor) -> Tensor:
    """x (B, L, D) through a causal block, one position after the other with carried state."""
    causal = cast(CausalBlock, block)
    state, outputs = causal.initial_state(len(x)), []
    for position in x.unbind(1):
        y, state = causal.step(position, state)
        outputs.append(y)
    import torch  # the plan imports this module, and the plan does without torch

    return torch.stack(outputs, dim=1)


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, L, D), zero where the mask (B, L) is False; None hides nothing."""
    return x if mask is None else x * mask.unsqueeze(-1)


def names() -> list[str]:
    """Every backbone file, sorted; files that start with an underscore are helpers."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


def file_of(name: str) -> str:
    """The file (without .py) that a backbone's name stands for: the part before the first dash."""
    return name.partition("-")[0]


def load(name: str) -> Backbone:
    """The module of a backbone. Raises BackboneError for a name without a file."""
    stem = file_of(name)
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BackboneError(f"A backbone is a file of noscratch/backbones ({', '.join(names())}); got {name!r}.{hint}")
    return cast(Backbone, importlib.import_module(f"{__name__}.{stem}"))


def configure(backbone: Backbone, overrides: dict[str, Any]) -> Any:
    """The backbone's Config with `overrides`. Raises BackboneError for a key it lacks or a value it refuses."""
    known = list(backbone.Config.__dataclass_fields__)
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise BackboneError(f"Settings of this backbone are {', '.join(known)}; got {key!r}.{hint}")
    return backbone.Config(**overrides)


def require(rule: bool, message: str) -> None:
    """Raise BackboneError(message) unless `rule` holds; for the checks of a Config and of build()."""
    if not rule:
        raise BackboneError(message)
