"""A table in text -> Arrow batches, by pyarrow from blocks of whole records: it swallows lines at a stray quote."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from common.data.parallel import ordered_map
from common.errors import UserError, check
from data.schema import Format

BLOCK_BYTES = 8 << 20  # read at a time
LONGEST_RECORD = 1 << 20  # bytes; far longer than any real one: its quote was not closed
csv.field_size_limit(LONGEST_RECORD)
WHOLE = (1 << 31) - 1  # bytes, more than any block has
BOM = b"\xef\xbb\xbf"
FOREIGN = {  # by their first bytes: files that are no table in text, and what to do
    rb"PK\x03\x04": "a ZIP archive or a spreadsheet: `unzip` it, or save it as CSV",
    rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!": "a compressed file: unpack it with `7z x`",
    rb"\xff\xfe|\xfe\xff": "UTF-16: convert it with `iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE`",
    rb"ARROW1": "a Feather file: save it as Parquet",
    rb'\{"|\[\s*\{': "JSON: convert it with `python -c \"import pandas; pandas.read_json('FILE', lines=True, "
    "dtype=False, convert_dates=False).to_csv('NEW_FILE', index=False)\"` (lines=False if the file is one list)",
    rb"<(!|\?xml|html)": "HTML or XML: download the table itself, or save it as CSV",
}


class Block(NamedTuple):
    """Whole records. line: the number of the first one."""

    line: int
    content: bytes


class Text:
    """A table in text, read from a stream.

    names: of the columns, from the header line; without one empty, to be set. width: the number of fields in a line.
    separator: of one character, which replaces "::" and ", " in the blocks. start: bytes that were already read.
    """

    def __init__(self, name: str, start: bytes, stream: IO[bytes], form: Format):
        self.name, self.stream, self.form = name, stream, form
        self.separator = {"::": "\t", ", ": ","}.get(form.separator, form.separator)
        self.quoted = form.quoted is not False
        first = start + stream.read(BLOCK_BYTES)
        for magic, what in FOREIGN.items():
            check(not re.match(magic, first), f"{name} is {what}.")
        self.mac = b"\n" not in first and b"\r" in first  # old Mac line ends
        self.line, self.rest = 1, b""
        self.rest = self._prepared(first).removeprefix(BOM)
        if form.header or form.comment:
            comment = re.escape(form.comment.encode()) + rb"[^\n]*" if form.comment else b""
            self._skip(re.match(rb"(([ \t]*|%b)\r?\n)*" % comment, self.rest).end())  # type: ignore[union-attr]
        self.names: list[str] = self._header() if form.header and self.rest else []
        first_line = self.rest.lstrip(b"\r\n").partition(b"\n")[0]
        self.width = len(self.names or next(self._rows([first_line]), []))
        self.skips_blank = self.quoted or self.width > 1  # otherwise they are the empty values of a single column

    def blocks(self) -> Iterator[Block]:
        """All rows, without header, comments and byte order mark. Raises: UserError for a stray quote or NUL byte."""
        read = b"first"
        while read:
            read = self._prepared(self.stream.read(BLOCK_BYTES))
            block = self.rest + read
            cut = self._whole(block, ended=not read)
            if cut:
                yield Block(self.line, self._separated(block[:cut]))
            self.rest = block
            self._skip(cut)
            check(
                len(self.rest) <= LONGEST_RECORD,
                f"{self.name}, line {self.line}: the line has more than {LONGEST_RECORD:,} bytes.",
            )

    def records(self, block: Block) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each row."""
        rows, line = self._rows(block.content.splitlines(keepends=True)), block.line
        for fields in rows:
            if not self.skips_blank or len(fields) > 1 or "".join(fields).strip():
                yield line, fields
            line = block.line + rows.line_num

    def batches(self, types: Mapping[str, pa.DataType]) -> Iterator[tuple[Block, pa.RecordBatch]]:
        """These columns, as texts if one holds a wrong value, and where they are from.

        Raises: UserError for a row of another width or encoding, a stray quote, or a NUL byte.
        """
        options = pyarrow.csv.ReadOptions(
            column_names=self.names, encoding=self.form.encoding, use_threads=False, block_size=WHOLE
        )
        parsing = pyarrow.csv.ParseOptions(
            delimiter=self.separator,
            quote_char='"' if self.quoted else False,
            ignore_empty_lines=self.skips_blank,
            invalid_row_handler=lambda row: "error" if row.text.strip() else "skip",  # lines of spaces are blank too
        )

        def read(block: Block, types: Mapping[str, pa.DataType]) -> pa.Table:
            conversion = pyarrow.csv.ConvertOptions(
                include_columns=list(types),
                column_types=types,
                null_values=self.form.missing_texts,
                decimal_point=self.form.decimal,
            )
            return pyarrow.csv.read_csv(pa.BufferReader(block.content), options, parsing, conversion)

        def parsed(block: Block) -> tuple[Block, pa.Table]:
            try:
                return block, read(block, types)
            except pa.ArrowInvalid:
                self._check_rows(block)
                return block, read(block, dict.fromkeys(types, pa.string()))

        for block, table in ordered_map(parsed, self.blocks()):
            for batch in table.to_batches():  # at most one
                yield block, batch

    def _check_rows(self, block: Block) -> None:
        """Raises: UserError for the first row in another encoding, or with another number of fields."""
        try:
            block.content.decode(self.form.encoding)
        except UnicodeDecodeError as error:
            line = block.line + _line_ends(block.content[: error.start])
            raise UserError(
                f"{self.name}, line {line}: found bytes that are not UTF-8. Convert the file with `iconv -f "
                'WINDOWS-1252 -t UTF-8 FILE > NEW_FILE`, or set "encoding": "latin-1" in columns.json.'
            ) from error
        expected = len(self.names)
        for line, fields in self.records(block):
            check(
                len(fields) == expected,
                f"{self.name}, line {line}: found {len(fields)} fields separated by {self.form.separator!r}, expected "
                f'{expected}. Is it the "separator" in columns.json? If this is the last line, the file is truncated: '
                "get it again. Otherwise correct or remove the line.",
            )

    def _rows(self, lines: Iterable[bytes], strict: bool = False) -> Any:
        """A reader of the fields of each row."""
        texts = (self._separated(line).decode(self.form.encoding, "backslashreplace") for line in lines)
        quoting: Any = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        return csv.reader(texts, delimiter=self.separator, quoting=quoting, strict=strict)

    def _prepared(self, read: bytes) -> bytes:
        if b"\0" in read:
            line = self.line + _line_ends((self.rest + read).partition(b"\0")[0])
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
        for i in range(0, len(parts), 2):
            if self.form.separator == "::":
                parts[i] = parts[i].replace(b"::", b"\t")
                continue
            for spaced in (b", ", b" ,", b"\n ", b" \n", b" \r\n"):
                while spaced in parts[i]:  # much faster than a regular expression
                    parts[i] = parts[i].replace(spaced, spaced.strip(b" "))
            parts[i] = parts[i].strip(b" ")
        return b"".join(parts)

    def _skip(self, end: int) -> None:
        self.line += _line_ends(self.rest[:end])
        self.rest = self.rest[end:]

    def _header(self) -> list[str]:
        lines = self.rest[:LONGEST_RECORD].splitlines(keepends=True)
        rows = self._rows(lines)
        names = [name.strip() for name in next(rows)]
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
                if "unexpected end" in str(error) and not ended:
                    return sum(map(len, lines[:i]))  # the record goes on in the next block
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


def _line_ends(content: bytes) -> int:
    lone = content.count(b"\r") - content.count(b"\r\n") if b"\r" in content else 0
    return content.count(b"\n") + lone
