"""Estimates: means, differences and their intervals over seeds, by scipy.stats alone.

The judge computes the same with statsmodels (results/statistics.py); that the two agree is what the auditor asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Value = float | int | None
Scores = Mapping[int, float]  # seed -> score
CLOSE = 1e-12  # relative; what rounding leaves between two ways to compute one number in float64


def mean(values: Sequence[float]) -> list[Value]:
    """Mean, both ends of its 95 % t interval, n; of one value no interval."""
    n, middle = len(values), float(np.mean(values))
    if n == 1:
        return [middle, None, None, 1]
    error = float(stats.sem(values))
    if error <= CLOSE * max(1.0, float(np.max(np.abs(values)))):  # equal values: rounding is no spread
        return [middle, middle, middle, n]
    low, high = stats.t.interval(0.95, n - 1, loc=middle, scale=error)
    return [middle, float(low), float(high), n]


def over(cells: Sequence[Scores]) -> Scores:
    """Scores of several cells as one sample: their mean, for the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(scores) for scores in cells)))
    return {seed: math.fsum(scores[seed] for scores in cells) / len(cells) for seed in seeds}


def candidates(first: Scores, others: Sequence[Scores], unit: str) -> list[list[Value]]:
    """The estimates in `unit` that a sample, or its differences from others, can give: estimate, low, high, n.

    Of several comparisons a claim shows one, that with the weakest evidence; any of these is computed rightly. A
    relative gain is averaged on the log scale.
    """
    factor = 100.0 if unit in ("percent", "points") else 1.0
    relative = unit == "relative-percent"
    n = min(len(sample) for sample in (first, *others))
    if n == 0:
        return [[None, None, None, 0]]
    if n == 1:
        own, *rest = (math.fsum(sample.values()) / len(sample) for sample in (first, *others))
        if not rest:
            return [[own * factor, None, None, 1]]
        return [[100.0 * (own / max(rest) - 1.0) if relative else (own - max(rest)) * factor, None, None, 1]]
    scaled = [
        {seed: math.log(value) if relative else value * factor for seed, value in sample.items()}
        for sample in (first, *others)
    ]
    found = [_difference(scaled[0], other) for other in scaled[1:]] or [mean(list(scaled[0].values()))]
    if not relative:
        return found
    return [[*(None if end is None else 100.0 * math.expm1(end) for end in each[:3]), each[3]] for each in found]


def _difference(first: Scores, second: Scores) -> list[Value]:
    """Paired where the seeds are the same, else by Welch."""
    if list(first) == list(second):
        return mean([first[seed] - second[seed] for seed in first])
    a, b = list(first.values()), list(second.values())
    middle, n = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return [middle, middle, middle, n]
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return [middle, float(interval.low), float(interval.high), n]


def repeated(values: Sequence[float], unit: str) -> list[Value]:
    """Of the repetitions of a measurement: estimate, low, high, n; ratios on the log scale."""
    if unit != "ratio" or len(values) == 1:
        return mean(values)
    if min(values) <= 0:
        return [0.0, None, None, len(values)]
    *ends, n = mean([math.log(value) for value in values])
    return [*(None if end is None else math.exp(end) for end in ends), n]


def close(one: Value, other: Value) -> bool:
    """Equal but for rounding."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
