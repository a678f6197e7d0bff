"""When runs start to learn: time to onset, right-censored at the budget.

Some tasks keep a model at chance for thousands of steps, and some seeds never leave it. Means over such runs describe
neither kind. So each run has an onset: the first evaluated step whose validation metric exceeds the chance level by a
margin; a run that never does is censored at its last step. Estimates are Kaplan and Meier's, comparisons log-rank
tests, from statsmodels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight
from statsmodels.stats.proportion import proportion_confint

from noscratch.errors import NoscratchError

MARGIN = 0.05
"""How far above chance a score must be: five points, ..."""
ERRORS = 3.5
"""... or so many standard errors of a score at chance, where the validation set is small and that is more: in twenty
evaluations at chance fewer than 5 % of runs exceed it."""

RESAMPLES = 9_999
"""Most relabellings that a log-rank test looks at; below that it looks at every one and is exact."""


@dataclass(frozen=True)
class Onset:
    """A run's onset: the step, or the last step of a run that has stayed at chance (`learned` false)."""

    step: int
    learned: bool


@dataclass(frozen=True)
class Learning:
    """The onsets of several runs: their number, the share that learned within the budget with its 95 % interval
    (Clopper-Pearson), and the median step by Kaplan-Meier with its 95 % interval, None where beyond the budget."""

    n: int
    share: float
    share_interval: tuple[float, float]
    median: float | None
    median_interval: tuple[float | None, float | None]


def spread(metric: str, level: float = 0.5) -> float:
    """The standard deviation that one example brings to a score: of a share of right answers at `level`; 1 for a
    correlation, which is what its standard error at zero is; the most that a share can have for F1."""
    if metric == "accuracy":
        return math.sqrt(level * (1.0 - level))
    return 0.5 if metric == "f1" else 1.0


def threshold(chance: float, metric: str, examples: int) -> float:
    """What a validation score must exceed to count as learned; `chance` is the score of the most frequent class."""
    return chance + max(MARGIN, ERRORS * spread(metric, chance) / math.sqrt(examples))


def onset(curve: Sequence[tuple[int, float]], level: float) -> Onset:
    """The first step of `curve` (step, score; steps ascend) with a score above `level`."""
    if not curve:
        raise NoscratchError("An onset is read from a curve of validation scores; this run has none.")
    for step, score in curve:
        if score > level:
            return Onset(step, True)
    return Onset(curve[-1][0], False)


def learning(onsets: Sequence[Onset]) -> Learning:
    """Share and median of at least one run."""
    times, learned = _arrays(onsets)
    low, high = proportion_confint(learned.sum(), len(onsets), method="beta")
    function = SurvfuncRight(times, learned)
    median: float | None = None
    ends: tuple[float | None, float | None] = None, None
    if learned.any():
        median = _finite(function.quantile(0.5))
        with np.errstate(divide="ignore", invalid="ignore"):  # its log-log scale has no 0 and no 1
            ends = _finite(function.quantile_ci(0.5)[0]), _finite(function.quantile_ci(0.5)[1])
    return Learning(len(onsets), float(learned.mean()), (float(low), float(high)), median, ends)


def log_rank(first: Sequence[Onset], second: Sequence[Onset]) -> float:
    """The two-sided p-value for "both samples have one distribution of onsets".

    The log-rank statistic, judged by all ways to relabel the runs rather than by chi-squared: with three to ten seeds
    its asymptotic form errs too often. 1 where nothing was learned. Each sample needs two runs.
    """
    if min(len(first), len(second)) < 2:
        raise NoscratchError(f"A log-rank test needs two runs on each side; got {len(first)} and {len(second)}.")
    times, learned = _arrays([*first, *second])
    if not learned.any():
        return 1.0
    scores = _scores(times, learned)
    size = len(first)
    test = stats.permutation_test(
        (scores[:size], scores[size:]),
        # Rounded, so that relabellings with one statistic tie: the last digit depends on the order of the runs.
        lambda a, b, axis: a.sum(axis=axis).round(10),
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
        alternative="two-sided",
    )
    return float(min(1.0, test.pvalue))


def _scores(times: NDArray[np.int64], learned: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Each run's share in the log-rank statistic (observed less expected onsets of a sample is the sum of its runs'):
    its own event less the pooled cumulative hazard at its time."""
    pooled = SurvfuncRight(times, learned)
    hazard = np.cumsum(pooled.n_events / pooled.n_risk)
    at = np.searchsorted(pooled.surv_times, times, side="right")
    return learned - np.concatenate([[0.0], hazard])[at]


def _arrays(onsets: Sequence[Onset]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    if not onsets:
        raise NoscratchError("Onsets are compared between runs; got none.")
    return np.array([each.step for each in onsets]), np.array([each.learned for each in onsets])


def _finite(step: float) -> float | None:
    return float(step) if math.isfinite(step) else None
