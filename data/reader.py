"""Files and pipes -> checked Arrow batches: CSV, TSV and Parquet, plain or .gz, one file or a folder of files.

pyarrow reads whole files; memory holds a few batches. Every error names the file, the line (of Parquet and pipes the
row) and the column. data/text.py has the bytes of a text file, data/values.py the checks of a column.
"""

import gzip
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from common.data.raw_files import decompressed, gzip_errors
from common.errors import UserError, check
from data.schema import Categorical, Column, Dense, Description, Format, Rating, Time
from data.text import BLOCK_BYTES, Text
from data.values import INTEGER, NUMBER, BadValue, categories, ids, numbers, plain, texts, times, unit_of, weights

PARQUET, PARQUET_ROWS = b"PAR1", 1 << 16  # rows read at a time
SEPARATORS = {"\t": "TAB", ",": "comma", ";": "semicolon", "|": "'|'", "::": "'::'"}
OPTIONAL = ("label", "rating", "time", "weight", "excluded")  # roles of columns that a file to score may lack


@dataclass(frozen=True)
class Source:
    """One file or stream. keys: columns that folders named key=value give all its rows. again: whether it can be opened
    a second time, for the line of an error."""

    name: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]  # decompressed
    keys: dict[str, str] = field(default_factory=dict)
    again: bool = True


def data_files(path: Path) -> list[Path]:
    """The file, or all files below a folder in natural order (day_2 before day_10). Raises: UserError for none."""
    try:
        if path.is_dir():
            parts = [part for part in path.rglob("*") if part.is_file()]
            hidden = [part for part in parts if any(n.startswith((".", "_")) for n in part.relative_to(path).parts)]
            check(len(parts) > len(hidden), f"{path} has no files.")
            return sorted(set(parts) - set(hidden), key=_natural)
        if not path.exists():
            there = sorted(p.name for p in path.parent.iterdir())[:20] if path.parent.is_dir() else []
            raise UserError(f"there is no file {path}; {path.parent} has {', '.join(there) or 'no files'}.")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    return [path]


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Numbers within names are sorted by their value."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", str(path))]


def source_of(path: Path) -> Source:
    """A file, with the keys of the folders it is in."""
    keys = dict(part.split("=", 1) for part in path.parent.parts if re.match(r"[^=.]+=", part))
    return Source(str(path), lambda: _opened(path), keys)


def input_of(raw: str | Path) -> Source:
    """A file to score; "-": standard input."""
    if str(raw) != "-":
        return source_of(Path(raw))
    check(sys.stdin is not None, "cannot read standard input: it is closed.")
    return Source("standard input", _standard_input, again=False)


@contextmanager
def _standard_input() -> Iterator[IO[bytes]]:
    with open(sys.stdin.fileno(), "rb", closefd=False) as file:
        yield decompressed(file)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as file, gzip_errors(path):
            yield decompressed(file)  # type: ignore[misc]
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or (error.filename and str(error.filename) != str(path)):
            raise
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error


@contextmanager
def parquet_errors(name: str) -> Iterator[None]:
    """Raise UserError if the Parquet file that the block reads is truncated or damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(
            f"{name}: the Parquet file is truncated or damaged ({one(error)[:200]}); get it again."
        ) from error


class Reader:
    """Reads files of one description into record batches, with the description's columns in its order:

    dense int32 or float64, null if missing; rating, weight float64; time float64, in seconds if the unit is known;
    categorical, user, item string, or list<string> if a cell may hold several values, a cell without a value being one
    of `form.missing_texts` or an empty list; label, kept and the column of a split string, as written.
    Columns that are excluded are left out, and when scoring those of OPTIONAL that the file lacks.
    """

    def __init__(self, form: Format, scoring: bool = False, columns: Sequence[str] | None = None):
        """columns: those to read; None: all that have a use."""
        self.form, self.scoring = form, scoring
        split = getattr(form.split, "column", None) if isinstance(form, Description) else None
        used = [name for name, column in form.columns.items() if column.role != "excluded" or name == split]
        self.columns: dict[str, Column] = {name: form.columns[name] for name in columns or used}
        self.missing = pa.array(form.missing_texts, pa.string())
        self.is_text = True  # the file being read, in which "nan" is not a number
        self.unit: str | None = None  # of the times; as in the first row, if the description does not say

    def batches(self, source: Source, moved: Callable[[int], object] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a source. moved: called with the number of bytes read from the disk, as they are read.

        Raises: UserError for what the description does not allow, and for a source without rows.
        """
        rows = read = 0
        with source.open() as stream:
            file: Any = getattr(stream, "fileobj", stream)  # below gzip
            for batch in self._raw(source, stream):
                if moved:
                    now = file.tell()
                    moved(now - read)
                    read = now
                if len(batch):
                    yield self._checked(source, batch, rows)
                    rows += len(batch)
        check(rows > 0, f"{source.name} has no rows; expected the columns {some(list(self.columns))}.")

    def _raw(self, source: Source, stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
        """The columns as the file has them."""
        with gzip_errors(source.name):
            start = stream.read(len(PARQUET))
            self.is_text = start != PARQUET
            if not self.is_text:
                yield from self._parquet(source, stream)
                return
            text = Text(source.name, start, stream, self.form)
            if not text.rest:
                return
            names = text.names or self._names_by_width(text.width())
            wanted = self._wanted(source, names)
            try:
                yield from self._csv(text, names, wanted, threads=source.again)
            except pa.ArrowInvalid as error:
                raise self._explained(source, names, wanted, error) from error

    def _csv(self, text: Text, names: list[str], wanted: list[str], threads: bool) -> Iterator[pa.RecordBatch]:
        form = self.form
        skips_blank = form.quoted or form.comment is not None
        yield from pyarrow.csv.open_csv(
            pa.PythonFile(text, "r"),
            pyarrow.csv.ReadOptions(
                column_names=names, block_size=BLOCK_BYTES, use_threads=threads, encoding=form.encoding
            ),
            pyarrow.csv.ParseOptions(
                delimiter=text.separator,
                quote_char='"' if form.quoted else False,
                ignore_empty_lines=skips_blank,
                # a line of spaces counts as blank too
                invalid_row_handler=lambda row: (
                    "skip" if skips_blank and row.text and not row.text.strip() else "error"
                ),
            ),
            pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: self._type_in_text(name) for name in wanted},
                null_values=form.missing_texts,
                decimal_point=form.decimal,
            ),
        )

    def _type_in_text(self, name: str) -> pa.DataType:
        column = self.columns.get(name)
        if isinstance(column, Dense) and column.type == "integer":
            return pa.int32()
        is_number = isinstance(column, Dense | Rating) and name not in self._sources
        return pa.float64() if is_number or getattr(column, "role", "") == "weight" else pa.string()

    @property
    def _sources(self) -> dict[str, str]:
        """The columns that others are parts of, by the names of the latter."""
        parts = {name: c for name, c in self.columns.items() if isinstance(c, Categorical) and c.source}
        return {name: column.source or "" for name, column in parts.items()}

    def _parquet(self, source: Source, stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
        check(
            stream.seekable(), f"{source.name} is Parquet, which cannot be read from a pipe; pass the name of the file."
        )
        with parquet_errors(source.name):
            file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            wanted = self._wanted(source, file.schema_arrow.names)
            for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
                batch.validate(full=True)  # texts that are not UTF-8
                yield batch.select(wanted)

    def _names_by_width(self, width: int) -> list[str]:
        """The columns of a file without a header line: all of them or, when scoring, without labels or what is last."""
        names, labels = self.form.in_file, self.form.of_role("label")
        if self.scoring:
            shorter = [n for n in names if n not in labels[:1]], [n for n in names if n not in labels], names[:width]
            names = next((found for found in (names, *shorter) if len(found) == width), names)
        return names

    def _wanted(self, source: Source, names: list[str]) -> list[str]:
        """The columns of the file to read. Raises: UserError if one is missing, or two have the same name."""
        twice = next((name for name in names if name and names.count(name) > 1), None)
        check(twice is None, f"{source.name}: found the column name {twice!r} twice; rename one.")
        wanted: dict[str, None] = {}
        for name, column in self.columns.items():
            origin = self._sources.get(name, name)
            if origin in names:
                wanted[origin] = None
            else:
                check(
                    origin in source.keys or (self.scoring and column.role in OPTIONAL),
                    f"{source.name} has no column {origin!r}; it has {some(names)}. Is the separator right, and does "
                    "line 1 hold the names of the columns?",
                )
        return list(wanted)

    def _checked(self, source: Source, batch: pa.RecordBatch, before: int) -> pa.RecordBatch:
        """The columns in the types above. before: rows of the source before this batch."""
        arrays = {name: plain(batch.column(name)) for name in batch.schema.names}
        for key, value in source.keys.items():
            arrays.setdefault(key, pa.repeat(pa.scalar(value, pa.string()), len(batch)))
        found = {}
        for name, column in self.columns.items():
            origin = self._sources.get(name, name)
            if origin in arrays:
                try:
                    found[name] = self._column(column, arrays[origin])
                except BadValue as bad:
                    row = bad.row or 0
                    raise self.error(source, before + row, origin, arrays[origin][row].as_py(), bad.expected) from bad
        return pa.RecordBatch.from_pydict(found)

    def _column(self, column: Column, array: pa.Array) -> pa.Array:
        match column.role:
            case "dense":
                return numbers(array, column, self.missing, nan_is_missing=not self.is_text)
            case "rating":
                return numbers(array, column, self.missing, not self.scoring, not self.is_text)
            case "weight":
                return weights(array, column, self.missing)
            case "time":
                self.unit = self.unit or (column.unit if isinstance(column, Time) else None) or unit_of(array)
                return times(array, self.unit, required=not self.scoring)
            case "user" | "item":
                return ids(array, column, self.missing)
            case "categorical":
                if isinstance(column, Categorical) and column.pattern:
                    return part(texts(array), column.pattern)
                return categories(array, column, self.missing)
            case _:
                return texts(array)

    # what a message says

    def error(self, source: Source, row: int | None, column: str, found: Any, expected: str) -> UserError:
        """A wrong value in a row (counted from 0)."""
        place, fields = self._place(source, row)
        raw = fields.get(column, found)
        shown = repr("" if raw is None else str(raw))
        shown = shown if len(shown) <= 42 else f"{shown[:40]}...'"
        return UserError(f"{place}, column {column}: found {shown}, expected {expected}. Correct or remove the line.")

    def _place(self, source: Source, row: int | None) -> tuple[str, dict[str, str]]:
        """Where a row is: the line and its fields, if it is text that can be read again."""
        if row is None:
            return source.name, {}
        if source.again:
            with source.open() as stream:
                start = stream.read(len(PARQUET))
                if start != PARQUET:
                    text = Text(source.name, start, stream, self.form)
                    line, fields = next(islice(text.records(), row, None), (row + 1, []))
                    names = text.names or self._names_by_width(len(fields))
                    return f"{source.name}, line {line}", dict(zip(names, fields, strict=False))
        return f"{source.name}, row {row + 1}", {}

    def _explained(self, source: Source, names: list[str], wanted: list[str], error: Exception) -> UserError:
        """What is wrong with a text; it is read again without threads, because only then pyarrow tells the row."""
        if source.again:
            with source.open() as stream:
                start = stream.read(len(PARQUET))
                try:
                    for _ in self._csv(Text(source.name, start, stream, self.form), names, wanted, threads=False):
                        pass
                except pa.ArrowInvalid as again:
                    error = again
        text = one(error)
        row = int(match[1]) - 1 if (match := re.search(r"Row #(\d+)", text)) else None
        if match := re.search(r"column #(\d+): .*CSV conversion error to (\w+): invalid value '(.*)'", text):
            expected = INTEGER if match[2] == "int32" else NUMBER
            return self.error(source, row, names[int(match[1])], match[3], expected)
        place, fields = self._place(source, row)
        if "invalid UTF8" in text:
            return UserError(
                f"{place}: found bytes that are not UTF-8. Convert the file with `iconv -f WINDOWS-1252 -t UTF-8 FILE "
                '> NEW_FILE`, or set "encoding": "latin-1" in columns.json.'
            )
        if match := re.search(r"Expected (\d+) columns, got (\d+)", text):
            return self._other_width(place, row, self.form.separator.join(fields.values()), *map(int, match.groups()))
        return UserError(f"{place}: {text[:200]}. Correct the file.")

    def _other_width(self, place: str, row: int | None, line: str, expected: int, found: int) -> UserError:
        advice = "If it is the last line, the file is truncated: get it again. Otherwise correct or remove the line."
        for separator, called in SEPARATORS.items():
            if found == 1 and separator != self.form.separator and line.count(separator) == expected - 1:
                advice = f'With {called} as the separator it has {expected}: set "separator" in columns.json.'
        if not self.form.header and row == 0 and expected - found in (1, len(self.form.of_role("label"))):
            advice = "Is it a file without labels? Such a file can be scored, but not trained on."
        separator = SEPARATORS.get(self.form.separator, repr(self.form.separator))
        return UserError(f"{place}: found {found} fields separated by {separator}, expected {expected}. {advice}")


def part(array: pa.Array, pattern: str) -> pa.Array:
    """The part of each text that the group of a regular expression matches, "" if none."""
    return pc.struct_field(pc.extract_regex(array, pattern), 0).fill_null("")


def some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def one(error: Exception) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


def read_files(
    paths: Sequence[Path], reader: Reader, moved: Callable[[int], object] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of several files in order."""
    for path in paths:
        yield from reader.batches(source_of(path), moved)
