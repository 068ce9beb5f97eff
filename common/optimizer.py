"""Optimizers for models with a large embedding table, of which a batch touches a small part."""

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from common.embedding import PackedEmbedding, touched_rows
from common.errors import UserError, check


class TouchedRowsAdam(torch.optim.Adam):
    """torch.optim.Adam that, for a parameter with a sparse gradient, steps the rows in it and leaves all others alone.

    Row-wise in memory traffic only: each element has its own moments, as in Adam. Differs from Adam: a row that is not
    touched keeps value and moments; the number of steps, for the bias correction, is that of the whole parameter.
    `weight_decay` is L2 on the touched rows. Checkpoints hold the same state as Adam's.
    """

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None  # done: Adam's own step below must not see it
        super().step()
        return loss

    def _step_rows(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tables = parameter, state["exp_avg"], state["exp_avg_sq"]
        rows, grad = touched_rows(parameter.grad)
        value, average, average_square = (table.index_select(0, rows) for table in tables)
        beta1, beta2 = group["betas"]
        adam(
            [value],
            [grad],
            [average],
            [average_square],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=True,
        )
        for table, stepped in zip(tables, (value, average, average_square), strict=True):
            table.index_copy_(0, rows, stepped)


def build_optimizer(
    model: nn.Module,
    name: str,
    learning_rate: float,
    embedding_l2: float,
    embedding_learning_rate: float | None = None,
) -> torch.optim.Optimizer:
    """name: "adam" (TouchedRowsAdam), "adagrad" or "sgd"; embedding_l2: L2 on the embedding rows of a batch, for Adam;
    embedding_learning_rate: of the packed tables, where it is another one. Each group keeps its rate as `initial_lr`.

    Raises: UserError for another name, or L2 with an optimizer that has no such thing for sparse gradients.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, PackedEmbedding)]
    others = [parameter for parameter in model.parameters() if all(parameter is not table for table in tables)]
    groups = [
        {"params": others, "lr": learning_rate},
        {
            "params": tables,
            "lr": learning_rate if embedding_learning_rate is None else embedding_learning_rate,
            "weight_decay": embedding_l2,
        },
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    if name == "adam":
        return TouchedRowsAdam(groups, fused=True)
    check(embedding_l2 == 0, f"EMBEDDING_L2 is {embedding_l2}; with the optimizer {name!r} it must be 0.")
    if name == "adagrad":
        return torch.optim.Adagrad(groups)
    if name == "sgd":
        return torch.optim.SGD(groups)
    raise UserError(f'OPTIMIZER is {name!r}; it must be "adam", "adagrad" or "sgd".')
