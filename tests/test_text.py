"""The bytes of a text table, wherever a block ends."""

import io
from contextlib import nullcontext

import pytest

from common.errors import UserError
from data.reader import Reader, Source
from data.schema import Format

COLUMNS = {"a": {"role": "kept"}, "b": {"role": "kept"}}


def rows_of(content: bytes, **entries) -> list[dict]:
    form = Format.model_validate({"columns": COLUMNS} | entries)
    source = Source("rows", lambda: nullcontext(io.BytesIO(content)))
    return [row for batch in Reader(form).batches(source) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("separator", "line"),
    [("::", b"x::y\n"), (", ", b"x, y\n"), (", ", b" x ,   y \r\n"), ("\x01", b"x\x01y\n"), (",", b"x,y\r\n")],
)
def test_a_block_may_end_anywhere(monkeypatch, separator, line):
    content = line.replace(b"x", b"a").replace(b"y", b"b") + line * 9
    for size in range(2 * len(line), 4 * len(line)):
        monkeypatch.setattr("data.text.BLOCK_BYTES", size)
        monkeypatch.setattr("data.text.Text.read.__defaults__", (size,))
        assert rows_of(content, separator=separator) == [{"a": "x", "b": "y"}] * 9, size


def test_columns_without_a_name_are_not_read():
    assert rows_of(b"a,b,,\nx,y,,\n") == [{"a": "x", "b": "y"}]
    with pytest.raises(UserError, match="the column name 'a' twice"):
        rows_of(b"a,b,a\nx,y,z\n")


def test_lines_before_the_names():
    assert rows_of(b"# about\n\n# more\n\na,b\nx,y\n", comment="#") == [{"a": "x", "b": "y"}]
    assert rows_of(b"\r\n\r\na,b\nx,y\n") == [{"a": "x", "b": "y"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"a": 1}]', r"rows is JSON: .*dtype=False.*lines=False"),
        (b"<!DOCTYPE html>", "rows is HTML or XML"),
        ("a,b\n1,2\n".encode("utf-16-le"), "a NUL byte; .* If it is UTF-16"),
        (b"7z\xbc\xaf'", "rows is a 7z archive"),
    ],
)
def test_what_is_no_table_is_told(content, message):
    with pytest.raises(UserError, match=message):
        rows_of(content)
