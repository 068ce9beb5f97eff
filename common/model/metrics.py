"""Metrics of whole splits: predictions and targets are collected, and gathered over ranks at the end of a split.

For a difference between two models on the same rows, these are assumed to be independent. N: rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from common.process_group import is_distributed

Groups = np.ndarray | None
Differences = dict[str, dict[str, float]]  # difference, low and high by metric
QUANTILE = 1.959964  # of the normal distribution, for a 95 % interval
LOSSES = ("rmse", "mae", "log_loss", "normalized_entropy")  # the metrics that are better when smaller


def mode_of(metric: str) -> Literal["min", "max"]:
    return "min" if metric.endswith(LOSSES) else "max"


class PredictionMetric:
    """Collects the predictions and targets of a split; subclasses turn those of all rows into named numbers."""

    # (prediction, target, groups=None): groups (N,), such as users, if the data has any
    measure: Callable[..., dict[str, float]]
    # (prediction, other, target, groups=None): differences of the main metrics to another prediction's, with intervals
    compare: Callable[..., Differences]
    prediction: Tensor  # of all rows, and their target, after `gather`
    target: Tensor

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Prediction and target of a batch, of the same shape (B, ...)."""
        self.parts.append((prediction.detach().float(), target.detach()))

    def gather(self) -> None:
        """Join the batches of all ranks, in the order of ranks, on each of them; a new split begins."""
        ranks = [[torch.cat(part).cpu() for part in zip(*self.parts, strict=True)]]
        if is_distributed():
            ranks *= distributed.get_world_size()
            distributed.all_gather_object(ranks, ranks[0])
        self.prediction, self.target = map(torch.cat, zip(*ranks, strict=True))
        self.parts = []


class ClickMetrics(PredictionMetric):
    """AUC, log loss, normalized entropy (log loss / that of the constant click rate; He et al. 2014) and calibration
    (mean probability / click rate); with groups also the AUC within them. Undefined metrics, such as the AUC of one
    class, are nan."""

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        # float64 for means over millions of rows and probabilities near 0 and 1; on the CPU, as Apple's GPUs lack it
        probability, click = prediction.cpu().double(), target.cpu().double()
        rate = click.mean()
        log_loss = functional.binary_cross_entropy(probability, click)
        entropy = functional.binary_cross_entropy(rate.expand_as(click), click)
        return {
            "auc": auc(probability, click),
            "log_loss": log_loss.item(),
            "normalized_entropy": (log_loss / entropy).item() if entropy > 0 else math.nan,
            "calibration": (probability.mean() / rate).item() if rate > 0 else math.nan,
        } | ({} if groups is None else {"gauc": gauc(prediction, target, groups)})

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        return {"auc": auc_difference(prediction, other, target)}


class RatingMetrics(PredictionMetric):
    """Root mean squared error and mean absolute error."""

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        error = prediction.cpu().double() - target.cpu().double()
        return {"rmse": error.square().mean().sqrt().item(), "mae": error.abs().mean().item()}

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        return {"rmse": rmse_difference(prediction, other, target)}


click_metrics, rating_metrics = ClickMetrics().measure, RatingMetrics().measure


class TaskMetrics(PredictionMetric):
    """Of several binary tasks (N, K): auc_<task>, auc_mean over the defined ones, and log_loss, the mean over tasks;
    each over the rows whose label is known, i.e. not nan."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = list(tasks)

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        aucs, losses = [], []
        for score, label in zip(prediction.T, target.T, strict=True):
            score, label = score[~label.isnan()], label[~label.isnan()]
            aucs.append(auc(score, label))
            losses.append(functional.binary_cross_entropy(score.cpu().double(), label.cpu().double()).item())
        auc_mean, log_loss = torch.tensor([aucs, losses], dtype=torch.float64).nanmean(1).tolist()
        named = {f"auc_{task}": value for task, value in zip(self.tasks, aucs, strict=True)}
        return named | {"auc_mean": auc_mean, "log_loss": log_loss}

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        known = ~target.isnan()
        return {
            f"auc_{task}": auc_difference(*(part[known[:, k], k] for part in (prediction, other, target)))
            for k, task in enumerate(self.tasks)
        }


def auc(score: Tensor, label: Tensor) -> float:
    """Exact area under the ROC curve of scores (N,) for labels (N,) of 0 and 1; nan if there is only one class."""
    if len(label) == 0 or label.min() == label.max():
        return math.nan
    return binary_auroc(score, label.int()).item()


def gauc(score: Tensor, label: Tensor, group: np.ndarray) -> float:
    """Mean AUC within groups (N,), such as users, weighted by their rows (Zhou et al. 2018); nan if undefined. Groups
    of one class have no AUC and are left out."""
    positive = label.cpu().numpy()
    rank = pd.Series(score.cpu().numpy()).groupby(group).rank().to_numpy()  # equal scores get their mean rank
    count, positives = np.bincount(group), np.bincount(group, positive)
    both = (positives > 0) & (positives < count)
    count, positives, ranks = count[both], positives[both], np.bincount(group, positive * rank)[both]
    aucs = (ranks - positives * (positives + 1) / 2) / (positives * (count - positives))
    return float(np.average(aucs, weights=count)) if len(count) else math.nan


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


def fit_temperature(probability: Tensor, label: Tensor) -> float:
    """The divisor of the logits, from 0.1 to 10, that minimises log loss (Guo et al. 2017, arXiv:1706.04599)."""
    logits, label = probability.cpu().double().logit(eps=1e-7), label.cpu().double()

    def log_loss(log_temperature: float) -> float:
        return functional.binary_cross_entropy_with_logits(logits / math.exp(log_temperature), label).item()

    return math.exp(minimize_scalar(log_loss, bounds=(-math.log(10), math.log(10)), method="bounded").x)


def tempered(probability: Tensor, temperature: float) -> Tensor:
    """Probabilities after their logits are divided by a temperature."""
    return probability if temperature == 1 else (probability.double().logit() / temperature).sigmoid().float()
