"""Multi-gate Mixture-of-Experts (Ma et al., KDD 2018, doi:10.1145/3219819.3220007) and the models it generalises.

B: rows of a batch, I: dense columns, F: categorical fields, X: width of the input x, K: tasks, E: experts, O: width of
an expert's output, Q: parallel layers. Equation numbers are the paper's.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import check
from common.model.embedding import PackedEmbedding
from common.model.metrics import TaskMetrics
from common.model.recommender import Recommender

DISPLAY_NAMES = {"mmoe": "MMoE", "omoe": "OMoE", "shared_bottom": "Shared-Bottom", "single_task": "Single-Task"}


class MMoE(Recommender):
    """y_k = h^k(f^k(x)) with f^k(x) = sum_i g^k(x)_i f_i(x): towers h, gates g, experts f (eq. 6 and 7).

    variant: "mmoe" has a gate per task, "omoe" one gate for all tasks (eq. 5), "shared_bottom" no gate and a single
    expert, the shared bottom (eq. 1); "single_task" is that with one task. bin_edges: of each dense column;
    cardinalities: number of ids of each categorical field; pooling: of fields with several values in a cell,
    see PackedEmbedding; dropout: of experts and towers; task_weights: of the losses; optimizer: arguments of
    build_optimizer. Forward: dense (B, I), ids (B, F), or more columns with `pooling` -> logits (B, K).
    """

    task_weights: Tensor

    def __init__(
        self,
        bin_edges: Sequence[Sequence[float]],
        cardinalities: Sequence[int],
        tasks: Sequence[str],
        *,
        pooling: Sequence[str | None] | None = None,
        variant: str,
        task_weights: Sequence[float],
        num_experts: int,
        expert_units: Sequence[int],
        tower_units: Sequence[int],
        embedding_dim: int,
        dropout: float,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        check(variant != "single_task" or len(tasks) == 1, f"variant 'single_task' takes one task; tasks is {tasks}.")
        check(len(task_weights) == len(tasks), f"task_weights is {task_weights}; it must have one for each of {tasks}.")
        self.save_hyperparameters()
        self.metrics = TaskMetrics(tasks)  # whose log loss is the plain mean over tasks
        self.loss_weight = sum(task_weights) if len(set(task_weights)) == 1 else None
        self.register_buffer("task_weights", torch.tensor(task_weights, dtype=torch.float32), persistent=False)
        num_gates = {"mmoe": len(tasks), "omoe": 1}.get(variant, 0)
        num_experts = num_experts if num_gates else 1
        self.dense_encoding = PiecewiseLinear(bin_edges)
        self.embedding = PackedEmbedding(cardinalities, embedding_dim, pooling)
        nn.init.normal_(self.embedding.weight, std=0.05)
        width = self.dense_encoding.width + len(cardinalities) * embedding_dim
        self.experts = parallel_mlps(num_experts, [width, *expert_units], dropout)
        self.gates = ParallelLinear(num_gates, width, num_experts) if num_gates else None
        widths = [expert_units[-1], *tower_units]
        self.towers = parallel_mlps(len(tasks), widths, dropout)
        self.outputs = ParallelLinear(len(tasks), widths[-1], 1)

    @property
    def display_name(self) -> str:
        return DISPLAY_NAMES[self.hparams["variant"]]

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.inputs(dense, ids)
        mixed = mix(self.gate_weights(x), self.experts(x))
        return self.outputs(self.towers(mixed)).squeeze(2).T  # (B, K), eq. 6

    def inputs(self, dense: Tensor, ids: Tensor) -> Tensor:
        """x: dense (B, I), ids (B, F) -> (B, X)."""
        return torch.cat([self.dense_encoding(dense), self.embedding(ids).flatten(1)], 1)

    def gate_weights(self, x: Tensor) -> Tensor:
        """g^k(x)_i of eq. 8: (B, X) -> (K, B, E); equal for all tasks if they share a gate or have none."""
        num_tasks = len(self.hparams["tasks"])
        if self.gates is None:
            return x.new_ones(num_tasks, len(x), 1)
        # Differs from the paper: W_gk x has a bias, so that a gate can prefer an expert whatever the input
        return self.gates(x).softmax(2).expand(num_tasks, -1, -1)

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        known = ~target.isnan()  # (B, K); a task's loss is the mean over the rows whose label is known
        weight = known if weight is None else known * weight.unsqueeze(1)
        losses = functional.binary_cross_entropy_with_logits(logits, target.nan_to_num(), weight, reduction="none")
        return (losses.sum(0) / known.sum(0).clamp(min=1)) @ self.task_weights

    def predict(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


def mix(weights: Tensor, experts: Tensor) -> Tensor:
    """sum_i g^k(x)_i f_i(x) of eq. 7: (K, B, E), (E, B, O) -> (K, B, O)."""
    # several times faster than a product of a tiny matrix per row
    return (weights.mT.unsqueeze(3) * experts).sum(1)


class PiecewiseLinear(nn.Module):
    """Piecewise linear encoding: how far a number reaches into each bin, 0 to 1 (Gorishniy et al. 2022,
    arXiv:2203.05556).

    bin_edges: two or more per column, ascending. (B, I) -> (B, all bins); a missing number (nan) gives zeros.
    """

    column: Tensor
    left: Tensor
    size: Tensor

    # Differs from MMoE's paper, which does not say how numbers are encoded: a scaled number alone has no thresholds.
    # Differs from Gorishniy et al.: below the first and above the last edge the encoding stays at 0 and 1.
    def __init__(self, bin_edges: Sequence[Sequence[float]]):
        super().__init__()
        bins = [(column, *edges) for column, row in enumerate(bin_edges) for edges in pairwise(row)]
        self.width = len(bins)
        column, left, right = torch.tensor(bins).reshape(-1, 3).T
        self.register_buffer("column", column.long(), persistent=False)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("size", right - left, persistent=False)

    def forward(self, dense: Tensor) -> Tensor:
        return ((dense[:, self.column] - self.left) / self.size).clamp(0, 1).nan_to_num(0)


class ParallelLinear(nn.Module):
    """Q linear layers as one matrix product: (B, in), shared by all, or (Q, B, in) -> (Q, B, out)."""

    def __init__(self, num_layers: int, fan_in: int, fan_out: int):
        super().__init__()
        bound = fan_in**-0.5  # as nn.Linear
        self.weight = nn.Parameter(torch.empty(num_layers, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_layers, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return torch.einsum("bi,qio->qbo", x, self.weight) + self.bias
        return torch.baddbmm(self.bias, x, self.weight)


def parallel_mlps(num_mlps: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Q separate MLPs: (B, widths[0]), shared by all, or (Q, B, widths[0]) -> (Q, B, widths[-1])."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [ParallelLinear(num_mlps, fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
