"""Your own interactions: from a file to arrays, what an example sees, sampled negatives, scores and best items."""

import csv
import gzip
import io
import json
import math
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from data.history_preprocessor import HistoryPreprocessor
from data.interactions_guess import guess_interactions
from data.interactions_preprocessor import preprocessor_of_histories

from bst.bst import BST
from bst.train import DATA, MODEL, OPTIMIZER, train
from common.errors import UserError
from data.history.dataset import FIRST_ID, OOV, PADDING
from data.movie_rating_seq import HistoryDataModule
from deepfm.train import train as train_deepfm
from models import load, predict_batch
from predict import predict
from recommend import recommend
from tests.movie_rows import make_ratings, write_1m
from tests.test_bad_checkpoints import WRONG as WRONG_VALUES
from tests.test_bad_checkpoints import places, replaced

pytestmark = pytest.mark.usefixtures("undrawn")

USER, ITEM, WHEN, STARS = "Customer, №", 'the "article"', "bought at", "stars (0-100)"
START = 1_600_000_000
SMALL = {"embedding_dim": 8, "num_heads": 2, "num_factors": 4, "hidden_units": (8,), "history_length": 5}
Row = tuple[str, str, int, int]  # user, item, seconds, rating


def make_rows(rng: np.random.Generator, users: int = 14, items: int = 20) -> list[Row]:
    """Text ids with separators, quotes and other alphabets; every user has 4 or more rows, unordered."""
    rows = []
    for user in range(users):
        for item in rng.choice(items, int(rng.integers(4, 10)), replace=False):
            seconds = START + int(rng.integers(10**6))
            rows.append((f'o\'Brien; "{user}", ß', f"Käse, {item:02d}", seconds, int(rng.integers(0, 11)) * 10))
    return [rows[i] for i in rng.permutation(len(rows))]


def write(
    root: Path,
    rows: list[Row],
    rating: bool = True,
    times=lambda seconds: seconds,
    unit: str = "s",
    separator: str = ",",
    **content,
) -> Path:
    folder = root / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    table = [[ITEM, "x", WHEN, *([STARS] if rating else []), USER]]
    table += [[item, "", times(seconds), *([stars] if rating else []), user] for user, item, seconds, stars in rows]
    (folder / "log.csv").write_text(to_csv(table, separator))
    columns = {USER: {"role": "user"}, ITEM: {"role": "item"}, WHEN: {"role": "time", "unit": unit}}
    columns |= {STARS: {"role": "rating", "click_from": 60}} if rating else {}
    described = {"file": "log.csv", "separator": separator, "columns": columns | {"x": {"role": "kept"}}} | content
    (folder / "columns.json").write_text(json.dumps(described))
    return folder


def to_csv(table: list[list], separator: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(table)
    return text.getvalue()


def open_data(root: Path, **settings) -> HistoryDataModule:
    defaults = DATA | {"dataset": "mine", "data_root": str(root), "history_length": 5, "negatives": 3}
    data = HistoryDataModule(**{"seed": 0} | defaults | settings)
    data.setup()
    return data


def in_order(rows: list[Row]) -> list[Row]:
    """By user and time, like the arrays."""
    return sorted(rows, key=lambda row: (row[0], row[2]))


def texts_of(data: HistoryDataModule) -> list[str]:
    """The item of each id."""
    return ["(unseen)", "(none)", *(data.table.ids["item"][number] for number in data.encoder.movie_ids)]


@pytest.mark.parametrize("split", ["leave_last", "time"])
def test_an_example_sees_its_users_past_alone(tmp_path, rng, split):
    """Brute force over all rows of a scale from 0 to 100: the model sees it spread over 4."""
    rows = make_rows(rng)
    rows = in_order([*rows, (rows[0][0], "only in test", START + 10**7, 50)])
    write(tmp_path, rows[::-1])
    data = open_data(tmp_path, split=split)
    texts, encoder = texts_of(data), data.encoder
    train = [rows[n] for n in data.rows["train"]]
    assert texts[FIRST_ID:] == sorted({item for _, item, _, _ in train})
    least, greatest = min(row[3] for row in train), max(row[3] for row in train)
    assert data.rating_range == (least, greatest)
    unit = (greatest - least) / 4
    values = [1 + (row[3] - least) / unit for row in rows]
    expected = dict(zip(texts, encoder.expected, strict=True))
    assert encoder.mean == pytest.approx(np.mean([values[n] for n in data.rows["train"]]), abs=1e-5)
    columns = data.read(range(len(rows)))
    for n, (movie, history, residual, time_gap, _, dense, target) in enumerate(zip(*columns, strict=True)):
        user, item, seconds, stars = rows[n]
        past = [i for i in range(n) if rows[i][0] == user]
        shown = past[-5:]
        empty = 5 - len(shown)
        assert texts[movie] == item or (movie == OOV and item not in texts)
        assert history[:empty].tolist() == [PADDING] * empty and target == stars
        for i, place in zip(shown, range(empty, 5), strict=True):
            level = expected[texts[history[place]]]
            assert texts[history[place]] in (rows[i][1], "(unseen)")
            assert residual[place] == pytest.approx(values[i] - level, abs=1e-5)
            assert time_gap[place] == math.floor(2 * math.log2(1 + seconds - rows[i][2]))
        surplus = sum(values[i] - expected.get(rows[i][1], encoder.expected[OOV]) for i in past)
        bias = surplus / (5 + len(past))
        np.testing.assert_allclose(dense, [expected[texts[movie]] + bias, bias, math.log(1 + len(past))], atol=1e-5)


def test_negatives_are_never_known_items_and_depend_on_the_seed(tmp_path, rng):
    rows = in_order(make_rows(rng))
    write(tmp_path, rows, rating=False)
    data = open_data(tmp_path)
    known = {(user, item) for user, item, _, _ in rows}
    texts, count = texts_of(data), len(rows)
    for name, numbers in data.rows.items():
        movie, *_, target = data.read(numbers)
        positives = numbers[target == 1]
        assert (positives < count).all() and len(numbers) == 4 * len(positives)
        for number, item, is_click in zip(numbers, movie, target, strict=True):
            user = rows[number % count][0]
            assert item != PADDING and ((user, texts[item]) in known or item == OOV) == bool(is_click)
        negatives, originals = numbers[len(positives) :], np.tile(positives, 3)
        for a, b in zip(data.read(negatives)[1:4], data.read(originals)[1:4], strict=True):
            np.testing.assert_array_equal(a, b)
        assert Counter((numbers % count).tolist()) == dict.fromkeys(positives.tolist(), 4), name
    again, other = open_data(tmp_path), open_data(tmp_path, seed=1)
    drawn = [np.load(d.folder / "movie.npy")[count:].reshape(3, -1) for d in (data, again, other)]
    assert (drawn[0] == drawn[1]).all()
    train, test = data.rows["train"], data.rows["test"]
    train, test = train[train < count], test[test < count]
    assert (drawn[0][:, train] != drawn[2][:, train]).any() and (drawn[0][:, test] == drawn[2][:, test]).all()
    popularity = Counter(rows[n][1] for n in train)
    mean = np.mean([popularity[text] for text in texts[FIRST_ID:]])
    expected = [-math.log(3) + math.log((popularity[text] + 1) / (mean + 1)) for text in texts[FIRST_ID:]]
    np.testing.assert_allclose(data.encoder.expected[FIRST_ID:], expected)


def test_a_user_with_nearly_everything_gets_the_rest_and_with_everything_an_error(tmp_path):
    rows = [("a", f"i{n}", START + n, 0) for n in range(6)]
    rows += [("b", f"i{n}", START + n, 0) for n in range(5)] + [("c", f"i{n}", START + n, 0) for n in (5, 1, 2, 3)]
    write(tmp_path, rows, rating=False)
    with pytest.raises(UserError, match="user 'a' has interacted with every item of the training rows"):
        open_data(tmp_path)
    many = [("b", f"i{n}", START + n, 0) for n in range(199)] + [("c", f"i{n}", START + n, 0) for n in range(2, 202)]
    write(tmp_path, many, rating=False)
    data = open_data(tmp_path)
    texts = texts_of(data)
    movie, *_, target = data.read(data.rows["train"])
    users = data.rows["train"] % len(many) < 199
    assert {texts[m] for m in movie[(target == 0) & users]} == {"i199"}


FORMS = {
    "ms": (lambda s: s * 1000, "ms", ",", "log.csv"),
    "ns": (lambda s: s * 10**9, "ns", "\t", "log.tsv.gz"),
    "date": (lambda s: str(np.datetime64(s, "s")), "date", ";", "log.csv"),
    "zone": (lambda s: str(np.datetime64(s + 7200, "s")) + "+02:00", "date", ",", "log.csv.gz"),
    "parquet": (lambda s: s, "s", ",", "log.parquet"),
    "parts": (lambda s: f"{s}.0", "s", ",", "parts"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_the_same_rows_give_the_same(tmp_path, rng, form):
    rows = make_rows(rng)
    write(tmp_path / "plain", rows)
    times, unit, separator, name = FORMS[form]
    folder = write(tmp_path / "other", rows, True, times, unit, separator, file=name)
    text = (folder / "log.csv").read_text()
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(text.encode()))
    elif name == "log.parquet":
        import pandas as pd

        pd.read_csv(io.StringIO(text)).drop(columns="x").assign(x="").to_parquet(folder / name)
    elif name == "parts":
        (folder / name).mkdir()
        header, *lines = text.splitlines(keepends=True)
        (folder / name / "b.csv").write_text(header + "".join(lines[30:]))
        (folder / name / "a.csv").write_text(header + "".join(lines[:30]))
    plain, other = open_data(tmp_path / "plain"), open_data(tmp_path / "other")
    for part in plain.rows:
        for a, b in zip(plain.read(plain.rows[part]), other.read(other.rows[part]), strict=True):
            np.testing.assert_array_equal(a, b)
    content, report = guess_interactions(folder / name)
    roles = {column: entry["role"] for column, entry in content["columns"].items()}
    assert roles == {USER: "user", ITEM: "item", WHEN: "time", STARS: "rating", "x": "excluded"}, report
    assert content["columns"][WHEN]["unit"] == unit and unit in report


def test_fractions_of_a_second_order_rows(tmp_path):
    rows = [("u", f"i{n}", START * 1000 + n, 50 + n) for n in (5, 3, 1, 4, 2, 0)] + [("v", "i9", START * 1000, 90)]
    write(tmp_path, rows, unit="ms")
    data = open_data(tmp_path)
    assert np.load(data.ordered / "rating.npy").tolist() == [50, 51, 52, 53, 54, 55, 90]


def test_movielens_as_a_table_gives_the_same_arrays(tmp_path, rng):
    """Ratings, genres and features of users in CSV files with quotes, in another order of columns; attributes too."""
    lines = make_ratings(rng, users=30)
    write_1m(tmp_path / "ml", lines)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "log.csv").write_text(to_csv([["t", "r", "movie", "user"], *([t, r, m, u] for u, m, r, t in lines)]))
    for name in ("movies", "users"):
        raw = (tmp_path / "ml" / f"{name}.dat").read_text(encoding="latin-1").splitlines()
        header = {"movies": ["movie", "title", "genres"], "users": ["user", "sex", "age", "job", "zip"]}[name]
        (folder / f"{name}.csv").write_text(to_csv([header, *(line.split("::") for line in reversed(raw))]))
    content, _ = guess_interactions(folder / "log.csv", folder / "movies.csv", folder / "users.csv")
    content["columns"] |= {"t": {"role": "time", "unit": "s"}, "r": {"role": "rating", "click_from": 4}}
    assert content["item_attributes"]["columns"]["genres"]["role"] == "categorical"
    content["item_attributes"]["columns"]["genres"]["separator"] = "|"
    content["user_attributes"]["columns"] = {"user": {"role": "user"}, "zip": {"role": "excluded"}} | {
        name: {"role": "categorical"} for name in ("sex", "age", "job")
    }
    (folder / "columns.json").write_text(json.dumps(content))
    for target in ("rating", "click"):
        official = open_data(tmp_path, dataset="ml", target=target)
        own = open_data(tmp_path, target=target)
        for part, numbers in official.rows.items():
            np.testing.assert_array_equal(numbers, own.rows[part])
            for a, b in zip(official.read(numbers), own.read(numbers), strict=True):
                np.testing.assert_array_equal(a, b)
        assert torch.equal(official.genre_shares(), own.genre_shares())
        assert official.user_cardinalities == own.user_cardinalities


def test_attributes(tmp_path, rng):
    """Bins are fitted on training items; unknown items have no attributes; columns do not share weights."""
    rows = make_rows(rng)
    items = sorted({item for _, item, _, _ in rows})
    unseen = [("new", "only in test", START + 10**7, 50)]
    table = [["id", "kinds", "price", "brand"]]
    table += [[item, "a|b" if n % 2 else "", n * 1.5, ["X", "Y"][n % 2]] for n, item in enumerate(items[:-1])]
    table += [["only in test", "z", 10**9, "X"], ["no row has it", "q", 1, "Q"]]
    columns = {"id": {"role": "item"}, "kinds": {"role": "categorical", "separator": "|"}}
    columns |= {"price": {"role": "dense"}, "brand": {"role": "categorical"}}
    folder = write(tmp_path, rows + unseen, item_attributes={"file": "items.csv", "columns": columns})
    (folder / "items.csv").write_text(to_csv(table))
    data = open_data(tmp_path, split="time")
    shares, texts = data.genre_shares(), texts_of(data)
    names = data.encoder.genres
    assert not {"kinds: z", "brand: Q", "kinds: q"} & set(names)
    for row, text in enumerate(texts):
        found = {names[i]: float(shares[row, i]) for i in shares[row].nonzero()[:, 0].tolist()}
        if text not in items[:-1]:
            assert found == {}
            continue
        number = items.index(text)
        price = [name for name in found if name.startswith("price: bin ")]
        kinds = {"kinds: a": 0.5, "kinds: b": 0.5} if number % 2 else {}
        assert len(price) == 1 and found == kinds | {price[0]: 1.0, f"brand: {'XY'[number % 2]}": 1.0}
    bins = {name for name in names if name.startswith("price")}
    assert 10 < len(bins) <= 17  # one item at 10^9 would put all others into one bin
    (folder / "items.csv").write_text(to_csv([*table, table[1]]))
    with pytest.raises(UserError, match=r"items.csv, line \d+, column id: found 'Käse, 00', expected an id that no"):
        open_data(tmp_path)
    (folder / "items.csv").write_text(to_csv([table[0], ["x", "a", 1, "X"]]))
    with pytest.raises(UserError, match=r"items.csv: column 'id' has none of the \d+ ids of items"):
        open_data(tmp_path)


BAD_CELLS = [
    (STARS, "", r"log.csv, line 3, column stars \(0-100\): found '', expected a rating in every row"),
    (STARS, "five", r"line 3, column stars \(0-100\): found 'five', expected a number"),
    (USER, "", r"line 3, column Customer, №: found '', expected one id in every row"),
    (ITEM, "", r"line 3, column the \"article\": found '', expected one id"),
    (WHEN, "", "line 3, column bought at: found '', expected seconds since 1970"),
    (WHEN, "1600000000000", 'found \'1600000000000\', expected seconds since 1970 .*set "unit" to "ms"'),
    (WHEN, "2020-01-01", "found '2020-01-01', expected a number"),
    (WHEN, "-5", "found '-5', expected seconds"),
]


@pytest.mark.parametrize(("column", "cell", "message"), BAD_CELLS)
def test_a_wrong_cell_is_named(tmp_path, rng, column, cell, message, outputs):
    folder = write(tmp_path, make_rows(rng))
    table = list(csv.reader(io.StringIO((folder / "log.csv").read_text())))
    table[2][table[0].index(column)] = cell
    (folder / "log.csv").write_text(to_csv(table))
    with pytest.raises(UserError, match=message):
        train(dataset="mine", data_root=str(tmp_path), **SMALL)
    assert not list(outputs.glob("runs/bst/version_*"))


WRONG = [
    ({USER: {"role": "user"}, ITEM: {"role": "item"}}, 'no column has the role "time"'),
    ({WHEN: {"role": "time"}}, "'bought at': a time needs \"unit\", one of \"s\", \"ms\""),
    ({WHEN: {"role": "time", "unit": "h"}}, "'unit' is \"h\"; it must be one of"),
    ({"x": {"role": "user"}}, 'more than one column has the role "user"'),
    ({"x": {"role": "label"}}, "column 'x': its \"role\" must be one of \"user\", \"item\""),
    ({"x": {"role": []}}, "column 'x': its \"role\" must be one of"),
    ({"gone": {"role": "kept"}}, "line 1 names no column 'gone'"),
    ({STARS: {"role": "rating", "click_from": 200}}, '"click_from" is 200; it must be above'),
    ({WHEN: {"role": "time", "unit": "date"}}, "column bought at: found '16.*', expected a date"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_entry_is_named(tmp_path, rng, change, message):
    folder = write(tmp_path, make_rows(rng))
    content = json.loads((folder / "columns.json").read_text())
    content["columns"] = change if len(change) == 2 else content["columns"] | change
    (folder / "columns.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_data(tmp_path)


def test_a_table_is_no_interactions_and_the_other_way_round(tmp_path, rng, outputs):
    folder = write(tmp_path, make_rows(rng))
    with pytest.raises(UserError, match=r"columns.json describes interactions, which only bst/train.py can use"):
        train_deepfm(dataset="mine", data_root=str(tmp_path))
    columns = {USER: {"role": "categorical"}, "x": {"role": "label", "positive": ["1"]}}
    (folder / "columns.json").write_text(json.dumps({"file": "log.csv", "columns": columns}))
    with pytest.raises(
        UserError, match=r'no column has the role "user" or "item"; bst.train.py trains on interactions'
    ):
        open_data(tmp_path)


def test_wrong_values_anywhere_in_a_state(tmp_path, rng):
    """Refused when a checkpoint is loaded (which reports any error), or without consequence."""
    state, _ = make_state(tmp_path, rng)
    content, refused = (tmp_path / "mine" / "log.csv").read_bytes(), 0
    for place in places(state):
        for value in WRONG_VALUES:
            try:
                preprocessor = preprocessor_of_histories(replaced(state, place, value))
                preprocessor.random_inputs(8, rng)
            except Exception:
                refused += 1
                continue
            with suppress(UserError):
                for inputs, *_ in preprocessor.batches(io.BytesIO(content), "log.csv"):
                    assert len(inputs) == 6
    assert refused > 100


def test_targets_that_the_data_cannot_have(tmp_path, rng):
    folder = write(tmp_path, make_rows(rng), rating=False)
    assert open_data(tmp_path).target == "click"
    with pytest.raises(UserError, match=r"'mine' has no ratings. Set target=\"click\""):
        open_data(tmp_path, target="rating")
    write(tmp_path, make_rows(rng))
    assert open_data(tmp_path).target == "rating"
    content = json.loads((folder / "columns.json").read_text())
    del content["columns"][STARS]["click_from"]
    (folder / "columns.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not say which ratings are clicks"):
        open_data(tmp_path, target="click")


@pytest.mark.parametrize("rating", [True, False])
def test_whole_run_scores_and_best_items(tmp_path, rng, outputs, rating):
    """Scores of a file with reordered columns equal the test step's; the best items equal a double loop's."""
    rows = make_rows(rng)
    write(tmp_path, rows, rating=rating)
    results = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, **SMALL)
    assert set(results["test"]) >= ({"rmse"} if rating else {"auc"})
    data = open_data(tmp_path, negatives=4, seed=1)
    table = [["x", USER, WHEN, ITEM], *([f'"{n}"', u, t, i] for n, (u, i, t, _) in enumerate(rows))]
    if rating:
        table = [[*cells, stars] for cells, stars in zip(table, [STARS, *(row[3] for row in rows)], strict=True)]
    (tmp_path / "new.csv").write_text(to_csv(table))
    checkpoint = results["checkpoint"]
    metrics = predict(checkpoint, tmp_path / "new.csv", tmp_path / "out.csv")["metrics"]
    found = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    name = "rating" if rating else "probability"
    assert found[0] == ["x", name] and [line[0] for line in found[1:]] == [f'"{n}"' for n in range(len(rows))]
    assert bool(metrics) == rating
    model, preprocessor = load(checkpoint)
    order = sorted(range(len(rows)), key=lambda n: (rows[n][0], rows[n][2]))
    *inputs, _ = data.examples()[torch.arange(len(rows))]
    scores = torch.tensor([float(found[1 + n][1]) for n in order])
    torch.testing.assert_close(predict_batch(model, inputs)[:, 0], scores, rtol=0, atol=1e-4 if rating else 1e-5)

    users = [rows[0][0], rows[5][0], "somebody else", rows[0][0]]
    (tmp_path / "users.csv").write_text(to_csv([[USER], *([user] for user in users)]))
    recommend(checkpoint, tmp_path / "users.csv", 4, tmp_path / "top.csv")
    top = list(csv.reader(io.StringIO((tmp_path / "top.csv").read_text())))
    assert top[0] == [USER, ITEM, name]
    expected = []
    for user in dict.fromkeys(users):
        scored = []
        for text in texts_of(data)[FIRST_ID:]:
            if not any(row[:2] == (user, text) for row in rows):
                row = to_csv([["x", USER, ITEM], ["", user, text]])
                ((one, _, _),) = preprocessor.batches(io.BytesIO(row.encode()), "row")
                scored.append((float(predict_batch(model, one)), text))
        expected += [(user, text, value) for value, text in sorted(scored, key=lambda pair: -pair[0])[:4]]
    assert [tuple(line[:2]) for line in top[1:]] == [line[:2] for line in expected]
    np.testing.assert_allclose([float(line[2]) for line in top[1:]], [line[2] for line in expected], rtol=1e-4)


def make_state(tmp_path: Path, rng, **form) -> tuple[dict, list[Row]]:
    rows = in_order(make_rows(rng))
    write(tmp_path, rows, **form)
    return open_data(tmp_path).state_dict(), rows


def encode(preprocessor: HistoryPreprocessor, table: list[list]) -> list[torch.Tensor]:
    batches = list(preprocessor.batches(io.BytesIO(to_csv(table).encode()), "rows"))
    return [torch.cat(columns) for columns in zip(*(inputs for inputs, *_ in batches), strict=True)]


@pytest.mark.parametrize("rating", [True, False])
def test_a_new_user_brings_a_history(tmp_path, rng, rating, monkeypatch):
    """The same rows under a new user name give the same scores as a known user's; nothing later is seen."""
    state, rows = make_state(tmp_path, rng, rating=rating)
    ((user, count),) = Counter(row[0] for row in rows).most_common(1)
    assert count > 5 + 1  # the first ones are no longer in its history
    own = [row for row in rows if row[0] == user]
    header = ["x", USER, ITEM, WHEN, STARS]
    known = [header, *(["", user, item, seconds, stars] for _, item, seconds, stars in own)]
    new = [header, *(["", "newcomer", item, seconds, stars] for _, item, seconds, stars in own)]
    other = [["", "another", own[-1][1], START, 0]]
    if not rating:
        known, new, other = ([line[:4] for line in table] for table in (known, new, other))
    preprocessor = preprocessor_of_histories(state)
    expected = encode(preprocessor_of_histories(state), known)
    preprocessor.history_from_file = True
    monkeypatch.setattr("data.table_reader.BLOCK_BYTES", 200)  # a user's rows are in several blocks
    found = encode(preprocessor, new[:3] + other + new[3:])
    keep = [n for n in range(len(own) + 1) if n != 2]
    for i in (0, 1, 2, 3, 5):
        torch.testing.assert_close(found[i][keep], expected[i], rtol=0, atol=1e-5)
    assert (found[4] == OOV).all() and (found[1][2] == PADDING).all()
    blind = encode(preprocessor_of_histories(state), new)
    assert (blind[1] == PADDING).all()
    if rating:  # a row without a rating does not enter the history
        lines = [new[0], *([*line[:4], ""] for line in new[1:])]
        preprocessor = preprocessor_of_histories(state)
        preprocessor.history_from_file = True
        assert (encode(preprocessor, lines)[1] == PADDING).all()


def test_best_items_of_a_new_user_follow_its_history(tmp_path, rng, outputs):
    state, rows = make_state(tmp_path, rng)
    data = open_data(tmp_path)
    settings = {name: value for name, value in SMALL.items() if name in MODEL}
    model = BST(
        data.num_movies, data.num_genres, data.user_cardinalities, history_length=5, target="rating",
        rating_range=data.rating_range, rating_units=data.rating_units, optimizer=OPTIMIZER, **MODEL | settings,
    ).eval()  # fmt: skip
    user = rows[20][0]
    own = [row for row in rows if row[0] == user]
    preprocessor = preprocessor_of_histories(state)
    preprocessor.history_from_file = True
    header = ["x", USER, ITEM, WHEN, STARS]
    table = [header, *(["", "newcomer", item, seconds, stars] for _, item, seconds, stars in own)]
    ((newcomer, *_),) = preprocessor.users_of(io.BytesIO(to_csv(table).encode()), "rows")
    candidates = preprocessor.candidates(newcomer)
    texts = [preprocessor.text(1, number) for number in candidates]
    assert not {item for _, item, _, _ in own} & set(texts)
    assert {*texts, *(item for _, item, _, _ in own)} >= set(texts_of(data)[FIRST_ID:])
    known = preprocessor.user_inputs(data.table.ids["user"].index(user), candidates)
    found = preprocessor.user_inputs(newcomer, candidates)
    for i in (0, 1, 2, 3, 5):
        torch.testing.assert_close(found[i], known[i], rtol=0, atol=1e-5)
    assert predict_batch(model, found).isfinite().all()


def test_resumed_and_cached(tmp_path, rng, outputs):
    """Another columns.json gives another cache; an interrupted run resumes to the same results."""
    folder = write(tmp_path, make_rows(rng), rating=False)
    whole = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, **SMALL)
    before = open_data(tmp_path).ordered
    assert open_data(tmp_path).ordered == before
    run = Path(whole["run_folder"])
    (run / "results.json").unlink()
    again = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, resume=True, **SMALL)
    assert again["test"] == whole["test"] and again["run_folder"] == str(run)
    content = json.loads((folder / "columns.json").read_text())
    content["missing"] = ["", "?"]
    (folder / "columns.json").write_text(json.dumps(content))
    assert open_data(tmp_path).ordered != before


def test_users_of_movielens(tmp_path, rng, outputs):
    """Lines that begin with a user; the best movies equal those found by scoring every candidate."""
    ratings = make_ratings(rng, users=20)
    write_1m(tmp_path / "ml", ratings)
    checkpoint = train(dataset="ml", data_root=str(tmp_path), max_epochs=1, batch_size=64, **SMALL)["checkpoint"]
    model, preprocessor = load(checkpoint)
    (tmp_path / "users").write_text("7\n9::3::5::978300760\n7\n")
    assert recommend(checkpoint, tmp_path / "users", 3, tmp_path / "top.csv")["users"] == 2
    expected = [("user", "movie")]
    for user in (7, 9):
        left = sorted(set(preprocessor.movie_ids.tolist()) - {row[1] for row in ratings if row[0] == user})
        text = "".join(f"{user}::{movie}\n" for movie in left)
        ((inputs, _),) = preprocessor.batches(io.BytesIO(text.encode()), "rows")
        scores = predict_batch(model, inputs)[:, 0].tolist()
        best = sorted(zip(left, scores, strict=True), key=lambda pair: -pair[1])[:3]
        expected += [(str(user), str(movie)) for movie, _ in best]
    assert [tuple(line.split(",")[:2]) for line in (tmp_path / "top.csv").read_text().splitlines()] == expected
    (tmp_path / "users").write_text("7\nseven\n")
    with pytest.raises(UserError, match="users, line 2: found 'seven', expected a user id"):
        recommend(checkpoint, tmp_path / "users", 3)
