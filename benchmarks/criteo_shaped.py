"""Generated Criteo rows for the comparisons: through the raw file and the cache, or with the full vocabulary."""

import numpy as np
import torch

from benchmarks.generate_criteo import CARDINALITIES, CLICK_RATE, FULL_ROWS, SKEW, generate
from common.paths import output_root
from data.criteo_data import ARRAYS, CriteoDataModule
from data.criteo_encoding import FIRST_ID, CriteoEncoder

OUTPUT = output_root() / "runs" / "speed"
ROWS = 2_160_000  # generated: 1.36 million embedding rows
TRAIN_ROWS = 200_000  # of them, trained on in each repeat


class RawRows(CriteoDataModule):
    """TRAIN_ROWS of the generated rows, in random order; the vocabulary is that of all ROWS."""

    def __init__(self, batch_size: int, min_count: int = 1, train_rows: int = TRAIN_ROWS):
        folder = OUTPUT / "data"
        if not (folder / "criteo" / "train.txt").exists():
            generate(folder, ROWS)
        super().__init__(data_root=str(folder), numbers_as="log", min_count=min_count, batch_size=batch_size)
        self.setup()
        self.rows["train"] = np.random.default_rng(0).permutation(self.rows["train"])[:train_rows]
        self.rows["val"] = self.rows["val"][:batch_size]

    def columns(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Encoded training rows as peers take them: C0, C1, ... int64 and I0, I1, ... float32 by name, and labels."""
        numbers, ids, label = self.read(self.rows["train"])
        columns = {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
        return columns | {f"I{i}": numbers[:, i].copy() for i in range(numbers.shape[1])}, label

    def batches(self) -> list[tuple[torch.Tensor, ...]]:
        """Encoded training rows (numbers, ids, label) in memory, cut into batches."""
        tensors = [torch.from_numpy(array) for array in self.read(self.rows["train"])]
        return list(zip(*(tensor.split(self.batch_size) for tensor in tensors), strict=True))


class FullVocabulary(RawRows):
    """Encoded rows with the ids of all 33.8 million values of the full Kaggle set, as its last rows have them."""

    rows_written = 500_000

    def __init__(self, batch_size: int, train_rows: int = rows_written):
        CriteoDataModule.__init__(self, numbers_as="log", min_count=1, batch_size=batch_size)
        self.folder, self.is_sample = OUTPUT / "full_vocabulary", False
        vocabularies = [np.arange(count, dtype=np.uint32) for count in CARDINALITIES]
        self.encoder = CriteoEncoder("log", vocabularies, np.ones(13))
        if not (self.folder / "label.npy").exists():
            self._write()
        rows = np.arange(self.rows_written)
        self.rows = {"train": rows[:train_rows], "val": rows[:batch_size]}

    def setup(self, stage: str | None = None) -> None:
        """All is there."""

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rng, count = np.random.default_rng(0), self.rows_written
        ids = np.empty((count, len(CARDINALITIES)), np.int32)
        for i, values in enumerate(CARDINALITIES):
            # what generate_criteo.py draws: a new value, or one of the values before, of which few are frequent
            is_new = rng.random(count) < values / FULL_ROWS
            value = values * np.where(is_new, rng.random(count), rng.random(count) ** SKEW)
            ids[:, i] = FIRST_ID + rng.permutation(values)[value.astype(np.int64)]
        numbers, label = rng.normal(size=(count, 13)), rng.random(count) < CLICK_RATE
        for name, array in zip(ARRAYS, (numbers.astype(np.float32), ids, label.astype(np.float32)), strict=True):
            np.save(self.folder / f"{name}.npy", array)
