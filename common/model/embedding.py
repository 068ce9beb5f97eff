"""The embedding tables of all fields packed into one, whose gradient holds only the rows that a batch touches.

B: rows of a batch, F: categorical fields, S: columns of the ids (F, or more if a cell may hold several values), W: of a
field with several values in a cell, D: width of a row, R: rows of the table, U: distinct rows that a batch touches, N:
row numbers with repetitions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


class PackedEmbedding(nn.Module):
    """One table for F categorical fields: row offsets[f] + id belongs to `id` of field f.

    Its gradient is a sparse tensor with one entry per touched row, sorted and summed, ready for the optimizer and for
    the exchange between ranks. So the cost of a step does not grow with the size of the table.

    pooling: how the vectors of several values in a cell are combined, "sum" or "mean"; None for a field with one value
    per cell (of all fields, if `pooling` is None). Such a field has one column of ids, all others have W, filled up
    with -1; W is the number of values in the longest cell of a batch.
    """

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], dim: int, pooling: Sequence[str | None] | None = None):
        super().__init__()
        self.pooling = list(pooling or []) if any(pooling or []) else None  # None: one value in each cell
        self.weight = nn.Parameter(torch.empty(sum(cardinalities), dim))
        ends = torch.tensor(cardinalities).cumsum(0)
        self.register_buffer("offsets", (ends - torch.tensor(cardinalities)).to(torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) int32 -> the vector of each field (B, F, D)."""
        if self.pooling is None:
            return self.lookup(ids + self.offsets)
        widths = field_widths(ids.shape[1], self.pooling)
        offsets = torch.repeat_interleave(self.offsets, torch.tensor(widths, device=ids.device))
        # padding looks up the row of its field's first id with weight 0, so that it touches no other row
        cells = [values.where(values >= 0, values[:, :1]) for values in ids.split(widths, 1)]
        rows = self.lookup(torch.cat(cells, 1).clamp(min=0) + offsets)  # (B, S, D)
        weighted = rows * pooling_weights(ids, self.pooling, rows.dtype).unsqueeze(2)
        return torch.stack([values.sum(1) for values in weighted.split(widths, 1)], 1)

    def lookup(self, rows: Tensor) -> Tensor:
        """Row numbers of the table (B, S) -> rows (B, S, D)."""
        return SparseLookup.apply(self.weight, rows)


def field_widths(columns: int, pooling: Sequence[str | None]) -> list[int]:
    """How many of the S columns of ids each field has: 1, or W if a cell may hold several values."""
    several = sum(how is not None for how in pooling)
    return [1 if how is None else (columns - len(pooling) + several) // several for how in pooling]


def widened(ids: Tensor, pooling: Sequence[str | None], columns: int) -> Tensor:
    """ids (B, S) with more padding, as a longer cell would have: (B, columns)."""
    parts = zip(ids.split(field_widths(ids.shape[1], pooling), 1), field_widths(columns, pooling), strict=True)
    return torch.cat([functional.pad(part, (0, width - part.shape[1]), value=-1) for part, width in parts], 1)


def pooling_weights(ids: Tensor, pooling: Sequence[str | None], dtype: torch.dtype) -> Tensor:
    """The weight of each value in the pooled vector of its field, 0 for padding (-1): ids (B, S) -> (B, S) dtype."""
    known = (ids >= 0).to(dtype)
    weights = [
        values / values.sum(1, keepdim=True).clamp(min=1) if how == "mean" else values
        for values, how in zip(known.split(field_widths(ids.shape[1], pooling), 1), pooling, strict=True)
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


def sum_row_gradients(rows: Tensor, grad: Tensor, shape: torch.Size) -> Tensor:
    """Row numbers (N,) and their gradients (N, D) -> sparse gradient of a table (R, D), summed by row, in order."""
    ordered, order = rows.sort()
    touched, counts = ordered.unique_consecutive(return_counts=True)  # (U,)
    starts = counts.cumsum(0) - counts
    # a bag holds the occurrences of one row, so one pass sums all gradients: far faster than index_add
    summed = functional.embedding_bag(order, grad, starts, mode="sum")  # (U, D)
    return torch.sparse_coo_tensor(touched.long()[None], summed, shape, is_coalesced=True, check_invariants=False)


def touched_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse gradient (R, D) -> its distinct row numbers (U,) and their gradients (U, D)."""
    rows = grad._indices()[0]
    if not (rows[1:] > rows[:-1]).all():  # ours are coalesced, but autograd drops the flag that says so
        grad = grad.coalesce()
        rows = grad.indices()[0]
    return rows, grad._values()


def average_touched_rows(table: Tensor) -> None:
    """Replace this rank's sparse gradient of a table (R, D) by its mean over all ranks. Only the touched rows are sent,
    ids and gradients, in two gathers that every backend supports (NCCL cannot all-reduce sparse gradients)."""
    assert table.grad is not None
    rows, grad = touched_rows(table.grad)
    world_size = distributed.get_world_size()
    all_counts = rows.new_empty(world_size)
    distributed.all_gather_single(all_counts, rows.new_tensor([len(rows)]))
    counts = all_counts.tolist()
    # one buffer (U, 1 + D) with the bits of the ids in a column of floats; padded to the longest, because gloo gathers
    # equal shapes
    sent = grad.new_zeros(max(counts), 1 + grad.shape[1])
    sent[: len(rows), 0] = rows.to(torch.int32).view(torch.float32)
    sent[: len(rows), 1:] = grad / world_size
    received = sent.new_empty(world_size * len(sent), sent.shape[1])
    distributed.all_gather_single(received, sent)
    parts = [part[:count] for part, count in zip(received.split(len(sent)), counts, strict=True)]
    gathered = torch.cat(parts)
    ids, grads = gathered[:, 0].contiguous().view(torch.int32), gathered[:, 1:].contiguous()
    table.grad = sum_row_gradients(ids, grads, table.shape)
