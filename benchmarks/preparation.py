"""From raw rows to encoded arrays on disk, in rows per second: Criteo's file, and the same rows as your own table.

Dense columns of Criteo are bucketed as in BARS Criteo_x4.
"""

import os
import tempfile
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.criteo_shaped import OUTPUT
from benchmarks.generate_criteo import generate
from benchmarks.turns import timed
from common.files import write_json
from data.criteo_data import CRITEO, ClickDataModule
from deepfm.train import DATA

ROWS = 2_000_000  # from the start of the generated stream
FUXICTR_ROWS = 500_000
MIN_COUNT = 10
NUMBERS, CATEGORIES, COLUMNS = CRITEO.of_role("dense"), CRITEO.of_role("categorical"), list(CRITEO.columns)


def raw_file() -> Path:
    path = OUTPUT / "preparation" / "criteo" / "train.txt"
    return path if path.exists() else generate(path.parents[1], ROWS)


def table_file(suffix: str) -> Path:
    """The same rows with a header line, separated by commas, or as Parquet."""
    path = OUTPUT / "preparation" / f"table.{suffix}"
    if not path.exists():
        table = pyarrow.csv.read_csv(raw_file(), *_typed(raw_file(), COLUMNS))
        write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
        write(table, path)
    return path


def ours() -> float:
    """From an empty cache to an open data module."""
    return _prepare("criteo", raw_file().parents[1], dense_transform="bucket")


def own_table(suffix: str) -> float:
    """The same for your own table."""
    folder = OUTPUT / "preparation" / suffix
    folder.mkdir(parents=True, exist_ok=True)
    roles = {"label": {"role": "label", "positive": ["1"]}} | {name: {"role": "dense"} for name in NUMBERS}
    columns = roles | {name: {"role": "categorical"} for name in CATEGORIES}
    write_json(folder / "columns.json", {"file": str(table_file(suffix)), "columns": columns})
    return _prepare(suffix, folder.parent, dense_transform="log")


def _prepare(dataset: str, folder: Path, dense_transform: str) -> float:
    with tempfile.TemporaryDirectory(dir=OUTPUT) as output:
        os.environ["OUTPUT_ROOT"] = output  # an empty cache
        changes = dict(
            dataset=dataset, data_root=str(folder), dense_transform=dense_transform, min_count=MIN_COUNT, split="time"
        )
        return timed(ClickDataModule(**DATA | changes, seed=0).setup, ROWS)


def arrow_raw() -> float:
    """Only pyarrow's reader: numbers and texts in memory."""
    return _read_only(raw_file(), COLUMNS)


def arrow_csv() -> float:
    """The same for the file with a header line."""
    return _read_only(table_file("csv"))


def _read_only(path: Path, names: list[str] | None = None) -> float:
    return timed(lambda: pyarrow.csv.read_csv(path, *_typed(path, names)), ROWS)


def _typed(path: Path, names: list[str] | None) -> tuple:
    separator = "\t" if path.suffix == ".txt" else ","
    types = dict.fromkeys(["label", *NUMBERS], pa.int32()) | dict.fromkeys(CATEGORIES, pa.string())
    return (
        pyarrow.csv.ReadOptions(column_names=names),
        pyarrow.csv.ParseOptions(delimiter=separator),
        pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


def fuxictr() -> float:
    """Its build_dataset of fewer rows; files with a header for training, validation and test, split as ours are."""
    from fuxictr.datasets.criteo import CustomizedFeatureProcessor
    from fuxictr.preprocess import build_dataset

    train = FUXICTR_ROWS * 6 // 7
    valid = (FUXICTR_ROWS - train) // 2
    with tempfile.TemporaryDirectory(dir=OUTPUT) as folder:
        files = {f"{name}_data": f"{folder}/{name}.csv" for name in ("train", "valid", "test")}
        with open(raw_file()) as raw:
            for path, count in zip(files.values(), (train, valid, FUXICTR_ROWS - train - valid), strict=True):
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
        return timed(lambda: build_dataset(processor, **files, **settings), FUXICTR_ROWS)


def pandas() -> float:
    """Its C reader and factorize() of each categorical column; rows are not split, and nothing is written."""

    def read() -> None:
        rows = pd.read_csv(raw_file(), sep="\t", names=COLUMNS, dtype=dict.fromkeys(CATEGORIES, str))
        for name in CATEGORIES:
            rows[name].factorize()

    raw_file()
    return timed(read, ROWS)
