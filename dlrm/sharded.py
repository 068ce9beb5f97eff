"""DLRM with its table sharded over the ranks, for tables that no single machine can hold.

Rank p owns the rows p, p + W, p + 2W, ... of the packed table and their moments, i.e. a share of every field, of
frequent and rare ids alike. It fetches the distinct rows that its part of a batch touches, and sends their gradients
back to the owners. docs/processes.md compares the cost with that of the alternatives.

W: world size (ranks), B: rows of a batch, S: columns of the ids, R: rows of the whole table, D: width of a row, U:
distinct table rows that a rank's part of a batch touches, V: rows that all ranks request from one.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from common.errors import check
from common.model.embedding import PackedEmbedding, SparseLookup, sum_row_gradients
from common.process_group import is_distributed
from dlrm.dlrmnet import DLRM

CHUNK = 1 << 18  # rows of each rank gathered at a time for a checkpoint
TABLE = "embedding.weight"


class ShardedEmbedding(PackedEmbedding):
    """PackedEmbedding of which this rank holds the rows p, p + W, ... after `allocate` has been called.

    state_dict() holds these rows only; load_state_dict() takes the whole table."""

    def __init__(self, cardinalities: Sequence[int], dim: int, pooling: Sequence[str | None] | None = None):
        super().__init__(cardinalities, 0, pooling)
        self.rows = sum(cardinalities)
        self.weight = nn.Parameter(torch.empty(self.rows, dim, device="meta"))

    def allocate(self) -> Sequence[Tensor]:
        """Allocate this rank's rows and return them by field, to be filled."""
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        self.rows_per_rank = -(-self.rows // self.world_size)
        ends = [len(range(self.rank, end, self.world_size)) for end in [*self.offsets.tolist(), self.rows]]
        self.weight = nn.Parameter(torch.empty(ends[-1], self.weight.shape[1]))
        return self.weight.split([end - start for start, end in pairwise(ends)])

    def lookup(self, rows: Tensor) -> Tensor:
        """Row numbers of the whole table (B, S) -> rows (B, S, D)."""
        owner_major = rows % self.world_size * self.rows_per_rank + rows // self.world_size
        requested_rows, position = owner_major.unique(return_inverse=True)  # (U,), (B, S)
        requested = _Fetch.apply(self.weight, requested_rows, self.rows_per_rank, self.world_size)
        return SparseLookup.apply(requested, position)

    def take_shard(self, table: Tensor) -> Tensor:
        """This rank's rows of a whole table (R, D)."""
        return table[self.rank :: self.world_size].clone()

    def gather(self, shard: Tensor, folder: Path) -> Tensor:
        """The shards of all ranks -> the table (R, D) on rank zero; other ranks get their shard back. All ranks must
        call it. The table is an unnamed memory-mapped file in `folder`, so it takes no memory."""
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            size = self.rows * shard.shape[1]
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                # reserve the space: a full disk is an error now, but would kill the process during a write to the map
                os.posix_fallocate(file.fileno(), 0, size * shard.element_size())
                table = torch.from_file(file.name, True, size, dtype=shard.dtype).view(self.rows, -1)
        for start in range(0, self.rows_per_rank, CHUNK):
            padded = shard.new_zeros(min(CHUNK, self.rows_per_rank - start), shard.shape[1])
            chunk = shard[start : start + CHUNK]
            padded[: len(chunk)] = chunk
            parts = [torch.empty_like(padded) for _ in range(self.world_size)] if self.rank == 0 else None
            distributed.gather(padded, parts)
            if parts:
                target = table[start * self.world_size : (start + CHUNK) * self.world_size]
                target.copy_(torch.stack(parts, 1).flatten(0, 1)[: len(target)])
        return table if self.rank == 0 else shard

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = self.take_shard(state_dict[f"{prefix}weight"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Fetch(torch.autograd.Function):
    """Rows (U, D) from their owners; backward: the mean over all ranks of the gradients of the rows owned here."""

    @staticmethod
    def forward(ctx, weight: Tensor, requested_rows: Tensor, rows_per_rank: int, world: int) -> Tensor:
        starts = torch.arange(world + 1, device=requested_rows.device, dtype=requested_rows.dtype) * rows_per_rank
        requested_counts = torch.searchsorted(requested_rows, starts).diff()  # by owner
        served_counts = torch.empty_like(requested_counts)
        distributed.all_to_all_single(served_counts, requested_counts)
        ctx.requested_counts, ctx.served_counts = requested_counts.tolist(), served_counts.tolist()
        ctx.shape, ctx.world_size = weight.shape, world
        rows = _exchange(requested_rows % rows_per_rank, ctx.requested_counts, ctx.served_counts)  # (V,)
        ctx.save_for_backward(rows)
        return _exchange(weight.index_select(0, rows), ctx.served_counts, ctx.requested_counts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        # all U rows are touched, so the values of the sparse gradient are complete and in order
        received = _exchange(grad._values() / ctx.world_size, ctx.requested_counts, ctx.served_counts)  # (V, D)
        return sum_row_gradients(rows, received, ctx.shape), None, None, None


def _exchange(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Values for each rank, concatenated -> the values from each rank, concatenated."""
    result = values.new_empty(sum(received), *values.shape[1:])
    distributed.all_to_all_single(result, values, received, sent)
    return result


class ShardedDLRM(DLRM):
    """DLRM with a ShardedEmbedding. Its checkpoints are those of DLRM, and load on any number of ranks."""

    table_class = ShardedEmbedding
    embedding: ShardedEmbedding
    display_name = "DLRM"

    def configure_model(self) -> None:
        """Called by Lightning once the process group is initialized."""
        check(is_distributed(), "shard_table is True, but there is only one process. Raise devices or num_nodes.")
        if self.embedding.weight.is_meta:
            with torch.random.fork_rng([]), torch.no_grad():
                torch.manual_seed(torch.initial_seed() + distributed.get_rank())  # other initial values on each rank
                self.reset_table(self.embedding.allocate())

    def count_parameters(self) -> int:
        shard = self.embedding.weight
        return super().count_parameters() + (self.embedding.rows - len(shard)) * shard.shape[1]

    def on_after_backward(self) -> None:
        """Nothing to average: the gradient is already the mean over all ranks."""

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["model"] = DLRM.__name__
        checkpoints: Any = self.trainer.checkpoint_callback
        folder = Path(checkpoints.dirpath)
        _convert(checkpoint, lambda shard: self.embedding.gather(shard, folder))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        whole = checkpoint["state_dict"]
        _convert(checkpoint, self.embedding.take_shard)
        checkpoint["state_dict"] = whole


def _convert(checkpoint: dict, convert: Callable[[Tensor], Tensor]) -> None:
    """Replace the table and its moments in a checkpoint by converted ones; the originals are not modified."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = state | {TABLE: convert(state[TABLE])} if TABLE in state else state
    for optimizer in checkpoint.get("optimizer_states", []):
        (index,) = optimizer["param_groups"][1]["params"]  # the tables' group in build_optimizer
        moments = optimizer["state"].get(index, {})
        converted = {name: convert(value) if value.dim() == 2 else value for name, value in moments.items()}
        optimizer["state"] = optimizer["state"] | ({index: converted} if moments else {})
