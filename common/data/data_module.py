"""What all data modules share: the loaders of the three splits, and the attributes that training reads."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from common.data.cache import MANIFEST
from common.data.loader import BatchLoader, EpochSampler, MemmapDataset
from common.settings import check_settings

SPLITS = ("train", "val", "test")
SPLIT_SEED = 2018  # of random splits (the seed of BARS) and of the negatives of held-out rows: the same for every run
EVALUATION_FACTOR = 4  # validation and test batches have this many times batch_size rows: they need no gradients

Rows = np.ndarray | range


class RecommendationDataModule(pl.LightningDataModule):
    """Three splits of one dataset of encoded rows.

    A subclass implements setup(), which sets is_sample, rows, protocol and folder; examples(), the encoded rows of all
    splits; best_prediction(), of the built-in sample's planted model for the test rows, None if it has none for the
    target; and state_dict(), all that is needed to score new rows from a checkpoint.
    """

    is_sample: bool  # whether this is the built-in sample
    rows: Mapping[str, Rows]  # row numbers of "train", "val" and "test"
    protocol: str  # how the rows were split, for results and tables
    tasks: list[str]  # names of the targets, if there are several
    folder: Path  # of the prepared arrays, as build_once returns it
    training_offset = 0.0  # added to the logits in training, if training rows are sampled by label

    def __init__(self, *, dataset: str, data_root: str | None, batch_size: int, num_workers: int, seed: int):
        super().__init__()
        check_settings({"dataset": dataset, "data_root": data_root, "batch_size": batch_size})
        self.dataset, self.data_root = dataset, data_root
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    def fingerprint(self) -> int | None:
        """A checksum of the prepared arrays; None if they are not in the cache."""
        path = getattr(self, "folder", Path()) / MANIFEST
        return zlib.crc32(path.read_bytes()) if path.exists() else None

    def examples(self) -> MemmapDataset:
        raise NotImplementedError

    def training_examples(self) -> MemmapDataset:
        """Like examples(), for training; the target may be a pair (target, weights of the rows)."""
        return self.examples()

    def best_prediction(self) -> torch.Tensor | None:
        raise NotImplementedError

    def known_rows(self, state: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the embedding table whose values an earlier state_dict() has too, and their rows in that one.

        Raises: KeyError, TypeError or ValueError for a state with other columns.
        """
        raise TypeError("start_from does not support this kind of data")

    def read(self, rows: Rows | Sequence[int]) -> list[np.ndarray]:
        """Inputs and target of some rows, as arrays in memory."""
        return [array.numpy() for array in self.examples()[torch.from_numpy(np.array(rows, np.int64))]]

    def targets(self, split: str) -> torch.Tensor:
        """Targets of a split's rows (N,) or (N, K) float32."""
        return self.examples().targets(torch.from_numpy(np.array(self.rows[split], np.int64)))

    def groups(self, split: str) -> np.ndarray | None:
        """Group number (of the user, say) of each row of a split (N,) int32; None if the data has no groups."""
        return None

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.seed, self.batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", None, EVALUATION_FACTOR * self.batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", None, EVALUATION_FACTOR * self.batch_size)

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        examples = self.training_examples() if split == "train" else self.examples()
        return BatchLoader(examples, EpochSampler(self.rows[split], seed), batch_size, self.num_workers)
