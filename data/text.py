"""The bytes of a text table in whole records for pyarrow, which would swallow lines at a stray quote or NUL byte."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any

from common.errors import UserError, check
from data.schema import Format

BLOCK_BYTES = 2 << 20  # read at a time: larger blocks leave the processor's cache
LONGEST_RECORD = 1 << 20  # bytes; far longer than any real one: its quote was not closed
csv.field_size_limit(LONGEST_RECORD)
JSON = (
    "JSON: convert it with `python -c \"import pandas; pandas.read_json('FILE', lines=True, dtype=False, "
    "convert_dates=False).to_csv('NEW_FILE', index=False)\"` (lines=False if the file is one list)"
)
FOREIGN = {  # first bytes of files that are no table in text
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: `unzip` it, or save it as CSV",
    b"BZh": "compressed with bzip2: `bunzip2` it",
    b"\xfd7zXZ": "compressed with xz: `unxz` it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: `unzstd` it",
    b"7z\xbc\xaf": "a 7z archive: `7z x` it",
    b"Rar!": "a RAR archive: `unrar x` it",
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE`"),
    b"ARROW1": "a Feather file: save it as Parquet",
    **dict.fromkeys((b'{"', b"[{", b"[\n", b"[\r\n"), JSON),
    **dict.fromkeys((b"<!", b"<?xml", b"<html"), "HTML or XML: download the table itself, or save it as CSV"),
}
BOM = b"\xef\xbb\xbf"


class Text:
    """A stream of the rows of a table, without header, comments and byte order mark; read by pyarrow.

    names: of the columns, from the header line; None without one. separator: of one character, which replaces "::" and
    ", ". width: the number of fields in a line. line: the number of the first line not read yet.
    """

    closed = False

    def __init__(self, name: str, start: bytes, stream: IO[bytes], form: Format):
        self.name, self.stream, self.form, self.block_bytes = name, stream, form, BLOCK_BYTES
        self.separator = {"::": "\t", ", ": ","}.get(form.separator, form.separator)
        self.quoted = form.quoted is not False
        self.line, self.rest = 1, b""
        first = start + stream.read(BLOCK_BYTES)
        for magic, what in FOREIGN.items():
            check(not first.startswith(magic), f"{name} is {what}.")
        self.mac = b"\n" not in first and b"\r" in first  # old Mac line ends
        self.rest = self._prepared(first).removeprefix(BOM)
        comment = re.escape(form.comment.encode()) + rb"[^\n]*" if form.comment else b""
        while (form.header or form.comment) and (skipped := re.match(rb"(([ \t]*|%b)\r?\n)+" % comment, self.rest)):
            self._skip(skipped.end())
        self.names = self._header() if form.header and self.rest else None
        first_line = self.rest.lstrip(b"\r\n").partition(b"\n")[0]
        self.width = len(self.names or next(self._rows([first_line]), []))
        self.skips_blank = self.quoted or self.width > 1  # otherwise they are the empty values of a single column

    def read(self, count: int) -> bytes:
        """About `count` bytes: whole records, except for a last line without an end."""
        while True:
            read = self._prepared(self.stream.read(count))
            block = self.rest + read
            cut = self._whole(block, ended=not read)
            self.rest = block[cut:]
            if cut or not read:
                self.line += block.count(b"\n", 0, cut)
                return self._separated(block[:cut])
            check(
                len(self.rest) <= LONGEST_RECORD,
                f"{self.name}, line {self.line}: the line has more than {LONGEST_RECORD:,} bytes.",
            )

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each row."""

        def lines() -> Iterator[bytes]:
            while block := self.read(self.block_bytes):
                yield from block.splitlines(keepends=True)

        first, before, rows = self.line, 0, self._rows(lines())
        for fields in rows:
            if not self.skips_blank or len(fields) > 1 or "".join(fields).strip():
                yield first + before, fields
            before = rows.line_num

    def close(self) -> None:
        """For pyarrow; the stream is closed by who opened it."""

    def _rows(self, lines: Iterable[bytes], strict: bool = False) -> Any:
        """A reader of the fields of each row."""
        texts = (self._separated(line).decode(self.form.encoding, "backslashreplace") for line in lines)
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(texts, delimiter=self.separator, quoting=quoting, strict=strict)

    def _prepared(self, read: bytes) -> bytes:
        if b"\0" in read:
            line = self.line + (self.rest + read).partition(b"\0")[0].count(b"\n")
            raise UserError(
                f"{self.name}, line {line}: found a NUL byte; it is not UTF-8 text. If it is UTF-16, convert it with "
                "`iconv -f UTF-16LE -t UTF-8 FILE > NEW_FILE`."
            )
        return read.replace(b"\r", b"\n") if self.mac else read

    def _separated(self, records: bytes) -> bytes:
        """Whole records with a separator of one character."""
        if self.form.separator == self.separator:
            return records
        parts = re.split(rb'("[^"]*")', records) if self.quoted else [records]  # every second one is in quotes
        parts[::2] = map(_tabbed if self.form.separator == "::" else _trimmed, parts[::2])
        return b"".join(parts)

    def _skip(self, end: int) -> None:
        self.line += self.rest.count(b"\n", 0, end)
        self.rest = self.rest[end:]
        self.rest += self._prepared(self.stream.read(end))

    def _header(self) -> list[str]:
        lines = self.rest[:LONGEST_RECORD].splitlines(keepends=True)
        rows = self._rows(lines, strict=True)
        try:
            names = [name.strip() for name in next(rows)]
        except csv.Error as error:
            raise UserError(f"{self.name}, line {self.line}: found no column names ({error}).") from error
        self._skip(sum(map(len, lines[: rows.line_num])))
        return names

    def _whole(self, block: bytes, ended: bool) -> int:
        """The end of the last whole record of a block."""
        end = len(block) if ended else block.rfind(b"\n") + 1
        if not self.quoted or b'"' not in block:
            return end
        lines, done = block[:end].splitlines(keepends=True), 0
        for i in [i for i, line in enumerate(lines) if line.count(b'"') % 2]:
            if i < done:
                continue
            # a value of several lines begins here, or the quote is a character like any other
            rows = self._rows(lines[i:], strict=True)
            try:
                fields = next(rows)
            except csv.Error as error:
                start = sum(map(len, lines[:i]))
                if "unexpected end" in str(error) and not ended and end - start <= LONGEST_RECORD:
                    return start  # the record goes on in the next block
                raise self._stray(i, f"a quoted value that does not end properly ({error})") from error
            done = i + rows.line_num
            counts = {self._separated(line).count(self.separator.encode()) for line in lines[i:done]}
            if self.form.quoted is None and rows.line_num > 1 and counts == {len(fields) - 1}:
                raise self._stray(i, f"a quoted value that goes on to line {self.line + done - 1}, or several rows")
        return end

    def _stray(self, line: int, found: str) -> UserError:
        return UserError(
            f'{self.name}, line {self.line + line}: found {found}. Correct the line, or set "quoted" in columns.json: '
            "false if quotes are characters like any other in this file, true if a value may have several lines."
        )


def _tabbed(records: bytes) -> bytes:
    return records.replace(b"::", b"\t")


def _trimmed(records: bytes) -> bytes:
    """Without spaces beside commas and line ends, without a slow regular expression."""
    for spaced in (b", ", b" ,", b"\n ", b" \n", b" \r\n"):
        while spaced in records:
            records = records.replace(spaced, spaced.strip(b" "))
    return records.strip(b" ")


def first_rows(text: Text, count: int) -> list[list[str]]:
    """The fields of the first rows."""
    return [fields for _, fields in islice(text.records(), count)]
