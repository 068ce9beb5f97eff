"""The packed table's gradient between processes that train together (Lightning's DDP averages all other gradients).

Only touched rows travel, ids and gradients, in two gathers that every backend has: gloo, and NCCL, which cannot
all-reduce sparse gradients. W: processes, U: rows that a process touched, D: width of a row.
"""

import torch
from torch import Tensor, distributed

from common.embedding import row_gradient, touched_rows


def average_touched_rows(table: Tensor) -> None:
    """Replace the sparse gradient of a table (R, D), of this process's rows, by its mean over all processes."""
    rows, grad = touched_rows(table.grad)
    world = distributed.get_world_size()
    counts = rows.new_empty(world)
    distributed.all_gather_single(counts, rows.new_tensor([len(rows)]))
    counts = counts.tolist()
    # one buffer (U, 1 + D): ids as they are in memory, in a column of floats; as long as the longest, as gloo asks for
    sent = grad.new_zeros(max(counts), 1 + grad.shape[1])
    sent[: len(rows), 0] = rows.to(torch.int32).view(torch.float32)
    sent[: len(rows), 1:] = grad / world
    received = sent.new_empty(world * len(sent), sent.shape[1])
    distributed.all_gather_single(received, sent)
    parts = [part[:count] for part, count in zip(received.split(len(sent)), counts, strict=True)]
    every = torch.cat(parts)
    table.grad = row_gradient(every[:, 0].contiguous().view(torch.int32), every[:, 1:].contiguous(), table.shape)
