"""Criteo display advertising (Kaggle 2014): raw text -> columns -> encoded rows -> batches.

`python data/criteo_data.py` downloads the raw files (4.6 GB), builds the cache and prints what it found.
N: rows, F: categorical fields.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from common.errors import check, run_script
from common.metrics import click_metrics
from common.settings import check_settings
from data.cache import cached
from data.criteo_cache import SPLITS, write_columns, write_encoded
from data.criteo_encoding import NUMBER_FORMS, CriteoEncoder
from data.download import ensure_dataset
from data.loader import BatchLoader, EpochOrder, MappedRows
from data.locate import find_dataset, raw_file
from data.sample_criteo import criteo_sample

DATASET = "criteo"  # folder below DATA_ROOT
SPLIT = "time"  # "time", or "random" (BARS x4)
NUMBERS_AS = "log+missing"  # or "log", or "bucket" (categories, BARS x4)
MIN_COUNT = 2  # training rows a category needs for an id of its own

GET_COMMAND = "python data/criteo_data.py"
ARRAYS = ["numbers", "ids", "label"]  # of the cache, in the order of a batch


class CriteoDataModule(pl.LightningDataModule):
    """Batches (numbers (B, num_numbers) float32, ids (B, F) int32, label (B,) float32) of the three splits.

    split: "time" (first 6/7 of the rows train, then half validation, half test) or "random" (BARS x4: stratified
    10 folds, fold 0 test, fold 1 validation). numbers_as: see CriteoEncoder. min_count: training rows for an own id.
    """

    def __init__(
        self,
        dataset: str = DATASET,
        data_root: str | None = None,
        split: str = SPLIT,
        numbers_as: str = NUMBERS_AS,
        min_count: int = MIN_COUNT,
        batch_size: int = 4096,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        check(split in ("time", "random"), f'SPLIT is {split!r}; it must be "time" or "random".')
        check(numbers_as in NUMBER_FORMS, f"NUMBERS_AS is {numbers_as!r}; it must be one of {NUMBER_FORMS}.")
        check_settings({"min_count": min_count, "batch_size": batch_size})
        self.dataset, self.data_root = dataset, data_root
        self.settings = {"split": split, "numbers": numbers_as, "min_count": min_count}
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.encoder: CriteoEncoder | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first where there is none."""
        if self.encoder is not None:
            return
        folder, self.is_sample = find_dataset(self.dataset, self.data_root, GET_COMMAND, criteo_sample)
        raw = raw_file(folder, "train.txt", GET_COMMAND)
        columns = cached("criteo-columns", [raw], {}, lambda target: write_columns(raw, target))
        settings = self.settings | {"columns": columns.name}  # what it is built from: the raw file may change meanwhile
        self.folder = cached(
            "criteo", [raw], settings, lambda target: write_encoded(raw, columns, self.settings, target)
        )
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.encoder = CriteoEncoder.from_state(torch.load(self.folder / "encoder.pt", weights_only=True))
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}
        self.true_probability = folder / "true_probability.npy"  # of the sample only

    @property
    def num_numbers(self) -> int:
        return self.encoder.num_numbers

    @property
    def field_sizes(self) -> list[int]:
        return self.encoder.field_sizes

    @property
    def protocol(self) -> str:
        return f"{self.settings['split']} split"

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Numbers, ids and label of the rows, as arrays in memory."""
        return [array.numpy() for array in MappedRows(self.folder, ARRAYS)[torch.from_numpy(np.array(rows))]]

    def best_possible(self) -> dict[str, float]:
        """Test metrics of the sample's planted probabilities."""
        rows = self.rows["test"]
        label = self.read(rows)[-1]
        return click_metrics(torch.from_numpy(np.load(self.true_probability)[rows]), torch.from_numpy(label))

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.seed, self.batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", None, 4 * self.batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", None, 4 * self.batch_size)

    def state_dict(self) -> dict:
        """Travels in every checkpoint, so that new rows can be scored with it alone."""
        return self.encoder.state_dict()

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        return BatchLoader(
            MappedRows(self.folder, ARRAYS), EpochOrder(self.rows[split], seed), batch_size, self.num_workers
        )


def main() -> None:
    """Download the raw files where there is no folder, build the cache and print what was found."""
    ensure_dataset(DATASET)
    data = CriteoDataModule()
    data.setup()
    print(pd.DataFrame({"rows": data.summary["rows"], "click rate": data.summary["click_rate"]}).to_string())
    fields = pd.DataFrame(data.summary["fields"]).T.astype({"ids": int})
    print(fields.to_string(float_format="{:.4f}".format))
    print(f"{sum(data.field_sizes):,} ids in {len(data.field_sizes)} fields; cache: {data.folder}")


if __name__ == "__main__":
    run_script(main)
