"""Criteo display advertising (Kaggle 2014), or another table with one label: MovieLens-1M as clicks, the income in
Census-Income (KDD) or Adult, or your own table (see data/table_data.py).

`python data/criteo_data.py` downloads Criteo's raw files (4.6 GB), parses them and prints a summary.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Source, find_file, missing_file
from common.errors import check, run_script
from common.paths import data_root
from common.settings import check_settings
from data import census_income
from data.census_schema import RELEASES
from data.criteo_sample import criteo_sample
from data.criteo_schema import CRITEO
from data.movie_clicks import MOVIE_CLICKS, click_table
from data.movie_raw import ML_1M
from data.table_data import TableDataModule, other_labels_as_inputs, summarize
from data.table_description import Description

ARCHIVES = {  # by folder below DATA_ROOT
    "criteo": Archive(
        urls=(
            "https://go.criteo.net/criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
            "https://ndownloader.figshare.com/files/10082655",
        ),
        name="criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
        files={"train.txt": "md5:4dcfe6c4b7783585d4ae3c714994f26a", "test.txt": None},
        size=4_576_820_670,
        checksum="md5:df9b1b3766d9ff91d5ca3eb3d23bed27",
    )
}
SOURCE = Source(
    "python data/criteo_data.py",
    ARCHIVES,
    also="`python data/movie_rating_seq.py` downloads ml-1m, `python data/census_income.py` the two censuses.",
)
RAW_FILE = "train.txt"


class ClickDataModule(TableDataModule):
    """A table with one label: batches (dense (B, I) float32, ids (B, F) int32, label (B,) float32).

    dense_transform, of dense columns that specify none: "log", sign(x) log(1 + |x|), centred and scaled; "log+missing",
    with a 0/1 input besides; "log+quantile", with a category besides; "clamped_log", log(1 + max(x, 0)), scaled; or a
    category alone, "bucket" (as in BARS x4) or "quantile".
    min_count: training rows that a value needs to get an id. split, of tables without a predefined one: "time" (the
    first 6/7 of the rows for training, the rest halved into validation and test) or "random" (stratified tenths, as in
    BARS x4).
    """

    source, one_label = SOURCE, True

    def __init__(
        self,
        *,
        dataset: str,
        data_root: str | None,
        split: str,
        dense_transform: str,
        min_count: int,
        weighted: bool,
        negative_rate: float,
        batch_size: int,
        num_workers: int,
        seed: int,
    ):
        super().__init__(
            dataset=dataset, data_root=data_root, batch_size=batch_size, num_workers=num_workers, seed=seed
        )
        check(split in ("time", "random"), f"split is {split!r}; it must be 'time' or 'random'.")
        check_settings({"dense_transform": dense_transform, "min_count": min_count})
        check_settings({"weighted": weighted, "negative_rate": negative_rate})
        self.weighted, self.negative_rate = weighted, negative_rate
        self.settings = {"split": split, "dense_transform": dense_transform, "min_count": min_count}

    def make_sample(self) -> Path:
        return criteo_sample()

    def official(self, folder: Path) -> Description:
        return official(folder)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; keep only a share of the training rows without a click, chosen by the seed."""
        is_open = hasattr(self, "encoder")
        super().setup(stage)
        if self.negative_rate < 1 and not is_open:
            clicks = self.targets("train").numpy() == 1
            kept = clicks | (np.random.default_rng(self.seed).random(len(clicks)) < self.negative_rate)
            self.rows["train"] = self.rows["train"][kept]
            # the odds of a click in the kept rows are 1 / negative_rate times those in all rows (He et al. 2014,
            # section 6.3): with this offset in training, the logits without it are right for all rows
            self.training_offset = -math.log(self.negative_rate)

    def choose_tasks(self) -> list[str]:
        tasks = list(self.schema.tasks)
        check(
            len(tasks) == 1,
            f"{self.table_folder}: found {len(tasks)} labels ({', '.join(tasks)}), but DeepFM and DLRM take one. Give "
            'the others the role "excluded" in columns.json, or use multitask/train.py.',
        )
        return tasks


def official(folder: Path) -> Description:
    """The Kaggle dataset, MovieLens-1M, or Census-Income or Adult with the income as label, whichever is in the folder.

    Raises: UserError if none is.
    """
    if path := find_file(folder, RAW_FILE):
        return Description("criteo", CRITEO, {"all": path})
    if find_file(folder, ML_1M.ratings_file):
        return Description("movie-clicks-rows", MOVIE_CLICKS, {"all": click_table(folder, SOURCE)})
    if any(find_file(folder, release.train_file) for release in RELEASES):
        table = census_income.official(folder)
        return replace(table, schema=other_labels_as_inputs(table.schema, ["income"]))
    others = ", ".join((ML_1M.ratings_file, *(release.train_file for release in RELEASES)))
    lack = f"no {RAW_FILE} (nor {RAW_FILE}.gz, {others} or columns.json)"
    raise missing_file(folder, lack, SOURCE)


def main() -> None:
    """Download the raw files if there is no folder, parse them and print a summary."""
    ensure_dataset("criteo", ARCHIVES)
    print(summarize(official(data_root() / "criteo"))[0])


if __name__ == "__main__":
    run_script(main)
