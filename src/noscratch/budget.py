"""How long a run is: the steps that its settings give, or what the budget of other runs buys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noscratch.data import Split, training_batches
from noscratch.errors import NoscratchError
from noscratch.flops import Cost

TOLERANCE = 0.01
"""By how much a matched run's operations may differ from its budget's."""


@dataclass(frozen=True)
class Budget:
    """What the runs that set the budget used."""

    steps: int
    flops: int
    flops_for_energy: int | None = None
    """Operations that their energy pays for in training from scratch, at the price of fine-tuning; None: unmeasured."""


@dataclass(frozen=True)
class Length:
    """So many steps; the last one takes only so many examples of its batch (None: all)."""

    steps: int
    last: int | None = None


def length(
    plan: Mapping[str, Any], budget: Budget | None, train: Split, costs: Callable[[], Cost], seed: int
) -> Length:
    """How long a run with these settings (`train` of a job) is.

    One that is matched by `flops` or `energy` goes through its batches until the operations are spent; of the batch
    with which they would be exceeded it takes the examples that come nearest. Raises NoscratchError where that is not
    within TOLERANCE.
    """
    if budget is None:
        return Length(plan["steps"])
    if plan["matched"] == "steps":
        return Length(budget.steps)
    goal = budget.flops if plan["matched"] == "flops" else budget.flops_for_energy
    assert goal is not None, "the caller refuses to match an energy that nobody measured"
    cost, spent, steps = costs(), 0.0, 0
    for _, _, index in training_batches(train.lengths, plan["batch_tokens"], seed, 0):
        price = _price(train, cost, index)
        if spent + price > goal:
            break
        spent, steps = spent + price, steps + 1
    parts = np.array([0.0, *(_price(train, cost, index[:size]) for size in range(1, len(index)))])
    last = int(np.abs(spent + parts - goal).argmin())
    if abs(spent + parts[last] - goal) > TOLERANCE * goal:
        raise NoscratchError(
            f"A matched run spends its budget within {TOLERANCE:.0%}; {goal} operations are {steps} batches and "
            f"{(goal - spent) / price:.0%} of one that has {len(index)} examples. Give the runs that it is matched to "
            "more steps, or smaller batches."
        )
    return Length(steps + 1, last) if last else Length(steps)


def _price(train: Split, cost: Cost, index: NDArray[np.int64]) -> float:
    return sum(cost({longest: (1, sequences)}, 0) for sequences, longest in train.shapes(index)) + cost({}, len(index))


def ratios(budget: Budget, by: str, steps: int, flops: int) -> dict[str, Any]:
    """For the record of a matched run: its budget, and what it used over that."""
    return {
        "by": by,
        "budget": {"steps": budget.steps, "flops": budget.flops},
        "ratio": {"steps": steps / budget.steps, "flops": flops / budget.flops},
    }
