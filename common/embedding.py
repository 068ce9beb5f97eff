"""The embedding tables of all fields packed into one, whose gradient holds the touched rows only.

B: batch, F: fields, D: width of a row, R: rows of the table, U: different rows in a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class PackedEmbedding(nn.Module):
    """One table for F categorical fields: row offset[f] + id belongs to `id` of field f.

    Its gradient is a sparse tensor with one entry per touched row, sorted and summed, which optimizers and gradient
    exchange can take as it is. So the work of a step does not grow with the number of rows.
    """

    def __init__(self, field_sizes: Sequence[int], dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sum(field_sizes), dim))
        ends = torch.tensor(field_sizes).cumsum(0)
        self.register_buffer("offsets", (ends - torch.tensor(field_sizes)).to(torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of each field (B, F) int32 -> rows (B, F, D)."""
        return Lookup.apply(self.weight, ids + self.offsets)


class Lookup(torch.autograd.Function):
    """Rows (...) int of a table (R, D) -> (..., D), with a sparse gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = weight.shape
        return functional.embedding(rows, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return row_gradient(rows.flatten(), grad.flatten(0, -2), ctx.shape), None


def row_gradient(rows: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """Rows (N,) and their gradients (N, D) -> gradient of a table (R, D): each row once, in order, summed."""
    ordered, order = rows.sort()
    touched, counts = ordered.unique_consecutive(return_counts=True)  # (U,)
    starts = counts.cumsum(0) - counts
    # a bag is the occurrences of one row: sums each row's gradients in one pass, far faster than index_add
    summed = functional.embedding_bag(order, grad, starts, mode="sum")  # (U, D)
    return torch.sparse_coo_tensor(touched.long()[None], summed, shape, is_coalesced=True, check_invariants=False)


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse gradient (R, D) -> its rows (U,), each once, and their gradients (U, D)."""
    rows = grad._indices()[0]
    if not (rows[1:] > rows[:-1]).all():  # PackedEmbedding's are sorted and summed, but autograd drops the mark of it
        grad = grad.coalesce()
        rows = grad.indices()[0]
    return rows, grad._values()
