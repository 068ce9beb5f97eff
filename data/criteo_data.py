"""Criteo display advertising (Kaggle 2014): columns and archive; ClickDataModule also reads any other table.

`python data/criteo_data.py` downloads Criteo's raw files (4.6 GB), reads them and prints a summary.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Published, find_file, raw_file
from common.errors import run_script
from common.paths import data_root
from data import census_income, movie_rating_seq
from data.samples.criteo import criteo_sample
from data.schema import Categorical, Dataset, Dense, Description, Label
from data.table.module import TableDataModule, summary

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
CRITEO_FILE = "train.txt"
CRITEO = Description(
    file=CRITEO_FILE,  # test.txt has no label
    separator="\t",
    header=False,
    quoted=False,
    columns={
        "label": Label(positive=("1",), negative=("0",), task="click"),
        **{f"I{i}": Dense(type="integer") for i in range(1, 14)},  # some are negative
        **{f"C{i}": Categorical() for i in range(1, 27)},  # hashes of 8 hexadecimal digits
    },
)
PUBLISHED = {"criteo": Published("python data/criteo_data.py", partial(criteo_sample, CRITEO))}


class ClickDataModule(TableDataModule):
    """A table with one label: batches (dense (B, I) float32, ids (B, S) int32, label (B,) float32).

    Criteo, MovieLens with ratings as clicks, the income in Census-Income (KDD) or Adult, or your own table.
    """

    published = PUBLISHED | census_income.PUBLISHED | movie_rating_seq.PUBLISHED
    raw_files = f"{CRITEO_FILE}, ratings.dat, census-income.data, adult.data"

    def described(self, folder: Path) -> Dataset | None:
        if find_file(folder, CRITEO_FILE):
            return _criteo(folder)
        if movies := movie_rating_seq.described(folder, clicks=True):
            return movies
        census = census_income.described(folder)
        return census and census_income.with_income(census)


def _criteo(folder: Path) -> Dataset:
    path = raw_file(folder, CRITEO_FILE)
    return Dataset("criteo", CRITEO.model_copy(update={"file": path.name}), folder, str(path))


def main() -> None:
    """Download the raw files if there is no folder, read them and print a summary."""
    ensure_dataset("criteo", ARCHIVES)
    print(summary(_criteo(data_root() / "criteo")))


if __name__ == "__main__":
    run_script(main)
