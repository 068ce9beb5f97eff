"""Figures of a tested BST: its error by length of history, and its attention."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bst.bst import BST
from common.model.metrics import auc, rating_metrics
from common.model.ranking import of_rows
from common.training.plots import caption
from data.history.dataset import PADDING
from data.movie_rating_seq import HistoryDataModule

MEASURES: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {  # by target
    "rating": ("RMSE", lambda prediction, rating: rating_metrics(prediction, rating)["rmse"]),
    "click": ("AUC", auc),
    "item": ("NDCG of 10 items", lambda ranks, _: of_rows(ranks[:, 0])["ndcg"].mean().item()),
}
LENGTH_BINS = 8  # with about equally many test rows each
EXAMPLES, SHOWN_ITEMS = 4, 15  # of the attention figure


def plot_history_length_and_attention(
    model: BST, data: HistoryDataModule, prediction: Tensor, target: Tensor, folder: Path
) -> None:
    """history_length.png and attention.png for the test rows."""
    title = caption(model, data, folder)
    _plot_history_length(data, prediction, target, title, folder / "history_length.png")
    if model.hparams["use_sequence"]:
        _plot_attention(model, data, prediction, title, folder / "attention.png")


def _plot_history_length(data: HistoryDataModule, prediction: Tensor, target: Tensor, title: str, path: Path) -> None:
    length = 1 + data.past_rows("test")
    edges = np.unique(np.quantile(length, np.linspace(0, 1, LENGTH_BINS + 1)))
    part = np.clip(np.searchsorted(edges, length, "right") - 1, 0, len(edges) - 2)
    name, measure = MEASURES[data.target]
    middles, values = [], []
    for i in range(len(edges) - 1):
        rows = torch.from_numpy(part == i)
        middles.append(np.median(length[part == i]))
        values.append(measure(prediction[rows], target[rows]))
    figure = Figure((5.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(middles, values, "o-")
    axes.set(xscale="log", xlabel="1 + past rows of the user", ylabel=name)
    axes.set_xticks(middles, [f"{middle:.0f}" for middle in middles])
    axes.minorticks_off()
    axes.set_title("test rows by length of history (equally many at each point)", fontsize="medium")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=120)


def _plot_attention(model: BST, data: HistoryDataModule, prediction: Tensor, title: str, path: Path) -> None:
    chosen = np.arange(len(prediction))[:: max(1, len(prediction) // EXAMPLES)][:EXAMPLES]
    rows = np.array(data.rows["test"])[chosen]
    items, history, residual, time_gap, *_ = data.examples()[torch.from_numpy(rows)]
    weights, truth = model.cpu().attention(items, history, residual, time_gap).numpy(), data.targets("test")
    figure = Figure((14, 0.6 + 2.3 * len(rows)), layout="constrained")
    for i, axes in enumerate(figure.subplots(-(-len(rows) // 2), 2, squeeze=False).flat[: len(rows)]):
        positions = [p for p in range(history.shape[1])[-SHOWN_ITEMS:] if history[i, p] != PADDING]
        rated = data.encoder.scale.has_ratings
        surplus = [f"  ({residual[i, p]:+.1f})" if rated else "" for p in positions]
        names = [data.title(int(history[i, p])) + value for p, value in zip(positions, surplus, strict=True)]
        names.append("the target itself")
        axes.barh(range(len(names)), weights[i, [*positions, -1]], tick_label=names)
        found = _outcome(data.target, prediction[chosen[i]], float(truth[chosen[i]]))
        axes.set_title(f"{data.title(int(items[i, 0]))}\n{found}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.suptitle(
        f"{title}: attention to the latest items, averaged over heads\n"
        "in brackets: how far the rating is above or below the item's expected rating",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def _outcome(target: str, prediction: Tensor, truth: float) -> str:
    """What came of a test row, and what was predicted."""
    if target == "item":
        return f"came next, at rank {prediction[0]:.0f}" if prediction[0] else "came next, new to the model"
    if target == "click":
        return f"{'liked' if truth else 'not liked'}, predicted {prediction:.0%}"
    return f"rated {truth:g}, predicted {prediction:.1f}"
