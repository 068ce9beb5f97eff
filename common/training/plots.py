"""Figures of a run, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import roc_curve
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.model.metrics import auc, click_metrics, mode_of
from common.model.recommender import Recommender
from common.training.results import BEST_POSSIBLE, tested_metrics

BIN_ROWS, MOST_BINS = 50, 20  # of the reliability figure: rows of the rarer class per bin, and the most bins
PROBABILITIES = [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1]  # its ticks
MOST_TICKS = 8  # of the learning curves


def caption(model: Recommender, data: RecommendationDataModule, folder: Path) -> str:
    """The title of a figure: model, dataset and run."""
    sample = ", built-in sample" if data.is_sample else ""
    return f"{model.display_name}, {data.dataset}{sample}, {folder.parent.name}/{folder.name}"


def save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=120)


def plot_learning_curves(
    history: Sequence[dict], monitor: str, weight: float | None, results: dict[str, Any], title: str, folder: Path
) -> None:
    """learning_curves.png: losses and the monitored metric by epoch, with the test metrics.

    weight: factor that makes the validation loss comparable with the training loss; None: there is no such factor."""
    rows, metric = pd.DataFrame(history), monitor.removeprefix("val_")
    figure = Figure((9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    # the training loss is a mean over the steps since the last validation
    left.plot((rows.epoch + rows.epoch.shift(fill_value=0)) / 2, rows.train_loss, "o-", label="training")
    if weight is not None:
        # ratings are trained on squared error, whose root is the RMSE
        loss = rows.val_log_loss if "val_log_loss" in rows else rows.val_rmse**2
        left.plot(rows.epoch, weight * loss, "s-", label="validation")
    left.set(title="loss", xlabel="epochs")
    curve, lowest = rows[monitor], mode_of(monitor) == "min"
    right.plot(rows.epoch, curve, "o-", label="validation rows")
    best = curve.idxmin() if lowest else curve.idxmax()
    label = f"tested checkpoint, {curve[best]:.4f}"
    right.plot(rows.epoch[best], curve[best], "*", color="C0", markersize=16, label=label)
    tested = pd.Series({name: metrics[metric] for name, metrics in tested_metrics(results).items()}, dtype=float)
    # of the baselines, the strongest one; a line far off the curve is only named
    strongest = tested[[*results["baselines"]]].sort_values(ascending=lowest).index[:1]
    levels = tested[[name for name in tested.index if name in (results["model"], *strongest, BEST_POSSIBLE)]]
    for i, (name, value) in enumerate(levels.items()):
        right.axhline(value, linestyle="--", color=f"C{i}", linewidth=1, label=f"{name}, test rows, {value:.4f}")
    reach = max(1.5 * (curve.max() - curve.min()), 0.1 * curve.max())
    near = [*curve, *levels[levels.between(curve.min() - reach, curve.max() + reach)]]
    right.set_ylim(min(near) - reach / 20, max(near) + reach / 20)
    right.set(title=metric.replace("_", " "), xlabel="epochs")
    for axes in (left, right):
        axes.set_xticks(rows.epoch[:: -(-len(rows) // MOST_TICKS)])
        axes.xaxis.set_major_formatter("{x:.1f}")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    save(figure, title, folder / "learning_curves.png")


def plot_clicks(
    model: Recommender, data: RecommendationDataModule, predictions: Mapping[str, Tensor], click: Tensor, folder: Path
) -> None:
    """roc.png and reliability.png of the test rows."""
    title, probability = caption(model, data, folder), predictions[model.display_name]
    figure = Figure((4.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, each in predictions.items():
        if each.min() < each.max() and 0 < click.mean() < 1:  # otherwise it is the diagonal, or undefined
            false_positive, true_positive, _ = roc_curve(click, each)
            axes.plot(false_positive, true_positive, label=f"{name}, AUC {auc(each, click):.4f}")
            axes.legend(loc="lower right", fontsize="small")
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.set(title=f"ROC, {len(click):,} test rows", aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    save(figure, title, folder / "roc.png")

    figure = Figure((4.5, 5), layout="constrained")
    axes = figure.subplots()
    bins = reliability(probability.numpy(), click.numpy())
    predicted, observed, low, high = bins.T
    axes.errorbar(predicted, observed, [observed - low, high - observed], fmt="o", markersize=4, capsize=2)
    axes.plot([0, 1], [0, 1], ":", color="gray")
    # square roots give small probabilities, where most rows are, more space
    roots = {"functions": (lambda p: np.sqrt(np.maximum(p, 0)), np.square)}
    axes.set_xscale("function", **roots)
    axes.set_yscale("function", **roots)
    limits = (0, min(1, 1.1 * max(high.max(), predicted.max())))
    ticks = [tick for tick in PROBABILITIES if tick <= limits[1]]
    axes.set(xlabel="mean predicted probability", ylabel="click rate, 95 % interval", aspect="equal")
    axes.set(xlim=limits, ylim=limits, xticks=ticks, yticks=ticks)
    calibration = f"mean prediction / click rate: {click_metrics(probability, click)['calibration']:.3f}"
    rows = f"{len(bins)} bins of {len(click) // len(bins):,} test rows"
    axes.set_title(f"Reliability, {rows}\n{calibration}", fontsize="medium")
    save(figure, title, folder / "reliability.png")


def reliability(probability: np.ndarray, click: np.ndarray) -> np.ndarray:
    """Mean prediction, click rate, and the ends of its 95 % interval (Wilson), in bins of equal size: (bins, 4)."""
    rarer = min(click.sum(), len(click) - click.sum())
    count = int(np.clip(rarer // BIN_ROWS, 1, MOST_BINS))
    found = []
    for rows in np.array_split(np.argsort(probability, kind="stable"), count):
        clicks = int(click[rows].sum())
        low, high = binomtest(clicks, len(rows)).proportion_ci(method="wilson")
        found.append((probability[rows].mean(), clicks / len(rows), low, high))
    return np.array(found)


def plot_slices(table: pd.DataFrame, title: str, path: Path) -> None:
    """The main metric, and calibration or mean error, for each slice of each output."""
    parts = list(table.groupby(["output", "column"], sort=False))
    metric, centre, ideal = ("rmse", "mean_error", 0) if "rmse" in table else ("auc", "calibration", 1)
    heights = [3 + len(part) for _, part in parts]
    figure = Figure((9, 0.5 + 0.25 * sum(heights)), layout="constrained")
    rows = figure.subplots(len(parts), 2, squeeze=False, sharey="row", height_ratios=heights)
    for (left, right), ((output, column), part) in zip(rows, parts, strict=True):
        names = [f"{value}  ({count:,})" for value, count in zip(part["value"], part["rows"], strict=True)]
        left.plot(part[metric], names, "o")
        ends = [part[centre] - part["low"], (part["high"] - part[centre]).replace(np.inf, np.nan)]
        right.errorbar(part[centre], names, xerr=ends, fmt="o", capsize=2)
        if ideal:  # few clicks leave the calibration open to any side
            right.set_xlim(max(0, right.get_xlim()[0]), min(2.5, right.get_xlim()[1]))
        right.axvline(ideal, linestyle=":", color="gray")
        left.set(title=f"{column} (rows)", xlabel=f"{metric.upper()} of {output}")
        right.set(xlabel=f"{centre.replace('_', ' ')}, 95 % interval")
        left.invert_yaxis()
    save(figure, title, path)
