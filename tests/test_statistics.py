"""The statistics of the verdicts against numbers from elsewhere, and their error rates by simulation."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator
from scipy import stats
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from noscratch.errors import NoscratchError
from noscratch.results import statistics
from noscratch.results.statistics import Estimate


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> Iterator[None]:
    """statsmodels collects garbage at every Holm: with what stands now set aside, thousands of calls are quick."""
    gc.freeze()
    yield
    gc.unfreeze()


# Student's sleep data (1908), R's data set `sleep`.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
A, B = [120.0, 131.0, 127.0, 125.0], [240.0, 262.0, 243.0, 255.0, 251.0]

# From the textbook formulas and the incomplete beta function in 40 digits (mpmath 1.3). For paired and welch R prints
# the same, to the digits that it shows: t.test(sleep$extra ~ sleep$group), with and without paired = TRUE.
# value, error, freedom, 95 % interval, region, p inside
FIXTURES: dict[str, tuple[Estimate, float, float, float, float, float, tuple[float, float], float]] = {
    "mean": (
        statistics.mean(SECOND),
        *(2.33, 0.63316664473106919974, 9.0, 0.89767753937670512067, 3.7623224606232948793),
        *((1.0, 4.0), 0.032529942834047752679),
    ),
    "paired": (
        statistics.paired(FIRST, SECOND),
        *(-1.58, 0.38895872388839524381, 9.0, -2.4598857632769827987, -0.70011423672301720129),
        *((-3.0, -0.5), 0.010759243378387271732),
    ),
    "welch": (
        statistics.welch(FIRST, SECOND),
        *(-1.58, 0.84909101723876195742, 17.776473516178490143, -3.3654832307117109713, 0.20548323071171097135),
        *((-3.0, -0.5), 0.10989003874855220876),
    ),
    "log ratio": (
        statistics.log_ratio(A, B, shared_seeds=False),
        *(-0.68795479851074684552, 0.024227048918717421229, 6.4895282166302200325),
        *(-0.7461689611933905186, -0.62974063582810317245),
        *((math.log(0.45), math.log(0.55)), 0.0042753801714918161615),
    ),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures(name: str) -> None:
    estimate, value, error, freedom, low, high, region, inside = FIXTURES[name]
    assert (estimate.value, estimate.error, estimate.freedom) == pytest.approx((value, error, freedom), rel=1e-10)
    assert statistics.interval(estimate) == pytest.approx((low, high), rel=1e-10)
    assert statistics.region(estimate, *region)[0] == pytest.approx(inside, rel=1e-10)


def test_scipy_gives_the_same() -> None:
    """SciPy's t tests are code of their own beside statsmodels', through which ours go: statistic, p, interval."""
    pairs = {
        "mean": (stats.ttest_1samp, (SECOND, 0.0)),
        "paired": (stats.ttest_rel, (FIRST, SECOND)),
        "welch": (lambda *samples: stats.ttest_ind(*samples, equal_var=False), (FIRST, SECOND)),
        "log ratio": (lambda *samples: stats.ttest_ind(*samples, equal_var=False), (np.log(A), np.log(B))),
    }
    for name, (test, samples) in pairs.items():
        found, estimate = test(*samples), FIXTURES[name][0]
        assert estimate.value / estimate.error == pytest.approx(found.statistic, rel=1e-10)
        assert estimate.freedom == pytest.approx(found.df, rel=1e-10)
        assert statistics.interval(estimate) == pytest.approx(tuple(found.confidence_interval()), rel=1e-10)
        above, _ = statistics.region(estimate, 0.0, math.inf)
        assert min(above, 1 - above) == pytest.approx(found.pvalue / 2, rel=1e-10)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_step_by_step(p_values: list[float]) -> None:
    """Holm 1979: the k-th smallest of m times m - k + 1, never below the one before."""
    least, wanted = 0.0, [0.0] * len(p_values)
    for k, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, p_values[i] * (len(p_values) - k)))
        wanted[i] = least
    assert statistics.holm(p_values) == pytest.approx(wanted, rel=1e-10, abs=1e-300)


def test_region_is_tost() -> None:
    inside, _ = statistics.region(statistics.paired(FIRST, SECOND), -3.0, -0.5)
    assert inside == pytest.approx(ttost_paired(np.array(FIRST), np.array(SECOND), -3.0, -0.5)[0], rel=1e-10)
    inside, _ = statistics.region(statistics.welch(FIRST, SECOND), -3.0, -0.5)
    assert inside == pytest.approx(ttost_ind(FIRST, SECOND, -3.0, -0.5, usevar="unequal")[0], rel=1e-10)


def test_half_line_is_the_one_sided_t_test() -> None:
    above, not_above = statistics.region(statistics.paired(SECOND, FIRST), 0.0, math.inf)
    assert above == pytest.approx(0.002832890197384255 / 2, rel=1e-10)  # R: t.test(..., paired = TRUE)$p.value
    assert not_above == pytest.approx(1 - 0.002832890197384255 / 2, rel=1e-10)
    below, not_below = statistics.region(statistics.paired(FIRST, SECOND), -math.inf, 0.0)
    assert (below, not_below) == pytest.approx((above, not_above), rel=1e-10)


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-10)
    assert statistics.holm([]) == []


def test_holm_bounds_the_family_error() -> None:
    """The smallest adjusted value is Bonferroni's, so a family of true nulls errs as rarely as one; order is kept."""
    p_values = np.random.default_rng(0).uniform(0, 0.3, 8).tolist()
    adjusted = statistics.holm(p_values)
    assert min(adjusted) == pytest.approx(min(1.0, min(p_values) * len(p_values)))
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert [adjusted[i] for i in np.argsort(p_values)] == sorted(adjusted)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-100, 100), st.floats(0, 50))
def test_never_both(sample: list[float], centre: float, margin: float) -> None:
    """No sample shows a value to lie inside and outside a region, and a shift of both changes nothing."""
    estimate = statistics.mean(sample)
    inside, outside = statistics.region(estimate, centre - margin, centre + margin)
    assert max(inside, outside) >= 0.5
    mirrored = statistics.region(statistics.mean([-x for x in sample]), -centre - margin, -centre + margin)
    assert mirrored == pytest.approx((inside, outside), abs=1e-9)


@given(st.lists(st.floats(1, 2), min_size=2, max_size=6), st.floats(0.1, 10))
def test_ratio_ignores_the_unit(sample: list[float], unit: float) -> None:
    other = [x * x for x in sample]
    for shared in (True, False):
        plain = statistics.log_ratio(sample, other, shared)
        scaled = statistics.log_ratio([x * unit for x in sample], [x * unit for x in other], shared)
        assert scaled.value == pytest.approx(plain.value, abs=1e-9)
        assert scaled.error == pytest.approx(plain.error, abs=1e-9)


def test_no_spread() -> None:
    """Values that agree to the last digit are a point: inside, outside, or on the edge, where nothing is shown."""
    estimate = statistics.mean([0.1 + 0.2, 0.3, 0.3])
    assert estimate.error == 0
    assert statistics.interval(estimate) == (estimate.value, estimate.value)
    assert statistics.region(estimate, 0.0, 1.0) == (0.0, 1.0)
    assert statistics.region(estimate, 1.0, math.inf) == (1.0, 0.0)
    equal = statistics.paired([50.0, 50.0], [50.0, 50.0])
    assert statistics.region(equal, 0.0, math.inf) == (1.0, 1.0), "equal is not greater"
    assert statistics.welch([1.0, 1.0], [0.5, 0.5]).error == 0


@pytest.mark.parametrize("sample", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_refused_samples(sample: list[float]) -> None:
    with pytest.raises(NoscratchError, match="at least two finite values"):
        statistics.mean(sample)


def test_refused_arguments() -> None:
    with pytest.raises(NoscratchError, match="one length"):
        statistics.paired([1.0, 2.0], [1.0])
    with pytest.raises(NoscratchError, match="positive"):
        statistics.log_ratio([1.0, 0.0], [1.0, 2.0], shared_seeds=True)
    for edges in [(1.0, 0.0), (-math.inf, math.inf), (math.nan, 1.0)]:
        with pytest.raises(NoscratchError, match="region"):
            statistics.region(statistics.mean([1.0, 2.0]), *edges)


# A study under the null: (sample) -> estimate whose true value is 0.
NULLS: dict[str, Callable[[Generator], Estimate]] = {
    "mean of 3": lambda draw: statistics.mean(draw.normal(0, 1, 3)),
    "mean of 5": lambda draw: statistics.mean(draw.normal(0, 1, 5)),
    "paired 3": lambda draw: statistics.paired(draw.normal(0, 1, 3), draw.normal(0, 1, 3)),
    "welch 5 against 4, other spread": lambda draw: statistics.welch(draw.normal(0, 1, 5), draw.normal(0, 2, 4)),
}
# Regions on whose edge the truth lies, so that neither verdict is right: each may be given in 5 % of studies at most.
EDGES = {"greater": (0.0, math.inf), "less": (-math.inf, 0.0), "wide band": (0.0, 8.0), "narrow band": (-0.5, 0.0)}


def errors(study: Callable[[Generator], Estimate], studies: int) -> dict[str, float]:
    """The larger share of studies with p < 0.05 for inside or for outside, by region."""
    draw = np.random.default_rng(20231002980)
    estimates = [study(draw) for _ in range(studies)]
    p_values = {name: [statistics.region(each, *edges) for each in estimates] for name, edges in EDGES.items()}
    return {name: float((np.array(found) < 0.05).mean(axis=0).max()) for name, found in p_values.items()}


def uncovered(study: Callable[[Generator], Estimate], studies: int) -> float:
    """The share of studies whose 95 % interval misses the truth, 0."""
    draw = np.random.default_rng(20210100396)
    found = [statistics.interval(study(draw)) for _ in range(studies)]
    return float(np.mean([not low <= 0 <= high for low, high in found]))


def family_errors(studies: int, size: int = 20) -> tuple[float, float]:
    """The share of papers of which some verdict is wrong, by Holm and without an adjustment: `size` claims each, with
    the truth on the edge of its region, half of them on common seeds and so correlated."""
    draw = np.random.default_rng(20220610)
    held = np.zeros((studies, 2))
    for number in range(studies):
        common = draw.normal(0, 1, 5)
        samples = [draw.normal(0, 1, 5) + common * (claim % 2) for claim in range(size)]
        p_values = [statistics.region(statistics.mean(sample), 0.0, math.inf)[0] for sample in samples]
        held[number] = min(statistics.holm(p_values)) < 0.05, min(p_values) < 0.05
    return tuple(held.mean(axis=0).tolist())


@pytest.mark.parametrize("study", NULLS)
def test_coverage_in_brief(study: str) -> None:
    assert uncovered(NULLS[study], 400) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_family_error_in_brief() -> None:
    adjusted, plain = family_errors(150)
    assert adjusted < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
    assert plain > 0.3, "twenty chances to err"


@pytest.mark.parametrize("study", NULLS)
def test_type_one_error_in_brief(study: str) -> None:
    assert max(errors(NULLS[study], 400).values()) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.slow
@pytest.mark.parametrize("study", NULLS)
def test_type_one_error(study: str) -> None:
    """At most 5 % of 10,000 studies, but for what chance adds (three standard errors) and, where Welch's degrees of
    freedom are approximate (unequal spread in small samples), half a point."""
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000) + (0.005 if study.startswith("welch") else 0.0)
    found = errors(NULLS[study], 10_000)
    assert max(found.values()) < allowed, found


@pytest.mark.slow
@pytest.mark.parametrize("study", NULLS)
def test_coverage(study: str) -> None:
    """95 % of 10,000 intervals hold the truth, with the same allowances."""
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000) + (0.005 if study.startswith("welch") else 0.0)
    assert 0.03 < uncovered(NULLS[study], 10_000) < allowed


@pytest.mark.slow
def test_family_error() -> None:
    adjusted, plain = family_errors(10_000)
    assert adjusted < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000), adjusted
    assert plain > 0.4
