"""From raw ratings to windows: order, splits, what an example sees, releases and the sample."""

import gzip
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bst.train import DATA
from common.data.raw_files import say_once
from common.errors import UserError
from common.model.metrics import rating_metrics
from data.history.dataset import FIRST_ID, OOV, PADDING, Negatives, random_bits, time_gap_bucket
from data.movie_rating_seq import GENRES_100K, HistoryDataModule
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


def known(data: HistoryDataModule) -> list[list[int]]:
    """The raw ids of the users and items of the training rows, in the order of their ids."""
    vocabularies = {"user": data.encoder.users, "item": data.encoder.items}
    return [[int(data.known[key]["ids"][number]) for number in numbers] for key, numbers in vocabularies.items()]


def everything(data: HistoryDataModule) -> list[torch.Tensor]:
    return list(data.examples()[torch.arange(sum(map(len, data.rows.values())))])


def test_what_comes_later_changes_nothing(tmp_path, lines):
    """With the encoder fixed, changing ratings at and after a row's position does not change its inputs."""
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = {name: np.load(data.events / f"{name}.npy") for name in ("item", "rating", "time")}
    before = everything(data)
    generator = np.random.default_rng(5)
    for row in range(len(ordered["item"])):
        changed = {name: column.copy() for name, column in ordered.items()}
        changed["item"][row + 1 :] = generator.permutation(changed["item"][row + 1 :])
        changed["rating"][row:] = 6 - changed["rating"][row:]
        changed["time"][row + 1 :] += 1000
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        encoded = data.encoder.encode(changed["item"], changed["rating"], start_from_biases=True)
        for name, column in (changed | encoded).items():
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


def test_time_split_keeps_moments_together_and_random_split_says_that_it_leaks(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines), split="time")
    times = np.load(data.events / "time.npy")
    latest = [times[data.rows[name]].max() for name in ("train", "val")]
    earliest = [times[data.rows[name]].min() for name in ("val", "test")]
    assert latest[0] < earliest[0] and latest[1] < earliest[1]
    assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(len(lines)))
    data = open_data(tmp_path / "ml", split="random")
    assert "LEAKS" in data.protocol and len(data.rows["train"]) == pytest.approx(0.8 * len(lines), rel=0.15)
    assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(len(lines)))
    ranks = [(user, movie, rating, time - 978_300_000) for user, movie, rating, time in lines]
    with pytest.raises(UserError, match="ranks within each user"):
        open_data(write_1m(tmp_path / "ranks", ranks), split="time")


def test_vocabularies_and_biases_come_from_training_rows(tmp_path, lines):
    data = open_data(write_1m(tmp_path / "ml", lines))
    ordered = in_order(lines)
    train = [ordered[n] for n in data.rows["train"]]
    assert known(data)[1] == sorted({m for _, m, _, _ in train})
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
    np.testing.assert_allclose(data.encoder.item_bias, [0, 0, *(movie_bias[m] for m in sorted(movies))], atol=1e-6)
    last = max(lines)
    rare = [*lines, (last[0], 30, 5, last[3] + 10**6)]  # a movie that occurs only in a test row
    data = open_data(write_1m(tmp_path / "rare", [line for line in rare if line[1] != 30 or line == rare[-1]]))
    assert everything(data)[0][data.rows["test"][-1], 0] == OOV


def test_click_and_histories_without_ratings(tmp_path, lines):
    folder = write_1m(tmp_path / "ml", lines)
    click = everything(open_data(folder, target="click"))
    assert click[-1][:, 0].tolist() == [float(rating >= 4) for _, _, rating, _ in in_order(lines)]
    blind = everything(open_data(folder, history_ratings=False))
    assert (blind[2] == 0).all() and (blind[5][..., 1] == 0).all()
    flat = everything(open_data(folder, start_from_biases=False))
    assert len(set(flat[5][..., 0].flatten().tolist())) == 1 and (flat[5][..., 1] == 0).all()


def test_other_forms_of_the_same_ratings_give_the_same(tmp_path, lines):
    plain = everything(open_data(write_1m(tmp_path / "plain", lines)))
    other = write_1m(tmp_path / "other", lines)
    for path in list(other.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes().replace(b"\n", b"\r\n")))
        path.unlink()
    for a, b in zip(plain, everything(open_data(other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    table = open_data(write_csv(tmp_path / "csv", lines))
    assert table.encoder.user_cardinalities == [FIRST_ID + 12] and table.encoder.scale.range == [1, 5]
    for a, b in zip(plain[:4], everything(table)[:4], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_100k_has_its_movies_and_users_in_another_form(tmp_path, lines):
    """Genres are flags, ages are years; otherwise the arrays are those of 1M."""
    one = open_data(write_1m(tmp_path / "1m", lines))
    folder = tmp_path / "100k"
    folder.mkdir()
    (folder / "u.data").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    movies = [line.split("::") for line in (tmp_path / "1m" / "movies.dat").read_text("latin-1").splitlines()]
    flags = {number: [str(int(name in genres.split("|"))) for name in GENRES_100K] for number, _, genres in movies}
    items = [f"{number}|{title}|01-Jan-1990||http://x|{'|'.join(flags[number])}\n" for number, title, _ in movies]
    (folder / "u.item").write_text("".join(items), "latin-1")
    users = [line.split("::") for line in (tmp_path / "1m" / "users.dat").read_text().splitlines()]
    years = {"18": 24, "25": 25}
    (folder / "u.user").write_text("".join(f"{n}|{years[age]}|{sex}|{job}|0\n" for n, sex, age, job, _ in users))
    other = open_data(folder)
    for a, b in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert torch.equal(one.attribute_shares(), other.attribute_shares()) and other.title(2) == one.title(2)


def test_a_rating_out_of_range_is_named(tmp_path, lines):
    folder = write_1m(tmp_path / "ml", [*lines[:2], (1, 2, 6, 978_300_000), *lines[2:]])
    with pytest.raises(UserError, match="line 3, column rating: found '6', expected a rating from 0"):
        open_data(folder)


def test_movies_that_their_file_lacks(tmp_path, lines, capsys):
    """Few are noted at every start and keep their ratings; more than one in a hundred means a file that is cut off."""
    folder = write_1m(tmp_path / "ml", [(user, movie, 1, 0) for user in range(1, 40) for movie in range(1, 29)] + lines)
    cut = (folder / "movies.dat").read_text("latin-1")
    (folder / "movies.dat").write_text("".join(cut.splitlines(keepends=True)[:-1]), "latin-1")  # the 30th, rated once
    for _ in range(2):
        say_once.cache_clear()
        data = open_data(folder)
        rows = sum(movie == 30 for _, movie, _, _ in lines)
        assert rows and f"1 of 30 items, with {rows} of " in capsys.readouterr().out
    assert len(np.load(data.events / "user.npy")) == 39 * 28 + len(lines)
    assert data.title(data.encoder.num_items - 1) == "30" and data.title(FIRST_ID) == "Été 1 (1990)"
    (folder / "movies.dat").write_text("".join(cut.splitlines(keepends=True)[:5]), "latin-1")
    with pytest.raises(UserError, match=r"25 of 30 items, with .* are not in .*movies.dat. The files do not match"):
        open_data(folder)


def test_too_few_ratings_and_settings_out_of_range(tmp_path, lines):
    with pytest.raises(UserError, match="leaves no rows for val, test"):
        open_data(write_1m(tmp_path / "few", lines[:1]))
    with pytest.raises(UserError, match="1 of 1 items, with 1 of 1 rows, are not in"):
        open_data(write_1m(tmp_path / "none", [(1, 99, 3, 5)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no ratings.dat.*it is empty"):
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


def test_negatives_are_what_the_user_has_in_no_row_in_proportion_to_a_power_of_popularity(rng):
    user, item = rng.integers(3, size=300), rng.integers(FIRST_ID, 22, size=300)
    item[user == 1] = np.arange((user == 1).sum()) % 19 + FIRST_ID  # all but one
    keep = (user == 1) | (item < 12)
    user, item = user[keep], item[keep]
    known = {u: set(item[user == u]) for u in range(3)}
    count = rng.integers(1, 40, 22) * (np.arange(22) >= FIRST_ID) * (np.arange(22) != 20)  # 20 is in no training row
    for power in (0.0, 0.5):
        negatives = Negatives(user, item, count, power, ["a", "b", "c"])
        drawn = negatives.draw(np.array([1, 2] * 2000), random_bits([1, 0], np.arange(4000), 16))
        assert drawn.dtype == np.int32 and set(drawn[::2].flatten()) == {21}
        assert not set(drawn.flatten()) & {OOV, PADDING, 20}
        weight = np.array([float(count[i]) ** power if count[i] and i not in known[2] else 0.0 for i in range(22)])
        share = np.bincount(drawn[1::2].flatten(), minlength=22) / drawn[1::2].size
        np.testing.assert_allclose(share, weight / weight.sum(), atol=4 / np.sqrt(drawn[1::2].size))
        assert (share[weight == 0] == 0).all()
        if power:
            expected = np.log(count[item] ** power / (count[count > 0] ** power).sum())
            np.testing.assert_allclose(negatives.log_q[item[item != 20]], expected[item != 20], atol=1e-5)
    with pytest.raises(UserError, match="user 'b' has interacted with every item of the training rows"):
        Negatives(np.array([0, 1, 1]), np.array([2, 2, 3]), np.array([0, 0, 1, 1]), 0.0, ["a", "b"])


def test_negatives_depend_on_seed_epoch_and_row_alone(tmp_path, lines):
    """Not on the number of processes, nor on where a run was resumed; the batch is otherwise that of own_item."""
    folder = write_1m(tmp_path / "ml", lines)
    data = open_data(folder, target="item", negatives=7, batch_size=32)

    def epoch(number: int, rank: int = 0, ranks: int = 1, position: int = 0, **settings) -> list[torch.Tensor]:
        module = open_data(folder, target="item", negatives=7, batch_size=32, **settings) if settings else data
        loader = module.train_dataloader()
        loader.rank, loader.world_size = rank, ranks
        loader.sampler.set_epoch(number)
        loader.load_state_dict({"position": position})
        return [torch.cat(parts) for parts in zip(*loader, strict=True)]

    whole = epoch(3)
    for part, own in zip(whole[:-1], data.examples()[_order(data, 3)][:-1], strict=True):
        shape = (slice(None), slice(1)) if part.shape != own.shape else ...
        torch.testing.assert_close(part[shape], own, rtol=0, atol=0)
    assert whole[0].shape == (len(data.rows["train"]), 8) and (whole[-1] == torch.eye(8)[0]).all()
    assert all(torch.equal(a[64:], b) for a, b in zip(whole, epoch(3, position=2), strict=True))
    ranks = [epoch(3, rank, 2)[0] for rank in range(2)]
    both = torch.cat([part for pair in zip(*(r.split(16) for r in ranks), strict=True) for part in pair])
    assert torch.equal(both[: len(both) // 32 * 32], whole[0][: len(both) // 32 * 32])
    assert not torch.equal(whole[0].sort(0)[0], epoch(4)[0].sort(0)[0])
    assert not torch.equal(whole[0].sort(0)[0], epoch(3, seed=1)[0].sort(0)[0])
    workers = epoch(3, num_workers=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, workers, strict=True))


def _order(data: HistoryDataModule, epoch: int) -> torch.Tensor:
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return sampler.indices()


def test_all_items_are_ranked_but_those_the_user_had(tmp_path, lines):
    lines = [*lines, (12, 30, 5, 978_400_000)]  # 30 occurs in this test row alone
    lines = [line for line in lines if line[1] != 30 or line[3] == 978_400_000]
    lines += [(11, next(m for u, m, *_ in lines if u == 11), 5, 978_400_000)]  # an item that the user has already
    data = open_data(write_1m(tmp_path / "ml", lines), target="item")
    assert data.protocol.endswith(f"ranked among all {data.encoder.num_items - 2} items of the training rows")
    ordered, (_, items) = in_order(lines), known(data)
    found = [torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True)]
    for row, candidates, target in zip(data.rows["test"], found[0], found[-1], strict=True):
        user, own, *_ = ordered[row]
        had = {m for u, m, *_ in ordered[:row] if u == user} - {own}
        assert [items[i - FIRST_ID] for i in candidates] == items
        expected = [1.0 if m == own else math.nan if m in had else 0.0 for m in items]
        np.testing.assert_array_equal(target, expected)
    missed = found[-1].nan_to_num().sum(1) == 0
    assert [ordered[row][0] for row in data.rows["test"][missed]] == [12]
    for part, own in zip(found[1:5], data.examples()[torch.from_numpy(data.rows["test"])][1:5], strict=True):
        assert torch.equal(part, own)
    popularity = np.bincount(np.load(data.folder / "item.npy")[data.rows["train"]], minlength=data.encoder.num_items)
    expected = np.log(popularity + 1) - np.log(popularity[FIRST_ID:].mean() + 1)
    np.testing.assert_allclose(found[5][0, :, 0], expected[FIRST_ID:], atol=1e-6)


def test_a_part_of_the_held_out_rows_if_there_are_many(tmp_path, lines, monkeypatch):
    folder = write_1m(tmp_path / "ml", lines)
    whole = open_data(folder, target="item").rows
    monkeypatch.setattr("data.history.module.RANKED_PAIRS", {"val": 4 * 30, "test": 10**6})
    some = open_data(folder, target="item").rows
    assert len(some["val"]) == 4 and set(some["val"]) < set(whole["val"])
    assert some["val"].tolist() == open_data(folder, target="item", seed=5).rows["val"].tolist()
    assert some["test"].tolist() == whole["test"].tolist() and some["train"].tolist() == whole["train"].tolist()


def test_the_sample_is_as_it_should_be(tmp_path):
    data = open_data(tmp_path / "ml-1m", history_length=20)
    assert data.is_sample and data.encoder.user_cardinalities[1:] == [3, 8, 22]
    assert 0.55 < rating_metrics(data.best_prediction(), data.targets("test"))["rmse"] < 0.7
    assert any("é" in title for title in data.known["item"]["titles"])


@pytest.mark.real_data("ml-1m")
def test_real_ratings():
    data = HistoryDataModule(**DATA, seed=0)
    data.setup()
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 987531, "val": 6040, "test": 6040}
