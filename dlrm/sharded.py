"""DLRM whose table is spread over the processes that train together, for one that no machine can hold alone.

Each process owns the rows p, p + W, p + 2W, ... of the packed table, with their moments: a part of every field, of
frequent ids and of rare ones. It fetches the rows that its part of a batch touches, each once, and sends their
gradients back to the owners. What that costs beside the alternatives: docs/processes.md.

W: processes, p: number of one, B: batch, F: fields, R: rows of the whole table, D: width of a row, U: different rows in
a process's part of a batch, V: rows that all processes ask of one.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from common.embedding import Lookup, PackedEmbedding, row_gradient
from common.errors import check
from common.processes import together
from dlrm.dlrmnet import DLRM

CHUNK = 1 << 18  # rows of each process that are on their way to a checkpoint at a time
TABLE = "categories.weight"


class ShardedEmbedding(PackedEmbedding):
    """PackedEmbedding of which this process has the rows p, p + W, ..., from `allocate` on.

    state_dict() has these rows; load_state_dict() takes those of the whole table.
    """

    def __init__(self, field_sizes: Sequence[int], dim: int):
        super().__init__(field_sizes, 0)
        self.rows = sum(field_sizes)
        self.weight = nn.Parameter(torch.empty(self.rows, dim, device="meta"))

    def allocate(self) -> Sequence[Tensor]:
        """Make room for this process's rows; returns them by field, to be filled."""
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.most = -(-self.rows // self.world)  # rows of a process
        ends = [len(range(self.rank, end, self.world)) for end in [*self.offsets.tolist(), self.rows]]
        self.weight = nn.Parameter(torch.empty(ends[-1], self.weight.shape[1]))
        return self.weight.split([end - start for start, end in pairwise(ends)])

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of each field (B, F) int32 -> rows (B, F, D)."""
        rows = ids + self.offsets
        in_order_of_owners = rows % self.world * self.most + rows // self.world
        wanted, place = in_order_of_owners.unique(return_inverse=True)  # (U,), (B, F)
        return Lookup.apply(_Fetch.apply(self.weight, wanted, self.most, self.world), place)

    def own(self, table: Tensor) -> Tensor:
        """This process's rows of a whole table (R, D)."""
        return table[self.rank :: self.world].clone()

    def whole(self, own: Tensor, folder: Path) -> Tensor:
        """The rows that each process has -> table (R, D) in the first one; the others get their own rows back.

        All processes call it together. The table is a mapped file in `folder` without a name: it takes no memory.
        """
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                # a disk without room is an error now; while the map is written it would kill the process
                os.posix_fallocate(file.fileno(), 0, self.rows * own.shape[1] * own.element_size())
                table = torch.from_file(file.name, True, self.rows * own.shape[1], dtype=own.dtype).view(self.rows, -1)
        for start in range(0, self.most, CHUNK):
            part = own.new_zeros(min(CHUNK, self.most - start), own.shape[1])
            there = own[start : start + CHUNK]
            part[: len(there)] = there
            parts = [torch.empty_like(part) for _ in range(self.world)] if self.rank == 0 else None
            distributed.gather(part, parts)
            if parts:
                target = table[start * self.world : (start + CHUNK) * self.world]
                target.copy_(torch.stack(parts, 1).flatten(0, 1)[: len(target)])
        return table if self.rank == 0 else own

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = self.own(state_dict[f"{prefix}weight"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Fetch(torch.autograd.Function):
    """Rows (U, D) from their owners; backward, the mean of all processes' gradients of the rows owned here."""

    @staticmethod
    def forward(ctx, weight: Tensor, wanted: Tensor, most: int, world: int) -> Tensor:
        starts = torch.arange(world + 1, device=wanted.device, dtype=wanted.dtype) * most
        asked = torch.searchsorted(wanted, starts).diff()  # rows that this process asks of each other one
        given = torch.empty_like(asked)
        distributed.all_to_all_single(given, asked)
        ctx.asked, ctx.given, ctx.shape, ctx.world = asked.tolist(), given.tolist(), weight.shape, world
        rows = _exchange(wanted % most, ctx.asked, ctx.given)  # (V,)
        ctx.save_for_backward(rows)
        return _exchange(weight.index_select(0, rows), ctx.given, ctx.asked)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        # each of the U rows is touched, so that the values of the sparse gradient are all of it
        received = _exchange(grad._values() / ctx.world, ctx.asked, ctx.given)  # (V, D)
        return row_gradient(rows, received, ctx.shape), None, None, None


def _exchange(values: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Values for each process, one after another -> those from each process."""
    result = values.new_empty(sum(received), *values.shape[1:])
    distributed.all_to_all_single(result, values, received, sent)
    return result


class ShardedDLRM(DLRM):
    """DLRM with a ShardedEmbedding. Its checkpoints are those of DLRM, read by all and for any number of processes."""

    table_class = ShardedEmbedding
    title = "DLRM"

    def configure_model(self) -> None:
        """Called by Lightning when the processes have met."""
        check(together(), "SHARD_TABLE is True for one process; set DEVICES or NUM_NODES, or SHARD_TABLE = False.")
        if self.categories.weight.is_meta:
            with torch.random.fork_rng([]), torch.no_grad():
                torch.manual_seed(torch.initial_seed() + distributed.get_rank())  # each its own initial values
                self.reset_table(self.categories.allocate())

    def count_parameters(self) -> int:
        own = self.categories.weight
        return super().count_parameters() + (self.categories.rows - len(own)) * own.shape[1]

    def on_after_backward(self) -> None:
        """Nothing: the gradient is that of all processes already."""

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["model"] = DLRM.__name__
        folder = Path(self.trainer.checkpoint_callback.dirpath)
        _convert(checkpoint, lambda own: self.categories.whole(own, folder))

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        whole = checkpoint["state_dict"]
        _convert(checkpoint, self.categories.own)
        super().on_load_checkpoint(checkpoint | {"model": type(self).__name__})
        checkpoint["state_dict"] = whole


def _convert(checkpoint: dict, convert: Callable[[Tensor], Tensor]) -> None:
    """Put another form of the table and its moments into a checkpoint; what they were taken from stays as it is."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = state | {TABLE: convert(state[TABLE])} if TABLE in state else state
    for optimizer in checkpoint.get("optimizer_states", []):
        (index,) = optimizer["param_groups"][1]["params"]  # of build_optimizer: the tables
        moments = optimizer["state"].get(index, {})
        converted = {name: convert(value) if value.dim() == 2 else value for name, value in moments.items()}
        optimizer["state"] = optimizer["state"] | ({index: converted} if moments else {})
