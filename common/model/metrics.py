"""Metrics of whole splits: predictions and targets are collected, and gathered over ranks at the end of a split."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from common.model.comparison import auc_difference, rmse_difference

Groups = np.ndarray | None
Differences = dict[str, dict[str, float]]  # difference, low and high by metric


class PredictionMetric(Metric):
    """Collects the predictions and targets of a split; subclasses turn them into named numbers.

    measure(prediction, target, groups): the metrics; groups (N,), such as users, if the data has any.
    compare(prediction, other, target, groups): differences of the main metrics to another prediction's, with intervals.
    """

    full_state_update = False
    prediction_list: list[Tensor]
    target_list: list[Tensor]

    def __init__(self):
        super().__init__(sync_on_compute=False)  # `sync` gathers once, at the end of a split
        self.add_state("prediction_list", [], dist_reduce_fx="cat")
        self.add_state("target_list", [], dist_reduce_fx="cat")

    def reset(self) -> None:
        self.prediction_list, self.target_list = [], []  # gathered, they are tensors, which Metric.reset cannot clear
        super().reset()

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Prediction and target of a batch, of the same shape (B, ...)."""
        self.prediction_list.append(prediction.detach().float())
        self.target_list.append(target.detach())

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        raise NotImplementedError

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        return self.measure(self.prediction, self.target)

    @property
    def prediction(self) -> Tensor:
        return dim_zero_cat(self.prediction_list)

    @property
    def target(self) -> Tensor:
        return dim_zero_cat(self.target_list)


class ClickMetrics(PredictionMetric):
    """Metrics of click probabilities; with groups also the AUC within them."""

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        within = {} if groups is None else {"gauc": gauc(prediction, target, groups)}
        return click_metrics(prediction, target) | within

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        return {"auc": auc_difference(prediction, other, target)}


class RatingMetrics(PredictionMetric):
    """Metrics of predicted ratings."""

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        return rating_metrics(prediction, target)

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        return {"rmse": rmse_difference(prediction, other, target)}


class TaskMetrics(PredictionMetric):
    """AUC of each of several binary tasks, their mean, and the mean log loss; a label that is not known is nan."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = list(tasks)

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        return task_metrics(self.tasks, prediction, target)

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        known = ~target.isnan()
        return {
            f"auc_{task}": auc_difference(*(part[known[:, k], k] for part in (prediction, other, target)))
            for k, task in enumerate(self.tasks)
        }


def click_metrics(probability: Tensor, click: Tensor) -> dict[str, float]:
    """AUC, log loss, normalized entropy (log loss / that of the constant click rate; He et al. 2014) and calibration
    (mean probability / click rate). Undefined metrics, such as the AUC of one class, are nan."""
    # float64 for means over millions of rows and probabilities near 0 and 1; on the CPU, as Apple's GPUs lack it
    probability, click = probability.cpu().double(), click.cpu().double()
    rate = click.mean()
    log_loss = functional.binary_cross_entropy(probability, click)
    entropy = functional.binary_cross_entropy(rate.expand_as(click), click)
    return {
        "auc": auc(probability, click),
        "log_loss": log_loss.item(),
        "normalized_entropy": (log_loss / entropy).item() if entropy > 0 else math.nan,
        "calibration": (probability.mean() / rate).item() if rate > 0 else math.nan,
    }


def rating_metrics(prediction: Tensor, rating: Tensor) -> dict[str, float]:
    """Root mean squared error and mean absolute error."""
    error = prediction.cpu().double() - rating.cpu().double()
    return {"rmse": error.square().mean().sqrt().item(), "mae": error.abs().mean().item()}


def auc(score: Tensor, label: Tensor) -> float:
    """Exact area under the ROC curve of scores (N,) for labels (N,) of 0 and 1; nan if there is only one class."""
    if len(label) == 0 or label.min() == label.max():
        return math.nan
    return binary_auroc(score, label.int()).item()


def gauc(score: Tensor, label: Tensor, group: np.ndarray) -> float:
    """Mean AUC within groups (N,), such as users, weighted by their rows (Zhou et al. 2018); nan if undefined.

    Groups of one class have no AUC and are left out.
    """
    positive = label.cpu().numpy()
    rank = pd.Series(score.cpu().numpy()).groupby(group).rank().to_numpy()  # equal scores get their mean rank
    count, positives = np.bincount(group), np.bincount(group, positive)
    both = (positives > 0) & (positives < count)
    count, positives, ranks = count[both], positives[both], np.bincount(group, positive * rank)[both]
    aucs = (ranks - positives * (positives + 1) / 2) / (positives * (count - positives))
    return float(np.average(aucs, weights=count)) if len(count) else math.nan


def fit_temperature(probability: Tensor, label: Tensor) -> float:
    """The divisor of the logits, from 0.1 to 10, that minimises log loss (Guo et al. 2017, arXiv:1706.04599)."""
    logits, label = probability.cpu().double().logit(eps=1e-7), label.cpu().double()

    def log_loss(log_temperature: float) -> float:
        return functional.binary_cross_entropy_with_logits(logits / math.exp(log_temperature), label).item()

    return math.exp(minimize_scalar(log_loss, bounds=(-math.log(10), math.log(10)), method="bounded").x)


def tempered(probability: Tensor, temperature: float) -> Tensor:
    """Probabilities after their logits are divided by a temperature."""
    return probability if temperature == 1 else (probability.double().logit() / temperature).sigmoid().float()


def task_metrics(tasks: Sequence[str], probability: Tensor, label: Tensor) -> dict[str, float]:
    """auc_<task> for each column of probabilities and labels (N, K), auc_mean over the defined ones, and log_loss, the
    mean over tasks; each over the rows whose label is known, i.e. not nan."""
    aucs, losses = [], []
    for score, column in zip(probability.T, label.T, strict=True):
        known = ~column.isnan()
        aucs.append(auc(score[known], column[known]))
        losses.append(functional.binary_cross_entropy(score[known].cpu().double(), column[known].cpu().double()).item())
    auc_mean, log_loss = torch.tensor([aucs, losses], dtype=torch.float64).nanmean(1).tolist()
    named = {f"auc_{task}": value for task, value in zip(tasks, aucs, strict=True)}
    return named | {"auc_mean": auc_mean, "log_loss": log_loss}
