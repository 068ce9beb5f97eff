"""The difference of a metric between two models on the same rows, and its standard error.

Rows are assumed to be independent. N: rows.
"""

import math

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

QUANTILE = 1.959964  # of the normal distribution, for a 95 % interval


def interval(difference: float, error: float) -> dict[str, float]:
    """95 % interval of a difference with the given standard error."""
    return {"difference": difference, "low": difference - QUANTILE * error, "high": difference + QUANTILE * error}


def auc_difference(score: Tensor, other: Tensor, label: Tensor) -> dict[str, float]:
    """AUC of one score minus that of another (N,), with DeLong's interval (1988); nan if all rows are of one class."""
    positive = label.cpu().numpy() > 0.5
    if positive.all() or not positive.any():
        return interval(math.nan, math.nan)
    (above, below), (other_above, other_below) = (_placements(each.cpu().numpy(), positive) for each in (score, other))
    above, below = above - other_above, below - other_below
    variance = sum(part.var(ddof=1) / len(part) for part in (above, below) if len(part) > 1)
    return interval(float(above.mean()), math.sqrt(variance))


def _placements(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, of positives above each negative; ties count half (Sun and Xu 2014)."""
    ranks = rankdata(score)
    above = ranks[positive] - rankdata(score[positive])
    below = ranks[~positive] - rankdata(score[~positive])
    return above / len(below), 1 - below / len(above)


def rmse_difference(prediction: Tensor, other: Tensor, rating: Tensor) -> dict[str, float]:
    """RMSE of one prediction minus that of another (N,), with an interval by the delta method."""
    parts = []
    for each in (prediction, other):
        square = (each.cpu().double() - rating.cpu().double()).square().numpy()
        rmse = math.sqrt(square.mean())
        parts.append((rmse, square / (2 * rmse) if rmse else square))
    (rmse, influence), (other_rmse, other_influence) = parts
    return interval(rmse - other_rmse, (influence - other_influence).std() / math.sqrt(len(influence)))


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(variance / (positives * negatives))
