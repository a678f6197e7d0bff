"""Numerics or seed: how much of the spread of a score comes from which, in a crossed design.

One cell is trained for every combination of a seed and a numerics, which is a number format and a form of the kernels.
A run repeats to the bit, so there is one score for each combination, and the model is

    score = mean + seed + numerics + rest,    with variances seed, numerics and rest.

`rest` is what the two do together: rounding sets a run on another course, and where it ends depends on the seed. So two
runs that differ in their seed alone differ by the variance 2 (seed + rest), two that differ in their numerics alone by
2 (numerics + rest). Estimates are those of the analysis of variance. Intervals are modified large-sample ones: for a
difference of mean squares by Ting, Burdick, Graybill, Jeyaratnam and Lu (1990, J. Statist. Comput. Simul. 35, 135-143),
for a sum by Graybill and Wang (1980, J. Amer. Statist. Assoc. 75, 869-873).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from noscratch.errors import NoscratchError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Component:
    """A variance, not below zero, and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Split:
    """The components of the model, and the two sums that a difference between runs is made of; p-values of the F tests
    for "no effect of the seed" and "no shift between the numerics"."""

    seed: Component
    numerics: Component
    rest: Component
    another_seed: Component
    another_numerics: Component
    p_seed: float
    p_numerics: float

    @property
    def parts(self) -> dict[str, Component]:
        """Every variance by its name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Component)}


@dataclass(frozen=True)
class _Square:
    """A mean square and its degrees of freedom."""

    value: float
    freedom: int


def split(scores: Sequence[Sequence[float]]) -> Split:
    """The split of a table with one row per seed and one column per numerics, at least two of each."""
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise NoscratchError(
            "A variance is split over a whole table of finite scores, at least two seeds by two numerics; got "
            f"{table.shape if table.ndim == 2 else 'another shape'}. Finish the missing runs, or take more of both."
        )
    seeds, levels = table.shape
    row, column, rest = _squares(table)
    return Split(
        seed=_difference(row, rest, 1 / levels),
        numerics=_difference(column, rest, 1 / seeds),
        rest=_sum(rest, 1.0, rest, 0.0),
        another_seed=_sum(row, 1 / levels, rest, 1 - 1 / levels),
        another_numerics=_sum(column, 1 / seeds, rest, 1 - 1 / seeds),
        p_seed=_p(row, rest),
        p_numerics=_p(column, rest),
    )


def _squares(table: NDArray[np.float64]) -> tuple[_Square, _Square, _Square]:
    """Mean squares of rows, columns and what is left."""
    seeds, levels = table.shape
    mean, rows, columns = table.mean(), table.mean(axis=1), table.mean(axis=0)
    left = table - rows[:, None] - columns + mean
    # Equal scores leave rounding errors; their squares are zero.
    negligible = (1e-12 * max(1.0, float(np.abs(table).max()))) ** 2
    found = (
        (levels * float(((rows - mean) ** 2).sum()), seeds - 1),
        (seeds * float(((columns - mean) ** 2).sum()), levels - 1),
        (float((left**2).sum()), (seeds - 1) * (levels - 1)),
    )
    one, two, three = (_Square(total / n if total / n > negligible else 0.0, n) for total, n in found)
    return one, two, three


def _p(effect: _Square, rest: _Square) -> float:
    if rest.value == 0:
        return 1.0 if effect.value == 0 else 0.0
    return float(stats.f.sf(effect.value / rest.value, effect.freedom, rest.freedom))


def _tails(freedom: int, other: float = math.inf) -> tuple[float, float]:
    """The quantiles of F (of chi-squared over its degrees of freedom, where `other` is infinite) that leave half of the
    error on each side."""
    error = (1 - CONFIDENCE) / 2
    if math.isinf(other):
        low, high = special.chdtri(freedom, [1 - error, error]) / freedom
    else:
        low, high = special.fdtri(freedom, other, [error, 1 - error])
    return float(low), float(high)


def _difference(effect: _Square, rest: _Square, share: float) -> Component:
    """share * (effect - rest), by Ting et al."""
    a, b = effect.value, rest.value
    low_a, high_a = _tails(effect.freedom)
    low_b, high_b = _tails(rest.freedom)
    low_f, high_f = _tails(effect.freedom, rest.freedom)
    g1, h1, g2, h2 = 1 - 1 / high_a, 1 / low_a - 1, 1 - 1 / high_b, 1 / low_b - 1
    g12 = ((high_f - 1) ** 2 - (g1 * high_f) ** 2 - h2**2) / high_f
    h12 = ((1 - low_f) ** 2 - (h1 * low_f) ** 2 - g2**2) / low_f
    below = (g1 * a) ** 2 + (h2 * b) ** 2 + g12 * a * b
    above = (h1 * a) ** 2 + (g2 * b) ** 2 + h12 * a * b
    low, high = (a - b) - math.sqrt(max(below, 0.0)), (a - b) + math.sqrt(max(above, 0.0))
    return Component(*(max(0.0, share * value) for value in (a - b, low, high)))


def _sum(first: _Square, one: float, second: _Square, two: float) -> Component:
    """one * first + two * second, no factor below zero, by Graybill and Wang."""
    parts = ((one * first.value, first.freedom), (two * second.value, second.freedom))
    total, below, above = 0.0, 0.0, 0.0
    for value, freedom in parts:
        low, high = _tails(freedom)
        total += value
        below += ((1 - 1 / high) * value) ** 2
        above += ((1 / low - 1) * value) ** 2
    return Component(total, max(0.0, total - math.sqrt(below)), total + math.sqrt(above))
