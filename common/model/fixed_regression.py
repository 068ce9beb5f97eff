"""A logistic regression with fixed weights, on top of which a model learns the rest.

B: rows of a batch, I: dense columns, F: categorical fields, R: rows of the embedding table.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.model.embedding import PackedEmbedding


class FixedRegression(nn.Module):
    """Bias + sum_i w_i x_i, which is 0 until the weights are set: dense (B, I), ids (B, F) or (B, S) -> logits (B,). As
    in DeepFM, x is 1 for a category, and the value of a dense column."""

    def __init__(self, num_dense: int, cardinalities: Sequence[int], pooling: Sequence[str | None] | None):
        super().__init__()
        self.table = PackedEmbedding(cardinalities, 1, pooling)
        nn.init.zeros_(self.table.weight)
        self.dense_weight = nn.Parameter(torch.zeros(num_dense))
        self.bias = nn.Parameter(torch.zeros(()))
        self.requires_grad_(False)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast(dense.device.type, enabled=False):
            return self.bias + dense @ self.dense_weight + self.table(ids).sum((1, 2))

    def set(self, weights: np.ndarray, bias: float) -> None:
        """weights (R + I,): of the rows of the table, then of the dense columns."""
        rows = len(self.table.weight)
        self.table.weight.copy_(torch.from_numpy(weights[:rows, None]))
        self.dense_weight.copy_(torch.from_numpy(weights[rows:]))
        self.bias.fill_(bias)
