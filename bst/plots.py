"""Figures of a tested BST: its error by length of history, and its attention."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bst.bst import BST
from common.model.comparison import auc_difference, rmse_difference
from common.training.plots import caption, save
from data.movie_history import PADDING
from data.movie_rating_seq import HistoryDataModule

LENGTH_BINS = 8  # with about equally many test rows each
EXAMPLES, SHOWN_ITEMS = 4, 15  # of the attention figure


def plot_history_length_and_attention(
    model: BST,
    data: HistoryDataModule,
    prediction: Tensor,
    target: Tensor,
    folder: Path,
    baselines: Mapping[str, Tensor],
) -> None:
    """history_length.png and attention.png for the test rows."""
    title, is_click = caption(model, data, folder), data.target == "click"
    strongest = sorted(baselines, key=lambda name: _metric(baselines[name], target, is_click)[0], reverse=is_click)[:1]
    shown = {model.display_name: prediction} | {name: baselines[name] for name in strongest}
    length = 1 + data.past_ratings("test")
    figure = Figure((5.5, 4), layout="constrained")
    axes = figure.subplots()
    edges = np.unique(np.quantile(length, np.linspace(0, 1, LENGTH_BINS + 1)))
    part = torch.from_numpy(np.clip(np.searchsorted(edges, length, "right") - 1, 0, len(edges) - 2))
    bins = [part == i for i in part.unique()]
    middles = [np.median(length[rows]) for rows in bins]
    for name, each in shown.items():
        values, low, high = np.array([_metric(each[rows], target[rows], is_click) for rows in bins]).T
        axes.errorbar(middles, values, [values - low, high - values], fmt="o-", capsize=3, label=name)
    metric = "AUC" if is_click else "RMSE"
    axes.set(xscale="log", xlabel="1 + length of the user's past", ylabel=f"{metric}, 95 % interval")
    axes.set_xticks(middles, [f"{middle:.0f}" for middle in middles])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    axes.set_title("test rows by length of history (equally many at each point)", fontsize="medium")
    save(figure, title, folder / "history_length.png")
    if model.hparams["use_sequence"]:
        _plot_attention(model, data, prediction, title, folder / "attention.png")


def _metric(prediction: Tensor, target: Tensor, is_click: bool) -> tuple[float, float, float]:
    """AUC or RMSE, and its 95 % interval: a difference from equal scores, whose AUC is 0.5, or from the truth."""
    compare, other, offset = (
        (auc_difference, torch.zeros_like(target), 0.5) if is_click else (rmse_difference, target, 0)
    )
    value, low, high = compare(prediction, other, target).values()
    return offset + value, offset + low, offset + high


def _plot_attention(model: BST, data: HistoryDataModule, prediction: Tensor, title: str, path: Path) -> None:
    chosen = np.arange(len(prediction))[:: max(1, len(prediction) // EXAMPLES)][:EXAMPLES]
    rows = np.array(data.rows["test"])[chosen]
    movie_id, history, residual, time_gap, *_, target = data.examples()[torch.from_numpy(rows)]
    weights = model.cpu().attention(movie_id, history, residual, time_gap).numpy()
    is_click, has_ratings = data.target == "click", data.encoder.scale.has_ratings
    verb = "liked" if has_ratings else "clicked"
    figure = Figure((14, 0.6 + 2.3 * len(rows)), layout="constrained")
    for i, axes in enumerate(figure.subplots(-(-len(rows) // 2), 2, squeeze=False).flat[: len(rows)]):
        positions = [p for p in range(history.shape[1])[-SHOWN_ITEMS:] if history[i, p] != PADDING]
        names = [data.title(int(history[i, p])) for p in positions]
        if has_ratings:
            names = [f"{name}  ({residual[i, p]:+.1f})" for name, p in zip(names, positions, strict=True)]
        bars = axes.barh(range(len(names) + 1), weights[i, [*positions, -1]])
        axes.set_yticks(range(len(bars)), [*names, "the target itself"])
        truth = f"{verb if target[i] else f'not {verb}'}" if is_click else f"rated {target[i]:g}"
        guess = f"{prediction[chosen[i]]:.0%}" if is_click else f"{prediction[chosen[i]]:.1f}"
        axes.set_title(f"{data.title(int(movie_id[i]))}\n{truth}, predicted {guess}", fontsize=9)
        axes.tick_params(labelsize=7)
    note = "\nin brackets: how far the rating is above or below what is expected of the item" if has_ratings else ""
    save(figure, f"{title}: attention to the end of the history, averaged over heads{note}", path)
