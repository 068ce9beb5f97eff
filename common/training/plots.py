"""Figures of a run, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.model.metrics import click_metrics
from common.model.recommender import Recommender

RELIABILITY_BINS = 15  # of equally many rows each


def plot_learning_curves(history: Sequence[dict], monitor: str, mode: str, path: Path) -> None:
    """Training loss and monitored metric by epoch; the tested checkpoint is marked."""
    import pandas as pd

    rows = pd.DataFrame(history)
    figure = Figure((9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(rows.epoch, rows.train_loss, "o-")
    left.set(title="training loss", xlabel="epochs")
    right.plot(rows.epoch, rows[monitor], "o-")
    if rows[monitor].notna().any():  # an AUC of rows of one class is not defined
        better = rows[monitor].idxmin() if mode == "min" else rows[monitor].idxmax()
        right.plot(rows.epoch[better], rows[monitor][better], "*", markersize=16, label="tested checkpoint")
        right.legend()
    right.set(title=monitor.replace("val_", "validation "), xlabel="epochs")
    figure.savefig(path, dpi=120)


def plot_clicks(
    model: Recommender, data: RecommendationDataModule, probability: Tensor, click: Tensor, folder: Path
) -> None:
    """roc.png and reliability.png of the test rows."""
    from sklearn.calibration import calibration_curve  # here, as it is slow to import and not needed before the end
    from sklearn.metrics import roc_curve

    measured = click_metrics(probability, click)
    figure = Figure((4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    if not np.isnan(measured["auc"]):
        false_positive, true_positive, _ = roc_curve(click, probability)
        axes.plot(false_positive, true_positive, label=f"AUC {measured['auc']:.4f}")
        axes.legend(loc="lower right")
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.set(title="ROC, test rows", xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    figure.savefig(folder / "roc.png", dpi=120)

    figure = Figure((4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    observed, predicted = calibration_curve(click, probability, n_bins=RELIABILITY_BINS, strategy="quantile")
    axes.plot(predicted, observed, "o-", label=f"mean prediction / click rate {measured['calibration']:.3f}")
    limit = 1.05 * max(observed.max(), predicted.max())
    axes.plot([0, limit], [0, limit], ":", color="gray")
    axes.set(
        title=f"Reliability, {RELIABILITY_BINS} bins of equally many test rows",
        xlabel="mean predicted probability",
        ylabel="click rate",
        aspect="equal",
    )
    axes.legend(loc="upper left")
    figure.savefig(folder / "reliability.png", dpi=120)
