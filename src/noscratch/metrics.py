"""Scores by name. Every metric is better when higher, and is defined for every input of at least one example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noscratch.errors import NoscratchError

NAMES = ("accuracy", "matthews", "f1", "pearson", "spearman")


def score(metric: str, target: NDArray[np.float64], prediction: NDArray[np.float64]) -> float:
    """The value of `metric`, from class indices or, for the correlations, from scores; both (n,).

    f1 is that of class 1. A constant target or prediction has correlation (matthews, pearson, spearman) 0, and f1 is 0
    where class 1 is neither there nor predicted: nothing was found.
    """
    if metric not in NAMES:
        raise NoscratchError(f"A metric is one of {', '.join(NAMES)}; got {metric!r}. Correct the task's SPEC.")
    assert target.shape == prediction.shape
    assert target.ndim == 1
    assert target.size
    if metric == "accuracy":
        return float(np.mean(target == prediction))
    if metric == "f1":
        from sklearn.metrics import f1_score

        return float(f1_score(target, prediction, pos_label=1, average="binary", zero_division=0.0))
    if np.ptp(target) == 0 or np.ptp(prediction) == 0:
        return 0.0
    if metric == "matthews":
        from sklearn.metrics import matthews_corrcoef

        return float(matthews_corrcoef(target, prediction))
    from scipy import stats

    correlation = stats.pearsonr if metric == "pearson" else stats.spearmanr
    return float(correlation(target, prediction).statistic)
