"""Census-Income (KDD), Adult, or your own table with one or more labels (see data/table_data.py).

`python data/census_income.py` downloads the raw files, parses them and prints a summary.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np

from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Source, find_file, missing_file, raw_file
from common.errors import check, run_script
from common.paths import data_root
from common.settings import check_settings
from data.census_sample import census_sample
from data.census_schema import RELEASES
from data.table_data import TableDataModule, summarize
from data.table_description import Description
from data.table_encoder import PIECEWISE

DATASET = "census-income-kdd"  # what this script downloads: this or "adult"
ARCHIVES = {  # by folder below DATA_ROOT
    "census-income-kdd": Archive(
        urls=("https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",),
        name="census+income+kdd.zip",
        files={
            "census-income.data": "sha256:3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
            "census-income.test": "sha256:98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
        },
    ),
    "adult": Archive(
        urls=("https://archive.ics.uci.edu/static/public/2/adult.zip",),
        name="adult.zip",
        files={
            "adult.data": "md5:5d7c39d7b8804f071cdd1f2a7c460872",
            "adult.test": "md5:35238206dfdf7f1fe215bbb874adecdc",
        },
    ),
}
SOURCE = Source("python data/census_income.py", ARCHIVES)
PAPER_CORRELATION = {("income", "never_married"): 0.1768, ("education", "never_married"): 0.2373}  # absolute values


class MultiTaskDataModule(TableDataModule):
    """A table with one or more labels: batches (dense (B, I) float32, ids (B, F) int32, label (B, K) float32).

    The training file of Census-Income (KDD) or Adult is the training split; the test file is halved into validation and
    test. Dense values are as in the file, nan if missing, with `bin_edges`; each is encoded as a category too, because
    some amounts (of capital gains, say) carry a meaning of their own. tasks: names of the labels. label_inputs:
    whether the labels of other tasks are inputs. min_count: training rows that a value needs to get an id. num_bins:
    bins per dense column.
    """

    source, one_label = SOURCE, False

    def __init__(
        self,
        *,
        dataset: str,
        data_root: str | None,
        tasks: Sequence[str],
        label_inputs: bool,
        min_count: int,
        num_bins: int,
        weighted: bool,
        batch_size: int,
        num_workers: int,
        seed: int,
    ):
        super().__init__(
            dataset=dataset, data_root=data_root, batch_size=batch_size, num_workers=num_workers, seed=seed
        )
        check_settings({"tasks": tasks, "label_inputs": label_inputs, "min_count": min_count, "num_bins": num_bins})
        check_settings({"weighted": weighted})
        self.weighted, self.label_inputs = weighted, label_inputs
        self.tasks = list(tasks)
        self.settings = {"dense_transform": PIECEWISE, "min_count": min_count, "num_bins": num_bins}

    def make_sample(self) -> Path:
        return census_sample()

    def official(self, folder: Path) -> Description:
        return official(folder)

    def choose_tasks(self) -> list[str]:
        known = self.schema.tasks.keys()
        check(
            len(self.tasks) > 0 and set(self.tasks) <= known and len(set(self.tasks)) == len(self.tasks),
            f"tasks is {self.tasks}; it must list one or more of {', '.join(known)}, each once.",
        )
        return self.tasks


def official(folder: Path) -> Description:
    """Census-Income (KDD) or Adult, whichever is in the folder. Raises: UserError if neither is."""
    for release in RELEASES:
        if train := find_file(folder, release.train_file):
            files = {"train": train, "test": raw_file(folder, release.test_file, SOURCE)}
            return Description(release.name, release.schema, files)
    names = " nor ".join(release.train_file for release in RELEASES)
    raise missing_file(folder, f"neither {names} (plain or .gz) nor columns.json", SOURCE)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Absolute Pearson correlation of two labels (N,)."""
    return abs(float(np.corrcoef(a, b)[0, 1]))


def main() -> None:
    """Download the raw files if there is no folder, parse them and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    table = official(data_root() / DATASET)
    summary, labels = summarize(table)
    print(summary)
    if DATASET == "adult":
        return
    for pair, paper in PAPER_CORRELATION.items():
        first, second = (labels[:, list(table.schema.tasks).index(task)] for task in pair)
        print(f"|Correlation| of {' and '.join(pair)}: {correlation(first, second):.4f} (in the paper: {paper})")


if __name__ == "__main__":
    run_script(main)
