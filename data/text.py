"""The bytes of a text table in whole records for pyarrow, which would swallow lines at a stray quote or NUL byte."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import IO, Any

import numpy as np

from common.errors import UserError, check
from data.schema import Format

BLOCK_BYTES = 8 << 20  # read at a time
LONGEST_RECORD = 1 << 20  # bytes; far longer than any real one: its quote was not closed
JSON = (
    "JSON: convert it with `python -c \"import pandas; pandas.read_json('FILE', lines=True, dtype=False, "
    "convert_dates=False).to_csv('NEW_FILE', index=False)\"` (lines=False if the file is one list)"
)
FOREIGN = {  # first bytes of files that are not text
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: `unzip` it, or save it as CSV",
    b"BZh": "compressed with bzip2: `bunzip2` it",
    b"\xfd7zXZ": "compressed with xz: `unxz` it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: `unzstd` it",
    b"7z\xbc\xaf": "a 7z archive: `7z x` it",
    b"Rar!": "a RAR archive: `unrar x` it",
    b"\xff\xfe": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE`",
    b"\xfe\xff": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE`",
    b"ARROW1": "a Feather file: save it as Parquet",
    **dict.fromkeys((b"{", b"[{", b"[\n", b"[\r\n"), JSON),
    **dict.fromkeys((b"<!", b"<?xml", b"<html"), "HTML or XML: download the table itself, or save it as CSV"),
}
BOM = b"\xef\xbb\xbf"


class Text:
    """A stream of the rows of a table, without header, comments and byte order mark; read by pyarrow.

    names: of the columns, from the header line; None without one. separator: of one character, which replaces "::" and
    ", ". skipped: lines before the first row.
    """

    closed = False

    def __init__(self, name: str, start: bytes, stream: IO[bytes], form: Format):
        self.name, self.stream, self.form = name, stream, form
        self.separator = {"::": "\t", ", ": ","}.get(form.separator, form.separator)
        self.position, self.line = 0, 1  # of the next block
        self.rest = start + stream.read(BLOCK_BYTES - len(start))
        for magic, what in FOREIGN.items():
            check(not self.rest.startswith(magic), f"{name} is {what}.")
        self.mac = b"\n" not in self.rest and b"\r" in self.rest  # old Mac line ends
        self.rest = self._prepared(self.rest).removeprefix(BOM)
        self.skipped = 0
        skipped = (b"\n", b"\r\n") if form.header or form.comment else ()
        while self.rest.startswith((*skipped, form.comment.encode()) if form.comment else skipped):
            self._skip(1)
        self.names = self._header() if form.header and self.rest else None

    def read(self, count: int = BLOCK_BYTES) -> bytes:
        """At most `count` bytes: whole records, except for a last line without an end."""
        while True:
            read = self.stream.read(max(1, count - len(self.rest)))
            block = self.rest + self._prepared(read)
            cut = self._whole(block, not read)
            self.rest = block[cut:]
            if cut or not read:
                self.position += cut
                return self._separated(block[:cut])
            check(len(self.rest) <= LONGEST_RECORD, f"{self.name}: a line has more than {LONGEST_RECORD:,} bytes.")

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each row that is not blank."""

        def lines() -> Iterator[str]:
            while block := self.read():
                yield from io.StringIO(block.decode(self.form.encoding, "backslashreplace"), newline="\n")

        if not self.form.quoted:
            for number, line in enumerate(lines(), self.skipped + 1):
                yield number, line.rstrip("\r\n").split(self.separator)
            return
        before, reader = 0, csv.reader(lines(), delimiter=self.separator)
        for fields in reader:
            if fields and (len(fields) > 1 or fields[0].strip()):
                yield self.skipped + before + 1, fields
            before = reader.line_num

    def close(self) -> None:
        """For pyarrow; the stream is closed by who opened it."""

    def width(self) -> int:
        """The number of fields in the first line."""
        line = self._separated(self.rest.partition(b"\n")[0]).decode(self.form.encoding, "replace")
        return (
            len(next(csv.reader([line], delimiter=self.separator), []))
            if self.form.quoted
            else (line.count(self.separator) + 1)
        )

    def _prepared(self, block: bytes) -> bytes:
        zero = block.find(b"\0")
        check(
            zero < 0,
            f"{self.name}, byte {self.position + zero + 1:,}: found a NUL byte; it is not UTF-8 text. If it is UTF-16, "
            "convert it with `iconv -f UTF-16LE -t UTF-8 FILE > NEW_FILE`.",
        )
        return block.replace(b"\r", b"\n") if self.mac else block

    def _separated(self, records: bytes) -> bytes:
        """Whole records with a separator of one character."""
        if self.form.separator == "::":
            return records.replace(b"::", b"\t")
        return re.sub(rb" *(,|\r?\n) *", rb"\1", records).lstrip(b" ") if self.form.separator == ", " else records

    def _skip(self, lines: int) -> None:
        for _ in range(lines):
            self.rest = self.rest.partition(b"\n")[2]
        self.skipped, self.line = self.skipped + lines, self.line + lines

    def _header(self) -> list[str]:
        text = self._separated(self.rest[:LONGEST_RECORD]).decode(self.form.encoding, "replace")
        quoting: Any = csv.QUOTE_MINIMAL if self.form.quoted else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.separator, quoting=quoting, strict=True)
        try:
            names = [name.strip() for name in next(reader)]
        except (csv.Error, StopIteration) as error:
            raise UserError(f"{self.name}, line {self.line}: found no column names ({error}).") from error
        self._skip(reader.line_num)
        return names

    def _whole(self, block: bytes, ended: bool) -> int:
        """The end of the last whole record of a block."""
        end = len(block) if ended else block.rfind(b"\n") + 1
        if not self.form.quoted or b'"' not in block:
            self.line += block.count(b"\n", 0, end) if self.form.quoted else 0
            return end
        content = np.frombuffer(block, np.uint8, end)
        ends = np.append(np.flatnonzero(content == ord("\n")) + 1, end)
        quotes = np.bincount(np.searchsorted(ends, np.flatnonzero(content == ord('"')), "right"))
        done = 0
        for line in np.flatnonzero(quotes % 2).tolist():  # a value of several lines begins, or a quote is a character
            if line < done:
                continue
            start = ends[line - 1] if line else 0
            lines = (
                block[begin:until].decode(self.form.encoding, "replace")
                for begin, until in zip([start, *ends[line:-1]], ends[line:], strict=False)
            )
            reader = csv.reader(lines, delimiter=self.separator, strict=True)
            try:
                fields = next(reader)
            except csv.Error as error:
                if "unexpected end" in str(error) and not ended and end - start <= LONGEST_RECORD:
                    end = start  # the record goes on in the next block
                    break
                raise self._stray(line, f"a quoted value that does not end properly ({error})") from error
            inside = zip([start, *ends[line:]], ends[line : line + reader.line_num], strict=False)
            separators = [block.count(self.separator.encode(), begin, until) for begin, until in inside]
            if len(separators) > 1 and all(count == len(fields) - 1 for count in separators):  # rows, not one value
                raise self._stray(line, f"a quoted value that ends in line {self.line + line + reader.line_num - 1}")
            done = line + reader.line_num
        self.line += int(np.count_nonzero(content[:end] == ord("\n")))
        return int(end)

    def _stray(self, line: int, found: str) -> UserError:
        return UserError(
            f"{self.name}, line {self.line + line}: found {found}. Correct the line; or, if quotes are characters like "
            'any other in this file, set "quoted": false in columns.json.'
        )


def first_rows(text: Text, count: int) -> list[list[str]]:
    """The fields of the first rows."""
    return [fields for _, fields in islice(text.records(), count)]
