"""Figures of a tested BST: its error by length of history, and its attention."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bst.bst import BST
from common.model.metrics import auc_difference, rmse_difference
from common.model.ranking import mean_interval, of_rows
from common.training.plots import caption, save
from data.history.dataset import PADDING
from data.movie_rating_seq import HistoryDataModule

METRICS = {"rating": "RMSE", "click": "AUC", "item": "NDCG of a list of 10"}  # by target
LENGTH_BINS = 8  # with about equally many test rows each
EXAMPLES, SHOWN_ITEMS = 4, 15  # of the attention figure


def measure(target: str, prediction: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """The metric of a target, and its 95 % interval."""
    if target == "rating":
        found = rmse_difference(prediction, truth, truth)
    elif target == "click":  # a difference from equal scores, whose AUC is 0.5
        found = {part: 0.5 + value for part, value in auc_difference(prediction, 0 * truth, truth).items()}
    else:
        found = mean_interval(of_rows(prediction[:, 0])["ndcg"].numpy(), None)
    return found["difference"], found["low"], found["high"]


def plot_history_length_and_attention(
    model: BST, data: HistoryDataModule, predictions: Mapping[str, Tensor], target: Tensor, folder: Path
) -> None:
    """history_length.png and attention.png for the test rows."""
    title, (own, *others) = caption(model, data, folder), predictions
    values = {name: measure(data.target, predictions[name], target)[0] for name in others}
    strongest = sorted(values, key=values.__getitem__, reverse=data.target != "rating")[:1]
    length = 1 + data.past_rows("test")
    figure = Figure((5.5, 4), layout="constrained")
    axes = figure.subplots()
    edges = np.unique(np.quantile(length, np.linspace(0, 1, LENGTH_BINS + 1)))
    part = torch.from_numpy(np.clip(np.searchsorted(edges, length, "right") - 1, 0, len(edges) - 2))
    bins = [part == i for i in part.unique()]
    middles = [np.median(length[rows]) for rows in bins]
    for name in (own, *strongest):
        value, low, high = np.array([measure(data.target, predictions[name][rows], target[rows]) for rows in bins]).T
        axes.errorbar(middles, value, [value - low, high - value], fmt="o-", capsize=3, label=name)
    axes.set(xscale="log", xlabel="1 + length of the user's past", ylabel=f"{METRICS[data.target]}, 95 % interval")
    axes.set_xticks(middles, [f"{middle:.0f}" for middle in middles])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    axes.set_title("test rows by length of history (equally many at each point)", fontsize="medium")
    save(figure, title, folder / "history_length.png")
    if model.hparams["use_sequence"]:
        _plot_attention(model, data, predictions[own], title, folder / "attention.png")


def _plot_attention(model: BST, data: HistoryDataModule, prediction: Tensor, title: str, path: Path) -> None:
    chosen = np.arange(len(prediction))[:: max(1, len(prediction) // EXAMPLES)][:EXAMPLES]
    rows = np.array(data.rows["test"])[chosen]
    items, history, residual, time_gap, *_ = data.examples()[torch.from_numpy(rows)]
    weights, truth = model.cpu().attention(items, history, residual, time_gap).numpy(), data.targets("test")
    has_ratings = data.encoder.scale.has_ratings
    figure = Figure((14, 0.6 + 2.3 * len(rows)), layout="constrained")
    for i, axes in enumerate(figure.subplots(-(-len(rows) // 2), 2, squeeze=False).flat[: len(rows)]):
        positions = [p for p in range(history.shape[1])[-SHOWN_ITEMS:] if history[i, p] != PADDING]
        names = [data.title(int(history[i, p])) for p in positions]
        if has_ratings:
            names = [f"{name}  ({residual[i, p]:+.1f})" for name, p in zip(names, positions, strict=True)]
        bars = axes.barh(range(len(names) + 1), weights[i, [*positions, -1]])
        axes.set_yticks(range(len(bars)), [*names, "the target itself"])
        found, came = float(prediction[chosen[i]].flatten()[0]), float(truth[chosen[i]])
        outcome = {
            "rating": f"rated {came:g}, predicted {found:.1f}",
            "click": f"{'liked' if came else 'not liked'}, predicted {found:.0%}",
            "item": f"came next, at rank {found:.0f}" if found else "came next, new to the model",
        }[data.target]
        axes.set_title(f"{data.title(int(items[i, 0]))}\n{outcome}", fontsize=9)
        axes.tick_params(labelsize=7)
    note = "\nin brackets: how far the rating is above or below what is expected of the item" if has_ratings else ""
    save(figure, f"{title}: attention to the end of the history, averaged over heads{note}", path)
