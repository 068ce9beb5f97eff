"""Rows scored by predict.py see the same past as in training."""

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from bst.train import DATA
from bst.train import train as train_bst
from common.training.predictions import saved_predictions
from data.history.scoring import HistoryScorer
from data.movie_rating_seq import HistoryDataModule
from data.reader import Source
from models import load
from predict import predict
from tests.movie_rows import make_ratings, write_1m, write_csv
from tests.test_bst_train import SMALL


def source(lines: list[str]) -> Source:
    return Source("here", lambda: nullcontext(io.BytesIO("\n".join(lines).encode())))


@pytest.mark.parametrize(
    ("write", "raw", "target", "split"),
    [
        (write_1m, "ratings.dat", "click", "leave_last"),
        (write_1m, "ratings.dat", "rating", "time"),
        (write_csv, "ratings.csv", "rating", "random"),
    ],
)
def test_movies_equal_the_test_step(tmp_path, outputs, rng, write, raw, target, split):
    ratings = make_ratings(rng, users=30)
    write(tmp_path / "mine", ratings)
    changed = {"dataset": "mine", "target": target, "split": split}
    results = train_bst(data_root=str(tmp_path), **SMALL | changed)
    expected = saved_predictions(Path(results["run_folder"]))["prediction"]
    data = HistoryDataModule(**DATA | changed | {"data_root": str(tmp_path), "history_length": 5}, seed=0)
    data.setup()
    result = predict(results["checkpoint"], tmp_path / "mine" / raw, tmp_path / "out.csv")
    header, *values = (tmp_path / "out.csv").read_text().splitlines()
    assert header == {"rating": "rating", "click": "probability"}[target]
    assert len(values) == len(ratings) and set(result["metrics"]) == {header}
    in_file = [ratings.index(row) for row in sorted(ratings, key=lambda row: (row[0], row[3], ratings.index(row)))]
    found = np.array(values, float)[in_file][data.rows["test"]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_movie_rated_again_is_read_as_in_training(tmp_path, rng):
    """Every row and all inputs: users who rate few movies often, many ratings of a user in the same second."""
    times = rng.permutation(np.arange(400) // 3 * 50)
    ratings = [(int(rng.integers(1, 8)), int(rng.integers(1, 9)), int(rng.integers(1, 6)), int(t)) for t in times]
    ratings = list({(user, movie, time): row for row in ratings for user, movie, _, time in [row]}.values())
    assert len(ratings) > 350 and len({row[:2] for row in ratings}) < 60
    write_1m(tmp_path / "mine", ratings, movies=8)
    data = HistoryDataModule(**DATA | {"dataset": "mine", "data_root": str(tmp_path), "history_length": 5}, seed=0)
    data.setup()
    scorer = HistoryScorer(data.state_dict())
    ratings.sort(key=lambda row: (row[0], row[3]))  # as the rows of the data module: stable
    earliest = {row[:2]: i for i, row in reversed(list(enumerate(ratings)))}
    # without a timestamp: from before the earliest, so that no history holds the rating itself
    same, first = torch.arange(len(ratings)), torch.tensor([earliest[row[:2]] for row in ratings])
    for columns, rows in ((4, same), (3, first), (2, first)):
        lines = ["::".join(map(str, row[:columns])) for row in ratings]
        ((inputs, *_),) = scorer.batches(source(lines))
        for found, expected in zip(inputs, data.examples()[rows][:-1], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_new_movie_rows_see_the_right_past(tmp_path, outputs, rng):
    ratings = [(1, 1, 5, 100), (1, 2, 4, 200), (1, 3, 1, 300), (2, 9, 3, 50), *make_ratings(rng, users=9)[:60]]
    ratings = [*ratings[:4], *((user + 10, *rest) for user, *rest in ratings[4:])]
    write_1m(tmp_path / "mine", ratings)
    _, scorer = load(train_bst(data_root=str(tmp_path), dataset="mine", **SMALL)["checkpoint"])
    rows = ["1::9::::250", "1::9::::", "1::2::4::200", "1::2::::", "1::2::::400", "77::1::::", "1::9::3::10"]
    (((_, history, _, time_gap, user, numbers), target, _),) = scorer.batches(source([*rows, "1::9::::200"]))
    past = [[int(scorer.item_text(i)) for i in row if i > 1] for row in history.tolist()]
    assert past == [[1, 2], [1, 2, 3], [1], [1], [1, 2, 3], [], [], [1, 2]]
    assert time_gap[0, -1] == time_gap[2, -1] - 2  # 50 and 100
    torch.testing.assert_close(numbers[:, 0, 2].exp() - 1, torch.tensor([2.0, 3, 1, 1, 3, 0, 0, 2]))
    assert user[5].eq(0).all() and user[4, 0] > 1
    assert [value for value in target[:, 0].tolist() if value == value] == [4, 3]
    assert scorer.unseen == {"user": 1, "movie": 0}
