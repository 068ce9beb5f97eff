"""Generated rows like those of Criteo: read from a raw file through the cache, or with the full vocabularies."""

import numpy as np
import pyarrow as pa
import torch

from benchmarks.generate_criteo import CARDINALITIES, CLICK_RATE, FULL_ROWS, SKEW, generate
from common.paths import output_root
from data.criteo_data import CRITEO, ClickDataModule
from data.table.encoder import FIRST_ID, Field, TableEncoder
from data.table.module import ARRAYS
from data.table.numbers import Number
from deepfm.train import DATA

OUTPUT = output_root() / "runs" / "speed"
ROWS = 2_160_000  # generated: 1.36 million embedding rows
TRAIN_ROWS = 200_000  # of these, trained on in each repeat
UNPRUNED = DATA | dict(dense_transform="log", min_count=1, batch_size=1024)  # every value gets an id


class RawRows(ClickDataModule):
    """TRAIN_ROWS of the generated rows, in random order, with the vocabulary of all ROWS."""

    def __init__(self, batch_size: int, train_rows: int = TRAIN_ROWS):
        folder = OUTPUT / "data"
        if not (folder / "criteo" / "train.txt").exists():
            generate(folder, ROWS)
        super().__init__(**UNPRUNED | dict(data_root=str(folder), batch_size=batch_size), seed=0)
        self.setup()
        self.rows["train"] = np.random.default_rng(0).permutation(self.rows["train"])[:train_rows]
        self.rows["val"] = self.rows["val"][:batch_size]

    def columns(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Encoded training rows in the form other packages take: C0, C1, ... int64, I0, I1, ... float32, and labels."""
        dense, ids, label = self.read(self.rows["train"])
        columns = {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
        return columns | {f"I{i}": dense[:, i].copy() for i in range(dense.shape[1])}, label

    def batches(self) -> list[tuple[torch.Tensor, ...]]:
        """Encoded training rows (dense, ids, label) in memory, cut into batches."""
        tensors = [torch.from_numpy(array) for array in self.read(self.rows["train"])]
        return list(zip(*(tensor.split(self.batch_size) for tensor in tensors), strict=True))


class FullVocabulary(RawRows):
    """Encoded rows with the ids of all 33.8 million values of the full dataset, distributed as in its last rows."""

    rows_written = 500_000

    def __init__(self, batch_size: int, train_rows: int = rows_written):
        ClickDataModule.__init__(self, **UNPRUNED | dict(batch_size=batch_size), seed=0)
        self.folder, self.is_sample = OUTPUT / "full_vocabulary", False
        self.tasks, self.summary = ["click"], {"positive": {"click": CLICK_RATE}}
        fields = [
            Field(name, "text", pa.nulls(count, pa.string()), [""])  # the texts are not needed
            for name, count in zip(CRITEO.of_role("categorical"), CARDINALITIES, strict=False)  # fewer in a test
        ]
        self.encoder = encoder = TableEncoder([Number(name, "log") for name in CRITEO.of_role("dense")], fields)
        self.num_dense, self.cardinalities, self.pooling = encoder.num_dense, encoder.cardinalities, encoder.pooling
        if not (self.folder / "label.npy").exists():
            self._write()
        rows = np.arange(self.rows_written)
        self.rows = {"train": rows[:train_rows], "val": rows[:batch_size]}

    def setup(self, stage: str | None = None) -> None:
        """Nothing to do."""

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rng, count = np.random.default_rng(0), self.rows_written
        ids = np.empty((count, len(CARDINALITIES)), np.int32)
        for i, values in enumerate(CARDINALITIES):
            # as in generate_criteo.py: a new value, or an earlier one, of which few are frequent
            is_new = rng.random(count) < values / FULL_ROWS
            value = values * np.where(is_new, rng.random(count), rng.random(count) ** SKEW)
            ids[:, i] = FIRST_ID + rng.permutation(values)[value.astype(np.int64)]
        dense, label = rng.normal(size=(count, 13)), (rng.random(count) < CLICK_RATE)[:, None]
        for name, array in zip(ARRAYS, (dense.astype(np.float32), ids, label.astype(np.float32)), strict=True):
            np.save(self.folder / f"{name}.npy", array)
