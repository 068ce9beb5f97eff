"""Gradients of a large table that hold only the rows of a batch: summed by row, and averaged over ranks.

(DDP averages all other gradients.) U: distinct rows that a batch touches, R: rows of the table, D: width of a row,
N: row numbers with repetitions.
"""

import torch
from torch import Tensor, distributed
from torch.nn import functional


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
