"""Damaged raw files of every format are read as by a plain parser, or refused with file and line.

FUZZ_EXAMPLES: files per format and kind of damage; `FUZZ_EXAMPLES=200 pytest tests/test_fuzz.py` searches harder.
"""

import faulthandler
import gzip
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from tests.plain_parsers import FORMS, Form

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
HANGS = 60  # seconds for one file
QUIET = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
BYTE = st.one_of(st.sampled_from(list(b'\t\n\r\0 ,:|"-_+.;019aF\x1a\x7f\x85\xa0\xff')), st.integers(0, 255))
NUMBERS = [
    "2147483647", "2147483648", "-2147483648", "99999999999", "9223372036854775808", "00000000000000000007",
    "--12345678", "-", "+5", "-5", "1.5", "5.", "1_000", "0x10", "1e5", "1e39", "1e400", "-1e400", "nan", "inf",
    "Infinity", "١٢", "５", " 5", "5 ", "", "1" + "0" * 400, "9" * 5000,
]  # fmt: skip
NUMBER = st.one_of(
    st.sampled_from(NUMBERS), st.integers(-(10**30), 10**30).map(str), st.text("0123456789-+_.eE", max_size=14)
).map(str.encode)
FIELD = st.one_of(st.sampled_from([b"", b"0", b"?", b"x", b'"', b'"a,b"', b'"a', b"|", b":"]), NUMBER)
NO_LINE = r"is empty|has no (rows|ratings)"  # the only errors that name no line


def file_of(lines: list[bytes], end: bytes = b"\n") -> bytes:
    return b"".join(line + end for line in lines)


def place(draw: Callable, items: list | bytes, past: int = 0) -> int:
    return draw(st.integers(0, len(items) - 1 + past))


def bytes_flipped(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    content = bytearray(file_of(lines))
    for _ in range(draw(st.integers(1, 3))):
        content[place(draw, content)] = draw(BYTE)
    return bytes(content)


def bytes_inserted(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    content = bytearray(file_of(lines))
    for _ in range(draw(st.integers(1, 3))):
        content.insert(place(draw, content, 1), draw(BYTE))
    return bytes(content)


def line_cut(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    for _ in range(draw(st.integers(1, 2))):
        row = place(draw, lines)
        lines[row] = lines[row][: place(draw, lines[row], 1)]
    if draw(st.booleans()):  # the file ends there
        return b"\n".join(lines[: row + 1])
    return file_of(lines)


def field_added(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    for _ in range(draw(st.integers(1, 2))):
        row = place(draw, lines)
        fields = lines[row].split(form.separator)
        fields.insert(place(draw, fields, 1), draw(FIELD))
        lines[row] = form.separator.join(fields)
    return file_of(lines)


def field_removed(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    row = place(draw, lines)
    fields = lines[row].split(form.separator)
    del fields[place(draw, fields)]
    lines[row] = form.separator.join(fields)
    return file_of(lines)


def number_replaced(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    for _ in range(draw(st.integers(1, 2))):
        row = place(draw, lines)
        fields = lines[row].split(form.separator)
        fields[place(draw, fields)] = draw(NUMBER)
        lines[row] = form.separator.join(fields)
    return file_of(lines)


def encoding_broken(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    content = file_of(lines)
    whole = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-8"]
    if draw(st.booleans()):
        return content.decode("latin-1").encode(draw(st.sampled_from(whole)))
    broken = [b"\xff", b"\xc3", b"\xc3\xa9", b"\xe9", b"\xed\xa0\x80", b"\xc0\x80", b"\xf0\x9f\x98", b"\xe2\x80\xa8"]
    at = place(draw, content, 1)
    return content[:at] + draw(st.sampled_from([*broken, b"\xc2\x85", b"\xc2\xa0"])) + content[at:]


def nul_bytes(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    content, at = file_of(lines), place(draw, file_of(lines), 1)
    count = draw(st.sampled_from([1, 1, 2, 8, 4096]))
    kept = at + draw(st.integers(0, 1)) * count  # inserted, or written over
    return content[:at] + b"\0" * count + content[kept:]


def line_added(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    added = [b"", b" ", b"\t", b"\r", b"|comment", b"# comment", b"\xef\xbb\xbf", form.separator.join([b"a"] * 5)]
    for _ in range(draw(st.integers(1, 2))):
        lines.insert(place(draw, lines, 1), draw(st.sampled_from([*added, lines[0]])))
    return file_of(lines)


def line_repeated(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        lines.insert(place(draw, lines, 1), lines[place(draw, lines)])
    return file_of(lines)


def header_removed_or_changed(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    """A first line that does not belong to this format, or no first line."""
    names = form.separator.join(b"c%d" % i for i in range(lines[0].count(form.separator) + 1))
    return file_of(draw(st.sampled_from([lines[1:], [names, *lines], [names, *lines[1:]], [lines[0].upper()]])))


def windows_line_ends(draw: Callable, lines: list[bytes], form: Form) -> bytes:
    """Other damage, and some or all lines end with CRLF."""
    content = draw(st.sampled_from(KINDS[:-1]))(draw, lines, form)
    ends = st.just(b"\r\n") if draw(st.booleans()) else st.sampled_from([b"\n", b"\r\n"])
    return b"".join(line + draw(ends) for line in content.split(b"\n"))


KINDS = [
    bytes_flipped,
    bytes_inserted,
    line_cut,
    field_added,
    field_removed,
    number_replaced,
    encoding_broken,
    nul_bytes,
    line_added,
    line_repeated,
    header_removed_or_changed,
    windows_line_ends,  # the last
]
BY_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Files of a few lines come in several blocks."""
    with patch("data.movie_raw.BLOCK_BYTES", 40), patch("data.table_reader.BLOCK_BYTES", 1700):
        yield


def read(form: Form, content: bytes, suffix: str = "") -> list | str:
    """The rows, or the message of the error with FILE for the path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{form.name}{suffix}"
        path.write_bytes(content)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            return form.read(path)
        except UserError as error:
            assert str(path) in str(error)
            return str(error).replace(str(path), "FILE")
        finally:
            faulthandler.cancel_dump_traceback_later()


def refused(form: Form, content: bytes) -> bool:
    try:
        form.plain(content)
    except ValueError:
        return True
    return False


@BY_FORM
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_damaged_file_is_read_as_by_a_plain_parser_or_refused(form, kind):
    @QUIET
    @given(st.data())
    def run(data):
        content = kind(data.draw, list(form.lines), form)
        found = read(form, content)
        if not refused(form, content):
            assert found == form.plain(content)
            return
        assert isinstance(found, str), f"accepted {content!r} as {found}"
        line = re.match(r"FILE, line (\d+)\b", found)
        assert line or re.search(NO_LINE, found), found
        # the reported line is one that was changed, unless it is valid in another place
        if line and not re.search("twice|the id .* again", found) and not (form.header and line[1] == "1"):
            blamed = (content.split(b"\n")[int(line[1]) - 1]).removesuffix(b"\r")
            assert blamed not in form.lines[form.header :], found

    run()


@BY_FORM
def test_windows_line_ends_make_no_difference(form):
    @QUIET
    @given(st.data())
    def run(data):
        ends = [data.draw(st.sampled_from([b"\n", b"\r\n"])) for _ in form.lines[1:]]
        last = data.draw(st.sampled_from([b"\n", b"\r\n", b""]))
        content = b"".join(line + end for line, end in zip(form.lines, [*ends, last], strict=True))
        assert read(form, content) == form.plain(file_of(form.lines)) == form.plain(content)

    run()


@BY_FORM
def test_a_damaged_gz_is_read_whole_or_refused(form):
    @QUIET
    @given(st.data())
    def run(data):
        whole = form.plain(file_of(form.lines))
        packed = bytearray(gzip.compress(file_of(form.lines), mtime=0))
        for _ in range(data.draw(st.integers(0, 2))):
            packed[place(data.draw, packed)] = data.draw(st.integers(0, 255))
        packed = bytes(packed[: place(data.draw, packed, 1)]) + data.draw(st.sampled_from([b"", b"", b"\0" * 9, b"x"]))
        found = read(form, packed, ".gz")
        assert found == whole or isinstance(found, str), found

    run()
