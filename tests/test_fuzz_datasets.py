"""Damaged folders read by the data modules, and damaged files scored, give a result or a known error."""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
from data.movie_preprocessor import MoviePreprocessor
from data.table_preprocessor import TablePreprocessor
from hypothesis import given
from hypothesis import strategies as st

from bst.train import DATA as MOVIE_DATA
from common.errors import UserError
from data.census_income import MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.movie_rating_seq import HistoryDataModule
from deepfm.train import DATA as CRITEO_DATA
from multitask.train import DATA as CENSUS_DATA
from tests.criteo_rows import make_lines
from tests.movie_rows import make_ratings, write_1m, write_csv
from tests.plain_parsers import FORMS, Form
from tests.test_fuzz import KINDS, QUIET, file_of, header_removed_or_changed, refused

BY_NAME = {form.name: form for form in FORMS}
ALL_TASKS = ("income", "never_married", "education")


@dataclass(frozen=True)
class Dataset:
    """write: writes valid files to a folder; forms: of these files; scored: the file that can be scored."""

    name: str
    write: Callable[[Path], object]
    module: Callable[..., pl.LightningDataModule]
    settings: dict
    forms: dict[str, Form]
    scored: str
    preprocessor: type


def write_criteo(folder: Path) -> None:
    lines = make_lines(np.random.default_rng(1), 30, distinct=5)
    (folder / "train.txt").write_text("\n".join(lines) + "\n")


def write_census(train: str, test: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        rows = BY_NAME["census-income-kdd" if train.startswith("census") else "adult"].lines
        (folder / train).write_bytes(file_of([*rows] * 6))
        (folder / test).write_bytes(file_of([*rows] * 3))

    return write


def movie_forms(*names: str) -> dict[str, Form]:
    return {name: BY_NAME[name] for name in names}


RATINGS = make_ratings(np.random.default_rng(2), users=6, movies=12, most=8)
SPLIT = {"split": "random", "history_length": 3}
DATASETS = [
    Dataset("criteo", write_criteo, ClickDataModule, {"min_count": 1}, {"train.txt": BY_NAME["criteo-train"]},
            "train.txt", TablePreprocessor),
    Dataset("criteo-random", write_criteo, ClickDataModule, {"split": "random", "dense_transform": "bucket"},
            {"train.txt": BY_NAME["criteo-train"]}, "train.txt", TablePreprocessor),
    *(Dataset(name, write_census(train, test), MultiTaskDataModule, {"tasks": ALL_TASKS, "min_count": 1},
              dict.fromkeys((train, test), BY_NAME[name]), test, TablePreprocessor)
      for name, train, test in (("census-income-kdd", "census-income.data", "census-income.test"),
                                ("adult", "adult.data", "adult.test"))),
    Dataset("ml-1m", lambda folder: write_1m(folder, RATINGS, 12), HistoryDataModule, SPLIT,
            movie_forms("ratings.dat", "movies.dat", "users.dat"), "ratings.dat", MoviePreprocessor),
    Dataset("ml-csv", lambda folder: write_csv(folder, RATINGS, 12), HistoryDataModule, {"history_length": 3},
            movie_forms("ratings.csv", "movies.csv"), "ratings.csv", MoviePreprocessor),
]  # fmt: skip
DEFAULTS = {ClickDataModule: CRITEO_DATA, MultiTaskDataModule: CENSUS_DATA, HistoryDataModule: MOVIE_DATA}
BY_DATASET = pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)


def damaged(draw: Callable, content: bytes, form: Form) -> bytes:
    """The content with one to three kinds of damage."""
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)):
        lines = content.removesuffix(b"\n").split(b"\n")
        if len(lines) > 1 or kind is not header_removed_or_changed:
            content = kind(draw, lines, form) or b"\n"
    return content


def prepare(dataset: Dataset, root: Path) -> pl.LightningDataModule:
    data = dataset.module(
        **{"seed": 0} | DEFAULTS[dataset.module] | {"dataset": "set", "data_root": str(root)} | dataset.settings
    )
    data.setup()
    return data


@BY_DATASET
def test_a_damaged_folder_is_prepared_or_refused(dataset, monkeypatch):
    @QUIET
    @given(st.data())
    def run(draws):
        name = draws.draw(st.sampled_from(sorted(dataset.forms)))
        with tempfile.TemporaryDirectory() as root:
            monkeypatch.setenv("OUTPUT_ROOT", f"{root}/output")
            path = Path(root) / "set" / name
            path.parent.mkdir()
            dataset.write(path.parent)
            path.write_bytes(damaged(draws.draw, path.read_bytes(), dataset.forms[name]))
            must_refuse = refused(dataset.forms[name], path.read_bytes())
            try:
                data = prepare(dataset, Path(root))
            except UserError as error:
                assert str(path.parent) in str(error)
                return
            assert not must_refuse
            for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
                assert all(column.isfinite().all() for batch in loader for column in batch)

    run()


@BY_DATASET
def test_a_damaged_file_is_scored_or_refused(dataset, tmp_path):
    (tmp_path / "set").mkdir()
    dataset.write(tmp_path / "set")
    content = (tmp_path / "set" / dataset.scored).read_bytes()
    state, form = prepare(dataset, tmp_path).state_dict(), dataset.forms[dataset.scored]

    @QUIET
    @given(st.data())
    def run(draws):
        given = damaged(draws.draw, content, form)
        preprocessor = dataset.preprocessor(state)
        try:
            targets = np.concatenate([target for _, target, *_ in preprocessor.batches(io.BytesIO(given), "raw")])
        except UserError as error:
            assert refused(form, given), error
            assert str(error).startswith("raw")
            return
        if not refused(form, given):
            assert len(targets) == len(form.plain(given))

    run()
