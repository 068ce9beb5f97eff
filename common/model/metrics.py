"""Metrics of whole splits: predictions and targets are kept, and gathered over processes, until a split is complete."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc


class PredictionMetric(Metric):
    """Keeps every prediction and target of a split; subclasses turn them into named numbers."""

    full_state_update = False
    prediction_list: list[Tensor]
    target_list: list[Tensor]

    def __init__(self):
        super().__init__(sync_on_compute=False)  # `sync` gathers once, at the end of a split
        self.add_state("prediction_list", [], dist_reduce_fx="cat")
        self.add_state("target_list", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Prediction and target of a batch, same shape (B, ...)."""
        self.prediction_list.append(prediction.detach().float())
        self.target_list.append(target.detach())

    @property
    def prediction(self) -> Tensor:
        return _joined(self.prediction_list)

    @property
    def target(self) -> Tensor:
        return _joined(self.target_list)


class ClickMetrics(PredictionMetric):
    """Of click probabilities against clicks."""

    def compute(self) -> dict[str, float]:
        return click_metrics(self.prediction, self.target)


class RatingMetrics(PredictionMetric):
    """Of predicted ratings."""

    def compute(self) -> dict[str, float]:
        return rating_metrics(self.prediction, self.target)


class TaskMetrics(PredictionMetric):
    """AUC of each of several binary tasks, their mean, and the mean log loss."""

    def __init__(self, tasks: Sequence[str]):
        super().__init__()
        self.tasks = list(tasks)

    def compute(self) -> dict[str, float]:
        return task_metrics(self.tasks, self.prediction, self.target)


def click_metrics(probability: Tensor, click: Tensor) -> dict[str, float]:
    """AUC, log loss, normalized entropy (log loss / that of the constant click rate; He et al. 2014) and
    calibration (mean probability / click rate). What is undefined, as the AUC of one class, is nan."""
    # in float64: a mean over millions of rows, and probabilities near 0 and 1
    probability, click = probability.cpu().double(), click.cpu().double()  # an Apple GPU has no float64
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
    """Exact area under the ROC curve of scores (N,) for labels (N,) of 0 and 1; nan if only one class is there."""
    if label.min() == label.max():
        return math.nan
    return binary_auroc(score, label.int()).item()


def task_metrics(tasks: Sequence[str], probability: Tensor, label: Tensor) -> dict[str, float]:
    """auc_<task> for each column of probabilities and labels (N, K), auc_mean of those that are defined, log_loss."""
    aucs = [auc(probability[:, k], label[:, k]) for k in range(len(tasks))]
    defined = [value for value in aucs if not math.isnan(value)]
    return {f"auc_{task}": value for task, value in zip(tasks, aucs, strict=True)} | {
        "auc_mean": sum(defined) / len(defined) if defined else math.nan,
        "log_loss": functional.binary_cross_entropy(probability.cpu().double(), label.cpu().double()).item(),
    }


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(parts) if isinstance(parts, list) else parts  # after a gather over processes it is one tensor
