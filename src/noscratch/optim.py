"""AdamW over parameter groups that the layers themselves declare, and the learning rate's course over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from noscratch.ranks import fill, is_sharded, local, whole

BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate (at factor 1) and one weight decay."""

    lr: float
    weight_decay: float
    parameters: dict[str, nn.Parameter]

    def __str__(self) -> str:
        return f"lr {self.lr:g}, weight decay {self.weight_decay:g}"


def groups(model: nn.Module, lr: float, weight_decay: float) -> list[Group]:
    """Every trainable parameter of the model in exactly one group.

    A module's `optim` attribute (name of its own parameter -> {"lr", "weight_decay"}) goes first. Otherwise biases,
    norms, embeddings and other vectors are not decayed: decay is for matrices.
    """
    found: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for path, module in model.named_modules():
        hints: dict[str, dict[str, float]] = getattr(module, "optim", {})
        own = dict(module.named_parameters(recurse=False))
        assert set(hints) <= set(own), f"{path}: optim names {set(hints) - set(own)}, which are not its parameters"
        for name, parameter in own.items():
            if parameter.requires_grad:
                plain = isinstance(module, nn.Embedding) or parameter.ndim < 2
                hint = {"lr": lr, "weight_decay": 0.0 if plain else weight_decay} | hints.get(name, {})
                members = found.setdefault((hint["lr"], hint["weight_decay"]), {})
                members[f"{path}.{name}" if path else name] = parameter
    listed = sorted(name for members in found.values() for name in members)
    wanted = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert listed == wanted, f"not in exactly one group: {set(listed) ^ set(wanted)}"
    return [Group(rate, decay, members) for (rate, decay), members in found.items()]


def factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """What the learning rates are multiplied by at `step` (from 0): linear warm-up, then constant or half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    assert schedule == "cosine", schedule
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


class AdamW:
    """Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, through PyTorch's fused form.

    `torch.optim.AdamW` is the same update, but importing what it needs costs a second per process.
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float) -> None:
        self.groups = groups(model, lr, weight_decay)
        self.steps = 0
        everything = {name: value for group in self.groups for name, value in group.parameters.items()}
        self._average = {name: torch.zeros_like(value) for name, value in everything.items()}
        self._square = {name: torch.zeros_like(value) for name, value in everything.items()}

    def step(self, factor: float = 1.0) -> None:
        """Update every parameter from its gradient, learning rates times `factor`, and drop the gradients."""
        for group in self.groups:
            names = [name for name, parameter in group.parameters.items() if parameter.grad is not None]
            values = [group.parameters[name] for name in names]
            with torch.no_grad():
                adamw(
                    [local(value) for value in values],
                    _gradients(group),
                    [local(self._average[name]) for name in names],
                    [local(self._square[name]) for name in names],
                    [],
                    [torch.full((), float(self.steps), device=value.device) for value in values],
                    fused=True,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=group.lr * factor,
                    weight_decay=group.weight_decay,
                    eps=EPS,
                    maximize=False,
                )
            for value in values:
                value.grad = None
        self.steps += 1

    def norm(self) -> Tensor:
        """The Euclidean norm of all gradients, a scalar."""
        return torch.linalg.vector_norm(torch.stack(list(self.norms().values())))

    def norms(self) -> dict[str, Tensor]:
        """The norm of each group's gradients, by the group's text."""
        return {str(group): _norm(group) for group in self.groups}

    def scale(self, by: float) -> None:
        """Multiply all gradients."""
        torch._foreach_mul_(_gradients(*self.groups), by)

    def clip(self, norm: Tensor, largest: float) -> None:
        """Scale all gradients so that their norm, which is now `norm`, is at most `largest`."""
        scale = (largest / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(_gradients(*self.groups), scale)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs to go on: both moments of every parameter and the count of steps."""
        return (
            {f"average.{name}": value for name, value in self._average.items()}
            | {f"square.{name}": value for name, value in self._square.items()}
            | {"steps": torch.tensor(self.steps)}
        )

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; the names are those of this model or it is an error."""
        own = self.state()
        assert set(tensors) == set(own), f"optimizer state differs in {set(tensors) ^ set(own)}"
        for name, value in own.items():
            fill(value, tensors[name])
        self.steps = int(tensors["steps"])


def _gradients(*chosen: Group) -> list[Tensor]:
    return [local(value.grad) for group in chosen for value in group.parameters.values() if value.grad is not None]


def _norm(group: Group) -> Tensor:
    found = [value.grad for value in group.parameters.values() if value.grad is not None]
    kinds = [[gradient for gradient in found if is_sharded(gradient) == kind] for kind in (False, True)]
    norms = [whole(norm) for kind in kinds if kind for norm in torch._foreach_norm(kind)]
    return torch.linalg.vector_norm(torch.stack(norms))
