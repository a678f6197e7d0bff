"""The variance split: against the analysis of variance as statsmodels makes it, and known truth by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS

from noscratch.errors import NoscratchError
from noscratch.results.variance import Split, split

# Box, Hunter and Hunter (1978), table 7.1: yield of penicillin, five blends (rows) by four treatments.
PENICILLIN = [[89, 88, 97, 94], [84, 77, 92, 79], [81, 87, 87, 85], [87, 92, 89, 84], [79, 81, 80, 88]]
# Variances of seed, numerics and rest; seeds and numerics in the design.
TRUTHS = [
    ((1.0, 1.0, 1.0), (5, 4)),
    ((1.0, 0.1, 1.0), (5, 4)),
    ((0.1, 0.01, 1.0), (5, 3)),
    ((9.0, 1.0, 1.0), (3, 4)),
    ((1.0, 4.0, 0.1), (10, 4)),
]


def test_a_published_table() -> None:
    """Blends: 264 on 4; treatments: 70 on 3; rest: 226 on 12. F 3.51 and 1.24."""
    found = split(PENICILLIN)
    rows, columns, rest = 264 / 4, 70 / 3, 226 / 12
    assert found.seed.value == pytest.approx((rows - rest) / 4, rel=1e-10)
    assert found.numerics.value == pytest.approx((columns - rest) / 5, rel=1e-10)
    assert found.rest.value == pytest.approx(rest, rel=1e-10)
    assert found.another_seed.value == pytest.approx(found.seed.value + rest, rel=1e-10)
    assert found.another_numerics.value == pytest.approx(found.numerics.value + rest, rel=1e-10)
    assert found.p_seed == pytest.approx(stats.f.sf(rows / rest, 4, 12), rel=1e-10)
    assert (found.p_seed, found.p_numerics) == (pytest.approx(0.0407, abs=5e-5), pytest.approx(0.3387, abs=5e-5))


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 100))
def test_statsmodels_gives_the_same_squares(seeds: int, levels: int, draw: int) -> None:
    """Sums of squares as differences between nested regressions on indicators."""
    table = np.random.default_rng(draw).normal(0.8, 0.01, (seeds, levels))
    row, column = np.eye(seeds)[:, 1:].repeat(levels, axis=0), np.tile(np.eye(levels)[:, 1:], (seeds, 1))
    one = np.ones((seeds * levels, 1))
    left = {
        name: OLS(table.ravel(), np.hstack(parts)).fit().ssr
        for name, parts in {"row": [one, row], "column": [one, column], "both": [one, row, column]}.items()
    }
    rest = left["both"] / ((seeds - 1) * (levels - 1))
    found = split(table.tolist())
    assert found.rest.value == pytest.approx(rest, rel=1e-8)
    by_seed = (left["column"] - left["both"]) / (seeds - 1)
    assert found.seed.value == pytest.approx(max(0.0, (by_seed - rest) / levels), rel=1e-6, abs=1e-14)
    assert found.p_numerics == pytest.approx(
        stats.f.sf((left["row"] - left["both"]) / (levels - 1) / rest, levels - 1, (seeds - 1) * (levels - 1)), rel=1e-6
    )


@given(st.integers(0, 100))
def test_exchanging_and_scaling(draw: int) -> None:
    """Rows for columns exchanges the two; a unit scales variances by its square; a shift changes nothing."""
    table = np.random.default_rng(draw).normal(0, 1, (4, 3))
    found, turned, scaled = split(table), split(table.T), split(100 * table + 7)
    assert turned.numerics.value == pytest.approx(found.seed.value, rel=1e-9, abs=1e-12)
    assert turned.another_seed.high == pytest.approx(found.another_numerics.high, rel=1e-9)
    for name, part in found.parts.items():
        for edge in ("value", "low", "high"):
            wanted = 1e4 * getattr(part, edge)
            assert getattr(scaled.parts[name], edge) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        assert 0 <= part.low <= part.value <= part.high


def test_the_interval_of_the_rest_is_exact() -> None:
    found = split(PENICILLIN).rest
    assert found.low == pytest.approx(226 / stats.chi2.ppf(0.975, 12), rel=1e-10)
    assert found.high == pytest.approx(226 / stats.chi2.ppf(0.025, 12), rel=1e-10)


def test_equal_scores_have_no_variance() -> None:
    found = split([[0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]])
    assert {(part.value, part.low, part.high) for part in found.parts.values()} == {(0.0, 0.0, 0.0)}
    assert (found.p_seed, found.p_numerics) == (1.0, 1.0)
    seeds_alone = split([[0.3, 0.3], [0.5, 0.5]])
    assert (seeds_alone.rest.value, seeds_alone.numerics.value) == (0.0, 0.0)
    assert (seeds_alone.seed.value, seeds_alone.p_seed) == (pytest.approx(0.02), 0.0)


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], [[0.1], [0.2]], [0.1, 0.2], [[0.1, math.nan], [0.2, 0.3]]])
def test_refused(scores: list) -> None:
    with pytest.raises(NoscratchError, match="at least two seeds by two numerics"):
        split(scores)


def covered(variances: tuple[float, float, float], shape: tuple[int, int], studies: int) -> dict[str, float]:
    """The share of studies whose interval holds the truth, by component."""
    draw = np.random.default_rng(65466937)
    seed, numerics, rest = variances
    truth = {"seed": seed, "numerics": numerics, "rest": rest}
    truth |= {"another_seed": seed + rest, "another_numerics": numerics + rest}
    hits = dict.fromkeys(truth, 0)
    for _ in range(studies):
        table = draw.normal(0, math.sqrt(seed), (shape[0], 1)) + draw.normal(0, math.sqrt(numerics), (1, shape[1]))
        found: Split = split(table + draw.normal(0, math.sqrt(rest), shape))
        for name, value in truth.items():
            hits[name] += found.parts[name].low <= value <= found.parts[name].high
    return {name: count / studies for name, count in hits.items()}


@pytest.mark.parametrize(("variances", "shape"), TRUTHS[:2])
def test_coverage_in_brief(variances: tuple[float, float, float], shape: tuple[int, int]) -> None:
    for name, share in covered(variances, shape, 300).items():
        assert share == pytest.approx(0.95, abs=3 * math.sqrt(0.05 * 0.95 / 300)), name


@pytest.mark.slow
@pytest.mark.parametrize(("variances", "shape"), TRUTHS)
def test_coverage(variances: tuple[float, float, float], shape: tuple[int, int]) -> None:
    """Of known truth, 95 % of the intervals, give or take two points."""
    for name, share in covered(variances, shape, 1000).items():
        assert share == pytest.approx(0.95, abs=0.02), name
