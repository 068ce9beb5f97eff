"""Your own table: from a file with awkward names, quotes, missing values and lists in cells to batches."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from data.census_income import DESCRIPTIONS, MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.reader import source_of
from data.table.encoder import EMPTY, MISSING, OOV
from data.table.scoring import TableScorer
from deepfm.train import DATA
from multitask.train import DATA as MULTITASK
from multitask.train import train as train_multitask

ROWS = 400
USER, PRICE = 'user, "id"', "price €"


@pytest.fixture
def frame(rng) -> pd.DataFrame:
    genres = np.array(["Action", "Drama", "Sci-Fi", "Kids, & co"])
    price = np.where(rng.random(ROWS) < 0.1, np.nan, rng.normal(0, 50, ROWS).round(2))
    return pd.DataFrame(
        {
            "row": [f"r{i:05d}" for i in range(ROWS)],
            "clicked": rng.integers(0, 2, ROWS),
            "bought": rng.choice(["yes", "no"], ROWS),
            USER: [f"user-number-{k}" for k in rng.integers(0, 20, ROWS)],
            PRICE: price,
            "genres": ["|".join(rng.choice(genres, rng.integers(1, 4), replace=False)) for _ in range(ROWS)],
            "when": pd.date_range("2024-01-01", periods=ROWS, freq="min")[rng.permutation(ROWS)],
            "comment": [f'he said "hm {i}",\nand went on' for i in range(ROWS)],
            "code": rng.choice(["007", "08", "9x"], ROWS),
            "age": rng.choice([18.0, 25.0, np.nan, 39.0], ROWS),
        }
    )


COLUMNS = {
    "row": {"role": "kept"},
    "clicked": {"role": "label", "positive": ["1"], "negative": ["0"]},
    "bought": {"role": "excluded"},
    USER: {"role": "categorical"},
    PRICE: {"role": "dense", "transform": "log+missing"},
    "genres": {"role": "categorical", "separator": "|", "pooling": "mean"},
    "when": {"role": "time"},
    "comment": {"role": "excluded"},
    "code": {"role": "categorical", "hash_size": 50},
    "age": {"role": "categorical", "type": "number", "min_count": 1},
}


def write(root: Path, frame: pd.DataFrame, columns: dict = COLUMNS, name: str = "clicks.csv", **entries) -> Path:
    folder = root / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        frame.to_parquet(folder / name)
    else:
        text = frame.to_csv(index=False, sep="\t" if ".tsv" in name else ",").encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    content = {"file": name} | ({"separator": "\t"} if ".tsv" in name else {}) | entries | {"columns": columns}
    (folder / "columns.json").write_text(json.dumps(content))
    return folder / name


def open_data(root: Path, **settings) -> ClickDataModule:
    data = ClickDataModule(
        **{"seed": 0} | DATA | {"dataset": "mine", "data_root": str(root), "batch_size": 64} | settings
    )
    data.setup()
    return data


def everything(data) -> list[np.ndarray]:
    return data.read(np.arange(sum(len(rows) for rows in data.rows.values())))


def check_equal(one: list, other: list) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_table_becomes_what_it_should(tmp_path, frame):
    write(tmp_path, frame)
    data = open_data(tmp_path)
    dense, ids, label = everything(data)
    assert label.tolist() == frame["clicked"].tolist()
    order = np.argsort(frame["when"].to_numpy(), kind="stable")
    assert np.concatenate([data.rows[part] for part in ("train", "val", "test")]).tolist() == order.tolist()
    train = data.rows["train"]
    price = frame[PRICE].to_numpy()
    logs = np.sign(price) * np.log1p(np.abs(price))
    scaled = np.nan_to_num((logs - np.nanmean(logs[train])) / np.nanstd(logs[train]))
    np.testing.assert_allclose(dense, np.stack([scaled, np.isnan(price)], 1), rtol=1e-5, atol=1e-7)
    assert data.num_dense == 2 and data.pooling == [None, "mean", None, None]

    counts = frame[USER][train].value_counts()
    known = sorted(text for text, count in counts.items() if count >= 2)
    assert ids[:, 0].tolist() == [known.index(text) + 2 if text in known else OOV for text in frame[USER]]
    genres = sorted({genre for cell in frame["genres"][train] for genre in cell.split("|")})
    cells = [[genres.index(genre) + 2 for genre in cell.split("|")] for cell in frame["genres"]]
    assert ids[:, 1:4].tolist() == [cell + [EMPTY] * (3 - len(cell)) for cell in cells]
    assert data.cardinalities[2] == 52 and len(np.unique(ids[:, 4])) == 3 and ids[:, 4].min() >= 2
    expected = [MISSING if age != age else [18, 25, 39].index(age) + 2 for age in frame["age"]]
    assert ids[:, 5].tolist() == expected


FORMS = ["clicks.csv.gz", "clicks.tsv", "clicks.parquet", "crlf.csv", "parts", "small blocks"]


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_give_the_same(tmp_path, frame, form, monkeypatch):
    write(tmp_path / "csv", frame)
    one, changed = everything(open_data(tmp_path / "csv")), frame
    if form == "clicks.parquet":
        changed = frame.assign(genres=frame["genres"].str.split("|"), age=frame["age"].astype("Int64"))
        changed["clicked"] = changed["clicked"].astype(float)
    entries = {"file": "parts"} if form == "parts" else {}
    path = write(tmp_path / "other", changed, name=form if "." in form else "clicks.csv", **entries)
    if form == "crlf.csv":
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").replace(b",\r\nand", b",\nand"))
    elif form == "parts":  # in another order of columns
        (path.parent / "parts").mkdir()
        frame[:150].to_csv(path.parent / "parts" / "a.csv", index=False)
        frame[150:].iloc[:, ::-1].to_csv(path.parent / "parts" / "b.csv", index=False)
    elif form == "small blocks":
        monkeypatch.setattr("data.text.BLOCK_BYTES", 200)
    check_equal(one, everything(open_data(tmp_path / "other")))


def test_splits_by_column_and_by_files(tmp_path, frame):
    part = np.array(["a", "b", "c"])[np.arange(ROWS) % 3]
    split = {"column": "part", "train": ["a"], "val": ["b"], "test": ["c"]}
    columns = COLUMNS | {"part": {"role": "excluded"}}
    write(tmp_path / "column", frame.assign(part=part), columns, split=split)
    data = open_data(tmp_path / "column")
    assert all(
        (part[data.rows[name]] == text).all() for name, text in zip(("train", "val", "test"), "abc", strict=True)
    )
    assert data.protocol == "split by column 'part'"
    path = write(tmp_path / "files", frame)
    files = {"train": "clicks.csv", "test": "other.csv"}
    (path.parent / "other.csv").write_bytes(path.read_bytes())
    (path.parent / "columns.json").write_text(json.dumps({"files": files, "columns": COLUMNS}))
    assert [len(rows) for rows in open_data(tmp_path / "files").rows.values()] == [ROWS, ROWS // 2, ROWS // 2]


def test_two_labels_train_together(tmp_path, frame):
    columns = COLUMNS | {"bought": {"role": "label", "positive": ["yes"], "task": "purchase"}}
    columns["genres"] = {"role": "excluded"}
    write(tmp_path, frame, columns)
    settings = MULTITASK | small_data(tmp_path, ("purchase", "clicked")) | {"seed": 0}
    data = MultiTaskDataModule(**settings)
    data.setup()
    dense, ids, label = everything(data)
    assert label.tolist() == np.stack([frame["bought"] == "yes", frame["clicked"]], 1).astype(float).tolist()
    np.testing.assert_array_equal(dense[:, 0], frame[PRICE].to_numpy(np.float32))
    assert ids.shape == (ROWS, 4) and len(data.bin_edges) == 1  # the price is a category too
    with pytest.raises(UserError, match=r"found 2 labels .clicked, purchase., but DeepFM and DLRM take one"):
        open_data(tmp_path)


def scored(scorer: TableScorer, content: str | bytes | pd.DataFrame, folder: Path) -> list:
    """Inputs, labels and kept texts of a file."""
    path = folder / ("rows.parquet" if isinstance(content, pd.DataFrame) else "rows.csv")
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ((inputs, label, kept),) = scorer.batches(source_of(path))
    return [*(part.numpy() for part in inputs), label.numpy(), kept]


def test_a_checkpoint_scores_other_orders_of_columns_without_labels(tmp_path, frame):
    path = write(tmp_path, frame)
    data = open_data(tmp_path)
    dense, ids, _ = everything(data)
    scorer = TableScorer(data.state_dict())
    assert scorer.columns == ("probability",)
    shuffled = frame.drop(columns=["clicked", "when", "bought"]).iloc[:, ::-1].assign(more=1)
    shuffled["age"] = shuffled["age"].map("{:.1f}".format).replace("nan", "")
    lists = shuffled.assign(age=frame["age"], genres=frame["genres"].str.split("|"))
    for content, labelled in ((path.read_bytes(), True), (shuffled.to_csv(index=False), False), (lists, False)):
        dense_scored, ids_scored, label, kept = scored(scorer, content, tmp_path)
        np.testing.assert_array_equal(dense_scored, dense)
        np.testing.assert_array_equal(ids_scored, ids)
        assert kept == [frame["row"].tolist()]
        assert (label[:, 0] == frame["clicked"]).all() if labelled else np.isnan(label).all()
    other = frame.assign(**{USER: "x" + frame[USER]}).to_csv(index=False)
    scored(scorer, other, tmp_path)
    assert scorer.nearly_unseen() == []  # a fourth of what was scored
    fresh = TableScorer(data.state_dict())
    scored(fresh, other, tmp_path)
    assert fresh.nearly_unseen() == [USER] and fresh.unseen[USER] == ROWS
    with pytest.raises(
        UserError, match=r"rows.parquet, column code: found list.* in a cell, expected string as before"
    ):
        scored(fresh, lists.assign(code=lists["genres"]), tmp_path)


def test_ids_of_any_length_stay_distinct(tmp_path, rng):
    """In text and Parquet, as texts and as numbers; so do leading zeros of texts."""
    numbers = 9_007_199_254_740_992_000 + rng.permutation(np.arange(ROWS) % 40)
    frame = pd.DataFrame({"y": rng.integers(0, 2, ROWS), "id": numbers, "zip": [f"{n % 50:05d}" for n in numbers]})
    found = []
    for i, (name, kind) in enumerate((n, k) for n in ("a.csv", "a.parquet") for k in ("text", "number")):
        columns = {"y": {"role": "label", "positive": ["1"]}, "id": {"role": "categorical", "type": kind}}
        write(tmp_path / str(i), frame, columns | {"zip": {"role": "categorical"}}, name)
        data = open_data(tmp_path / str(i), min_count=1, split="random")
        found.append(everything(data)[1].tolist())
        texts = [set(field.vocabulary.to_pylist()) for field in data.encoder.fields]
        assert texts == [set(frame["id"][data.rows["train"]].astype(str)), set(frame["zip"][data.rows["train"]])]
    assert len(set(map(str, found))) == 1


def test_the_order_of_values_in_a_longer_cell_makes_no_difference(tmp_path, frame):
    write(tmp_path, frame)
    scorer = TableScorer(open_data(tmp_path).state_dict())
    orders = ["Drama|Sci-Fi|Action|new|Drama", "new|Drama|Action|Drama|Sci-Fi"]
    rows = pd.concat([frame[:1].assign(genres=cell) for cell in orders])
    _, ids, *_ = scored(scorer, rows.to_csv(index=False), tmp_path)
    assert ids.shape[1] == 3 + 5 and sorted(ids[0]) == sorted(ids[1]) and (ids >= 0).all()


def test_rows_without_a_label_are_left_out_and_counted(tmp_path, frame, capsys):
    """With one label; the others are the same rows as without them, with weights and kept columns too."""
    columns = COLUMNS | {"price €": {"role": "weight"}, "when": {"role": "excluded"}}
    frame[PRICE] = frame[PRICE].abs().fillna(1)
    known = np.arange(ROWS) % 3 > 0
    write(tmp_path / "all", frame.assign(clicked=frame["clicked"].where(known)), columns)
    write(tmp_path / "known", frame[known], columns)
    one, other = (
        open_data(tmp_path / name, split="random", weighted=True, negative_rate=0.5) for name in ("all", "known")
    )
    assert f"{ROWS - known.sum()} rows have no label; they are left out" in capsys.readouterr().out
    assert one.base_logits == other.base_logits
    for part in ("train", "val", "test"):
        rows = one.rows[part]
        assert (np.cumsum(known) - 1)[rows].tolist() == other.rows[part].tolist() and known[rows].all()
        check_equal(one.read(rows), other.read(other.rows[part]))
        assert one.kept(part) == other.kept(part)
    check_equal(*([batch[2][1] for batch in data.train_dataloader()] for data in (one, other)))  # weights


@pytest.mark.usefixtures("undrawn")
def test_a_label_that_is_not_always_known(tmp_path, frame, capsys):
    """Like conversions, known for clicks alone: one task trains as on the known rows, two on what is known of each."""
    columns = {USER: COLUMNS[USER], "code": {"role": "categorical"}, "clicked": COLUMNS["clicked"]}
    columns |= {"bought": {"role": "label", "positive": ["yes"], "negative": ["no"]}}
    clicked, excluded = frame["clicked"] == 1, columns | {"clicked": {"role": "excluded"}}
    write(tmp_path / "all", frame.assign(bought=frame["bought"].where(clicked)), columns)
    write(tmp_path / "one", frame.assign(bought=frame["bought"].where(clicked)), excluded)
    write(tmp_path / "clicks", frame[clicked], excluded)
    small = {"dataset": "mine", "batch_size": 32, "max_epochs": 2, "num_experts": 2, "expert_units": (8,)}
    single = small | {"tasks": ("bought",), "task_weights": (1.0,)}
    one, other = (train_multitask(data_root=str(tmp_path / name), **single) for name in ("one", "clicks"))
    assert one["rows"] == other["rows"] and one["test"] == other["test"] and one["baselines"] == other["baselines"]
    both = train_multitask(data_root=str(tmp_path / "all"), **small, tasks=("bought", "clicked"))
    assert sum(both["rows"].values()) == ROWS and all(np.isfinite(list(both["test"].values())))
    data, bought = (
        MultiTaskDataModule(**MULTITASK | small_data(tmp_path / "all", tasks), seed=0)
        for tasks in (("bought", "clicked"), ("bought",))
    )
    bought.setup()
    assert f"{(~clicked).sum()} rows have no label; they are left out" in capsys.readouterr().out
    assert sum(map(len, bought.rows.values())) == clicked.sum() and not bought.targets("test").isnan().any()
    data.setup()
    rows = data.rows["train"]
    share = (frame["bought"][rows][clicked[rows]] == "yes").mean()
    assert data.base_logits[0] == pytest.approx(np.log(share / (1 - share)))
    assert np.isnan(data.targets("test")[:, 0].numpy()).tolist() == (~clicked[data.rows["test"]]).tolist()


def small_data(root: Path, tasks: tuple[str, ...]) -> dict:
    return {"dataset": "mine", "data_root": str(root), "tasks": tasks, "batch_size": 32}


def test_settings_that_change_arrays_have_entries_of_their_own(tmp_path, frame):
    columns, folders = COLUMNS | {PRICE: {"role": "dense"}}, set()
    write(tmp_path, frame, columns)
    transforms = ["log+missing", "log", "log+quantile", "clamped_log", "bucket", "quantile"]
    for number, transform in enumerate(transforms, 1):
        data = open_data(tmp_path, dense_transform=transform)
        folders.add(data.folder)
        assert len(folders) == number and all(np.isfinite(array).all() for array in everything(data)), transform
    write(tmp_path, frame, columns | {"code": {"role": "categorical"}})  # the same file, another column
    assert open_data(tmp_path, dense_transform=transform).folder not in folders


@pytest.mark.parametrize(("columns", "entries", "message"), [
    ({"gone": {"role": "dense"}}, {}, r"clicks.csv has no column 'gone'; it has \['row'"),
    ({"code": {"role": "dense"}}, {}, r"clicks.csv, line 2, column code: found '.*', expected a number"),
    ({"clicked": {"role": "label", "positive": ["2"], "negative": ["0"]}}, {}, "column clicked: found '1', exp"),
    ({}, {"separator": "\t"}, r"has no column 'row'; .* Is the separator right"),
    ({}, {"file": "away.csv"}, "has no away.csv; it has clicks.csv, columns.json"),
    ({}, {"file": "~no-such-user"}, "has no ~no-such-user"),
    ({"part": {"role": "excluded"}}, {"split": {"column": "part", "train": ["a"], "val": ["b"], "test": ["x"]}},
     "columns.json, column part: found 'c' in row 3, which \"split\" lacks: 'a', 'b', 'x'"),
])  # fmt: skip
def test_what_does_not_fit_the_file_is_named(tmp_path, frame, columns, entries, message):
    write(tmp_path, frame.assign(part=np.array(["a", "b", "c"])[np.arange(ROWS) % 3]), COLUMNS | columns, **entries)
    with pytest.raises(UserError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize(("values", "positive", "expected"), [
    (["1.0", "0.0"], "1", [1, 0]), (["True", "FALSE"], "true", [1, 0]), (["2", "1"], "2", [1, 0]),
    (["yes ", "NO"], "Yes", [1, 0]), (["1", "-1"], "1", [1, 0]), ([True, False], "True", [1, 0]),
    ([1.0, 0.0], "1", [1, 0]),
])  # fmt: skip
def test_labels_in_all_forms(tmp_path, values, positive, expected):
    frame = pd.DataFrame({"y": values * 20, "a": ["x"] * 40})
    columns = {"y": {"role": "label", "positive": [positive]}, "a": {"role": "categorical"}}
    write(tmp_path, frame, columns, "a.csv" if isinstance(values[0], str) else "a.parquet")
    assert everything(open_data(tmp_path))[2].tolist() == expected * 20


def test_second_files_are_joined_in(tmp_path, rng):
    """By the text of the id, whatever the format of the files; an id without a row is missing."""
    frame = pd.DataFrame(
        {"y": rng.integers(0, 2, 60), "u": rng.integers(0, 5, 60), "i": 10**18 + rng.integers(0, 7, 60)}
    )
    columns = {"y": {"role": "label", "positive": ["1"]}, "u": {"role": "user"}, "i": {"role": "item"}}
    items = {"i": {"role": "item"}, "price": {"role": "dense"}, "tags": {"role": "categorical", "separator": "|"}}
    users = {"u": {"role": "user"}, "age": {"role": "categorical", "type": "number"}}
    second = {
        "item_attributes": {"file": "items.csv", "columns": items},
        "user_attributes": {"file": "u.parquet", "columns": users},
    }
    path = write(tmp_path, frame, columns, **second)
    lines = [f"{10**18 + k},{k}.5,{'t|s' if k % 2 else ''}\n" for k in range(6)]
    (path.parent / "items.csv").write_text("i,price,tags\n" + "".join(lines))
    pd.DataFrame({"age": [10.0 * k for k in range(5)], "u": range(5)}).to_parquet(path.parent / "u.parquet")
    data = open_data(tmp_path, min_count=1, dense_transform="log+missing", split="random")
    assert [field.name for field in data.encoder.fields] == ["u", "i", "age", "tags"]
    dense, ids, _ = everything(data)
    item = frame["i"] - 10**18
    assert dense[:, 1].tolist() == (item == 6).astype(float).tolist() and np.unique(dense[:, 0][item < 6]).size == 6
    ages = data.encoder.fields[2].vocabulary.to_pylist()
    assert [ages[i - 2] for i in ids[:, 2]] == [str(10 * u) for u in frame["u"]]
    expected = [[MISSING, EMPTY] if k % 2 == 0 or k == 6 else [3, 2] for k in item]
    assert ids[:, 3:].tolist() == expected
    row = scored(TableScorer(data.state_dict()), "i,u\n1000000000000000003,4\n", tmp_path)
    known = frame.index[(item == 3) & (frame["u"] == 4)]
    assert not len(known) or row[1].tolist() == [ids[known[0]].tolist()]
    (path.parent / "items.csv").write_text("i,price,tags\n" + "".join([*lines, lines[2]]))
    with pytest.raises(UserError, match=r"items.csv: column 'i' has \['1000000000000000002'\] in several rows"):
        open_data(tmp_path)


@pytest.mark.real_data("census-income-kdd")
@pytest.mark.parametrize("dataset", ["census-income-kdd", "adult"])
def test_real_sets_as_plain_csv_give_the_same_arrays(tmp_path, dataset):
    settings = MULTITASK | {"tasks": ("income", "never_married"), "seed": 0}
    official = MultiTaskDataModule(**settings | {"dataset": dataset})
    official.setup()
    description, files = DESCRIPTIONS[dataset], {}
    (tmp_path / "mine").mkdir()
    for part, source in official.table.files.items():
        options = {"sep": ",", "skipinitialspace": True, "header": None, "names": list(description.columns)}
        table = pd.read_csv(source, keep_default_na=False, comment="|", dtype=str, **options)
        files[part] = f"{part}.csv"
        table.apply(lambda column: column.str.strip()).to_csv(tmp_path / "mine" / files[part], index=False)
    content = {"files": files, "missing": ["?"], "columns": description.model_dump(mode="json")["columns"]}
    (tmp_path / "mine" / "columns.json").write_text(json.dumps(content))
    own = MultiTaskDataModule(**settings | {"dataset": "mine", "data_root": str(tmp_path)})
    own.setup()
    for part, rows in official.rows.items():
        assert rows.tolist() == own.rows[part].tolist()
    check_equal(everything(official), everything(own))
    assert official.bin_edges == own.bin_edges and official.cardinalities == own.cardinalities
