"""Your own table: from a file with awkward names, quotes, missing values and lists in cells to batches."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data.table_categories import EMPTY_SLOT, MISSING, OOV
from data.table_encoder import signed_log_dense
from data.table_guess import guess_table
from data.table_preprocessor import TablePreprocessor

from common.errors import UserError
from data.census_income import MultiTaskDataModule
from data.criteo_data import ClickDataModule
from deepfm.train import DATA
from multitask.train import DATA as MULTITASK

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
    PRICE: {"role": "dense", "transform": "signed_log+missing"},
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
    data = ClickDataModule(**{"seed": 0} | DATA | {"dataset": "mine", "data_root": str(root)} | settings)
    data.setup()
    return data


def everything(data) -> list[np.ndarray]:
    return data.read(np.arange(sum(len(rows) for rows in data.rows.values())))


def test_a_table_becomes_what_it_should(tmp_path, frame):
    write(tmp_path, frame)
    data = open_data(tmp_path)
    dense, ids, label = everything(data)
    assert label.tolist() == frame["clicked"].tolist()
    order = np.argsort(frame["when"].to_numpy(), kind="stable")
    assert np.concatenate([data.rows[part] for part in ("train", "val", "test")]).tolist() == order.tolist()
    train = data.rows["train"]
    price = frame[PRICE].to_numpy()
    scaled = signed_log_dense(price) / signed_log_dense(price[train]).std(dtype=np.float64)
    np.testing.assert_allclose(dense, np.stack([scaled, np.isnan(price)], 1), rtol=1e-6)
    assert data.num_dense == 2 and data.slots == [1, 3, 1, 1] and data.pooling == [None, "mean", None, None]

    counts = frame[USER][train].value_counts()
    known = sorted(text for text, count in counts.items() if count >= 2)
    assert ids[:, 0].tolist() == [known.index(text) + 2 if text in known else OOV for text in frame[USER]]
    genres = sorted({genre for cell in frame["genres"][train] for genre in cell.split("|")})
    cells = [[genres.index(genre) + 2 for genre in cell.split("|")] for cell in frame["genres"]]
    assert ids[:, 1:4].tolist() == [cell + [EMPTY_SLOT] * (3 - len(cell)) for cell in cells]
    assert data.cardinalities[2] == 52 and len(np.unique(ids[:, 4])) == 3 and ids[:, 4].min() >= 2
    expected = [MISSING if age != age else [18, 25, 39].index(age) + 2 for age in frame["age"]]
    assert ids[:, 5].tolist() == expected


@pytest.mark.parametrize("name", ["clicks.csv.gz", "clicks.tsv", "clicks.parquet", "crlf.csv"])
def test_other_formats_give_the_same(tmp_path, frame, name):
    write(tmp_path / "csv", frame)
    if name.endswith(".parquet"):
        frame = frame.assign(genres=frame["genres"].str.split("|"), age=frame["age"].astype("Int64"))
    path = write(tmp_path / "other", frame, name=name)
    if name == "crlf.csv":
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").replace(b",\r\nand", b",\nand"))
    for a, b in zip(everything(open_data(tmp_path / "csv")), everything(open_data(tmp_path / "other")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_of_parts_in_any_order_of_columns(tmp_path, frame):
    write(tmp_path / "one", frame)
    write(tmp_path / "many", frame, file="parts")
    parts = tmp_path / "many" / "mine" / "parts"
    parts.mkdir()
    frame[:150].to_csv(parts / "a.csv", index=False)
    frame[150:].iloc[:, ::-1].to_csv(parts / "b.csv", index=False)
    for a, b in zip(everything(open_data(tmp_path / "one")), everything(open_data(tmp_path / "many")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_small_blocks_make_no_difference(tmp_path, frame, monkeypatch):
    write(tmp_path / "one", frame)
    write(tmp_path / "two", frame)
    one = everything(open_data(tmp_path / "one"))
    monkeypatch.setattr("data.table_reader.BLOCK_BYTES", 200)
    for a, b in zip(one, everything(open_data(tmp_path / "two")), strict=True):
        np.testing.assert_array_equal(a, b)


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
    settings = MULTITASK | {"dataset": "mine", "data_root": str(tmp_path), "tasks": ("purchase", "clicked"), "seed": 0}
    data = MultiTaskDataModule(**settings)
    data.setup()
    dense, ids, label = everything(data)
    assert label.tolist() == np.stack([frame["bought"] == "yes", frame["clicked"]], 1).astype(float).tolist()
    np.testing.assert_array_equal(dense[:, 0], frame[PRICE].to_numpy(np.float32))
    assert ids.shape == (ROWS, 4) and len(data.bin_edges) == 1  # the price is a category too
    with pytest.raises(UserError, match=r"found 2 labels .clicked, purchase., but DeepFM and DLRM take one"):
        open_data(tmp_path)


def test_a_checkpoint_scores_other_orders_of_columns_without_labels(tmp_path, frame):
    path = write(tmp_path, frame)
    data = open_data(tmp_path)
    dense, ids, _ = everything(data)
    preprocessor = TablePreprocessor(data.state_dict())
    assert preprocessor.columns == ("probability",)
    shuffled = frame.drop(columns=["clicked", "when", "bought"]).iloc[:, ::-1].assign(more=1)
    shuffled["age"] = shuffled["age"].map("{:.1f}".format).replace("nan", "")
    for content, labelled in ((path.read_bytes(), True), (shuffled.to_csv(index=False).encode(), False)):
        ((inputs, label, kept),) = preprocessor.batches(io.BytesIO(content), "raw")
        np.testing.assert_array_equal(inputs[0].numpy(), dense)
        np.testing.assert_array_equal(inputs[1].numpy(), ids)
        assert kept == [frame["row"].tolist()]
        assert (label[:, 0].numpy() == frame["clicked"]).all() if labelled else label.isnan().all()
    other = frame.assign(**{USER: "x" + frame[USER]})
    list(preprocessor.batches(io.BytesIO(other.to_csv(index=False).encode()), "raw"))
    assert preprocessor.nearly_unseen() == []  # a third of what was scored
    fresh = TablePreprocessor(data.state_dict())
    list(fresh.batches(io.BytesIO(other.to_csv(index=False).encode()), "raw"))
    assert fresh.nearly_unseen() == [USER] and fresh.unseen[USER] == ROWS


def test_metadata_writes_numbers_as_they_are(tmp_path, frame):
    columns = COLUMNS | {PRICE: {"role": "dense", "transform": "bucket"}}
    write(tmp_path, frame, columns)
    metadata = TablePreprocessor(open_data(tmp_path, min_count=1).state_dict()).metadata()
    assert "-1" in metadata["vocabularies"][PRICE] and json.loads(json.dumps(metadata)) == metadata
    assert all(-1000 < float(text) < 1000 for text in metadata["vocabularies"][PRICE])


@pytest.mark.parametrize("transform", ["log", "log+missing", "signed_log", "bucket", "quantile"])
def test_two_settings_that_change_arrays_have_two_entries(tmp_path, frame, transform):
    columns = COLUMNS | {PRICE: {"role": "dense"}}
    write(tmp_path, frame, columns)
    one = open_data(tmp_path, dense_transform="signed_log+missing")
    other = open_data(tmp_path, dense_transform=transform)
    assert one.folder != other.folder and all(np.isfinite(array).all() for array in everything(other))
    write(tmp_path, frame, columns | {"code": {"role": "categorical"}})  # the same file, another column
    assert open_data(tmp_path, dense_transform=transform).folder != other.folder


WRONG = [
    ({"columns": {"clicked": {"role": "labl"}}}, 'columns.json, column \'clicked\': its "role" must be one of "label"'),
    ({"columns": {"clicked": {"role": "label"}}}, "column 'clicked': a label needs \"positive\""),
    ({"columns": COLUMNS | {PRICE: {"role": "dense", "transform": "lg"}}}, "'price €': 'transform' is \"lg\""),
    ({"columns": COLUMNS | {PRICE: {"role": "dense", "scale": 1}}}, "'price €': 'scale' is not an entry of a column"),
    ({"columns": COLUMNS | {"gone": {"role": "dense"}}}, r"clicks.csv: line 1 names no column 'gone'; it has 'row'"),
    ({"columns": COLUMNS | {"code": {"role": "dense"}}}, "clicks.csv, line 2, column code: found '.*', expected a num"),
    ({"columns": COLUMNS | {"clicked": {"role": "label", "positive": ["2"], "negative": ["0"]}}}, "column clicked: f"),
    ({"columns": COLUMNS, "separator": "\t"}, r"line 1 names no column 'row', .* Is the separator right"),
    ({"columns": COLUMNS, "file": "away.csv"}, r"there is no file .*away.csv; .* has clicks.csv, columns.json"),
    ({"columns": COLUMNS, "split": {"by": "luck"}}, "'split' is"),
    ({"columns": COLUMNS, "split": {"column": "x", "train": ["a"], "val": ["b"], "test": ["c"]}}, "'x', which is no"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_wrong_entry_is_named(tmp_path, frame, change, message):
    path = write(tmp_path, frame)
    (path.parent / "columns.json").write_text(json.dumps({"file": "clicks.csv"} | change))
    with pytest.raises(UserError, match=message):
        open_data(tmp_path)


def test_a_file_that_is_no_table_is_named(tmp_path, frame):
    path = write(tmp_path, frame)
    text = path.read_text()
    for content, message in (
        (text.replace("r00007", '"r00007'), r"clicks.csv, line \d+: found"),
        (text.encode("utf-16"), "clicks.csv, line 1: found"),
        (b"PAR1" + b"x" * 100, "the Parquet file is truncated or damaged"),
        (text.partition("\n")[0] + "\n", "clicks.csv is empty"),
        (text.replace(PRICE, "row", 1), "the column name 'row' twice"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message):
            open_data(tmp_path)


def test_the_guess_trains(tmp_path, frame):
    for name in ("clicks.csv", "clicks.parquet"):
        path = write(tmp_path, frame, name=name)
        content, report = guess_table(path)
        roles = {name: entry["role"] for name, entry in content["columns"].items()}
        assert roles == {
            "row": "excluded", "clicked": "label", "bought": "categorical", USER: "categorical", PRICE: "dense",
            "genres": "categorical", "when": "time", "comment": "excluded", "code": "categorical", "age": "categorical",
        }  # fmt: skip
        assert "unique per row" in report and content["columns"]["clicked"]["positive"] == ["1"]
        (path.parent / "columns.json").write_text(json.dumps(content))
        assert len(open_data(tmp_path).cardinalities) == 5


@pytest.mark.real_data("census-income-kdd")
@pytest.mark.parametrize("dataset", ["census-income-kdd", "adult"])
def test_real_sets_as_plain_csv_give_the_same_arrays(tmp_path, dataset):
    settings = MULTITASK | {"tasks": ("income", "never_married"), "seed": 0}
    official = MultiTaskDataModule(**settings | {"dataset": dataset})
    official.setup()
    schema, folder = official.schema, official.table_folder
    (tmp_path / "mine").mkdir()
    files = {}
    for part in ("train", "test"):
        (source,) = folder.glob("*.data*" if part == "train" else "*.test*")
        options = {"sep": ",", "skipinitialspace": True, "header": None, "names": schema.names, "dtype": str}
        table = pd.read_csv(source, keep_default_na=False, comment="|", **options)
        table = table.apply(lambda column: column.str.strip().str.rstrip("."))
        table.to_csv(tmp_path / "mine" / f"{part}.csv", index=False)
        files[part] = f"{part}.csv"
    columns = {}
    for column in schema.columns:
        entry = {"role": column.role}
        if column.role == "categorical":
            entry["type"] = column.type
        for name, task in schema.tasks.items():
            if task.column == column.name:
                entry |= {"task": name, "positive": list(task.positive), "negative": list(task.negative)}
        columns[column.name] = entry
    content = {"files": files, "missing": ["?"], "columns": columns}
    (tmp_path / "mine" / "columns.json").write_text(json.dumps(content))
    own = MultiTaskDataModule(**settings | {"dataset": "mine", "data_root": str(tmp_path)})
    own.setup()
    for part, rows in official.rows.items():
        assert rows.tolist() == own.rows[part].tolist()
    for a, b in zip(everything(official), everything(own), strict=True):
        np.testing.assert_array_equal(a, b)
    assert official.bin_edges == own.bin_edges and official.cardinalities == own.cardinalities
