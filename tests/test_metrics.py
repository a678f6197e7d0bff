"""Metrics against values worked out by hand, and where they would not be defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from noscratch.errors import NoscratchError
from noscratch.metrics import NAMES, score


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


# Three hits of class 1, one false alarm, two misses, two hits of class 0.
TARGET = values(1, 1, 1, 0, 1, 1, 0, 0)
PREDICTION = values(1, 1, 1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", 5 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("matthews", (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4)),
    ],
)
def test_of_a_confusion_table(metric: str, expected: float) -> None:
    assert score(metric, TARGET, PREDICTION) == pytest.approx(expected, rel=1e-12)


def test_accuracy_of_many_classes() -> None:
    assert score("accuracy", values(0, 3, 9, 2), values(0, 9, 9, 1)) == 0.5


def test_correlations() -> None:
    target, prediction = values(1, 2, 3, 4), values(1, 2, 3, 10)
    # Deviations (-1.5, -.5, .5, 1.5) and (-3, -2, -1, 6): 14 / sqrt(5 * 50).
    assert score("pearson", target, prediction) == pytest.approx(14 / math.sqrt(250), rel=1e-12)
    assert score("spearman", target, prediction) == pytest.approx(1.0)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert score("spearman", target, values(20, 10, 40, 30)) == pytest.approx(0.6)


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman"])
def test_a_constant_correlates_with_nothing(metric: str) -> None:
    assert score(metric, values(0, 1, 1, 0), values(1, 1, 1, 1)) == 0.0
    assert score(metric, values(1, 1, 1, 1), values(0, 1, 1, 0)) == 0.0


def test_f1_without_class_1_is_0() -> None:
    assert score("f1", values(0, 0), values(0, 0)) == 0.0


@pytest.mark.parametrize("metric", NAMES)
def test_one_example_is_enough(metric: str) -> None:
    assert score(metric, values(1), values(1)) in (0.0, 1.0)


def test_unknown_metric_names_the_known() -> None:
    with pytest.raises(NoscratchError, match=r"accuracy, matthews.*got 'acuracy'"):
        score("acuracy", TARGET, PREDICTION)
