"""MovieLens-1M as a click table: its rows against a plain join, and through training, GAUC and predict.py."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from data.movie_clicks import MOVIE_CLICKS

from common.errors import UserError
from common.model.metrics import auc
from common.training.predictions import saved_predictions
from common.training.seeds import averaged_metrics
from data.criteo_data import ClickDataModule
from deepfm.train import DATA, train
from dlrm.train import train as train_dlrm
from predict import predict
from tests.movie_rows import make_ratings, write_1m


@pytest.fixture
def root(tmp_path, rng):
    write_1m(tmp_path / "ml-1m", make_ratings(rng, users=40))
    return tmp_path


def open_data(root, **changes) -> ClickDataModule:
    data = ClickDataModule(**{"seed": 0} | DATA | {"dataset": "ml-1m", "data_root": str(root)} | changes)
    data.setup()
    return data


def joined(root) -> pd.DataFrame:
    users, movies = (
        dict(line.split("::", 1) for line in (root / "ml-1m" / name).read_text("latin-1").splitlines())
        for name in ("users.dat", "movies.dat")
    )
    rows = []
    for line in (root / "ml-1m" / "ratings.dat").read_text().splitlines():
        user, movie, rating, time = line.split("::")
        if rating != "3":
            title, genres = movies[movie].split("::")
            year = title.rsplit("(", 1)[1].removesuffix(")")
            rows.append([rating, user, movie, *users[user].split("::"), genres, year, time])
    return pd.DataFrame(rows, columns=MOVIE_CLICKS.names)


def test_rows_are_those_of_a_plain_join(root):
    data, expected = open_data(root), joined(root)
    table = data.official(data.table_folder).files["all"]
    assert pd.read_csv(table, dtype=str).equals(expected) and not data.is_sample
    _, ids, label = data.read(range(len(expected)))
    assert label.tolist() == (expected.rating > "3").astype(float).tolist() and ids.shape[1] == 8


def test_groups_are_users(root):
    data, expected = open_data(root, split="random"), joined(root)
    numbers = dict(zip(expected.user[data.rows["test"]], data.groups("test").tolist(), strict=True))
    assert [numbers[user] for user in expected.user[data.rows["test"]]] == data.groups("test").tolist()
    assert len(set(numbers.values())) == len(numbers) > 3


@pytest.mark.parametrize("script", [train, train_dlrm], ids=["deepfm", "dlrm"])
def test_trains_and_scores_rows_of_it(root, tmp_path, script):
    small = {"embedding_dim": 4, "batch_size": 32, "split": "random"}
    results = script(dataset="ml-1m", data_root=str(root), max_epochs=1, **small)
    assert results["protocol"] == "random 8:1:1 split (seed 2018)"
    assert "gauc" in results["test"].keys() & results["validation"].keys() & results["baselines"]["constant"].keys()
    assert averaged_metrics([results]) == pytest.approx(results["test"], abs=1e-6)
    difference = results["differences"]["logistic regression"]["auc"]
    assert difference["low"] < difference["difference"] < difference["high"]
    data = open_data(root, split="random")
    label, prediction = data.targets("test"), saved_predictions(Path(results["run_folder"]))["prediction"]
    assert auc(prediction, label) == results["test"]["auc"]
    rows = joined(root).iloc[data.rows["test"]]
    rows.drop(columns=["time", "rating"]).to_csv(tmp_path / "rows.csv", index=False)
    predict(results["checkpoint"], tmp_path / "rows.csv", tmp_path / "out.csv")
    scored = torch.tensor(pd.read_csv(tmp_path / "out.csv").probability, dtype=torch.float32)
    torch.testing.assert_close(scored, prediction, atol=1e-6, rtol=1e-5)
    predict(results["checkpoint"], tmp_path / "rows.csv", tmp_path / "out.csv", temperature=2.0)
    scored = torch.tensor(pd.read_csv(tmp_path / "out.csv").probability, dtype=torch.float32)
    torch.testing.assert_close(scored, (prediction.logit() / 2).sigmoid(), atol=1e-5, rtol=1e-5)
    assert 0.1 <= results["temperature"] <= 10


def test_the_command_that_gets_it_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"`python data/movie_rating_seq.py` downloads ml-1m"):
        open_data(tmp_path)


def test_a_group_must_be_a_categorical_column(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "rows.csv").write_text("y,a,b\n" + "1,2,3\n0,2,3\n" * 20)
    columns = {"y": {"role": "label", "positive": ["1"]}, "a": {"role": "dense"}, "b": {"role": "categorical"}}
    for group in ("a", "gone", 7):
        (folder / "columns.json").write_text(json.dumps({"file": "rows.csv", "group": group, "columns": columns}))
        with pytest.raises(UserError, match=r"'group' is 7|.group. is '(a|gone)'; it must be a column with the role"):
            open_data(tmp_path, dataset="mine")


@pytest.mark.real_data("ml-1m")
def test_the_real_table():
    data = open_data(None, data_root=None)
    _, _, label = data.read(range(738_577))
    assert sum(map(len, data.rows.values())) == len(data.examples().arrays[-1]) == 738_577
    assert label.mean() == pytest.approx(0.779, abs=5e-4)
