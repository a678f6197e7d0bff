"""The statistics of the verdicts, thin over scipy and statsmodels: every function takes samples over seeds.

A claim is tested through the region of values that agree with it: a band around the published number for an equivalence
claim (TOST), a half-line for "greater" or "less". One form covers all of them; see `region`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import special
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from noscratch.errors import NoscratchError


@dataclass(frozen=True)
class Estimate:
    """An estimated mean or difference: its value, standard error, the degrees of freedom of its t distribution, and the
    number of observations behind it (of the smaller sample, where there are two)."""

    value: float
    error: float
    freedom: float
    n: int


def mean(sample: Sequence[float]) -> Estimate:
    """The mean of one sample of at least two values, with the standard error of Student's t."""
    described = DescrStatsW(_checked(sample))
    return _estimate(described.mean, described.std_mean, described.nobs - 1, len(sample), sample)


def paired(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of first[i] - second[i], the same seed at the same index."""
    if len(first) != len(second):
        raise NoscratchError(f"A paired difference needs samples of one length; got {len(first)} and {len(second)}.")
    return mean([a - b for a, b in zip(first, second, strict=True)])


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The difference of two means, with Welch's standard error and Satterthwaite's degrees of freedom."""
    a, b = _checked(first), _checked(second)
    if np.ptp(a) == 0 and np.ptp(b) == 0:  # Satterthwaite's formula would divide zero by zero
        return Estimate(float(a[0] - b[0]), 0.0, float(min(len(a), len(b)) - 1), min(len(a), len(b)))
    compared = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    error, freedom = compared.std_meandiff_separatevar, compared.dof_satt()
    return _estimate(a.mean() - b.mean(), error, freedom, min(len(a), len(b)), [*first, *second])


def log_ratio(first: Sequence[float], second: Sequence[float], shared_seeds: bool) -> Estimate:
    """The logarithm of the ratio of geometric means, paired where index i is the same seed in both samples."""
    if min(*first, *second) <= 0:
        raise NoscratchError("A ratio on the log scale needs positive values; got one that is zero or negative.")
    logs = [math.log(x) for x in first], [math.log(x) for x in second]
    return paired(*logs) if shared_seeds else welch(*logs)


def interval(estimate: Estimate, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided t interval."""
    if estimate.error == 0:
        return estimate.value, estimate.value
    half = float(special.stdtrit(estimate.freedom, (1 + confidence) / 2)) * estimate.error
    return estimate.value - half, estimate.value + half


def region(estimate: Estimate, low: float, high: float) -> tuple[float, float]:
    """The p-values for "the true value lies in [low, high]" and for "it lies outside"; an edge may be infinite.

    Inside is an intersection-union test: the larger of the one-sided p-values, which is TOST for a finite band and the
    one-sided t test for a half-line. Outside is a union-intersection test: the smaller of the opposite one-sided
    p-values times the number of finite edges (Bonferroni). Where p < alpha is required, each errs with probability
    alpha at most. An estimate without any spread gives 0 or 1, and 1 for both on an edge.
    """
    if not (low <= high and (math.isfinite(low) or math.isfinite(high))):
        raise NoscratchError(f"A region needs low <= high and a finite edge; got [{low}, {high}].")
    if estimate.error == 0:
        return float(not low < estimate.value < high), float(low <= estimate.value <= high)
    inside, outside = [], []
    if math.isfinite(low):
        inside.append(_one_sided(estimate, low))
        outside.append(_one_sided(estimate, low, below=True))
    if math.isfinite(high):
        inside.append(_one_sided(estimate, high, below=True))
        outside.append(_one_sided(estimate, high))
    return max(inside), min(1.0, min(outside) * len(outside))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def spending(looks: Sequence[int]) -> tuple[float, ...]:
    """The part of alpha that each look may spend, looks being numbers of seeds in ascending order: the growth of the
    square of the share of seeds that are in. Little is spent early, where spreads are hardly known."""
    if not looks or min(looks) < 2 or list(looks) != sorted(set(looks)):
        raise NoscratchError(f"Looks are ascending numbers of seeds, two at least; got {list(looks)}.")
    shares = [0.0, *((look / looks[-1]) ** 2 for look in looks)]
    return tuple(after - before for before, after in pairwise(shares))


def sequential(p_values: Sequence[float], looks: Sequence[int]) -> float:
    """One p-value for all looks that were taken so far: `p_values[k]` is of the data at look k.

    Each look is tested at its part of alpha, and what is found once stays found. The parts add up to alpha
    (Bonferroni), so the error is bounded however the looks depend on each other, with three seeds too. The boundaries
    of group sequential designs, which take test statistics for normal, spend up to 5.8 % instead of 5 % there.
    """
    parts = spending(looks)
    if not 1 <= len(p_values) <= len(parts):
        raise NoscratchError(f"{len(looks)} looks have one to {len(looks)} p-values; got {len(p_values)}.")
    return min(1.0, *(p / part for p, part in zip(p_values, parts, strict=False)))


def _one_sided(estimate: Estimate, edge: float, below: bool = False) -> float:
    """The one-sided p-value for "the true value is above (below) `edge`"."""
    t = (estimate.value - edge) / estimate.error
    return float(special.stdtr(estimate.freedom, t if below else -t))


def _checked(sample: Sequence[float]) -> np.ndarray:
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise NoscratchError(f"A spread needs at least two finite values; got {list(sample)}.")
    return values


def _estimate(value: float, error: float, freedom: float, n: int, sample: Sequence[float]) -> Estimate:
    # Equal values leave a spread of a few rounding errors; call it zero, or t statistics of 1e15 would follow.
    negligible = 1e-12 * max(1.0, float(np.max(np.abs(sample))))
    return Estimate(float(value), 0.0 if error <= negligible else float(error), float(freedom), n)
