"""Optimizers for models with a large embedding table, of which each batch touches only a small part."""

from collections.abc import Callable
from math import cos, pi
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LambdaLR

from common.errors import check
from common.model.embedding import PackedEmbedding, touched_rows


class LazyAdam(torch.optim.Adam):
    """Like torch.optim.SparseAdam, plus L2 on touched rows, a fused step, and dense parameters in the same optimizer.

    A parameter with a sparse gradient is stepped in the gradient's rows only; each element has its own moments, as in
    Adam. Differs from Adam: an untouched row keeps its value and moments; bias correction counts the steps of the whole
    parameter. Checkpoints hold the same state as Adam's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, parameter.grad, group)
        super().step()
        return loss

    def _step_rows(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tables = parameter, state["exp_avg"], state["exp_avg_sq"]
        rows, grad = touched_rows(grad)
        value, average, average_square = (table.index_select(0, rows) for table in tables)
        beta1, beta2 = group["betas"]
        options: dict[str, Any] = {name: group[name] for name in ("lr", "weight_decay", "eps")}
        options |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, "fused": True}
        adam([value], [grad], [average], [average_square], [], [state["step"]], **options)
        for table, stepped in zip(tables, (value, average, average_square), strict=True):
            table.index_copy_(0, rows, stepped)
        parameter.grad = None  # done, so Adam's step skips it


class DenseAdam(LazyAdam):
    """torch.optim.Adam for sparse gradients too: every step moves all rows, by their moments and the L2."""

    def _step_rows(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        parameter.grad = grad.to_dense()  # for Adam's step


ADAMS = {"adam": LazyAdam, "dense_adam": DenseAdam}
OPTIMIZERS: dict[str, Any] = {"adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
DECAYS: dict[str, Callable[[float], float]] = {  # factor of the learning rate, by the share of steps taken
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + cos(pi * done)) / 2,
    "plateau": lambda done: 1.0,  # the callback Checkpoints lowers the rate itself
}


def build_optimizer(
    model: nn.Module,
    total_steps: float,
    *,
    optimizer: str,
    learning_rate: float,
    embedding_learning_rate: float | None,
    embedding_l2: float,
    schedule: str,
    warmup_steps: int,
) -> OptimizerLRSchedulerConfig:
    """Optimizer and learning rate schedule, as LightningModule.configure_optimizers returns them.

    total_steps: of the run, inf if that is open. embedding_learning_rate: of the tables; None: learning_rate.
    embedding_l2: on the table rows that a batch touches, with "dense_adam" on all."""
    check(optimizer in ADAMS or embedding_l2 == 0, f"embedding_l2 is {embedding_l2}; with {optimizer!r} it must be 0.")
    check(warmup_steps < total_steps, f"warmup_steps is {warmup_steps:,}; the whole run has {total_steps:,} steps.")
    tables = [module.weight for module in model.modules() if isinstance(module, PackedEmbedding)]
    others = [parameter for parameter in model.parameters() if all(parameter is not table for table in tables)]
    embedding_rate = learning_rate if embedding_learning_rate is None else embedding_learning_rate
    groups = [
        {"params": others, "lr": learning_rate},
        {"params": tables, "lr": embedding_rate, "weight_decay": embedding_l2},
    ]
    built = ADAMS[optimizer](groups, fused=True) if optimizer in ADAMS else OPTIMIZERS[optimizer](groups)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return DECAYS[schedule]((step - warmup_steps) / (total_steps - warmup_steps))

    return {"optimizer": built, "lr_scheduler": {"scheduler": LambdaLR(built, factor), "interval": "step"}}
