"""MovieLens-1M as a click table: its rows against a plain join, and through training, GAUC and predict.py."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.model.metrics import auc
from common.training.predictions import saved_predictions
from common.training.seeds import averaged_metrics
from data.criteo_data import ClickDataModule
from data.table.encoder import FIRST_ID, OOV
from deepfm.train import DATA, train
from dlrm.train import train as train_dlrm
from predict import predict
from tests.movie_rows import make_ratings, write_1m

FIELDS = ["user", "movie", "gender", "age", "occupation", "zip", "genres", "year"]


@pytest.fixture
def root(tmp_path, rng):
    write_1m(tmp_path / "ml-1m", make_ratings(rng, users=40))
    return tmp_path


def open_data(root, **changes) -> ClickDataModule:
    data = ClickDataModule(**{"seed": 0} | DATA | {"dataset": "ml-1m", "data_root": str(root)} | changes)
    data.setup()
    return data


def lines_of(root) -> list[str]:
    return (root / "ml-1m" / "ratings.dat").read_text().splitlines()


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
    return pd.DataFrame(rows, columns=["rating", *FIELDS, "time"])


def test_rows_are_those_of_a_plain_join(root):
    """In the order of the file; equal ids for equal texts; groups are users."""
    data, expected = open_data(root), joined(root)
    rows = np.sort(np.concatenate(list(data.rows.values())))
    assert rows.tolist() == [n for n, line in enumerate(lines_of(root)) if line.split("::")[2] != "3"]
    _, ids, label = data.read(rows)
    assert label.tolist() == (expected.rating > "3").astype(float).tolist() and not data.is_sample
    assert [field.name for field in data.encoder.fields] == FIELDS
    for column, field in zip(ids.T, data.encoder.fields, strict=True):
        known = dict(zip(field.vocabulary.to_pylist(), range(FIRST_ID, field.cardinality), strict=True))
        assert column.tolist() == [known.get(text, OOV) for text in expected[field.name]]
    users, groups = [lines_of(root)[row].split("::")[0] for row in data.rows["test"]], data.groups("test").tolist()
    assert len(set(users)) == len(set(groups)) == len(set(zip(users, groups, strict=True))) > 3


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
    rows = [lines_of(root)[row] for row in data.rows["test"]]
    (tmp_path / "rows.dat").write_text("\n".join(rows) + "\n")
    predict(results["checkpoint"], tmp_path / "rows.dat", tmp_path / "out.csv")
    scored = torch.tensor(pd.read_csv(tmp_path / "out.csv").probability, dtype=torch.float32)
    torch.testing.assert_close(scored, prediction, atol=1e-6, rtol=1e-5)
    predict(results["checkpoint"], tmp_path / "rows.dat", tmp_path / "out.csv", temperature=2.0)
    tempered = torch.tensor(pd.read_csv(tmp_path / "out.csv").probability, dtype=torch.float32)
    torch.testing.assert_close(tempered, (prediction.logit() / 2).sigmoid(), atol=1e-5, rtol=1e-5)
    assert 0.1 <= results["temperature"] <= 10


@pytest.mark.real_data("ml-1m")
def test_the_real_table():
    data = open_data(None, data_root=None)
    _, _, label = data.read(np.concatenate(list(data.rows.values())))
    assert len(label) == 738_577
    assert label.mean() == pytest.approx(0.779, abs=5e-4)
