"""The embedding tables of all fields packed into one, whose gradient holds only the rows that a batch touches.

B: rows of a batch, F: categorical fields, S: columns of the ids (F, or more if a cell may hold several values), D:
width of a row, R: rows of the table.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.model.sparse_gradients import sum_row_gradients


class PackedEmbedding(nn.Module):
    """One table for F categorical fields: row offsets[f] + id belongs to `id` of field f.

    Its gradient is a sparse tensor with one entry per touched row, sorted and summed, ready for the optimizer and for
    the exchange between ranks. So the cost of a step does not grow with the size of the table.

    slots: how many columns of the ids each field has, filled up with -1 (None: one each); pooling: how the vectors of a
    field are combined, "sum" or "mean" (ignored for a field with one slot).
    """

    offsets: Tensor
    slot_offsets: Tensor
    first_slots: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        dim: int,
        slots: Sequence[int] | None = None,
        pooling: Sequence[str | None] | None = None,
    ):
        super().__init__()
        self.slots: list[int] | None = None  # None: one value in each cell
        self.pooling: list[str | None] = []
        self.weight = nn.Parameter(torch.empty(sum(cardinalities), dim))
        ends = torch.tensor(cardinalities).cumsum(0)
        self.register_buffer("offsets", (ends - torch.tensor(cardinalities)).to(torch.int32), persistent=False)
        if slots is not None and max(slots, default=1) > 1:
            self.slots, self.pooling = list(slots), list(pooling or [])
            fields = torch.tensor([field for field, count in enumerate(slots) for _ in range(count)])  # (S,)
            first = torch.tensor(self.slots).cumsum(0) - torch.tensor(self.slots)
            self.register_buffer("slot_offsets", self.offsets[fields], persistent=False)
            self.register_buffer("first_slots", first[fields], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) int32 -> the vector of each field (B, F, D)."""
        if self.slots is None:
            return self.lookup(ids + self.offsets)
        # padding looks up the first value of its cell with weight 0, so that it touches no other row
        filled = torch.where(ids < 0, ids.index_select(1, self.first_slots), ids).clamp(min=0)
        rows = self.lookup(filled + self.slot_offsets)  # (B, S, D)
        weighted = rows * pooling_weights(ids, self.slots, self.pooling, rows.dtype).unsqueeze(2)
        return torch.stack([values.sum(1) for values in weighted.split(self.slots, 1)], 1)

    def lookup(self, rows: Tensor) -> Tensor:
        """Row numbers of the table (B, S) -> rows (B, S, D)."""
        return SparseLookup.apply(self.weight, rows)


def pooling_weights(ids: Tensor, slots: list[int], pooling: list[str | None], dtype: torch.dtype) -> Tensor:
    """The weight of each value in the pooled vector of its field, 0 for padding (-1): ids (B, S) -> (B, S) dtype."""
    known = (ids >= 0).to(dtype)
    weights = [
        values / values.sum(1, keepdim=True).clamp(min=1) if how == "mean" else values
        for values, how in zip(known.split(slots, 1), pooling, strict=True)
    ]
    return torch.cat(weights, 1) if weights else known


class SparseLookup(torch.autograd.Function):
    """Rows of a table (R, D) by their numbers (...) int -> (..., D), with a sparse gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return functional.embedding(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return sum_row_gradients(rows.flatten(), grad.flatten(0, -2), ctx.shape), None
