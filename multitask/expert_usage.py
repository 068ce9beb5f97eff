"""How the tasks use the experts: logged after each validation, and plotted at the end.

K: tasks, E: experts.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.training.plots import caption, save
from multitask.mmoe import MMoE

BATCH_SIZE = 4096  # rows evaluated at a time
DEAD_WEIGHT = 0.01  # an expert whose mean gate weights are all below this is dead
DEAD_ZEROS = 0.9  # so is an expert with a larger share of zeros among its outputs


class ExpertUsage(pl.Callback):
    """After each validation, writes mean gate weights to gates.csv and prints which experts are dead."""

    def __init__(self, folder: Path):
        self.path = folder / "gates.csv"
        self.rows: list[dict] = []

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, MMoE)
        if not trainer.is_global_zero:
            return
        weights, zeros = expert_usage(module, module.data, "val")
        self.rows += [
            {"epoch": trainer.current_epoch, "task": task, **{f"expert_{i}": w for i, w in enumerate(row.tolist())}}
            for task, row in zip(module.hparams["tasks"], weights, strict=True)
        ]
        pd.DataFrame(self.rows).to_csv(self.path, index=False)
        if dead := dead_experts(weights, zeros):
            print(f"epoch {trainer.current_epoch}: experts {dead} of {len(zeros)} are dead (no weight or no output)")

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state["rows"]


@torch.no_grad()
def expert_usage(model: MMoE, data: RecommendationDataModule, split: str) -> tuple[Tensor, Tensor]:
    """Mean gate weights (K, E), and share of zeros among each expert's outputs (E,), over the rows of a split."""
    weights, zeros = torch.zeros(()), torch.zeros(())
    rows = torch.from_numpy(np.array(data.rows[split], np.int64))
    for part in rows.split(BATCH_SIZE):
        dense, ids, _ = data.examples()[part]
        x = model.inputs(dense.to(model.device), ids.to(model.device))
        weights = weights + model.gate_weights(x).sum(1).cpu()
        zeros = zeros + (model.experts(x) == 0).float().mean(2).sum(1).cpu()
    return weights / len(rows), zeros / len(rows)


def dead_experts(weights: Tensor, zeros: Tensor) -> list[int]:
    """Numbers of the experts that no task uses or whose outputs are nearly all 0, given weights (K, E), zeros (E,)."""
    return ((weights.amax(0) < DEAD_WEIGHT) | (zeros > DEAD_ZEROS)).nonzero().flatten().tolist()


def plot_gates(
    model: MMoE,
    data: RecommendationDataModule,
    prediction: Tensor,
    target: Tensor,
    folder: Path,
    baselines: dict[str, Tensor],
) -> None:
    """gates.png: heat map of the mean gate weights over the test rows."""
    weights, _ = expert_usage(model, data, "test")
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
