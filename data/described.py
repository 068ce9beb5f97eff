"""What the data modules of tables and of histories share: a described dataset, published or your own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.data.data_module import SPLITS, RecommendationDataModule
from common.data.raw_files import Published, find_dataset, missing_file
from data.schema import COLUMNS_FILE, Dataset, read_description


class DescribedDataModule(RecommendationDataModule):
    """A subclass sets `published` and `raw_files`, their names, and implements described()."""

    published: Mapping[str, Published]
    raw_files: str
    table: Dataset
    rows: dict[str, np.ndarray]

    def described(self, folder: Path) -> Dataset | None:
        """The published dataset whose raw files are in `folder`, None if there are none."""
        raise NotImplementedError

    def find_table(self) -> None:
        """Set `table`, as its columns.json says, or as described() finds it in the folder."""
        folder, self.is_sample = find_dataset(self.dataset, self.data_root, self.published)
        own = folder / COLUMNS_FILE
        table = read_description(own) if own.exists() else self.described(folder)
        if table is None:
            raise missing_file(folder, f"no {self.raw_files} or columns.json", self.published)
        self.table = table

    def open_rows(self) -> None:
        """Set `rows`, from the prepared arrays."""
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}
