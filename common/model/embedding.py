"""The embedding tables of all fields packed into one, whose gradient holds only the rows of a batch.

B: rows of a batch, F: categorical fields, D: width of a row, R: rows of the table, U: distinct table rows in a batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model.sparse_gradients import sum_row_gradients


class PackedEmbedding(nn.Module):
    """One table for F categorical fields: row offset[f] + id belongs to `id` of field f.

    Its gradient is a sparse tensor with one entry per touched row, sorted and summed, ready for the optimizer and for
    the exchange between ranks. So the work of a step does not grow with the number of rows.
    """

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(cardinalities), dim))
        ends = torch.tensor(cardinalities).cumsum(0)
        self.register_buffer("offsets", (ends - torch.tensor(cardinalities)).to(torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of each field (B, F) int32 -> rows (B, F, D)."""
        return SparseLookup.apply(self.weight, ids + self.offsets)


class SparseLookup(torch.autograd.Function):
    """Row numbers (...) int of a table (R, D) -> (..., D), with a sparse gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return functional.embedding(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return sum_row_gradients(rows.flatten(), grad.flatten(0, -2), ctx.shape), None
