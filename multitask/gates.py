"""How the tasks use the experts: logged after each epoch, drawn at the end.

K: tasks, E: experts.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from multitask.mmoe import MMoE

BATCH_SIZE = 4096  # rows looked at together
DEAD_WEIGHT = 0.01  # mean gate weight below which no task uses an expert
DEAD_ZEROS = 0.9  # share of an expert's outputs that are 0, above which it says nothing


class GateUse(pl.Callback):
    """After each validation: mean gate weights to gates.csv, and a line on the terminal for experts that are dead."""

    def __init__(self, folder: Path):
        self.path = folder / "gates.csv"
        self.rows: list[dict] = []

    def on_validation_end(self, trainer: pl.Trainer, module: MMoE) -> None:
        if not trainer.is_global_zero:
            return
        weights, zeros = expert_use(module, *trainer.datamodule.read("val"))
        self.rows += [
            {"epoch": trainer.current_epoch, "task": task, **{f"expert_{i}": w for i, w in enumerate(row.tolist())}}
            for task, row in zip(module.hparams.tasks, weights, strict=True)
        ]
        pd.DataFrame(self.rows).to_csv(self.path, index=False)
        if dead := dead_experts(weights, zeros):
            print(f"epoch {trainer.current_epoch}: experts {dead} of {len(zeros)} are dead (no weight or no output)")

    def state_dict(self) -> dict:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state["rows"]


@torch.no_grad()
def expert_use(model: MMoE, numbers: np.ndarray, ids: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean gate weight (K, E), and share of zeros in each expert's output (E,), over the rows of a split."""
    weights, zeros = 0.0, 0.0
    for batch in zip(*(torch.from_numpy(array).split(BATCH_SIZE) for array in (numbers, ids)), strict=True):
        x = model.inputs(*(tensor.to(model.device) for tensor in batch))
        weights = weights + model.gate_weights(x).sum(1)
        zeros = zeros + (model.experts(x) == 0).float().mean(2).sum(1)
    return (weights / len(label)).cpu(), (zeros / len(label)).cpu()


def dead_experts(weights: Tensor, zeros: Tensor) -> list[int]:
    """Experts that no task uses, or whose ReLUs are nearly all shut: (K, E), (E,) -> their numbers."""
    return ((weights.amax(0) < DEAD_WEIGHT) | (zeros > DEAD_ZEROS)).nonzero().flatten().tolist()


def draw_gates(model: MMoE, numbers: np.ndarray, ids: np.ndarray, label: np.ndarray, path: Path) -> None:
    """Heat map of the mean gate weights over the rows of a split."""
    weights, _ = expert_use(model, numbers, ids, label)
    figure = Figure((2 + 0.7 * weights.shape[1], 1.2 + 0.6 * len(weights)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights.numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for task, row in enumerate(weights.tolist()):
        for expert, weight in enumerate(row):
            color = "white" if weight > 0.5 else "black"
            axes.text(expert, task, f"{weight:.2f}", ha="center", va="center", color=color)
    axes.set_yticks(range(len(weights)), model.hparams.tasks)
    axes.set_xticks(range(weights.shape[1]))
    axes.set(xlabel="expert", title="Mean gate weight, test rows")
    figure.savefig(path, dpi=120)
