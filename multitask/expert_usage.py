"""How the tasks use the experts: a figure of the gates.

K: tasks, E: experts.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.training.plots import caption, save
from multitask.mmoe import MMoE

BATCH_SIZE = 4096  # rows evaluated at a time


@torch.no_grad()
def expert_usage(model: MMoE, data: RecommendationDataModule, split: str) -> Tensor:
    """Mean gate weights (K, E) over the rows of a split."""
    rows = torch.from_numpy(np.array(data.rows[split], np.int64))
    parts = (data.examples()[part] for part in rows.split(BATCH_SIZE))
    inputs = (model.inputs(dense.to(model.device), ids.to(model.device)) for dense, ids, _ in parts)
    return torch.stack([model.gate_weights(x).sum(1) for x in inputs]).sum(0).cpu() / len(rows)


def plot_gates(
    model: MMoE, data: RecommendationDataModule, predictions: dict[str, Tensor], target: Tensor, folder: Path
) -> None:
    """gates.png: heat map of the mean gate weights over the test rows."""
    weights = expert_usage(model, data, "test")
    figure = Figure((2.5 + 0.7 * weights.shape[1], 1.5 + 0.6 * len(weights)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for task, row in enumerate(weights.tolist()):
        for expert, weight in enumerate(row):
            color = "white" if weight > 0.5 else "black"
            axes.text(expert, task, f"{weight:.2f}", ha="center", va="center", color=color)
    axes.set_yticks(range(len(weights)), model.hparams["tasks"])
    axes.set_xticks(range(weights.shape[1]))
    axes.set(xlabel="expert", title="Mean gate weight, test rows")
    save(figure, caption(model, data, folder), folder / "gates.png")
