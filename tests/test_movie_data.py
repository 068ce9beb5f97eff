"""From raw ratings to windows: order, splits, what an example sees, releases and the sample."""

import gzip
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bst.train import DATA
from common.errors import UserError
from common.model.metrics import rating_metrics
from data.history.dataset import FIRST_ID, OOV, PADDING, time_gap_bucket
from data.movie_rating_seq import HistoryDataModule
from tests.movie_rows import make_ratings, write_1m, write_csv

HISTORY = 6


@pytest.fixture
def lines(rng):
    return make_ratings(rng)


def open_data(folder: Path, **settings) -> HistoryDataModule:
    data = HistoryDataModule(
        **{"seed": 0}
        | DATA
        | {"dataset": folder.name, "data_root": str(folder.parent), "history_length": HISTORY}
        | settings
    )
    data.setup()
    return data


def in_order(lines) -> list:
    """User by user in time order, ties in file order, by Python's stable sort."""
    return sorted(lines, key=lambda line: (line[0], line[3]))


def everything(data: HistoryDataModule) -> list[torch.Tensor]:
    return list(data.examples()[torch.arange(sum(map(len, data.rows.values())))])


def test_every_row_sees_its_users_past_and_nothing_else(tmp_path, lines):
    """Brute force over all rows: history, time gaps, counts, user biases come only from the user's earlier ratings."""
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = in_order(lines)
    movie, history, residual, time_gap, user, numbers, target = everything(data)
    ids = {raw: row for row, raw in enumerate(data.encoder.movie_ids, FIRST_ID)}
    expected = [data.encoder.mean + data.encoder.movie_bias[ids.get(m, OOV)] for _, m, _, _ in ordered]
    for n, (u, m, rating, time) in enumerate(ordered):
        past = [i for i in range(n) if ordered[i][0] == u]
        user_bias = sum(ordered[i][2] - expected[i] for i in past) / (5 + len(past))
        shown = past[-HISTORY:]
        empty = HISTORY - len(shown)
        assert movie[n] == ids.get(m, OOV) and target[n] == rating
        assert history[n].tolist() == [PADDING] * empty + [ids.get(ordered[i][1], OOV) for i in shown]
        surplus = [ordered[i][2] - expected[i] for i in shown]
        np.testing.assert_allclose(residual[n], [0] * empty + surplus, atol=1e-5)
        buckets = [math.floor(2 * math.log2(1 + time - ordered[i][3])) for i in shown]
        assert time_gap[n].tolist() == [0] * empty + buckets
        np.testing.assert_allclose(numbers[n], [expected[n] + user_bias, user_bias, math.log(1 + len(past))], atol=1e-5)
        assert data.encoder.user_ids[user[n, 0] - FIRST_ID] == u


def test_what_comes_later_changes_nothing(tmp_path, lines):
    """With the encoder fixed, changing ratings at and after a row's position does not change its inputs."""
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = {name: np.load(data.ordered / f"{name}.npy") for name in ("user", "movie", "rating", "time", "start")}
    before = everything(data)
    generator = np.random.default_rng(5)
    for row in range(len(ordered["user"])):
        changed = {name: column.copy() for name, column in ordered.items()}
        changed["movie"][row + 1 :] = generator.permutation(changed["movie"][row + 1 :])
        changed["rating"][row:] = 6 - changed["rating"][row:]
        changed["time"][row + 1 :] += 1000
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        for name, column in data.encoder.encode(changed, data.table.users([]), start_from_biases=True):
            np.save(folder / f"{name}.npy", column)
        examples = data.examples()
        examples.paths = [folder / path.name if (folder / path.name).exists() else path for path in examples.paths]
        after = examples[torch.tensor([row])]
        for a, b in zip(before[:-1], after[:-1], strict=True):
            torch.testing.assert_close(a[row], b[0], rtol=0, atol=1e-6)


def test_leave_last(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = in_order(lines)
    expected = {"train": [], "val": [], "test": []}
    for n, line in enumerate(ordered):
        later = sum(other[0] == line[0] for other in ordered[n + 1 :])
        count = sum(other[0] == line[0] for other in ordered)
        part = "train" if count < 3 or later > 1 else ("test", "val")[later]
        expected[part].append(n)
    assert {name: rows.tolist() for name, rows in data.rows.items()} == expected
    assert len(expected["test"]) == 10  # of 12 users, one with a single rating, one with two


def test_time_split_keeps_moments_together(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines), split="time")
    times = np.load(data.ordered / "time.npy")
    latest = [times[data.rows[name]].max() for name in ("train", "val")]
    earliest = [times[data.rows[name]].min() for name in ("val", "test")]
    assert latest[0] < earliest[0] and latest[1] < earliest[1]
    assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(len(lines)))
    ranks = [(user, movie, rating, time - 978_300_000) for user, movie, rating, time in lines]
    with pytest.raises(UserError, match="ranks within each user"):
        open_data(write_1m(tmp_path / "ranks", ranks), split="time")


def test_random_split_says_that_it_leaks(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines), split="random")
    assert "LEAKS" in data.protocol
    assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(len(lines)))
    assert len(data.rows["train"]) == pytest.approx(0.8 * len(lines), rel=0.15)


def test_vocabularies_and_biases_come_from_training_rows(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = in_order(lines)
    train = [ordered[n] for n in data.rows["train"]]
    assert data.encoder.movie_ids == sorted({m for _, m, _, _ in train})
    assert data.encoder.mean == pytest.approx(np.mean([rating for _, _, rating, _ in train]))
    users, movies = ({line[i] for line in train} for i in (0, 1))
    user_bias, movie_bias = dict.fromkeys(users, 0.0), dict.fromkeys(movies, 0.0)
    for _ in range(10):
        for m in movies:
            rest = [r - data.encoder.mean - user_bias[u] for u, other, r, _ in train if other == m]
            movie_bias[m] = sum(rest) / (10 + len(rest))
        for u in users:
            rest = [r - data.encoder.mean - movie_bias[m] for other, m, r, _ in train if other == u]
            user_bias[u] = sum(rest) / (15 + len(rest))
    np.testing.assert_allclose(data.encoder.movie_bias, [0, 0, *(movie_bias[m] for m in sorted(movies))], atol=1e-6)
    last = max(lines)
    rare = [*lines, (last[0], 30, 5, last[3] + 10**6)]  # a movie that occurs only in a test row
    data = open_data(write_1m(tmp_path / "rare", [line for line in rare if line[1] != 30 or line == rare[-1]]))
    assert everything(data)[0][data.rows["test"][-1]] == OOV


def test_click_and_histories_without_ratings(tmp_path, lines):
    folder = write_1m(tmp_path / "ml", lines)
    click = everything(open_data(folder, target="click"))
    assert click[-1].tolist() == [float(rating >= 4) for _, _, rating, _ in in_order(lines)]
    blind = everything(open_data(folder, history_ratings=False))
    assert (blind[2] == 0).all() and (blind[5][:, 1] == 0).all()
    flat = everything(open_data(folder, start_from_biases=False))
    assert len(set(flat[5][:, 0].tolist())) == 1 and (flat[5][:, 1] == 0).all()


def test_other_forms_of_the_same_ratings_give_the_same(tmp_path, lines):
    plain = everything(open_data(write_1m(tmp_path / "plain", lines)))
    other = write_1m(tmp_path / "other", lines)
    for path in list(other.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes().replace(b"\n", b"\r\n")))
        path.unlink()
    for a, b in zip(plain, everything(open_data(other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    table = open_data(write_csv(tmp_path / "csv", lines))
    assert table.encoder.user_cardinalities == [FIRST_ID + 12] and table.rating_range == (0.5, 5)
    for a, b in zip(plain[:4], everything(table)[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_ties_do_not_depend_on_other_users(tmp_path, lines):
    folder = write_1m(tmp_path / "ml", lines)
    before = open_data(folder)
    grouped = sorted(lines, key=lambda line: -line[0])  # stable: the order within each user stays
    after = open_data(write_1m(tmp_path / "grouped", grouped))
    for a, b in zip(everything(before), everything(after), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_unknown_movies_and_users_are_left_out_and_counted(tmp_path, lines, capsys):
    extra = [*lines, (4, 77, 3, 978_300_000), (99, 1, 3, 978_300_000)]
    folder = write_1m(tmp_path / "ml", extra)
    text = (folder / "users.dat").read_text().splitlines(keepends=True)
    (folder / "users.dat").write_text("".join(line for line in text if not line.startswith("99::")))
    data = open_data(folder)
    assert "1 ratings of unknown movies, 1 ratings of unknown users" in capsys.readouterr().out
    assert sum(map(len, data.rows.values())) == len(lines)


def test_too_few_ratings_and_settings_out_of_range(tmp_path, lines):
    with pytest.raises(UserError, match="leaves no rows for val, test"):
        open_data(write_1m(tmp_path / "few", lines[:1]))
    with pytest.raises(UserError, match="no rating by a known user of a movie"):
        open_data(write_1m(tmp_path / "none", [(1, 99, 3, 5)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"none of ratings.dat.*it is empty"):
        open_data(tmp_path / "empty")
    for settings, message in (
        ({"split": "x"}, "split is"),
        ({"target": "x"}, "target is"),
        ({"history_length": 0}, "history_length is"),
        ({"batch_size": 0}, "batch_size is"),
    ):
        with pytest.raises(UserError, match=message):
            HistoryDataModule(**{"seed": 0} | DATA | settings)


def test_buckets_of_time():
    seconds = torch.tensor([-5, 0, 1, 2, 3, 7, 60, 86_400, 10**9, 2**40])
    assert time_gap_bucket(seconds).tolist() == [0, 0, 2, 3, 4, 6, 11, 32, 59, 63]


def test_loader_gives_windows_and_pickles_without_the_arrays(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines), batch_size=16)
    for workers in (0, 2):
        data.num_workers = workers
        loader = data.train_dataloader()
        batches = list(loader)
        order = loader.sampler.indices()
        assert sorted(order.tolist()) == data.rows["train"].tolist()
        for a, b in zip(data.examples()[order], map(torch.cat, zip(*batches, strict=True)), strict=True):
            assert torch.equal(a, b)
    examples = data.examples()
    size = len(pickle.dumps(examples))
    examples[torch.arange(3)]
    assert len(pickle.dumps(examples)) == size < 5000


def test_the_sample_is_as_it_should_be(tmp_path):
    data = open_data(tmp_path / "ml-1m", history_length=20)
    assert data.is_sample and data.encoder.user_cardinalities[1:] == [3, 8, 22]
    assert 0.55 < rating_metrics(data.best_prediction(), data.targets("test"))["rmse"] < 0.7
    assert any("é" in title for title, _ in data.table.titles.values())


@pytest.mark.real_data("ml-1m")
def test_real_ratings():
    data = HistoryDataModule(**DATA, seed=0)
    data.setup()
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 987531, "val": 6040, "test": 6040}
