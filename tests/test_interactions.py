"""Your own interactions: from a file to arrays, what an example sees, sampled negatives, scores and best items."""

import csv
import gzip
import io
import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from bst.train import DATA, train
from common.errors import UserError
from data.history.dataset import FIRST_ID, OOV, PADDING
from data.history.scoring import HistoryScorer
from data.movie_rating_seq import HistoryDataModule
from data.reader import Source
from models import load, predict_batch
from predict import predict
from recommend import recommend
from tests.movie_rows import make_ratings, write_1m

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


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    """Edit the columns of a columns.json."""
    content = json.loads((folder / "columns.json").read_text())
    edit(content["columns"])
    (folder / "columns.json").write_text(json.dumps(content))


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
    return ["(unseen)", "(none)", *(data.known["item"]["ids"][number] for number in data.encoder.items)]


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
    assert data.encoder.scale.range == [least, greatest]
    unit = (greatest - least) / 4
    values = [1 + (row[3] - least) / unit for row in rows]
    expected = dict(zip(texts, encoder.expected, strict=True))
    assert encoder.mean == pytest.approx(np.mean([values[n] for n in data.rows["train"]]), abs=1e-5)
    columns = data.read(range(len(rows)))
    names = data.known["user"]["ids"]
    for n, (items, history, residual, time_gap, ids, (dense,), (target,)) in enumerate(zip(*columns, strict=True)):
        (movie,) = items
        user, item, seconds, stars = rows[n]
        past = [i for i in range(n) if rows[i][0] == user]
        shown = past[-5:]
        empty = 5 - len(shown)
        assert texts[movie] == item or (movie == OOV and item not in texts)
        assert names[encoder.users[ids[0] - FIRST_ID]] == user
        assert history[:empty].tolist() == [PADDING] * empty and target == stars
        for i, place in zip(shown, range(empty, 5), strict=True):
            level = expected[texts[history[place]]]
            assert texts[history[place]] in (rows[i][1], "(unseen)")
            assert residual[place] == pytest.approx(values[i] - level, abs=1e-5)
            assert time_gap[place] == math.floor(2 * math.log2(1 + seconds - rows[i][2]))
        surplus = sum(values[i] - expected.get(rows[i][1], encoder.expected[OOV]) for i in past)
        bias = surplus / (5 + len(past))
        np.testing.assert_allclose(dense, [expected[texts[movie]] + bias, bias, math.log(1 + len(past))], atol=1e-5)


FORMS = {
    "ns": (lambda s: s * 10**9, "ns", "\t", "log.tsv.gz"),
    "zone": (lambda s: str(np.datetime64(s + 7200, "s")) + "+02:00", "date", ";", "log.csv"),
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
    elif name == "parts":
        (folder / name).mkdir()
        header, *lines = text.splitlines(keepends=True)
        (folder / name / "b.csv").write_text(header + "".join(lines[30:]))
        (folder / name / "a.csv").write_text(header + "".join(lines[:30]))
    change(folder, lambda columns: columns[WHEN].pop("unit"))  # taken from the first row, for all
    plain, other = open_data(tmp_path / "plain"), open_data(tmp_path / "other")
    for part in plain.rows:
        for a, b in zip(plain.read(plain.rows[part]), other.read(other.rows[part]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_fractions_of_a_second_order_rows(tmp_path):
    rows = [("u", f"i{n}", START * 1000 + n, 50 + n) for n in (5, 3, 1, 4, 2, 0)] + [("v", "i9", START * 1000, 90)]
    write(tmp_path, rows, unit="ms")
    data = open_data(tmp_path)
    assert np.load(data.events / "rating.npy").tolist() == [50, 51, 52, 53, 54, 55, 90]


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
    columns = {"user": {"role": "user"}, "movie": {"role": "item"}, "t": {"role": "time"}}
    genres = {"movie": {"role": "item"}, "genres": {"role": "categorical", "separator": "|"}}
    sex = {"user": {"role": "user"}} | {name: {"role": "categorical"} for name in ("sex", "age", "job")}
    content = {
        "file": "log.csv",
        "columns": columns | {"r": {"role": "rating", "click_from": 4}},
        "item_attributes": {"file": "movies.csv", "columns": genres},
        "user_attributes": {"file": "users.csv", "columns": sex},
    }
    (folder / "columns.json").write_text(json.dumps(content))
    for target in ("rating", "click"):
        official = open_data(tmp_path, dataset="ml", target=target)
        own = open_data(tmp_path, target=target)
        for part, numbers in official.rows.items():
            np.testing.assert_array_equal(numbers, own.rows[part])
            for a, b in zip(official.read(numbers), own.read(numbers), strict=True):
                np.testing.assert_array_equal(a, b)
        assert torch.equal(official.attribute_shares(), own.attribute_shares())
        assert official.encoder.user_cardinalities == own.encoder.user_cardinalities


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
    shares, texts = data.attribute_shares(), texts_of(data)
    names = data.encoder.attributes
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
    with pytest.raises(UserError, match=r"items.csv: column 'id' has \['Käse, 00'\] in several rows"):
        open_data(tmp_path)
    (folder / "items.csv").write_text(to_csv([table[0], ["x", "a", 1, "X"]]))
    with pytest.raises(UserError, match=r"items.csv: column 'id' has none of the \d+ ids of items"):
        open_data(tmp_path)


BAD_CELLS = [
    (STARS, "", r"log.csv, line 3, column stars \(0-100\): found '', expected a number in every row"),
    (USER, "", r"line 3, column Customer, №: found '', expected one id in every row"),
    (WHEN, "", "line 3, column bought at: found '', expected a time in every row"),
    (WHEN, "1600000000000", "found '1600000000000', expected s since 1970"),
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
    ({USER: {"role": "categorical"}, ITEM: {"role": "categorical"}}, 'takes one "file" of interactions'),
    ({"x": {"role": "label", "positive": ["1"]}}, "at most one rating or label"),
    ({STARS: {"role": "rating", "click_from": 200}}, '"click_from" is 200; it must be above'),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_entry_is_named(tmp_path, rng, changes, message):
    folder = write(tmp_path, make_rows(rng))
    change(folder, lambda columns: columns.update(changes))
    with pytest.raises(UserError, match=message):
        open_data(tmp_path)


def test_without_a_time_the_order_is_that_of_the_file(tmp_path, rng):
    rows = make_rows(rng)
    folder = write(tmp_path, rows)
    change(folder, lambda columns: columns.pop(WHEN))
    data = open_data(tmp_path)
    expected = sorted(rows, key=lambda row: row[0])  # stable
    assert np.load(data.events / "rating.npy").tolist() == [row[3] for row in expected]
    starts = [next(n for n, other in enumerate(expected) if other[0] == row[0]) for row in expected]
    assert np.load(data.events / "time.npy").tolist() == [n - start for n, start in enumerate(starts)]
    with pytest.raises(UserError, match="ranks within each user"):
        open_data(tmp_path, split="time")


def test_a_label_is_a_click(tmp_path, rng):
    """Like ratings of 0 and 1."""
    rows = make_rows(rng)
    folder = write(tmp_path, rows)
    label = {"role": "label", "positive": ["60", "70", "80", "90", "100"]}
    change(folder, lambda columns: columns.update({STARS: label}))
    data = open_data(tmp_path)
    assert data.target == "click" and data.encoder.scale.range == [0, 1]
    found = data.examples().targets(torch.arange(len(rows)))
    assert found.tolist() == [float(row[3] >= 60) for row in in_order(rows)]
    change(folder, lambda columns: columns[STARS].update(negative=[str(stars) for stars in range(0, 50, 10)]))
    line = next(n for n, row in enumerate(rows, 2) if row[3] == 50)
    with pytest.raises(UserError, match=rf"line {line}, .*: found '50', expected a value of the label in every row"):
        open_data(tmp_path)


def test_targets_that_the_data_cannot_have(tmp_path, rng):
    folder = write(tmp_path, make_rows(rng), rating=False)
    assert open_data(tmp_path).target == "item"
    with pytest.raises(UserError, match=r"'mine' has no ratings. Set target=\"item\""):
        open_data(tmp_path, target="rating")
    write(tmp_path, make_rows(rng))
    assert open_data(tmp_path).target == "rating"
    change(folder, lambda columns: columns[STARS].pop("click_from"))
    with pytest.raises(UserError, match="does not say which ratings are clicks"):
        open_data(tmp_path, target="click")


@pytest.mark.parametrize("rating", [True, False])
def test_whole_run_scores_and_best_items(tmp_path, rng, outputs, rating):
    """Scores of a file with reordered columns equal the test step's; the best items equal a double loop's."""
    rows = make_rows(rng)
    write(tmp_path, rows, rating=rating)
    results = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, **SMALL)
    assert set(results["test"]) >= ({"rmse"} if rating else {"ndcg"})
    data = open_data(tmp_path, negatives=4, seed=1)
    table = [["x", USER, WHEN, ITEM], *([f'"{n}"', u, t, i] for n, (u, i, t, _) in enumerate(rows))]
    if rating:
        table = [[*cells, stars] for cells, stars in zip(table, [STARS, *(row[3] for row in rows)], strict=True)]
    (tmp_path / "new.csv").write_text(to_csv(table))
    checkpoint = results["checkpoint"]
    metrics = predict(checkpoint, tmp_path / "new.csv", tmp_path / "out.csv")["metrics"]
    found = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    name = "rating" if rating else "score"
    assert found[0] == ["x", name] and [line[0] for line in found[1:]] == [f'"{n}"' for n in range(len(rows))]
    assert bool(metrics) == rating
    model, scorer = load(checkpoint)
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
                ((one, _, _),) = scorer.batches(source(row))
                scored.append((float(predict_batch(model, one)), text))
        expected += [(user, text, value) for value, text in sorted(scored, key=lambda pair: -pair[0])[:4]]
    assert [tuple(line[:2]) for line in top[1:]] == [line[:2] for line in expected]
    np.testing.assert_allclose([float(line[2]) for line in top[1:]], [line[2] for line in expected], rtol=1e-4)


def source(text: str) -> Source:
    return Source("rows", lambda: nullcontext(io.BytesIO(text.encode())))


def make_state(tmp_path: Path, rng, **form) -> tuple[dict, list[Row]]:
    rows = in_order(make_rows(rng))
    write(tmp_path, rows, **form)
    return open_data(tmp_path).state_dict(), rows


def encode(scorer: HistoryScorer, table: list[list]) -> list[torch.Tensor]:
    batches = list(scorer.batches(source(to_csv(table))))
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
    scorer = HistoryScorer(state)
    expected = encode(HistoryScorer(state), known)
    scorer.history_from_file = True
    monkeypatch.setattr("data.history.scoring.PART_ROWS", 3)  # a user's rows are in several blocks
    found = encode(scorer, new[:3] + other + new[3:])
    keep = [n for n in range(len(own) + 1) if n != 2]
    for i in (0, 1, 2, 3, 5):
        torch.testing.assert_close(found[i][keep], expected[i], rtol=0, atol=1e-5)
    assert (found[4] == OOV).all() and (found[1][2] == PADDING).all()
    blind = encode(HistoryScorer(state), new)
    assert (blind[1] == PADDING).all()
    if rating:  # a row without a rating does not enter the history
        lines = [new[0], *([*line[:4], ""] for line in new[1:])]
        scorer = HistoryScorer(state)
        scorer.history_from_file = True
        assert (encode(scorer, lines)[1] == PADDING).all()


def test_best_items_of_a_new_user_follow_its_history(tmp_path, rng):
    state, rows = make_state(tmp_path, rng)
    user = rows[20][0]
    own = [row for row in rows if row[0] == user]
    scorer = HistoryScorer(state)
    scorer.history_from_file = True
    header = ["x", USER, ITEM, WHEN, STARS]
    table = [header, *(["", "newcomer", item, seconds, stars] for _, item, seconds, stars in own)]
    ((newcomer, _), *_) = scorer.users_of(source(to_csv(table)))
    candidates, found = scorer.user_inputs(newcomer)
    texts = [scorer.item_text(number) for number in candidates]
    assert not {item for _, item, _, _ in own} & set(texts)
    assert {*texts, *(item for _, item, _, _ in own)} >= set(scorer.values_of(ITEM))
    again, known = scorer.user_inputs(user)
    assert again.tolist() == candidates.tolist() == found[0][0].tolist()
    for i in (0, 1, 2, 3, 5):
        torch.testing.assert_close(found[i], known[i], rtol=0, atol=1e-5)


def test_an_interrupted_run_resumes_to_the_same_results(tmp_path, rng, outputs):
    write(tmp_path, make_rows(rng), rating=False)
    whole = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, **SMALL)
    run = Path(whole["run_folder"])
    (run / "results.json").unlink()
    again = train(dataset="mine", data_root=str(tmp_path), max_epochs=1, batch_size=64, resume=True, **SMALL)
    assert again["test"] == whole["test"] and again["run_folder"] == str(run)


@pytest.mark.parametrize("rating", [True, False])
def test_lists_are_measured_as_the_test_rows_are(tmp_path, rng, outputs, rating):
    """As of each user's held-out rows, and with a file of what users did next."""
    rows = make_rows(rng, items=30)
    write(tmp_path, rows, rating=rating)
    settings = SMALL | {"max_epochs": 1, "batch_size": 64, "target": "item"}
    results = train(dataset="mine", data_root=str(tmp_path), **settings)
    checkpoint, users = results["checkpoint"], sorted({row[0] for row in rows})
    (tmp_path / "users.csv").write_text(to_csv([[USER], *([user] for user in users)]))
    for until in ("test", "validation"):
        found = recommend(checkpoint, tmp_path / "users.csv", 3, tmp_path / f"{until}.csv", until=until)
        assert found["measured"] == len(users) and found["metrics"] == pytest.approx(results[until], abs=1e-6)
    assert recommend(checkpoint, tmp_path / "users.csv", 3, tmp_path / "top.csv")["metrics"] is None

    top = list(csv.reader(io.StringIO((tmp_path / "top.csv").read_text())))[1:]
    following = [(users[0], top[1][1]), (users[1], top[3][1]), (users[1], "an item that is new")]
    (tmp_path / "next.csv").write_text(to_csv([[USER, ITEM], *following]))
    found = recommend(checkpoint, tmp_path / "next.csv", 3, tmp_path / "again.csv")
    assert found["measured"] == 2 and (tmp_path / "again.csv").read_text() in (tmp_path / "top.csv").read_text()
    assert found["metrics"]["hr"] == 0.75 and found["metrics"]["mrr"] == pytest.approx((1 / 2 + (1 + 0) / 2) / 2)
    assert found["metrics"]["ndcg"] == pytest.approx((1 / math.log2(3) + (1 + 0) / 2) / 2)
    with pytest.raises(UserError, match="until is 'val'; it must be None, 'validation' or 'test'"):
        recommend(checkpoint, tmp_path / "next.csv", 3, until="val")
