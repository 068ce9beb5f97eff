"""Blocks of a text table: cut between records, and parsed by pyarrow; if that fails, line by line for the message."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from common.data.raw_files import CONTROL_BYTES, LINE_BYTES, count_lines
from common.errors import UserError, check
from data.table_schema import Column, Schema

BOM = b"\xef\xbb\xbf"
SEPARATORS = {"\t": "TAB", ",": "comma", ";": "semicolon", "|": "'|'", " ": "space"}
Block = tuple[int, bytes]  # the number of the first line, and whole lines
CUT_ATTEMPTS = 1000
FIRST_RECORDS = 5
CHECKED_BYTES = 1 << 18  # checked at a time, so that they stay in the processor's cache


def without_bom(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks without the byte order mark with which Windows programs begin a file."""
    for line, block in blocks:
        yield line, block.removeprefix(BOM) if line == 1 else block


def whole_records(blocks: Iterator[Block]) -> Iterator[Block]:
    """Blocks that do not end inside a quoted value of several lines."""
    rest, first = b"", 1
    for line, block in blocks:
        first = first if rest else line
        block = rest + block
        cut = _record_end(block)
        rest = block[cut:]
        if len(rest) > LINE_BYTES:  # no value is that long: a quote is unpaired
            cut, rest = len(block), b""
        if cut:
            yield first, block[:cut]
        first += count_lines(block[:cut])
    if rest:
        yield first, rest


def _record_end(block: bytes) -> int:
    """The end of the last line up to which all quotes are paired."""
    cut, quotes = len(block), block.count(b'"')
    for _ in range(CUT_ATTEMPTS):
        if quotes % 2 == 0:
            return cut
        quote = block.rfind(b'"', 0, cut)
        before = block.rfind(b"\n", 0, quote) + 1
        quotes -= block.count(b'"', before, cut)
        cut = before
    return len(block)


def skip_comments(blocks: Iterator[Block], start: str) -> Iterator[Block]:
    """The blocks from the first line that is neither blank nor begins with `start`."""
    in_rows = False
    for line, block in blocks:
        at = 0
        while not in_rows and at < len(block):
            end = block.find(b"\n", at) + 1
            content = block[at:end].strip()
            in_rows = bool(content) and not content.startswith(start.encode())
            if not in_rows:
                at, line = end, line + 1
        if in_rows:
            yield line, block[at:]


def header_names(line: int, block: bytes, file: str, separator: str) -> tuple[list[str], int, bytes]:
    """The names in the first record, its number of lines, and the rest of the block."""
    start = block[: block.find(b"\n")]
    problem = "control characters" if len(start.translate(None, CONTROL_BYTES)) < len(start.rstrip(b"\r")) else None
    check(problem is None, f"{file}, line {line}: found {problem}; the file must be UTF-8. Correct the file.")
    text = io.StringIO(block[:LINE_BYTES].decode("utf-8", "replace"), newline="")
    try:
        reader = csv.reader(text, delimiter=separator, strict=True)
        names = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{file}, line {line}: found no column names ({error}).") from error
    end = 0
    for _ in range(reader.line_num):
        end = block.find(b"\n", end) + 1
    twice = sorted({name for name in names if names.count(name) > 1})
    check(not twice, f"{file}, line {line}: found the column name {twice[0] if twice else ''!r} twice; rename one.")
    return names, reader.line_num, block[end:]


def _arrow_type(column: Column) -> pa.DataType:
    if column.role in ("dense", "weight"):
        return pa.int32() if column.type == "integer" else pa.float64()
    if column.role in ("time", "kept"):
        return pa.string()
    return pa.dictionary(pa.int32(), pa.string())


def _has_control_bytes(plain: bytes) -> bool:
    content = np.frombuffer(plain, np.uint8)
    for start in range(0, len(content), CHECKED_BYTES):
        part = content[start : start + CHECKED_BYTES]
        low = np.count_nonzero(part < 32) - np.count_nonzero(part == 9) - np.count_nonzero(part == 10)
        if low or (part == 127).any():
            return True
    return False


class TextBlock:
    """Whole lines of a file whose columns are `names`."""

    def __init__(self, first_line: int, content: bytes, file: str, names: list[str], schema: Schema):
        self.first_line, self.content, self.file, self.names, self.schema = first_line, content, file, names, schema
        self.skips_blank = schema.quoted or schema.strip

    def parse(self, wanted: list[str]) -> dict[str, pa.Array]:
        """The columns `wanted`, null if missing: numbers, categories as dictionary-encoded texts, and other texts.

        If a number of the block does not parse, all columns are texts. Raises: UserError naming the first wrong line.
        """
        plain = self.content.replace(b"\r\n", b"\n") if b"\r" in self.content else self.content
        if _has_control_bytes(plain):
            raise self._explained("control characters")
        if plain.startswith(BOM):  # pyarrow would drop it; the file's own is already removed
            raise self._explained("a byte order mark")
        try:
            plain.isascii() or plain.decode()  # pyarrow checks only the wanted columns
        except UnicodeDecodeError as error:
            raise self._explained("bytes that are not UTF-8") from error
        types = {name: _arrow_type(self.schema[name]) for name in wanted}
        # pyarrow would accept spaces and hexadecimal digits in integers
        if pa.int32() in types.values() and any(byte in plain for byte in (b" ", b"x", b"X")):
            types = dict.fromkeys(wanted, pa.string())
        try:
            table = self._read(plain, types)
        except pa.ArrowInvalid:
            try:
                table = self._read(plain, dict.fromkeys(wanted, pa.string()))
            except pa.ArrowInvalid as error:
                raise self._explained(str(error)) from error
        if len(table) != count_lines(plain):
            if self.schema.quoted:
                self._check_quotes()
            elif not self.skips_blank:
                raise self._explained("a blank line")
        columns = {name: table.column(name).combine_chunks() for name in wanted}
        if self.schema.strip:
            missing = pa.array(self.schema.missing, pa.string())
            for name, texts in columns.items():
                if pa.types.is_string(texts.type):  # dictionaries are stripped later, each distinct text once
                    texts = pc.ascii_trim_whitespace(texts)
                    columns[name] = pc.if_else(pc.is_in(texts, missing), None, texts)
        return columns

    def _read(self, plain: bytes, types: dict[str, pa.DataType]) -> pa.Table:
        schema = self.schema
        return pyarrow.csv.read_csv(
            pa.py_buffer(plain),
            pyarrow.csv.ReadOptions(use_threads=False, column_names=self.names, block_size=len(plain) + 1),
            pyarrow.csv.ParseOptions(
                delimiter=schema.separator,
                quote_char='"' if schema.quoted else False,
                double_quote=schema.quoted,
                newlines_in_values=schema.quoted,
                ignore_empty_lines=True,
                invalid_row_handler=self._on_invalid,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=[] if schema.strip else list(schema.missing),
                strings_can_be_null=True,
            ),
        )

    def place(self, row: int) -> tuple[str, dict[str, str]]:
        """Where a parsed row is in the file, and its fields."""
        for i, (line, fields) in enumerate(self._records()):
            if i == row:
                return f"{self.file}, line {line}", dict(zip(self.names, fields, strict=False))
        raise AssertionError(row)

    def usual_width(self) -> int:
        """How many fields most of the first records have."""
        widths = Counter(len(fields) for _, fields in islice(self._records(), FIRST_RECORDS))
        return widths.most_common(1)[0][0] if widths else 0

    def _on_invalid(self, row) -> str:
        # a line of spaces counts as blank too
        return "skip" if self.skips_blank and row.text is not None and not row.text.strip() else "error"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Line and fields of each row."""
        if not self.schema.quoted:
            for i, line in enumerate(self.content.removesuffix(b"\n").split(b"\n")):
                text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
                fields = text.split(self.schema.separator)
                if self.schema.strip:
                    fields = [field.strip() for field in fields]
                if not (self.skips_blank and not text.strip()):
                    yield self.first_line + i, fields
            return
        stream = io.StringIO(self.content.decode("utf-8", "backslashreplace"), newline="")
        reader = csv.reader(stream, delimiter=self.schema.separator)
        before = 0
        for fields in reader:
            if (fields and len(fields) == len(self.names)) or self.schema.separator.join(fields).strip():
                yield self.first_line + before, fields
            before = reader.line_num

    def _check_quotes(self) -> None:
        text = io.StringIO(self.content.decode("utf-8"), newline="")
        reader = csv.reader(text, delimiter=self.schema.separator, strict=True)
        begin = 0
        try:
            for _ in reader:
                begin = reader.line_num
        except csv.Error as error:
            raise UserError(
                f"{self.file}, line {self.first_line + begin}: found a quoted value that does not end properly "
                f"({error}). Correct the line."
            ) from error

    def _explained(self, problem: str) -> UserError:
        """The error that names the first wrong line."""
        for i, raw in enumerate(self.content.split(b"\n")):
            raw, found = raw.removesuffix(b"\r"), None
            if len(raw.translate(None, CONTROL_BYTES)) < len(raw):
                found = "control characters"
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                found = "bytes that are not UTF-8"
            if raw.startswith(BOM):
                found = "a byte order mark"
            if found:
                return UserError(f"{self.file}, line {self.first_line + i}: found {found}. Correct the file.")
        separator, expected = self.schema.separator, len(self.names)
        for line, fields in self._records():
            if len(fields) != expected:
                text = separator.join(fields)
                return UserError(
                    f"{self.file}, line {line}: found {len(fields)} fields separated by "
                    f"{SEPARATORS.get(separator, repr(separator))}, expected {expected}. "
                    f"{self._advice(text, line, len(fields))}"
                )
        return UserError(f"{self.file}, after line {self.first_line}: {problem[:200]}. Correct the file.")

    def _advice(self, text: str, line: int, found: int) -> str:
        for separator, name in SEPARATORS.items():
            if separator != self.schema.separator and text.count(separator) == len(self.names) - 1 and found == 1:
                return f"With {name} as the separator the line has the expected number of fields: convert the file."
        labels = len(self.schema.label_columns)
        if not self.schema.header and line == 1 and len(self.names) - found in (1, labels):
            return "Is it a file without labels? Such a file can be scored, but not trained on."
        return "If it is the last line, the file is truncated: get it again. Otherwise correct or remove the line."
