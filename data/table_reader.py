"""Reads a table (CSV, TSV or Parquet, plain or .gz; a file, a folder of files or a stream) in blocks of columns.

Memory holds a few blocks. Every error names the file, the line (for Parquet the row) and the column.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet

from common.data.parallel import ordered_map
from common.data.raw_files import Readable, Stream, decompressed, gzip_errors, line_blocks
from common.errors import UserError, check
from data.table_schema import Schema
from data.table_text import TextBlock, header_names, skip_comments, whole_records, without_bom

T = TypeVar("T")

BLOCK_BYTES = 8 << 20  # of text, read at a time
PARQUET_ROWS = 1 << 16  # read at a time
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Rows:
    """Some rows of a file as columns, in the types of TextBlock.parse for a text file, of the file for Parquet.

    place: where a row is ("FILE, line 7"), and its fields as written in the file. is_text: whether the file is text, in
    which "nan" is not a number.
    """

    count: int
    columns: dict[str, pa.Array]
    place: Callable[[int], tuple[str, dict[str, str]]]
    is_text: bool

    def __len__(self) -> int:
        return self.count

    def error(self, row: int, column: str, expected: str) -> UserError:
        where, fields = self.place(row)
        found = fields.get(column, self.columns[column][row].as_py())
        shown = repr("" if found is None else found if isinstance(found, str) else str(found))
        shown = shown if len(shown) <= 42 else f"{shown[:40]}...'"
        return UserError(f"{where}, column {column}: found {shown}, expected {expected}. Correct or remove the line.")


def data_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder sorted by name. Raises: UserError if there is none."""
    try:
        if path.is_dir():
            parts = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_")))
            check(bool(parts), f"{path} has no files.")
            return parts
        if not path.exists():
            there = sorted(p.name for p in path.parent.iterdir())[:20] if path.parent.is_dir() else []
            raise UserError(f"there is no file {path}; {_listed(path.parent, there)}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    return [path]


def _listed(folder: Path, names: list[str]) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder} either."
    return f"{folder} has {', '.join(names)}." if names else f"{folder} is empty."


def read_files(
    files: list[Path], schema: Schema, convert: Callable[[Rows], T], progress: Callable[[int], object] | None = None
) -> Iterator[T]:
    """convert(rows), called in threads, for the rows of all files, in order. progress: called with the bytes read.

    Raises: UserError as read_stream does, and for a file that cannot be read.
    """
    for path in files:
        try:
            with open(path, "rb") as file:
                stream = decompressed(file)
                before = 0
                for item in read_stream(stream, str(path), schema, convert):
                    yield item
                    if progress:
                        progress(file.tell() - before)
                        before = file.tell()
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or (error.filename and str(error.filename) != str(path)):
                raise
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


def read_stream(
    stream: Stream, name: str, schema: Schema, convert: Callable[[Rows], T], scoring: bool = False
) -> Iterator[T]:
    """convert(rows), called in threads, for the rows of a stream of decompressed bytes, in order.

    scoring: labels and other columns that are not inputs may be missing.
    Raises: UserError naming the file, line and column for anything that violates the schema, for a file without rows
    and for a truncated .gz; and whatever `convert` raises.
    """
    with gzip_errors(name):
        start = stream.read(len(PARQUET_MAGIC))
    if start == PARQUET_MAGIC:
        check(stream.seekable(), f"{name} is Parquet, which cannot be read from a pipe; pass the name of the file.")
        blocks = _parquet_blocks(stream, name, schema, scoring)
    else:
        blocks = _text_blocks(_Joined(start, stream), name, schema, scoring)
    empty = True

    def parsed(block: Callable[[], Rows]) -> list[T]:
        rows = block()
        return [convert(rows)] if len(rows) else []

    for items in ordered_map(parsed, blocks):
        empty = empty and not items
        yield from items
    check(not empty, f"{name} is empty; expected rows with the columns {_some(schema.names)}.")


class _Joined:
    """A stream whose first bytes have already been read."""

    def __init__(self, start: bytes, stream: Readable):
        self.start, self.stream = start, stream

    def read(self, count: int, /) -> bytes:
        start, self.start = self.start, b""
        return start + self.stream.read(count - len(start))


def _text_blocks(stream: Readable, name: str, schema: Schema, scoring: bool) -> Iterator[Callable[[], Rows]]:
    """Functions that parse the blocks, to be called in threads."""
    blocks = without_bom(line_blocks(stream, name, BLOCK_BYTES))
    blocks = whole_records(blocks) if schema.quoted else blocks
    blocks = skip_comments(blocks, schema.comment) if schema.comment else blocks
    first = next(blocks, None)
    if first is None:
        return
    if schema.header:
        names, used, body = header_names(*first, name, schema.separator)
        first = (first[0] + used, body)
    else:
        names = _names_by_width(schema, TextBlock(*first, name, [], schema).usual_width(), scoring)
    wanted = _wanted(names, schema, name, scoring)

    def parse(block: tuple[int, bytes]) -> Rows:
        text = TextBlock(*block, name, names, schema)
        columns = text.parse(wanted)
        return Rows(len(columns[wanted[0]]), columns, text.place, True)

    for block in chain([first], blocks):
        if block[1]:
            yield partial(parse, block)


def _names_by_width(schema: Schema, width: int, scoring: bool) -> list[str]:
    """The column names of a file without a header line: all of them or, when scoring, all except labels."""
    labels = schema.label_columns
    for lacking in ([], labels[:1], labels) if scoring else ([],):
        names = [column for column in schema.names if column not in lacking]
        if len(names) == width:
            return names
    return schema.names  # the parser will report what is wrong, with the line


def _parquet_blocks(stream: Stream, name: str, schema: Schema, scoring: bool) -> Iterator[Callable[[], Rows]]:
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        wanted = _wanted(file.schema_arrow.names, schema, name, scoring)
        before = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
            columns = {column: batch.column(batch.schema.get_field_index(column)) for column in wanted}
            yield partial(_valid, Rows(len(batch), columns, partial(_parquet_place, name, before), False), name)
            before += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise _damaged_parquet(name, error) from error


def _valid(rows: Rows, name: str) -> Rows:
    """The rows. Raises: UserError for texts that are not UTF-8, which pyarrow does not check."""
    try:
        for array in rows.columns.values():
            array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _damaged_parquet(name, error) from error
    return rows


def _damaged_parquet(name: str | Path, error: Exception) -> UserError:
    return UserError(f"{name}: the Parquet file is truncated or damaged ({str(error)[:200]}); get it again.")


def _parquet_place(name: str, before: int, row: int) -> tuple[str, dict[str, str]]:
    return f"{name}, row {before + row + 1}", {}


def _wanted(names: list[str], schema: Schema, file: str, scoring: bool) -> list[str]:
    """The columns to read, in the order of the schema. Raises: UserError if one is missing."""
    there = set(names)
    needed = [c.name for c in schema.columns if c.role in ("dense", "categorical", "kept")]
    optional = schema.label_columns
    if not scoring:
        needed += [c.name for c in schema.of_role("time", "weight")] + schema.label_columns
        needed += [schema.split_column] if schema.split_column else []
    lacking = [column for column in needed if column not in there]
    check(
        not lacking,
        f"{file}: line 1 names no column {_some(lacking)}; it has {_some(names)}. "
        "Is the separator right, and does line 1 hold the names of the columns?",
    )
    chosen = {*needed, *(there & set(optional))}
    return [column for column in schema.names if column in chosen]


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def first_names(path: Path) -> tuple[str, list[str]]:
    """The separator and the column names of a file with a header line; for Parquet a comma and its columns."""
    with open(path, "rb") as file, gzip_errors(path):
        stream = decompressed(file)
        start = stream.read(len(PARQUET_MAGIC))
        if start == PARQUET_MAGIC:
            file.seek(0)
            try:
                return ",", pyarrow.parquet.read_schema(file).names
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _damaged_parquet(path, error) from error
        block = next(without_bom(line_blocks(_Joined(start, stream), path, BLOCK_BYTES)), None)
    if block is None:
        raise UserError(f"{path} is empty.")
    line = block[1].partition(b"\n")[0]
    separator = max("\t,;|", key=lambda text: line.count(text.encode()))
    return separator, header_names(*block, str(path), separator)[0]
