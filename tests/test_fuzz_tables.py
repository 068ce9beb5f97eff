"""Damaged tables, and damaged descriptions of them, give what a plain parser reads or a known error."""

import csv
import gzip
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from data.table_description import read_description
from data.table_reader import Rows, data_files, read_files
from data.table_schema import Schema
from data.table_values import read_labels, read_numbers, read_texts
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from tests.plain_parsers import BOM, CONTROL, FLOAT32_MAX, Form, as_optional, encoded, require
from tests.test_fuzz import KINDS, QUIET, file_of, place

COLUMNS = {
    "click": {"role": "label", "positive": ["1"], "negative": ["0"]},
    "user": {"role": "categorical"},
    "age": {"role": "categorical", "type": "number"},
    "tags": {"role": "categorical", "separator": "|", "pooling": "mean"},
    "count": {"role": "dense", "type": "integer"},
    'price, "net"': {"role": "dense"},
}
NAMES = list(COLUMNS)
MISSING = ("", "?")
ROWS = [
    ("1", "Zoë", "39", "a|b", "7", "0.25"),
    ("0", 'A, "B" & Co', "39.0", "", "-12", "-1e3"),
    ("0", "x\ty", "?", "c", "", "?"),
    ("1", "", "0.50", "b||?", "2147483647", "12"),
    ("0", "a longer text", "x", "a longer, text|b", "?", ".5"),
]
SURROGATE = "\ud800"
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from([SURROGATE, "é"]),
        st.sampled_from(["user", "click", "label", "dense", "categorical", "time", "kept", "number", "integer", "~x"]),
    ),
    lambda parts: st.one_of(st.lists(parts, max_size=2), st.dictionaries(st.text(max_size=2), parts, max_size=2)),
    max_leaves=3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """A file of a few lines comes in several blocks."""
    with patch("data.table_reader.BLOCK_BYTES", 80), patch("data.table_reader.PARQUET_ROWS", 2):
        yield


def describe(folder: Path, name: str, **entries: Any) -> Path:
    content = {"file": name, "missing": list(MISSING)} | entries
    (folder / "columns.json").write_text(json.dumps({"columns": COLUMNS} | content))
    return folder / "columns.json"


def read_table(description: Path) -> list[tuple]:
    """The rows of a table as it is described: numbers, texts, lists of texts, labels."""
    table = read_description(description)
    paths = [path for file in table.files.values() for path in data_files(file)]
    return [row for block in read_files(paths, table.schema, lambda rows: rows_of(rows, table.schema)) for row in block]


def rows_of(rows: Rows, schema: Schema) -> list[tuple]:
    columns = [as_optional(read_numbers(rows, column).tolist()) for column in schema.of_role("dense")]
    for column in schema.of_role("categorical"):
        codes, texts, counts = read_texts(rows, column, schema)
        cells = texts.to_pylist()
        if counts is not None:
            ends = np.cumsum(counts).tolist()
            cells = [cells[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]
        cells.append(None)
        columns.append([cells[code] or None for code in codes.tolist()])
    columns += read_labels(rows, schema, list(schema.tasks)).T.tolist()
    return list(zip(*columns, strict=True))


def plain_row(fields: list[str]) -> tuple:
    """(count, price, user, age, tags, click) of a row."""
    label, user, age, tags, count, price = (None if field in MISSING else field for field in fields)
    values = None if tags is None else [None if text in MISSING else text for text in tags.split("|")]
    label = number_text(label or "")
    require(label in ("0", "1"))
    return plain_count(count), plain_price(price), user, age and number_text(age), values, float(label)


def plain_count(text: str | None) -> int | None:
    if text is None:
        return None
    require(re.fullmatch("-?[0-9]+", text, re.ASCII) and -(2**31) <= int(text) < 2**31)
    return int(text)


def plain_price(text: str | None) -> float | None:
    if text is None:
        return None
    text = text.strip(" \t")
    require(re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text))
    require(abs(float(text)) <= FLOAT32_MAX)
    return float(text)


def number_text(text: str) -> str:
    """The canonical text of a number; other texts are unchanged."""
    try:
        value = float(text)
    except ValueError:
        return text
    if "_" in text or not abs(value) <= FLOAT32_MAX:
        return text
    return f"{value:.0f}".replace("-0", "0") if value == round(value) and abs(value) < 1e15 else repr(value)


def plain(content: bytes, separator: str, header: bool, strict: bool = False) -> list[tuple]:
    """By Python's csv module. strict: nothing may follow a closing quote within a value."""
    text = content.removeprefix(BOM).replace(b"\r\n", b"\n").decode("utf-8")
    require(not CONTROL.search(text.encode()))
    lines = io.StringIO(text.removesuffix("\n") + "\nend", newline="")
    try:
        *rows, last = csv.reader(lines, delimiter=separator, strict=strict)
    except csv.Error as error:
        raise ValueError from error
    require(last == ["end"])  # else a quote is open
    order = list(range(len(NAMES)))
    if header:
        names = [name.strip() for name in rows.pop(0)]
        require(len(set(names)) == len(names) and set(NAMES) <= set(names))
        order, width = [names.index(name) for name in NAMES], len(names)
    else:
        width = len(NAMES)
    rows = [row for row in rows if len(row) == width or separator.join(row).strip()]  # spaces alone are a blank line
    require(rows and all(len(row) == width for row in rows))
    return [plain_row([row[i] for i in order]) for row in rows]


def form(name: str, separator: str, header: bool) -> Form:
    def read(path: Path) -> list:
        return read_table(describe(path.parent, path.name, separator=separator, header=header))

    def lenient(content: bytes) -> list:
        return plain(content, separator, header)

    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(([NAMES] if header else []) + ROWS)
    lines = encoded(text.getvalue().splitlines(), "utf-8")
    return Form(name, lines, separator.encode(), read, lenient, int(header))


FORMS = [form("table.csv", ",", True), form("table.tsv", "\t", False)]
BY_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


def attempt(read: Callable[[Path], list], name: str, content: bytes) -> list | str:
    """The rows, or the message of the error with FILE for the path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return read(path)
        except UserError as error:
            assert str(path) in str(error)
            return str(error).replace(str(path), "FILE")


def expected(form: Form, content: bytes, strict: bool) -> list | None:
    """The row, or None if it must be refused."""
    try:
        return plain(content, form.separator.decode(), bool(form.header), strict)
    except ValueError:
        return None


def fields_swapped(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    row = place(draw, lines)
    fields = lines[row].split(form.separator)
    one, other = place(draw, fields), place(draw, fields)
    fields[one], fields[other] = fields[other], fields[one]
    lines[row] = form.separator.join(fields)
    return file_of(lines)


@BY_FORM
@pytest.mark.parametrize("kind", [*KINDS, fields_swapped], ids=lambda kind: kind.__name__)
def test_a_damaged_table_is_read_as_by_a_plain_parser_or_refused(form, kind):
    @QUIET
    @given(st.data())
    def run(data):
        content = kind(data.draw, list(form.lines), form)
        found = attempt(form.read, form.name, content)
        if not isinstance(found, str):
            assert found == expected(form, content, strict=False), content
            return
        assert expected(form, content, strict=True) is None, (found, content)
        lines = [line.removesuffix(b"\r") for line in content.removeprefix(BOM).split(b"\n")]
        line = re.match(r"FILE, line (\d+):? ?", found)
        assert line or re.search("is empty|names no column", found), found
        if line and lines[: form.header] == [*form.lines[: form.header]]:  # the reported line was changed
            assert lines[int(line[1]) - 1] not in form.lines[form.header :], (found, content)

    run()


def check_damaged(
    read: Callable[[Path], list], name: str, good: bytes, least: int, is_right: Callable[[list], bool]
) -> None:
    """Up to three bytes are changed, and the end is cut off after at least so many."""

    @QUIET
    @given(st.data())
    def run(data):
        content = bytearray(good)
        for _ in range(data.draw(st.integers(0, 3))):
            content[place(data.draw, content)] = data.draw(st.integers(0, 255))
        end = data.draw(st.one_of(st.just(len(content)), st.integers(least, len(content))))
        found = attempt(read, name, bytes(content[:end]))
        assert isinstance(found, str) or is_right(found), found

    run()


@BY_FORM
def test_a_damaged_gz_is_read_whole_or_refused(form):
    rows, packed = form.plain(file_of(form.lines)), gzip.compress(file_of(form.lines), mtime=0)
    check_damaged(form.read, f"{form.name}.gz", packed, 0, lambda found: found == rows)


def parquet() -> bytes:
    rows = [[None if field in MISSING else field for field in row] for row in ROWS]
    columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(NAMES)}
    columns["tags"] = pa.array([None if cell is None else cell.split("|") for cell in columns["tags"].to_pylist()])
    columns["count"] = columns["count"].cast(pa.int64())
    columns['price, "net"'] = columns['price, "net"'].cast(pa.float64())
    target = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), target, compression="none", row_group_size=3)
    return target.getvalue()


def read_parquet(path: Path) -> list:
    return read_table(describe(path.parent, path.name))


def test_a_damaged_parquet_file_is_read_or_refused():
    good = parquet()
    assert attempt(read_parquet, "table.parquet", good) == [plain_row([*row]) for row in ROWS]
    check_damaged(read_parquet, "table.parquet", good, 4, lambda found: {len(row) for row in found} == {len(NAMES)})


def test_texts_of_a_parquet_file_that_are_not_utf8_are_refused():
    found = attempt(read_parquet, "table.parquet", parquet().replace("Zoë".encode(), b"Zo\xff\xff"))
    assert re.match("FILE: the Parquet file is truncated or damaged .*UTF8", found)


def test_a_blank_line_counts_as_a_line():
    form = FORMS[1]
    good, bad = form.lines[0], b"2" + form.lines[1][1:]
    for content in ([good, b"\t", b" ", b"", good, bad], [b"", good, b"\t", good, b"\t ", bad, good]):
        found = attempt(form.read, form.name, file_of(content))
        assert found.startswith(f"FILE, line {content.index(bad) + 1}, column click: found '2'")
    found = attempt(form.read, form.name, file_of([good, b"\t", good, good + b"\tx"]))
    assert found.startswith("FILE, line 4: found 7 fields")


def places(part: dict, found: list) -> list[tuple[dict, str]]:
    """Every entry of a description, however deep."""
    for key, value in part.items():
        found.append((part, key))
        if isinstance(value, dict):
            places(value, found)
    return found


def test_a_damaged_description_is_refused_or_means_something():
    @QUIET
    @given(st.data())
    def run(data):
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            (folder / "table.csv").write_bytes(file_of(FORMS[0].lines))
            path = describe(folder, "table.csv", separator=",", header=True, split={"by": "random"}, group="user")
            content = json.loads(path.read_text())
            part, key = data.draw(st.sampled_from(places(content, [])))
            if data.draw(st.booleans()):  # another entry beside it
                key = data.draw(st.sampled_from(["type", "unit", "hash_size", "min_count", "transform", SURROGATE]))
            part[key] = data.draw(JSON)
            path.write_text(json.dumps(content))
            try:
                schema = read_description(path).schema
                assert Schema.from_dict(schema.to_dict()) == schema
                assert len(read_table(path)) == len(ROWS)
            except UserError as error:
                assert root in str(error) or key == "file"

    run()


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"missing": [SURROGATE]}, r"columns\.json is not JSON.*surrogates"),
        ({"file": "~no-such-user"}, r"columns\.json: there is no file '~no-such-user'"),
        ({"file": "x" * 5000}, "cannot read .*name too long"),
        ({"separator": "é"}, r"columns\.json: 'separator' is .* one ASCII character"),
    ],
)
def test_an_entry_with_which_nothing_can_be_read_is_refused(tmp_path, entry, found):
    (tmp_path / "table.csv").write_bytes(file_of(FORMS[0].lines))
    path = describe(tmp_path, "table.csv", **entry)
    with pytest.raises(UserError, match=found):
        read_table(path)


def test_a_description_nested_without_end_is_refused(tmp_path):
    (tmp_path / "columns.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"columns\.json is not JSON"):
        read_table(tmp_path / "columns.json")
