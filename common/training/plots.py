"""Figures of a run, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.model.metrics import click_metrics
from common.model.recommender import Recommender

BIN_ROWS, MOST_BINS = 50, 20  # of the reliability figure: rows of the rarer class per bin, and the most bins


def caption(model: Recommender, data: RecommendationDataModule, folder: Path) -> str:
    """The title of a figure: model, dataset and run."""
    sample = ", built-in sample" if data.is_sample else ""
    return f"{model.display_name}, {data.dataset}{sample}, {folder.parent.name}/{folder.name}"


def plot_learning_curves(
    history: Sequence[dict], monitor: str, mode: str, weight: float | None, title: str, path: Path
) -> None:
    """Losses and the monitored metric by epoch; the tested checkpoint is marked.

    weight: factor that makes the validation loss comparable with the training loss; None: there is no such factor.
    """
    import pandas as pd

    rows = pd.DataFrame(history)
    figure = Figure((9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(rows.epoch, rows.train_loss, "o-", label="training")
    if weight is not None:
        # ratings are trained on squared error, whose root is the RMSE
        loss = rows.val_log_loss if "val_log_loss" in rows else rows.val_rmse**2
        left.plot(rows.epoch, weight * loss, "s-", label="validation")
    left.set(title="loss", xlabel="epochs")
    left.legend()
    right.plot(rows.epoch, rows[monitor], "o-")
    if rows[monitor].notna().any():  # the AUC is undefined if all rows are of one class
        better = rows[monitor].idxmin() if mode == "min" else rows[monitor].idxmax()
        label = f"tested checkpoint, {rows[monitor][better]:.4f}"
        right.plot(rows.epoch[better], rows[monitor][better], "*", markersize=16, label=label)
        right.legend()
    right.set(title=monitor.replace("val_", "validation "), xlabel="epochs")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=120)


def plot_clicks(
    model: Recommender, data: RecommendationDataModule, probability: Tensor, click: Tensor, folder: Path
) -> None:
    """roc.png and reliability.png of the test rows."""
    from sklearn.metrics import roc_curve  # imported here because it is slow and only needed at the end

    measured = click_metrics(probability, click)
    figure = Figure((4.5, 4.8), layout="constrained")
    axes = figure.subplots()
    if not np.isnan(measured["auc"]):
        false_positive, true_positive, _ = roc_curve(click, probability)
        axes.plot(false_positive, true_positive, label=f"AUC {measured['auc']:.4f}")
        axes.legend(loc="lower right")
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.set(
        title=f"ROC, {len(click):,} test rows",
        xlabel="false positive rate",
        ylabel="true positive rate",
        aspect="equal",
    )
    figure.suptitle(caption(model, data, folder), fontsize="small")
    figure.savefig(folder / "roc.png", dpi=120)

    figure = Figure((4.5, 5), layout="constrained")
    axes = figure.subplots()
    bins = reliability(probability.numpy(), click.numpy())
    predicted, observed, low, high = bins.T
    axes.errorbar(predicted, observed, [observed - low, high - observed], fmt="o", markersize=4, capsize=2)
    limit = 1.05 * max(high.max(), predicted.max())
    axes.plot([0, limit], [0, limit], ":", color="gray")
    axes.set(xlabel="mean predicted probability", ylabel="click rate, 95 % interval", aspect="equal")
    axes.set_title(
        f"Reliability, {len(bins)} bins of {len(click) // len(bins):,} test rows\n"
        f"mean prediction / click rate: {measured['calibration']:.3f}",
        fontsize="medium",
    )
    figure.suptitle(caption(model, data, folder), fontsize="small")
    figure.savefig(folder / "reliability.png", dpi=120)


def reliability(probability: np.ndarray, click: np.ndarray) -> np.ndarray:
    """Mean prediction, click rate, and the ends of its 95 % interval (Wilson), in bins of equal size: (bins, 4)."""
    from scipy.stats import binomtest

    rarer = min(click.sum(), len(click) - click.sum())
    count = int(np.clip(rarer // BIN_ROWS, 1, MOST_BINS))
    found = []
    for rows in np.array_split(np.argsort(probability, kind="stable"), count):
        clicks = int(click[rows].sum())
        low, high = binomtest(clicks, len(rows)).proportion_ci(method="wilson")
        found.append((probability[rows].mean(), clicks / len(rows), low, high))
    return np.array(found)
