"""Figures of a tested BST: its error by length of history, and its attention."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bst.bst import BST
from common.model.metrics import auc, rating_metrics
from common.training.plots import caption
from data.history.dataset import PADDING
from data.movie_rating_seq import HistoryDataModule

LENGTH_BINS = 8  # with about equally many test rows each
EXAMPLES, SHOWN_RATINGS = 4, 15  # of the attention figure


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
    middles, values = [], []
    for i in range(len(edges) - 1):
        rows = torch.from_numpy(part == i)
        metrics = auc if data.target == "click" else lambda p, t: rating_metrics(p, t)["rmse"]
        middles.append(np.median(length[part == i]))
        values.append(metrics(prediction[rows], target[rows]))
    figure = Figure((5.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(middles, values, "o-")
    axes.set(xscale="log", xlabel="1 + past ratings of the user", ylabel="AUC" if data.target == "click" else "RMSE")
    axes.set_xticks(middles, [f"{middle:.0f}" for middle in middles])
    axes.minorticks_off()
    axes.set_title("test rows by length of history (equally many at each point)", fontsize="medium")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=120)


def _plot_attention(model: BST, data: HistoryDataModule, prediction: Tensor, title: str, path: Path) -> None:
    chosen = np.arange(len(prediction))[:: max(1, len(prediction) // EXAMPLES)][:EXAMPLES]
    rows = np.array(data.rows["test"])[chosen]
    movie_id, history, residual, time_gap, *_, target = data.examples()[torch.from_numpy(rows)]
    weights = model.cpu().attention(movie_id, history, residual, time_gap).numpy()
    click = data.target == "click"
    figure = Figure((14, 0.6 + 2.3 * len(rows)), layout="constrained")
    for i, axes in enumerate(figure.subplots(-(-len(rows) // 2), 2, squeeze=False).flat[: len(rows)]):
        positions = [p for p in range(history.shape[1])[-SHOWN_RATINGS:] if history[i, p] != PADDING]
        names = [f"{data.title(int(history[i, p]))}  ({residual[i, p]:+.1f})" for p in positions]
        names.append("the target itself")
        axes.barh(range(len(names)), weights[i, [*positions, -1]], tick_label=names)
        truth = f"{'liked' if target[i] else 'not liked'}" if click else f"rated {target[i]:g}"
        guess = f"predicted {prediction[chosen[i]]:.0%}" if click else f"predicted {prediction[chosen[i]]:.1f}"
        axes.set_title(f"{data.title(int(movie_id[i]))}\n{truth}, {guess}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.suptitle(
        f"{title}: attention to the latest ratings, averaged over heads\n"
        "in brackets: how far the rating is above or below the movie's expected rating",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)
