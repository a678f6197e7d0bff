"""Onsets of learning: against published numbers and formulas written out here, and error rates by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.duration.survfunc import survdiff

from noscratch.errors import NoscratchError
from noscratch.results import survival
from noscratch.results.survival import Onset, learning, log_rank, onset, threshold

# Weeks of remission in leukemia (Freireich et al. 1963); a star in the papers marks what is false here.
PLACEBO = [Onset(t, True) for t in (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)]
TREATED = [Onset(t, True) for t in (6, 6, 6, 7, 10, 13, 16, 22, 23)]
TREATED += [Onset(t, False) for t in (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35)]

runs = st.lists(st.builds(Onset, st.integers(1, 6), st.booleans()), min_size=2, max_size=5)


def statistic(first: Sequence[Onset], second: Sequence[Onset]) -> tuple[Fraction, Fraction]:
    """Observed less expected onsets of the first sample, and its hypergeometric variance (Mantel 1966)."""
    pooled = [*first, *second]
    excess, variance = Fraction(0), Fraction(0)
    for step in {run.step for run in pooled if run.learned}:
        n, n1 = (sum(run.step >= step for run in side) for side in (pooled, first))
        d, d1 = (sum(run.step == step and run.learned for run in side) for side in (pooled, first))
        excess += d1 - Fraction(d * n1, n)
        if n > 1:
            variance += Fraction(n1 * (n - n1) * d * (n - d), n * n * (n - 1))
    return excess, variance


def test_published_numbers() -> None:
    """R's survfit (conf.type = "log-log") and survdiff: medians 8 and 23 weeks, chi-squared 16.8."""
    assert (learning(PLACEBO).median, learning(TREATED).median) == (8, 23)
    assert learning(PLACEBO).median_interval == (4, 11)
    assert learning(TREATED).median_interval == (13, None)
    excess, variance = statistic(TREATED, PLACEBO)
    assert float(excess**2 / variance) == pytest.approx(16.79, abs=0.005)
    assert log_rank(TREATED, PLACEBO) < 0.001


def test_share() -> None:
    """Clopper and Pearson's interval is the one whose edges a binomial test of 2.5 % just keeps."""
    found = learning([Onset(200, True), Onset(400, True), Onset(600, True), Onset(4000, False)])
    low, high = found.share_interval
    assert (found.n, found.share) == (4, 0.75)
    assert stats.binom.sf(2, 4, low) == pytest.approx(0.025, abs=1e-10)
    assert stats.binom.cdf(3, 4, high) == pytest.approx(0.025, abs=1e-10)


def test_nobody_and_everybody_learns() -> None:
    nobody, everybody = learning([Onset(10, False)] * 3), learning([Onset(10, True)] * 3)
    assert (nobody.share, nobody.median, nobody.median_interval) == (0, None, (None, None))
    assert (everybody.share, everybody.median) == (1, 10)
    assert log_rank([Onset(10, False)] * 3, [Onset(20, False)] * 3) == 1.0


@given(runs, runs)
def test_scores_add_up_to_the_log_rank_statistic(first: list[Onset], second: list[Onset]) -> None:
    times, learned = survival._arrays([*first, *second])
    if not learned.any():
        return
    excess, variance = statistic(first, second)
    scores = survival._scores(times, learned)
    assert scores.sum() == pytest.approx(0, abs=1e-10)
    assert scores[: len(first)].sum() == pytest.approx(float(excess), abs=1e-10)
    if variance:
        group = np.repeat([0, 1], [len(first), len(second)])
        chisquare = survdiff(times, learned.astype(float), group)[0]
        assert chisquare == pytest.approx(float(excess**2 / variance), rel=1e-10, abs=1e-10)


@given(runs, runs)
@example([Onset(1, True), Onset(2, True), Onset(2, True)], [Onset(1, False), Onset(1, True), Onset(2, True)])
@example([Onset(1, False), Onset(1, False), Onset(1, True)], [Onset(1, True), Onset(2, True), Onset(2, True)])
def test_p_counts_relabellings(first: list[Onset], second: list[Onset]) -> None:
    pooled = [*first, *second]
    if not any(run.learned for run in pooled):
        assert log_rank(first, second) == 1
        return
    seen = statistic(first, second)[0]
    every = [
        statistic([pooled[i] for i in chosen], [pooled[i] for i in range(len(pooled)) if i not in chosen])[0]
        for chosen in combinations(range(len(pooled)), len(first))
    ]
    tail = min(sum(other >= seen for other in every), sum(other <= seen for other in every))
    assert log_rank(first, second) == pytest.approx(min(1.0, 2 * tail / len(every)), abs=1e-10)
    assert log_rank(second, first) == pytest.approx(log_rank(first, second), abs=1e-10)


def test_onset() -> None:
    curve = [(200, 0.1), (400, 0.151), (600, 0.12), (800, 0.4)]
    assert onset(curve, 0.15) == Onset(400, True)
    assert onset(curve, 0.151) == Onset(800, True)
    assert onset(curve, 0.4) == Onset(800, False)


@pytest.mark.parametrize(
    ("chance", "metric", "examples", "level"),
    [
        (0.1, "accuracy", 2000, 0.15),
        (0.5, "accuracy", 100, 0.5 + 3.5 * 0.05),
        (0.0, "matthews", 100, 0.35),
        (0.0, "pearson", 10_000, 0.05),
        (0.8, "f1", 100, 0.8 + 3.5 * 0.05),
    ],
)
def test_threshold(chance: float, metric: str, examples: int, level: float) -> None:
    assert threshold(chance, metric, examples) == pytest.approx(level)


@pytest.mark.parametrize("chance", [0.05, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("examples", [64, 128, 500, 2000])
def test_chance_is_rarely_taken_for_learning(chance: float, examples: int) -> None:
    """Twenty evaluations that know nothing, each with predictions of its own: exact, by the binomial distribution."""
    below = stats.binom.cdf(math.floor(threshold(chance, "accuracy", examples) * examples + 1e-9), examples, chance)
    assert 1 - below**20 < 0.05


def test_refused() -> None:
    for call in (lambda: onset([], 0.5), lambda: learning([])):
        with pytest.raises(NoscratchError, match=r"got none|has none"):
            call()
    with pytest.raises(NoscratchError, match="two runs on each side; got 1 and 3"):
        log_rank(PLACEBO[:1], PLACEBO[:3])


def draw(random: np.random.Generator, n: int, slow: float, stuck: float) -> list[Onset]:
    """`n` runs evaluated every 200 of 4,000 steps: `stuck` of them never learn, the others' onsets are exponential."""
    steps = 200 * np.ceil(random.exponential(slow, n) / 200).astype(int)
    learned = (random.random(n) >= stuck) & (steps <= 4000)
    return [Onset(int(step) if each else 4000, bool(each)) for step, each in zip(steps, learned, strict=True)]


def rejected(studies: int, sizes: tuple[int, int], first: tuple[float, float], second: tuple[float, float]) -> float:
    """The share of studies with p < 0.05."""
    random = np.random.default_rng(6)
    pairs = ((draw(random, sizes[0], *first), draw(random, sizes[1], *second)) for _ in range(studies))
    return float(np.mean([log_rank(*pair) < 0.05 for pair in pairs]))


# Nearly all learn; a third never does, at another budget's pace; hardly any.
NULLS = {"most learn": (1000.0, 0.0), "a third is stuck": (1500.0, 0.33), "few learn": (4000.0, 0.6)}


@pytest.mark.parametrize("null", NULLS)
def test_type_one_error_in_brief(null: str) -> None:
    assert rejected(400, (5, 5), NULLS[null], NULLS[null]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_power_in_brief() -> None:
    assert rejected(100, (5, 5), (500.0, 0.0), (4000.0, 0.8)) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("sizes", [(3, 3), (3, 5), (5, 5), (10, 10)])
def test_type_one_error(null: str, sizes: tuple[int, int]) -> None:
    """A permutation test errs in 5 % of studies at most, whatever the distribution; 10,000 of them, or a tenth where
    each looks at 9,999 relabellings."""
    studies = 10_000 if sum(sizes) <= 10 else 1000
    assert rejected(studies, sizes, NULLS[null], NULLS[null]) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


@pytest.mark.slow
def test_power() -> None:
    """Five seeds that all learn within 1,000 steps or so, against five of which four in five never do."""
    found = rejected(10_000, (5, 5), (500.0, 0.0), (4000.0, 0.8))
    assert found == pytest.approx(0.97, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 10])
def test_coverage(n: int) -> None:
    """Of the share, at least 95 % of 10,000 studies."""
    random = np.random.default_rng(7)
    truth = 0.7 * (1 - math.exp(-4000 / 1500))
    found = [learning(draw(random, n, 1500.0, 0.3)).share_interval for _ in range(10_000)]
    assert np.mean([low <= truth <= high for low, high in found]) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 10_000)
