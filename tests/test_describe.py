"""The guess of a description: what the columns of files that people have are taken for, and what cannot be read."""

import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from data.criteo_data import ClickDataModule
from data.describe import describe, main
from data.schema import described
from deepfm.train import DATA

ROWS = 1200
NOW = 1_700_000_000  # seconds


@pytest.fixture
def y(rng) -> np.ndarray:
    return (rng.random(ROWS) < 0.3).astype(int)


def guess(path: Path, content: pd.DataFrame | str | bytes, **files: Path) -> tuple[dict[str, Any], str]:
    """The columns' entries and the report. Columns.json must be valid and say what the report says."""
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path) if path.suffix == ".parquet" else content.to_csv(path, index=False)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, report = describe(path, **files)
    described(json.loads(json.dumps(found)), "columns.json")
    roles = {line.split()[0]: line for line in report.splitlines() if line.split()}
    for name, entry in found["columns"].items():
        if " " not in name:
            assert f" {entry['role']} " in roles[name], report
    return found["columns"], report


def roles(columns: dict[str, Any]) -> dict[str, str]:
    return {name: entry["role"] for name, entry in columns.items()}


def dates(seconds: np.ndarray, form: str = "%Y-%m-%d %H:%M:%S") -> pd.Series:
    return pd.Series(pd.to_datetime(seconds, unit="s")).dt.strftime(form)


def test_a_time_is_recent_and_known_in_every_row(tmp_path, rng, y):
    start = NOW + 60 * np.arange(ROWS)
    frame = pd.DataFrame(
        {
            "day": rng.integers(1, 32, ROWS),
            "hour": rng.integers(0, 24, ROWS),
            "stay_time": np.where(y, rng.integers(1, 99_000, ROWS), 0),
            "born": dates(rng.integers(0, 9 * 10**8, ROWS) - 10**9, "%Y-%m-%d"),
            "install_time": np.where(y, dates(start + 600), ""),
            "date": dates(start, "%Y%m%d"),
            "phone": rng.integers(700_000_000, 2_400_000_000, ROWS),
            "time_us": start * 10**6,
            "label": y,
        }
    )
    columns, report = guess(tmp_path / "times.csv", frame)
    assert [name for name, role in roles(columns).items() if role == "time"] == ["time_us"], report
    assert columns["time_us"]["unit"] == "us" and "taken for us since 1970" in report
    assert columns["date"] == {"role": "excluded"} and "dates (%Y%m%d) like '20231114'" in report
    columns, report = guess(tmp_path / "none.csv", frame.drop(columns="time_us"))
    assert "time" not in roles(columns).values() and "take the order of the file" in report
    assert 'pandas.to_datetime(t["date"], format="%Y%m%d")' in report  # it could be one


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        (lambda s: dates(s), "date"),
        (lambda s: dates(s) + "Z", "date"),
        (lambda s: s, "s"),
        (lambda s: s * 1000, "ms"),
        (lambda s: s + 0.25, "s"),
        (lambda s: pd.to_datetime(s * 10**9 + 7), "date"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_units_of_times(tmp_path, y, times, unit, suffix):
    frame = pd.DataFrame({"when": times(NOW + 60 * np.arange(ROWS)), "label": y, "x": y % 7 + np.arange(ROWS) % 5})
    columns, _ = guess(tmp_path / f"table.{suffix}", frame)
    assert columns["when"] == {"role": "time", "unit": unit}


FORMS = [("1", "0"), ("2", "1"), ("1.0", "0.0"), ("Y", "N"), ("True", "False"), ("1", "-1"), ("no churn", "churn")]


@pytest.mark.parametrize(("one", "other"), FORMS)
@pytest.mark.parametrize("name", ["label", "is_clicked", "was clicked?", "Churn", "anything"])
def test_forms_and_names_of_a_label(tmp_path, rng, y, one, other, name):
    frame = pd.DataFrame({"x": rng.random(ROWS), "c": rng.choice(list("abc"), ROWS), name: np.where(y, one, other)})
    columns, report = guess(tmp_path / "table.csv", frame)
    positive, negative = (other, one) if one.startswith("no") else (one, other)
    assert columns[name] == {"role": "label", "positive": [positive], "negative": [negative]}
    assert f"positive: {positive!r}" in report


def test_several_labels_and_a_name_that_decides(tmp_path, rng, y):
    converted = np.where(y, rng.integers(0, 2, ROWS).astype(str), "")  # known for clicks alone
    frame = pd.DataFrame({"click": y, "converted": converted, "default": rng.choice(["yes", "no"], ROWS)})
    columns, report = guess(tmp_path / "two.csv", frame.assign(age=rng.integers(18, 80, ROWS)))
    assert roles(columns) == {"click": "label", "converted": "label", "default": "categorical", "age": "dense"}
    assert "Labels: click, converted. multitask/train.py trains all" in report
    columns, _ = guess(tmp_path / "one.csv", frame[["default"]].assign(is_vip=y, x=rng.random(ROWS)))
    assert roles(columns) == {"default": "label", "is_vip": "categorical", "x": "dense"}
    columns, report = guess(
        tmp_path / "none.csv", pd.DataFrame({"a": y, "b": 1 - y, "label": rng.integers(0, 3, ROWS)})
    )
    assert roles(columns)["label"] == "excluded" and "has 3 values, not two" in report and "Two values: a, b" in report
    columns, _ = guess(
        tmp_path / "count.csv", pd.DataFrame({"clicks": y * rng.integers(1, 9, ROWS), "x": rng.random(ROWS)})
    )
    assert columns["clicks"] == {"role": "rating", "click_from": 1}


def test_codes_and_amounts(tmp_path, rng, y):
    frame = pd.DataFrame(
        {
            "label": y,
            "ip": rng.integers(0, 900, ROWS),
            "channel": rng.integers(0, 200, ROWS),
            "C14": rng.integers(100, 9000, ROWS),
            "unknown": rng.permutation(50)[rng.zipf(1.5, ROWS) % 50],
            "zeros": [f"{number:04d}" for number in rng.integers(0, 300, ROWS)],
            "long": 7_201_234_567_890_123_000 + rng.integers(0, 40, ROWS),
            "age": rng.integers(18, 80, ROWS),
            "gain": np.where(rng.random(ROWS) < 0.9, 0, rng.integers(1, 20, ROWS) * 100),
            "days_since_signup": rng.integers(-900, 0, ROWS),
            "temperature": rng.normal(0, 9, ROWS).round(2),
            "flag": rng.choice(["TRUE", "FALSE"], ROWS),
            "only": 7,
            "row": np.arange(ROWS),
        }
    )
    columns, report = guess(tmp_path / "codes.csv", frame)
    number, text, dense, excluded = (
        {"role": "categorical", "type": "number"},
        {"role": "categorical"},
        {"role": "dense"},
        {"role": "excluded"},
    )
    assert columns == {
        "label": columns["label"], "ip": number, "channel": number, "C14": number, "unknown": number, "zeros": text,
        "long": text, "age": dense, "gain": dense, "days_since_signup": dense, "temperature": dense,
        "flag": text | {"type": "boolean"}, "only": excluded, "row": excluded,
    }, report  # fmt: skip
    assert columns == guess(tmp_path / "codes.parquet", frame)[0]


def test_what_gives_the_label_away_is_left_out(tmp_path, rng, y):
    frame = pd.DataFrame(
        {
            "strong": 2 * y + rng.normal(0, 1, ROWS),  # AUC .92
            "play_length": np.where(y, 50, 0) + rng.integers(0, 50, ROWS),
            "refund": np.where(y, rng.integers(1, 999, ROWS).astype(str), ""),
            "state": np.where(y, "done", "open"),
            "closed_at": np.where(y, dates(NOW + np.arange(ROWS)), ""),
            "watch_time": rng.integers(0, 60, ROWS),
            "label": y,
        }
    )
    columns, report = guess(tmp_path / "table.csv", frame)
    left_out = ["play_length", "refund", "state", "closed_at", "watch_time"]
    assert roles(columns) == {"strong": "dense", "label": "label"} | dict.fromkeys(left_out, "excluded")
    assert report.count("gives the label away? AUC 1.000 alone") == 4
    assert f"Left out: {', '.join(left_out)}. If one is known before the label" in report


def test_rows_sorted_by_the_label_are_split_at_random(tmp_path, rng, y):
    frame = pd.DataFrame({"label": np.sort(y), "x": rng.random(ROWS)})
    path = tmp_path / "table.csv"
    report = guess(path, frame)[1]
    assert describe(path)[0]["split"] == {"by": "random"} and 'the label sorts the rows: "split" is random' in report


def interactions(rng, **columns) -> pd.DataFrame:
    users, items = rng.integers(0, 60, ROWS), rng.integers(0, 90, ROWS)
    return pd.DataFrame({"user_id": users, "item_id": items, **columns})


def test_interactions(tmp_path, rng, y):
    when = (NOW + np.arange(ROWS)) * 1000
    table = interactions(rng, time_ms=when, is_click=y, is_like=rng.integers(0, 2, ROWS), price=rng.random(ROWS))
    columns, _ = guess(tmp_path / "clicks.csv", table)
    assert roles(columns) == {
        "user_id": "user", "item_id": "item", "time_ms": "time", "is_click": "label", "is_like": "excluded",
        "price": "dense",
    }  # fmt: skip
    columns, report = guess(tmp_path / "ratings.csv", interactions(rng, stars=rng.choice([-1, 5, 7, 10], ROWS)))
    assert roles(columns) == {"user_id": "user", "item_id": "item", "stars": "rating"} and "order of the file" in report
    assert columns["stars"]["click_from"] in (5, 7)
    columns, report = guess(tmp_path / "sales.csv", interactions(rng, channel_id=rng.integers(1, 3, ROWS)))
    assert roles(columns)["channel_id"] == "categorical" and "every row is a click" in report


def test_files_of_items_and_users(tmp_path, rng):
    log = interactions(rng)
    log["item_id"] = [f"{number:05d}" for number in log["item_id"]]
    ids = [f"{number:05d}" for number in range(90)]
    items = {
        "item_id": ids,
        "name": [f"Thing {i}" for i in ids],
        "tags": ["a|b", "b", "c|a"] * 30,
        "price": rng.random(90),
    }
    pd.DataFrame(items).to_csv(tmp_path / "items.csv", index=False)
    users = {"nr": np.arange(60), "sex": ["m", "f"] * 30, "price": rng.random(60), "since": "2020-01-01"}
    pd.DataFrame(users).to_csv(tmp_path / "users.tsv", index=False, sep="\t")
    path = tmp_path / "log.csv"
    columns, _ = guess(path, log, items=tmp_path / "items.csv", users=tmp_path / "users.tsv")
    assert columns == {"user_id": {"role": "user"}, "item_id": {"role": "item"}}
    found, report = describe(path, tmp_path / "items.csv", tmp_path / "users.tsv")
    separated = {"role": "categorical", "separator": "|"}
    assert found["item_attributes"]["columns"] == {
        "item_id": {"role": "item"}, "name": {"role": "kept"}, "tags": separated, "price": {"role": "dense"}
    }  # fmt: skip
    assert found["user_attributes"]["separator"] == "\t"
    assert roles(found["user_attributes"]["columns"]) == {
        "nr": "user", "sex": "categorical", "price": "excluded", "since": "excluded"
    }  # fmt: skip
    assert "another file has a column of this name" in report
    pd.DataFrame({"thing": ["x", "y"], "tags": ["a", "b"]}).to_csv(tmp_path / "items.csv", index=False)
    with pytest.raises(UserError, match=r"items.csv has no column with the ids of column 'item_id' in .*log.csv"):
        describe(path, tmp_path / "items.csv")


def test_cells_with_several_values(tmp_path, rng, y):
    def joined(separator: str, values: list[str]) -> list[str]:
        return [separator.join(rng.choice(values, rng.integers(1, 4), replace=False)) for _ in range(ROWS)]

    frame = pd.DataFrame(
        {
            "label": y,
            "bar": joined("|", list("abcde")),
            "comma": joined(", ", list("abcde")),
            "ids": joined(" ", [f"N{number}" for number in range(40)]),
            "control": joined("\x02", [f"{number}:1.0" for number in range(40)]),
            "city": rng.choice(["New York", "Paris, France", "Los Angeles"], ROWS),
        }
    )
    columns, _ = guess(tmp_path / "lists.csv", frame)
    separators = {name: entry.get("separator") for name, entry in columns.items()}
    assert separators == {"label": None, "bar": "|", "comma": ", ", "ids": " ", "control": "\x02", "city": None}
    lists = pd.DataFrame(
        {"label": y, "tags": [list("abc")[: n % 4] for n in range(ROWS)], "vector": [[0.1, 0.2]] * ROWS}
    )
    columns, report = guess(tmp_path / "lists.parquet", lists.assign(struct=[{"a": 1}] * ROWS))
    assert roles(columns) == {"label": "label", "tags": "categorical"}
    assert "cannot be read: vector (list<element: double>), struct (struct<a: int64>)." in report


def test_folders(tmp_path, rng, y):
    table = pd.DataFrame({"label": y, "x": rng.random(ROWS)})
    for day in range(1, 13):
        part = table[day * 100 - 100 : day * 100]
        folder = tmp_path / "log" / f"dt=2024-01-{day:02d}"
        folder.mkdir(parents=True)
        part.to_parquet(folder / "part-0.parquet")
        (tmp_path / "days").mkdir(exist_ok=True)
        part.to_csv(tmp_path / "days" / f"day_{day}.csv", index=False)
    content, report = describe(tmp_path / "log")
    assert content["columns"]["dt"] == {"role": "time", "unit": "date"} and " 10 2024" not in report
    report = describe(tmp_path / "days")[1]
    assert "12 files, in natural order of their names, from day_1.csv to day_12.csv." in report


PLAIN = "click;name;amount\n" + "".join(
    f"{n * n % 7 % 2};{'Köln' if n % 3 else 'Bonn'};{n % 50}.5\n" for n in range(200)
)
COLUMNS = {"click": "label", "name": "categorical", "amount": "dense"}
FORMATS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "plain": (PLAIN.encode(), {}),
    "comma": (PLAIN.replace(";", ",").encode(), {"separator": None}),
    "tab": (PLAIN.replace(";", "\t").encode(), {"separator": "\t"}),
    "control A": (PLAIN.replace(";", "\x01").encode(), {"separator": "\x01"}),
    "colons": (PLAIN.replace(";", "::").encode(), {"separator": "::"}),
    "spaces": (PLAIN.replace(";", ",  ").encode(), {"separator": ", "}),
    "gz": (gzip.compress(PLAIN.encode()), {}),
    "byte order mark": (PLAIN.encode("utf-8-sig"), {}),
    "latin-1": (PLAIN.encode("latin-1"), {"encoding": "latin-1"}),
    "old Mac": (PLAIN.replace("\n", "\r").encode(), {}),
    "Excel": (("sep=;\r\n" + PLAIN).encode(), {"comment": "sep="}),
    "decimal comma": (PLAIN.replace(".5", ",25").encode(), {"decimal": ","}),
    "trailing": (PLAIN.replace("\n", ";\n").encode(), {}),
    "lone quotes": (PLAIN.replace("Bonn", '"Bonn').encode(), {"quoted": False}),
    "quotes": (PLAIN.replace("Bonn", '"Bonn; on ""the""\nRhine"').encode(), {}),
}


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_read_and_their_guess_trains_unedited(tmp_path, monkeypatch, form):
    content, entries = FORMATS[form]
    path = tmp_path / "table"
    columns, report = guess(path, content)
    assert roles(columns) == COLUMNS, report
    found = describe(path)[0]
    others = {name: found.get(name) for name in ("separator", "encoding", "comment", "decimal", "quoted")}
    assert others == dict.fromkeys(others) | {"separator": ";"} | entries
    assert "the first 200 rows, 3 columns" in report
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    main(str(path), "mine")
    data = ClickDataModule(**{"seed": 0} | DATA | {"dataset": "mine", "min_count": 1})
    data.setup()
    dense, ids, label = data.read(range(200))
    assert label.tolist() == [n * n % 7 % 2 for n in range(200)]
    names = ids[:, 0]
    assert (names[::3] == names[0]).all() and (names[1::3] == names[1]).all() and names[0] != names[1]
    assert np.argsort(dense[:50, 0]).tolist() == list(range(50))


def test_a_file_without_names(tmp_path):
    body = PLAIN.partition("\n")[2]
    path = tmp_path / "table.csv"
    columns, report = guess(path, body)
    assert list(columns) == ["c1", "c2", "c3"] and describe(path)[0]["header"] is False
    assert "Does line 1 (0, Bonn, 0.5) hold values?" in report and f"sed '1i NAME;NAME...' {path}" in report
    content = "2019;of town;2020\n" + body.replace("Köln", "1").replace("Bonn", "2")  # a text above numbers
    assert list(guess(path, content)[0]) == ["2019", "of town", "2020"]
    assert list(guess(path, "p;x\n" + "e;y\np;x\n" * 50)[0]) == ["c1", "c2"]  # texts that come again


def test_what_must_be_converted_is_told_with_a_command_that_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it's a table.csv"

    def converted(content: str, error: bool = False) -> dict[str, Any]:
        path.write_text(content)
        try:
            message = describe(path)[1]
            assert not error
        except UserError as told:
            message = str(told)
            assert error
        command = message.split("`")[1]
        if command.startswith("python -c "):  # in this process, which is faster
            monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
            exec(sys.argv[0], {})
        else:
            subprocess.run(command, shell=True, check=True)
        return describe(tmp_path / "NEW_FILE")[0]["columns"]

    for written in ("31,273", "1.031,27 €", "$1,031.27", "12,5%"):
        rows = "".join(f"{n % 2};{written.replace('1', str(n % 9 + 1))};{n % 7}\n" for n in range(99))
        assert converted(f"click;value;k\n{rows}".replace(";", "\t"))["value"]["role"] == "categorical"
    for form in ("%d/%m/%Y %H:%M", "%m/%d/%Y", "%b %d, %Y", "%y%m%d%H"):
        rows = "".join(f"{n % 2};{pd.Timestamp(NOW + 90_000 * n, unit='s'):{form}};{n % 7}\n" for n in range(99))
        assert converted(f"click;when;k\n{rows}")["when"] == {"role": "time", "unit": "date"}, form
    rows = "".join(f'"{n % 2}";"a \\"b\\" {n % 5}";"{n}.5"\n' for n in range(99))
    assert roles(converted(f'"click";"name";"x"\n{rows}', error=True))["name"] == "categorical"
    blocks = "".join(
        f"{film}:\n" + "".join(f"{n},{n % 5},2005-01-{n % 28 + 1:02d}\n" for n in range(40)) for film in "123"
    )
    assert roles(converted(blocks, error=True))["c4"] == "time"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", "the column name 'a' twice"),
        ("a\n1\n2\n", r"found only one column \('a'\)"),
        ("", "is empty"),
        ("# made by hand\n" + PLAIN, "remove what is above them"),
        (PLAIN + PLAIN, "the names of the columns in several lines"),
        ("a,b\n", "has no rows"),
        (PLAIN.encode("utf-16"), "is UTF-16.*: convert it with `iconv"),
        ('{"a": 1}\n', "is JSON: convert it with"),
        (b"PK\x03\x04....", "is a ZIP archive"),
        (b"PAR1....", "truncated or damaged"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        guess(tmp_path / "table.csv", content)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    (tmp_path / "table.csv").write_text(PLAIN)
    main(str(tmp_path / "table.csv"))
    assert "columns.json" in capsys.readouterr().out and not (tmp_path / "raw").exists()
    main(str(tmp_path / "table.csv"), "mine")
    written = (tmp_path / "raw" / "mine" / "columns.json").read_text("utf-8")
    assert json.loads(written) == describe(tmp_path / "table.csv")[0]
    with pytest.raises(UserError, match="exists already"):
        main(str(tmp_path / "table.csv"), "mine")
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        main(str(tmp_path / "table.csv"), "../mine")
