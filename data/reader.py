"""Files and pipes -> checked Arrow batches: CSV, TSV and Parquet, plain or .gz, one file or a folder of files.

pyarrow reads whole files; memory holds a few batches. Every error names the file, the line (of Parquet and pipes the
row) and the column. data/text.py has the bytes of a text file, data/values.py the checks of a column.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from common.data.raw_files import decompressed, gzip_errors
from common.errors import UserError, check
from data import values
from data.schema import Categorical, Column, Dense, Description, Format, Key, Plain, Rating, Time
from data.text import Text
from data.values import BadValue

PARQUET, PARQUET_ROWS = b"PAR1", 1 << 16  # rows read at a time
NO_KEY = "__HIVE_DEFAULT_PARTITION__"
SEPARATORS = {"\t": "TAB", " ": "space", ",": "comma", ";": "semicolon", "|": "'|'", "::": "'::'"}
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
            files = [file for file in path.rglob("*") if file.is_file()]
            shown = [f for f in files if not any(name.startswith((".", "_")) for name in f.relative_to(path).parts)]
            check(len(shown) > 0, f"{path} has no files.")
            return sorted(shown, key=_natural)
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
    pairs = [part.split("=", 1) for part in path.parent.parts if re.match(r"[^=.]+=", part)]
    keys = {unquote(key): "" if value == NO_KEY else unquote(value) for key, value in pairs}
    return Source(str(path), partial(_opened, path), keys, again=path.is_file())


def input_of(raw: str | Path) -> Source:
    """A file to score; "-": standard input."""
    if str(raw) != "-":
        return source_of(Path(raw))
    check(sys.stdin is not None, "cannot read standard input: it is closed.")
    return Source("standard input", partial(_opened, sys.stdin.fileno()), again=False)


@contextmanager
def _opened(file: Path | int) -> Iterator[IO[bytes]]:
    with open(file, "rb", closefd=isinstance(file, Path)) as stream:
        yield decompressed(stream)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raise UserError if a file cannot be read, or is a truncated or damaged .gz file."""
    try:
        with gzip_errors(name):
            yield
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}.") from error


def keeping(form: Description, names: Sequence[str]) -> Description:
    """The description of the same file with these columns read. Raises: UserError for one that it does not have."""
    for name in names:
        check(name in form.columns, f"there is no column {name!r}; the columns are {some(list(form.columns))}.")
    read = {name: Plain(role="kept") for name in names if form.columns[name].role == "excluded"}
    return form.model_copy(update={"columns": form.columns | read})


def kept_texts(source: Source, columns: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """The texts (N,) of each column, "" if missing; of a number "9" for 9.0; several values joined by "|"."""
    found = []
    for name in names:
        check(name in columns, f"{source.name} has no column {name!r}.")
        array = columns[name]
        if pa.types.is_list(array.type):
            array = pc.binary_join(array, "|")
        found.append(array.cast(pa.string()).fill_null("").to_pylist())
    return found


@contextmanager
def parquet_errors(name: str) -> Iterator[None]:
    """Raise UserError if the Parquet file that the block reads is truncated or damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        why = one_line(error)
        raise UserError(f"{name}: the Parquet file is truncated or damaged ({why}); get it again.") from error


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
        # of columns that are parts of others, the latter
        self.origins = {n: c.source for n, c in self.columns.items() if isinstance(c, Categorical) and c.source}
        self.missing = pa.array(form.missing_texts, pa.string())
        self.is_text = True  # the file being read, in which "nan" is not a number
        self.unit: str | None = None  # of the times; as the first row has it, if the description does not say
        self.types: dict[str, pa.DataType] = {}  # of the columns read so far

    def batches(self, source: Source, moved: Callable[[int], object] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a source. moved: called with the number of bytes read from the disk, as they are read.

        Raises: UserError for what the description does not allow, and for a source without rows.
        """
        rows = position = 0
        with reading(source.name), source.open() as stream:
            file: Any = getattr(stream, "fileobj", stream)  # below gzip
            for batch in self._raw(source, stream):
                if moved and source.again:  # a pipe has no position
                    moved(file.tell() - position)
                    position = file.tell()
                if len(batch):
                    yield self._checked(source, batch, rows)
                    rows += len(batch)
        check(rows > 0, f"{source.name} has no rows; expected the columns {some(list(self.columns))}.")

    def _raw(self, source: Source, stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
        """The columns as the file has them."""
        start = stream.read(len(PARQUET))
        self.is_text = start != PARQUET
        if self.is_text:
            text = Text(source.name, start, stream, self.form)
            if text.rest:
                yield from self._text(source, text)
            return
        check(stream.seekable(), f"{source.name} is Parquet, which no pipe can give; pass the name of the file.")
        with parquet_errors(source.name):
            parquet = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
            wanted = self._wanted(source, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(PARQUET_ROWS, columns=wanted):
                batch.validate(full=True)  # texts that are not UTF-8
                yield batch

    def _text(self, source: Source, text: Text) -> Iterator[pa.RecordBatch]:
        names = text.names or self._names_by_width(text.width)
        wanted, skipped = self._wanted(source, names), list[int]()
        try:
            yield from self._csv(text, names, wanted, skipped, threads=source.again)
        except pa.ArrowInvalid as error:
            message = one_line(error)
            if source.again:  # without threads, because only then pyarrow tells the row
                with source.open() as stream:
                    again = Text(source.name, b"", stream, self.form)
                    try:
                        list(self._csv(again, names, wanted, skipped := [], threads=False))
                    except pa.ArrowInvalid as with_row:
                        message = one_line(with_row)
            raise self._explained(source, names, skipped, message) from error

    def _csv(
        self, text: Text, names: list[str], wanted: list[str], skipped: list[int], threads: bool
    ) -> Iterator[pa.RecordBatch]:
        """skipped: collects the rows that are lines of spaces; they count as blank too, but pyarrow counts them."""

        def invalid(row: Any) -> str:
            if not (text.skips_blank and row.text and not row.text.strip()):
                return "error"
            skipped.append(row.number)
            return "skip"

        yield from pyarrow.csv.open_csv(
            pa.PythonFile(text, "r"),
            pyarrow.csv.ReadOptions(
                column_names=names, block_size=text.block_bytes, use_threads=threads, encoding=self.form.encoding
            ),
            pyarrow.csv.ParseOptions(
                delimiter=text.separator,
                quote_char='"' if text.quoted else False,
                ignore_empty_lines=text.skips_blank,
                invalid_row_handler=invalid,
            ),
            pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types={name: self._type_in_text(name) for name in wanted},
                null_values=self.form.missing_texts,
                decimal_point=self.form.decimal,
            ),
        )

    def _type_in_text(self, name: str) -> pa.DataType:
        column = self.columns.get(name, Plain(role="kept"))
        if name in self.origins.values() or (not isinstance(column, Dense | Rating) and column.role != "weight"):
            return pa.string()
        return pa.int32() if getattr(column, "type", "") == "integer" else pa.float64()

    def _names_by_width(self, width: int) -> list[str]:
        """The columns of a file without a header line: all of them or, when scoring, without labels or what is last."""
        names, labels = self.form.in_file, self.form.of_role("label")
        if self.scoring and len(names) != width:
            if not all(self.form.columns[name].role in OPTIONAL for name in names[width:]):
                shorter = [n for n in names if n not in labels[:1]], [n for n in names if n not in labels]
                return next((found for found in shorter if len(found) == width), names)
            return names[:width]
        return names

    def _wanted(self, source: Source, names: list[str]) -> list[str]:
        """The columns of the file to read. Raises: UserError if one is missing, or two have the same name."""
        twice = next((name for name in names if name and names.count(name) > 1), None)
        check(twice is None, f"{source.name}: found the column name {twice!r} twice; rename one.")
        wanted = dict.fromkeys(self.origins.get(name, name) for name in self.columns)
        for name in wanted:
            check(
                name in names
                or name in source.keys
                or (self.scoring and name in self.columns and self.columns[name].role in OPTIONAL),
                f"{source.name} has no column {name!r}; it has {some(names)}. Is the separator right, and does "
                "line 1 hold the names of the columns?",
            )
        return [name for name in wanted if name in names]

    def _checked(self, source: Source, batch: pa.RecordBatch, before: int) -> pa.RecordBatch:
        """The columns in the types above. before: rows of the source before this batch."""
        arrays = {key: pa.repeat(pa.scalar(value, pa.string()), len(batch)) for key, value in source.keys.items()}
        arrays |= {name: values.plain(batch.column(name)) for name in batch.schema.names}
        found = {}
        for name, column in self.columns.items():
            origin = self.origins.get(name, name)
            if origin in arrays:
                try:
                    found[name] = self._column(column, arrays[origin])
                except BadValue as bad:
                    raise self.error(source, before + bad.row, origin, arrays[origin][bad.row], bad.expected) from bad
                kind, other = self.types.setdefault(name, found[name].type), found[name].type
                check(
                    kind == other,
                    f"{source.name}, column {name}: found {other} in a cell, expected {kind} as before or in training.",
                )
        return pa.RecordBatch.from_pydict(found)

    def _column(self, column: Column, array: pa.Array) -> pa.Array:
        kind = getattr(column, "type", "text")
        if self.form.decimal == "," and kind != "text" and pa.types.is_string(array.type):
            array = pc.replace_substring(array, ",", ".")
        match column:
            case Dense() | Rating():
                required = isinstance(column, Rating) and not self.scoring
                return values.numbers(array, self.missing, kind == "integer", required, nan_is_missing=not self.is_text)
            case Time():
                array = values.known(array, self.missing)
                if self.unit is None:
                    self.unit = column.unit or values.unit_of(array)
                return values.times(array, self.unit or "", required=not self.scoring)
            case Key():
                return values.ids(array, self.missing, kind)
            case Categorical() if column.pattern:
                return values.texts(part(values.texts(array), column.pattern), kind)
            case Categorical():
                return values.categories(array, self.missing, kind, column.separator)
        return values.weights(array, self.missing) if column.role == "weight" else values.texts(array)

    # what a message says

    def error(self, source: Source, row: int, column: str, found: Any, expected: str) -> UserError:
        """A wrong value in a row (counted from 0)."""
        place, fields = self._place(source, row)
        found = fields.get(column, found.as_py() if isinstance(found, pa.Scalar) else found)
        shown = repr("" if found is None else str(found))
        shown = shown if len(shown) <= 42 else f"{shown[:40]}...'"
        return UserError(f"{place}, column {column}: found {shown}, expected {expected}. Correct or remove the line.")

    def _place(self, source: Source, row: int) -> tuple[str, dict[str, str]]:
        """Where a row is: the line and its fields, if it is text that can be read again."""
        if source.again and self.is_text:
            with source.open() as stream:
                text = Text(source.name, b"", stream, self.form)
                line, fields = next(islice(text.records(), row, None), (row + 1, []))
                names = text.names or self._names_by_width(len(fields))
                return f"{source.name}, line {line}", dict(zip(names, fields, strict=False))
        return f"{source.name}, row {row + 1}", {}

    def _explained(self, source: Source, names: list[str], skipped: list[int], error: str) -> UserError:
        """What pyarrow finds wrong with a text."""
        if not (match := re.search(r"Row #(\d+)", error)):
            return UserError(f"{source.name}: {error}. Correct the file.")
        row = int(match[1]) - 1 - sum(number < int(match[1]) for number in skipped)
        if match := re.search(r"column #(\d+): .*CSV conversion error to (\w+): invalid value '(.*)'", error):
            expected = values.INTEGER if match[2] == "int32" else values.NUMBER
            return self.error(source, row, names[int(match[1])], match[3], expected)
        place, fields = self._place(source, row)
        if "invalid UTF8" in error:
            return UserError(
                f"{place}: found bytes that are not UTF-8. Convert the file with `iconv -f WINDOWS-1252 -t UTF-8 FILE "
                '> NEW_FILE`, or set "encoding": "latin-1" in columns.json.'
            )
        if match := re.search(r"Expected (\d+) columns, got (\d+)", error):
            return self._other_width(place, row, self.form.separator.join(fields.values()), *map(int, match.groups()))
        return UserError(f"{place}: {error}. Correct the file.")

    def _other_width(self, place: str, row: int, line: str, expected: int, found: int) -> UserError:
        advice = "If it is the last line, the file is truncated: get it again. Otherwise correct or remove the line."
        for separator, called in SEPARATORS.items():
            if found == 1 and separator != self.form.separator and line.count(separator) == expected - 1:
                advice = f'With {called} as the separator it has {expected}: set "separator" in columns.json.'
        labels = len(self.form.of_role("label"))
        if not self.form.header and row == 0 and labels and expected - found in (1, labels):
            advice = "Is it a file without labels? Such a file can be scored, but not trained on."
        separator = SEPARATORS.get(self.form.separator, repr(self.form.separator))
        return UserError(f"{place}: found {found} fields separated by {separator}, expected {expected}. {advice}")


def part(array: pa.Array, pattern: str) -> pa.Array:
    """The part of each text that the group of a regular expression matches, "" if none."""
    return pc.struct_field(pc.extract_regex(array, pattern), 0).fill_null("")


def some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def one_line(error: Exception, most: int = 200) -> str:
    return " ".join(str(error).split())[:most]


def read_files(
    paths: Sequence[Path], reader: Reader, moved: Callable[[int], object] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of several files in order."""
    for path in paths:
        yield from reader.batches(source_of(path), moved)
