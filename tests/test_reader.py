"""Any table written as text or Parquet comes back cell by cell, or one line says where it does not.

FUZZ_EXAMPLES: tables per property; `FUZZ_EXAMPLES=500 pytest tests/test_reader.py` searches harder.
"""

import csv
import datetime
import gzip
import io
import os
import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.reader import Reader, Source, data_files, source_of
from data.schema import Format, described

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
QUIET = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
KEPT, TEXT, DENSE = {"role": "kept"}, {"role": "categorical"}, {"role": "dense"}
NUMBER, BOOLEAN = TEXT | {"type": "number"}, TEXT | {"type": "boolean"}
COLUMNS = {
    "any, text": KEPT, "id": TEXT, "code": NUMBER, "flag": BOOLEAN, "tags": TEXT | {"separator": "|"}, "x": DENSE,
    "count": DENSE | {"type": "integer"}, "when": {"role": "time"},
}  # fmt: skip
TEXTS = st.text("ab\"', ;\t\n\ré東\u2028|0", max_size=6)
TAGS = st.text("ab\"' é,\n", min_size=1, max_size=3)
TIMES = st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2050, 1, 1))
ROWS = st.lists(
    st.tuples(
        TEXTS, TEXTS, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.lists(TAGS, max_size=3),
        st.none() | st.floats(-3e38, 3e38), st.none() | st.integers(-(2**31), 2**31 - 1), TIMES,
    ),
    min_size=1, max_size=12,
)  # fmt: skip


def expected(rows: list[tuple]) -> dict[str, list]:
    cells = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    epoch = datetime.datetime(1970, 1, 1)
    return cells | {
        "code": [str(code) for code in cells["code"]],
        "flag": [str(flag).lower() for flag in cells["flag"]],
        "when": [(when - epoch) / datetime.timedelta(microseconds=1) / 1e6 for when in cells["when"]],
    }


@st.composite
def as_text(draw, rows: list[tuple]) -> tuple[list[bytes], dict]:
    """The lines of each record, the header line first if there is one, and how they are written."""
    form = {"separator": draw(st.sampled_from(",;\t\x01")), "quoted": True, "header": draw(st.booleans())}
    quoting, end = draw(st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n")]))
    records = [list(COLUMNS)] if form["header"] else []
    for any_text, ident, code, flag, tags, x, count, when in rows:
        code = draw(st.sampled_from([str(code), f"{code}.0", f"{code}.", f" {code} ", f"{code}e0"]))
        flag = draw(st.sampled_from([str(flag), str(flag).lower(), str(flag).upper()]))
        when = when.isoformat(draw(st.sampled_from(" T"))) + draw(st.sampled_from(["", "Z", "+00:00"]))
        x, count = ("" if value is None else repr(value) for value in (x, count))
        records.append([any_text, ident, code, flag, "|".join(tags), x, count, when])
    lines = []
    for record in records:
        line = io.StringIO()
        csv.writer(line, delimiter=form["separator"], quoting=quoting, lineterminator=end).writerow(record)
        lines.append(line.getvalue().encode())
    return lines, form


def read(content: bytes, columns: dict = COLUMNS, block: int = 8 << 20, pipe: bool = False, scoring=False, **form):
    """The cells of each column, or the message of the error."""
    stream = io.BytesIO(content)
    stream.seekable = lambda: not pipe
    source = Source("rows", lambda: nullcontext(stream if pipe else io.BytesIO(content)))
    with patch("data.text.BLOCK_BYTES", block), patch("data.reader.PARQUET_ROWS", 5):
        try:
            reader = Reader(Format.model_validate({"columns": columns} | form), scoring)
            batches = list(reader.batches(source))
        except UserError as error:
            assert "\n" not in str(error)
            return str(error)
    return pa.Table.from_batches(batches).to_pydict()


def read_all(folder: Path, reader: Reader) -> list[pa.RecordBatch]:
    return [batch for path in data_files(folder) for batch in reader.batches(source_of(path))]


def parquet(table: pa.Table | dict) -> bytes:
    target = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), target)
    return target.getvalue()


@QUIET
@given(st.data(), ROWS, st.integers(1, 300), st.booleans())
def test_a_table_in_text_comes_back_cell_by_cell(data, rows, block, pipe):
    lines, form = data.draw(as_text(rows))
    content = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + b"".join(lines)
    if len(lines) > 1:  # without any LF, a CR ends a line
        content = content.removesuffix(data.draw(st.sampled_from([b"", b"\n", b"\r\n"])))
    block += len(lines[0])  # with the names, if they are there
    assert read(content, block=block, pipe=pipe, **form) == expected(rows)
    doubtful = read(content, block=block, pipe=pipe, **form | {"quoted": None})  # one value, or several rows?
    assert doubtful == expected(rows) or 'set "quoted" in columns.json' in doubtful


@QUIET
@given(ROWS, st.sampled_from(["us", "ns"]), st.booleans())
def test_a_table_in_parquet_comes_back_cell_by_cell(rows, unit, other_types):
    cells = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    table = pa.table(cells)
    at = table.schema.get_field_index("when")
    table = table.set_column(at, "when", table.column("when").cast(pa.timestamp(unit, "UTC" if other_types else None)))
    if other_types:
        table = table.set_column(1, "id", table.column("id").cast(pa.large_string()).dictionary_encode())
        table = table.set_column(0, "any, text", table.column("any, text").cast(pa.string_view()))
    lists = table.column("tags").cast(pa.large_list(pa.string()) if other_types else pa.list_(pa.string()))
    assert read(parquet(table.set_column(4, "tags", lists))) == expected(rows)


@QUIET
@given(st.data(), ROWS, st.integers(1, 300), st.booleans())
def test_what_is_wrong_is_named_with_its_line(data, rows, block, cut):
    lines, form = data.draw(as_text(rows))
    row = data.draw(st.integers(0, len(rows) - 1)) + form["header"]
    blank = data.draw(st.sampled_from([b"", b"\n", b"  \n", b"\r\n \n"]))  # before the wrong one
    fields = next(csv.reader(io.StringIO(lines[row].decode(), newline=""), delimiter=form["separator"]))
    line = io.StringIO()
    wrong = fields[:-1] if cut else [*fields[:5], "12,5x", *fields[6:]]
    csv.writer(line, delimiter=form["separator"], quoting=csv.QUOTE_ALL).writerow(wrong)
    before = b"".join(lines[:row])
    message = read(
        before + blank + line.getvalue().encode() + b"".join(lines[row + 1 :]), block=block + len(lines[0]), **form
    )
    number = len((before + blank).splitlines()) + 1
    found = "found 7 fields" if cut else "column x: found '12,5x', expected a number"
    assert re.match(rf"rows, line {number}(: |, ){re.escape(found)}", message), message


@QUIET
@given(st.data(), ROWS)
def test_a_damaged_file_is_read_whole_or_refused(data, rows):
    """Bytes of a .gz file are changed (Parquet has no checksum of its metadata); the end of either is cut off."""
    lines, form = data.draw(as_text(rows))
    cells = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    compressed = data.draw(st.booleans())
    damaged = bytearray(gzip.compress(b"".join(lines), mtime=0) if compressed else parquet(cells))
    for _ in range(data.draw(st.integers(0, 2)) if compressed else 0):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(damaged), data.draw(st.integers(4, len(damaged)))]))
    path = Path(os.environ["OUTPUT_ROOT"]) / "rows"
    path.write_bytes(damaged[:end])
    try:
        batches = list(Reader(Format.model_validate({"columns": COLUMNS} | form)).batches(source_of(path)))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert pa.Table.from_batches(batches).to_pydict() == expected(rows)


TWO = {"a": KEPT, "b": KEPT}


@pytest.mark.parametrize(("form", "line"), [
    ({"separator": "::", "quoted": False}, b"x::y\n"), ({"separator": ", "}, b" x ,   y \r\n"), ({}, b"x,y\r\n"),
    ({"separator": ", "}, b'"x", "y"\n'), ({"separator": "::"}, b'"x"::y\n'), ({}, "xé,y\n".encode()),
    ({"encoding": "latin-1"}, "xé,y\n".encode("latin-1")),
])  # fmt: skip
def test_a_block_may_end_anywhere(form, line):
    """Within "::", ", ", a quote, a line end or a letter."""
    content = line.replace(b"x", b"a").replace(b"y", b"b").replace("é".encode(), b"").replace(b"\xe9", b"") + line * 9
    for block in range(len(line), 4 * len(line)):
        found = read(content, TWO, block, **form)
        assert found == {"a": ["xé" if b"\xe9" in line or b"\xc3" in line else "x"] * 9, "b": ["y"] * 9}, block


def test_quotes_and_spaces_with_separators_of_two_characters():
    assert read(b'a, b\n"x, y ", z\n', TWO, separator=", ") == {"a": ["x, y "], "b": ["z"]}
    assert read(b'a::b\n"x::y"::z\n', TWO, separator="::") == {"a": ["x::y"], "b": ["z"]}


@pytest.mark.parametrize("content", [
    b'a\tb\n"x\ty\nz\tw\nv"\tu\nx\ty\n',  # two rows of three would be lost
    b'a\tb\nx\ty\n"x\ty\nz\tw\n',
    b'a\tb\nx\ty\n"x" z\ty\n"z\tw\n',
])  # fmt: skip
def test_lone_quotes_lose_no_line(content):
    for block in (20, 8 << 20):
        message = read(content, TWO, block, separator="\t")
        number = next(i for i, line in enumerate(content.split(b"\n"), 1) if line.count(b'"') % 2)
        assert message.startswith(f"rows, line {number}: found a quoted value that") and '"quoted"' in message
    lines = [line.split("\t") for line in content.decode().splitlines()[1:]]
    assert read(content, TWO, separator="\t", quoted=False) == dict(
        zip("ab", map(list, zip(*lines, strict=True)), strict=True)
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\n  \n"])
def test_line_ends(end):
    lines = [b"a,b", b"x,1", b"y,2"]
    for content in (end.join(lines), end.join([*lines, b""]), end + end.join(lines)):
        assert read(content, TWO) == {"a": ["x", "y"], "b": ["1", "2"]}
    assert "line 2: found 1 fields" in read(b"a,b\nx\ry,1\n", TWO)  # pyarrow takes it for a line end


def test_blank_lines_are_rows_of_a_single_column_alone():
    for form in ({}, {"separator": "\t", "quoted": False}):
        separator = form.get("separator", ",").encode()
        content = b"x,1\n\n \ny,2\n\n".replace(b",", separator)
        assert read(content, TWO, header=False, **form) == {"a": ["x", "y"], "b": ["1", "2"]}
    assert read(b"x\n\ny\n", {"a": KEPT}, header=False, quoted=False) == {"a": ["x", "", "y"]}
    assert read(b'x\n""\ny\n\n', {"a": KEPT}, header=False) == {"a": ["x", "", "y"]}


def test_lines_before_the_names():
    content = b"#" * 50 + b"\n\n# more\na,b\nx,y\nx\n"
    assert read(content.removesuffix(b"x\n"), TWO, 80, comment="#") == {"a": ["x"], "b": ["y"]}
    assert read(content, TWO, 80, comment="#").startswith("rows, line 6: found 1 fields separated by ',', expected 2")
    assert read(b"|\n" * 300_000 + b"x,y\n", TWO, comment="|", header=False) == {"a": ["x"], "b": ["y"]}


@pytest.mark.parametrize(("content", "message"), [
    (b'[\n{"a": 1}]', r"rows is JSON: .*dtype=False.*lines=False"),
    (b'{"a": 1}\n', r"rows is JSON"),
    (b"<!DOCTYPE html>", "rows is HTML or XML"),
    (b"PK\x03\x04", "rows is a ZIP archive or a spreadsheet: `unzip`"),
    (b"7z\xbc\xaf'", "rows is a compressed file"),
    ("a,b\n1,2\n".encode("utf-16"), "rows is UTF-16: .*iconv"),
    ("a,b\n1,2\n".encode("utf-16-le"), "rows, line 1: found a NUL byte; .* If it is UTF-16"),
    (b"a,b\nx,y\nx,\0\n", "rows, line 3: found a NUL byte"),
    ("a,b\nx,y\nx,é\n".encode("latin-1"), 'rows, line 3: found bytes that are not UTF-8.*"encoding": "latin-1"'),
    (b"a,b\n", r"rows has no rows; expected the columns \['a', 'b'\]"),
    (b"", "rows has no rows"),
    (b"a,b,a\nx,y,z\n", "rows: found the column name 'a' twice; rename one"),
    (b"a,c\nx,y\n", r"rows has no column 'b'; it has \['a', 'c'\]. Is the separator right, and does line 1"),
    (b"a,b\nx,y\nx\n", "rows, line 3: found 1 fields separated by ',', expected 2. .* the file is truncated"),
    (b"a,b\nx,y,z\n", "rows, line 2: found 3 fields"),
    (b"a,b\n" + b"x" * (1 << 21) + b",y\n", "rows, line 2: the line has more than 1,048,576 bytes"),
    (b"PAR1xxxx", "rows: the file is truncated or damaged .*Parquet"),
])  # fmt: skip
def test_what_is_no_table_is_told(content, message):
    assert re.match(message, read(content, TWO, 1 << 16)), read(content, TWO, 1 << 16)


def test_columns_without_a_name_are_not_read():
    assert read(b"a,b,,\nx,y,,\n", TWO) == {"a": ["x"], "b": ["y"]}


def test_a_file_without_a_header_may_lack_labels_when_it_is_scored():
    columns = {"y": {"role": "label", "positive": ["1"]}, "a": KEPT, "b": KEPT}
    assert read(b"x,z\n", columns, header=False, scoring=True) == {"a": ["x"], "b": ["z"]}
    assert read(b"1,x,z\n", columns, header=False, scoring=True) == {"y": ["1"], "a": ["x"], "b": ["z"]}
    assert read(b"x,z\n", columns, header=False).startswith("rows, line 1: found 2 fields separated by ',', expected 3")


@pytest.mark.parametrize(("text", "number", "integer"), [
    ("12", 12, 12), (" 12 ", 12, 12), ("-0", 0, 0), ("1e3", 1000, None), (".5", 0.5, None), ("", "", ""),
    ("?", "", ""), ("2147483648", 2**31, None), *((text, None, None) for text in ("nan", "inf", "1e39", "1_000",
    "1,5", "--1", "NA", "5e", "١٢", "1 2")),
])  # fmt: skip
def test_numbers(text, number, integer):
    """None if it is refused; "" if it is missing."""
    for kind, value in (("number", number), ("integer", integer)):
        columns = {"a": KEPT, "b": DENSE | {"type": kind}}
        found = read(f"a;b\nx;{text}\n".encode(), columns, separator=";", missing=["?"])
        if value is None:
            assert f"rows, line 2, column b: found {text!r}, expected a" in found
        else:
            assert found["b"] == [None if value == "" else value]


def test_decimal_commas():
    columns = {"a": DENSE, "b": NUMBER, "t": {"role": "time"}}
    found = read(b"a;b;t\n1,5;2,50;1\n-2;3;1\n", columns, separator=";", decimal=",")
    assert (found["a"], found["b"]) == ([1.5, -2], ["2.5", "3"])
    for wrong in (b"1.5;2;1\n", b"1,5;2;1\n1.5;2;1\n"):
        assert "column a: found '1.5'" in read(b"a;b;t\n" + wrong, columns, separator=";", decimal=",")


@pytest.mark.parametrize(("column", "text", "array"), [
    (TEXT, "0.1", pa.array([0.1], pa.float32())), (TEXT, "1234567890123456789", pa.array([1234567890123456789])),
    (NUMBER, "39.0", pa.array([39])), (NUMBER, "39", pa.array([39.0])), (NUMBER, "1e300", pa.array([1e300])),
    (NUMBER, "007", pa.array([7], pa.int8())), (NUMBER, "-0.0", pa.array([0.0])), (NUMBER, "", pa.array([np.nan])),
    (NUMBER, "12345678901234567.50", pa.array(["12345678901234567.5"])), (BOOLEAN, "TRUE", pa.array([True])),
    (TEXT, "2024-01-02", pa.array([datetime.date(2024, 1, 2)])), (TEXT, "", pa.nulls(1)),
    (TEXT, "2024-01-02 03:04:05", pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)], pa.timestamp("ns"))),
    ({"role": "user", "type": "number"}, "9223372036854775807.0", pa.array([2**63 - 1])),
    (DENSE, "18446744073709551615", pa.array([2**64 - 1], pa.uint64())),
    (DENSE, "1.25", pa.array([1.25], pa.float16())),
    ({"role": "time"}, "1704067200123456789", pa.array([1704067200123456789])),
    ({"role": "time"}, "2024-01-01 00:00:00.123456789", pa.array([1704067200123456789], pa.timestamp("ns"))),
    ({"role": "time"}, "2024-01-01T02:00+02:00", pa.array([1704067200], pa.timestamp("s", "Europe/Berlin"))),
    (TEXT | {"separator": "|"}, "1|2", pa.array([[1, 2]], pa.list_(pa.int64(), 2))),
])  # fmt: skip
def test_equal_values_are_equal_in_text_and_parquet(column, text, array):
    columns = {"a": column, "b": KEPT}
    found = read(f"a,b\n{text},\n".encode(), columns)
    assert found == read(parquet({"a": array, "b": [""]}), columns) and found["a"][0] not in ("nan", "None")


def test_texts_stay_as_they_are():
    for text in ("NA", "None", "null", "?", "nan", "0000", "1e3", "1.0", " x ", "9" * 40):
        assert read(f"a,b\n{text},{text}\n".encode(), {"a": KEPT, "b": TEXT}) == {"a": [text], "b": [text]}


@pytest.mark.parametrize("array", [[b"x"], [{"a": 1}], [[["x"]]], [datetime.timedelta(1)]])
def test_types_that_are_no_table_are_refused(array):
    for column in (TEXT, DENSE, {"role": "time"}) if array != [datetime.timedelta(1)] else (DENSE, {"role": "time"}):
        assert re.match("rows, row 1, column a: found .*, expected", read(parquet({"a": array}), {"a": column}))


@pytest.mark.parametrize(("values", "found"), [
    (["1704067200", "1704067201"], [1704067200, 1704067201]),
    (["1704067200123", "1704067200000"], [1704067200.123, 1704067200]),
    (["1", "2.5"], [1, 2.5]),  # an order, whatever its unit
    (["2024-01-01T00:00:00Z", "2024-01-01 00:00"], [1704067200, 1704067200]),
    (["1704067200", "1704067200123"], "'1704067200123', expected s since 1970, as in the other rows or columns.json"),
    (["1704067200", "2024-01-01"], "'2024-01-01', expected s since 1970"),
    (["2024-01-01", "1704067200"], "'1704067200', expected a date such as"),
    (["1", "2024-01-01"], "'2024-01-01', expected a number"),
    (["2024-01-01", "31/12/2024"], "'31/12/2024', expected a date such as 2014-05-31 23:59:00"),
    (["2024-01-01", ""], "'', expected a time in every row"),
])  # fmt: skip
def test_times_have_one_unit(values, found):
    """Also if the other unit comes in another block or file."""
    columns = {"a": KEPT, "t": {"role": "time"}}
    content = "a,t\n" + "".join(f"x,{value}\n" for value in values)
    for block in (8, 8 << 20):
        result = read(content.encode(), columns, block)
        assert result["t"] == found if isinstance(found, list) else f"line 3, column t: found {found}" in result
    one, two = (Source(v, lambda v=v: nullcontext(io.BytesIO(f"a,t\nx,{v}\n".encode()))) for v in values)
    reader = Reader(Format.model_validate({"columns": columns}))
    times = [batch.column("t")[0].as_py() for batch in reader.batches(one)]
    if isinstance(found, list):
        assert [*times, *(batch.column("t")[0].as_py() for batch in reader.batches(two))] == found
    else:
        with pytest.raises(UserError, match=re.escape(found.partition(" as in")[0])):
            list(reader.batches(two))


def test_a_unit_in_the_description_decides():
    columns = {"a": KEPT, "t": {"role": "time", "unit": "ms"}}
    assert read(b"a,t\nx,1704067200123\n", columns)["t"] == [1704067200.123]
    assert "line 2, column t: found '1704067200', expected ms since 1970" in read(b"a,t\nx,1704067200\n", columns)


def test_folders(tmp_path):
    """In natural order, whatever the format, with the keys of their folders; hidden files are not read."""
    columns = {"x": DENSE, "day": NUMBER, "dt": {"role": "time"}, "k": TEXT}
    for day in (1, 2, 10):
        folder = tmp_path / f"dt=2024-01-{day:02}" / f"k={'a%2Fb' if day == 2 else '__HIVE_DEFAULT_PARTITION__'}"
        folder.mkdir(parents=True)
        (folder / f"part_{day}.csv").write_text(f"day,x\n{day},1\n")
        (folder / f"part_{day + 20}.csv.gz").write_bytes(gzip.compress(f"x,day\n2,{day}\n".encode()))
        (folder / f"part_{day + 100}.parquet").write_bytes(parquet({"day": [float(day)], "x": [3]}))
        (folder / "_SUCCESS").touch()
    form = described({"file": str(tmp_path), "columns": columns}, "columns.json")
    table = pa.Table.from_batches(read_all(tmp_path, Reader(form))).to_pydict()
    assert table["x"] == [1, 2, 3] * 3 and table["day"] == ["1"] * 3 + ["2"] * 3 + ["10"] * 3
    assert table["k"] == [""] * 3 + ["a/b"] * 3 + [""] * 3
    assert np.diff(table["dt"]).tolist() == [0, 0, 86400, 0, 0, 8 * 86400, 0, 0]
    (tmp_path / "part_0.csv").write_text("x,day\n1,1\n")
    with pytest.raises(UserError, match=r"part_0.csv has no column 'dt'"):
        read_all(tmp_path, Reader(form))
    with pytest.raises(UserError, match=r"has no away; it has dt="):
        data_files(tmp_path / "away")


def test_a_column_of_lists_and_of_texts_is_refused(tmp_path):
    (tmp_path / "1.csv").write_text("a,b\nx,y\n")
    (tmp_path / "2.parquet").write_bytes(parquet({"a": [["x"]], "b": ["y"]}))
    reader = Reader(Format.model_validate({"columns": {"a": TEXT, "b": KEPT}}))
    with pytest.raises(UserError, match=r"2.parquet, column a: found list<.*> in a cell, expected string as before"):
        read_all(tmp_path, reader)


def test_parts_of_a_column():
    parts = {"year": TEXT | {"source": "a", "pattern": "(?P<year>[0-9]{4})"}}
    parts["month"] = NUMBER | {"source": "a", "pattern": "-(?P<month>[0-9]{2})"}
    found = read(b"a\n2024-01-02\nnever\n", {"a": KEPT} | parts)
    assert found == {"a": ["2024-01-02", "never"], "year": ["2024", ""], "month": ["1", ""]}


def test_pipes():
    content = b"a,b\nx,1\n\ny,z\n"
    columns = {"a": KEPT, "b": DENSE}
    assert read(content, columns, pipe=True).startswith("rows, line 4, column b: found 'z', expected a number")
    assert read(parquet({"a": ["x"], "b": [1]}), columns, pipe=True).startswith("rows is Parquet, which no pipe can")
