"""Batches straight from memory-mapped arrays: row numbers in, tensors out, with no work per row."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import check
from common.process_group import is_distributed


class MemmapDataset(Dataset):
    """Rows of the .npy files `names` in `folder`. Each loader worker maps the files itself."""

    epoch = 0  # set by BatchLoader, for what is drawn anew each epoch

    def __init__(self, folder: Path, names: Sequence[str]):
        self.paths = [folder / f"{name}.npy" for name in names]
        _ = self.arrays  # opened now, so that it stays readable if another process removes the outdated cache

    @cached_property
    def arrays(self) -> list[Tensor]:
        # copy-on-write, because torch wants a writable array; the file is never written
        return [torch.from_numpy(np.load(path, mmap_mode="c")) for path in self.paths]

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row numbers (B,) -> one tensor (B, ...) per array."""
        return tuple(array.index_select(0, rows) for array in self.arrays)

    def targets(self, rows: Tensor) -> Tensor:
        """Row numbers (B,) -> only the last array."""
        return self.arrays[-1].index_select(0, rows)

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "arrays"}


class EpochSampler(Sampler):
    """The rows of a split, in an order that depends on (seed, epoch) alone; without a seed, in file order."""

    def __init__(self, rows: range | np.ndarray, seed: int | None):
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def indices(self) -> Tensor:
        """All row numbers of the epoch, in order (N,)."""
        rows = np.asarray(self.rows, dtype=np.int64)
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
        return torch.from_numpy(rows)


class BatchLoader:
    """Iterates over batches `dataset[row numbers]`; a resumed one continues within the epoch with the remaining rows.

    With several ranks, batch_size is that of all ranks together, and each rank gets its share of the rows. A training
    batch consists of the same rows for any number of ranks. Without a seed each rank reads one contiguous part of the
    file, so that results gathered over ranks are in file order.

    Lightning calls `sampler.set_epoch`, and saves and restores `state_dict`.
    """

    def __init__(self, dataset: MemmapDataset, sampler: EpochSampler, batch_size: int, num_workers: int = 0):
        self.dataset, self.sampler, self.batch_size, self.num_workers = dataset, sampler, batch_size, num_workers
        self.batch_sampler = None  # Lightning expects it of anything with a sampler
        self.position = 0  # batches of the current epoch that have been yielded
        group = torch.distributed
        self.rank, self.world_size = (group.get_rank(), group.get_world_size()) if is_distributed() else (0, 1)
        check(
            self.world_size <= min(batch_size, len(sampler)),
            f"{self.world_size} processes for batches of {batch_size} from {len(sampler)} rows: each must get a row.",
        )

    def __len__(self) -> int:
        # a last batch with fewer than two rows per rank (too few for batch norm) is merged into the one before
        least = min(2 * self.world_size, self.batch_size)
        return max(0, len(self.sampler) - least) // self.batch_size + 1

    def local_share(self, index: int) -> float:
        """This rank's share of the rows of a training batch."""
        last = len(self) - 1
        rows = self.batch_size if index < last else len(self.sampler) - last * self.batch_size
        return len(range(self.rank, rows, self.world_size)) / rows

    def __iter__(self) -> Iterator:
        self.position %= len(self)  # a complete epoch leaves it at the end
        self.dataset.epoch = self.sampler.epoch
        for batch in DataLoader(
            self.dataset,
            sampler=self._batches()[self.position :],
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each pass would advance the generator that dropout uses
        ):
            self.position += 1
            yield batch

    def _batches(self) -> Sequence[Tensor]:
        """Row numbers of this rank's share of each batch."""
        order = self.sampler.indices()
        if self.sampler.seed is None:
            return order.tensor_split(self.world_size)[self.rank].tensor_split(len(self))
        ends = range(self.batch_size, len(self) * self.batch_size, self.batch_size)
        return [batch.tensor_split(self.world_size)[self.rank] for batch in order.tensor_split(list(ends))]

    def state_dict(self) -> dict:
        return {"position": self.position % len(self)}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]
