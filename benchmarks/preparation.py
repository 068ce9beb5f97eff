"""Criteo raw text to encoded arrays on disk, in rows per second; dense columns become buckets, as in BARS Criteo_x4."""

import os
import tempfile
from itertools import islice
from pathlib import Path

import pandas as pd

from benchmarks.criteo_shaped import OUTPUT
from benchmarks.generate_criteo import generate
from benchmarks.turns import timed
from data.criteo_data import ClickDataModule
from data.criteo_schema import CATEGORICAL as CATEGORIES
from data.criteo_schema import DENSE as NUMBERS
from deepfm.train import DATA

ROWS = 500_000  # from the start of the generated stream
MIN_COUNT = 10
COLUMNS = ["label", *NUMBERS, *CATEGORIES]


def raw_file() -> Path:
    path = OUTPUT / "preparation" / "criteo" / "train.txt"
    return path if path.exists() else generate(path.parents[1], ROWS)


def ours() -> float:
    """From nothing to an open data module."""
    raw = raw_file()
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        os.environ["OUTPUT_ROOT"] = folder  # an empty cache
        changes = dict(data_root=str(raw.parents[1]), dense_transform="bucket", min_count=MIN_COUNT)
        data = ClickDataModule(**DATA | changes, seed=0)
        return timed(data.setup, ROWS)


def fuxictr() -> float:
    """Its build_dataset, from text files with a header for training, validation and test rows, split as ours are."""
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    train, valid = ROWS * 6 // 7, (ROWS - ROWS * 6 // 7) // 2
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        files = {f"{name}_data": f"{folder}/{name}.csv" for name in ("train", "valid", "test")}
        with open(raw_file()) as raw:
            for path, count in zip(files.values(), (train, valid, ROWS - train - valid), strict=True):
                with open(path, "w") as file:
                    file.write("\t".join(COLUMNS) + "\n")
                    file.writelines(islice(raw, count))
        dense = {"dtype": "float", "type": "categorical", "fill_na": 0, "preprocess": "convert_to_bucket"}
        processor = CustomizedFeatureProcessor(
            [
                {"name": NUMBERS, "active": True, **dense},
                {"name": CATEGORIES, "active": True, "dtype": "str", "type": "categorical", "fill_na": ""},
            ],
            {"name": "label", "dtype": "float"},
            "criteo",
            folder,
        )
        settings = {"data_format": "csv", "sep": "\t", "min_categr_count": MIN_COUNT}
        return timed(lambda: build_dataset(processor, **files, **settings), ROWS)


def pandas() -> float:
    """Its C reader and a factorize of each categorical column: rows are not split, nothing is written."""

    def read() -> None:
        rows = pd.read_csv(raw_file(), sep="\t", names=COLUMNS, dtype=dict.fromkeys(CATEGORIES, str))
        for name in CATEGORIES:
            rows[name].factorize()

    raw_file()
    return timed(read, ROWS)
