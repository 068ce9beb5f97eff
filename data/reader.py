"""Files and pipes -> checked Arrow batches: CSV, TSV and Parquet, plain or .gz, one file or a folder of files.

Memory holds a few batches. Every error names the file, the line (of Parquet the row) and the column. data/text.py has
the bytes of a text file, data/values.py the checks of a column.
"""

import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from common.data.raw_files import decompressed, missing_file
from common.errors import UserError, check, one_line, shown
from data import values
from data.schema import Categorical, Column, Dataset, Dense, Description, Format, Key, Plain, Rating, Time
from data.text import Block, Text
from data.values import BadValue

PARQUET, PARQUET_ROWS = b"PAR1", 1 << 16  # rows read at a time
NO_KEY = "__HIVE_DEFAULT_PARTITION__"
NUMBERS, CATEGORIES = ("dense", "rating", "weight"), ("categorical", "user", "item")  # roles of columns
OPTIONAL = ("label", "rating", "time", "weight", "excluded")  # roles of columns that a file to score may lack


@dataclass(frozen=True)
class Source:
    """One file or stream. keys: columns that folders named key=value give all its rows."""

    name: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]  # decompressed
    keys: dict[str, str] = field(default_factory=dict)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raise UserError if a file cannot be read, or is a truncated or damaged .gz or Parquet file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"cannot read {name}: {error.strerror}.") from error
        raise UserError(f"{name}: the file is truncated or damaged ({one_line(error)}); get it again.") from error


def data_files(path: Path) -> list[Path]:
    """The file, or all files below a folder in natural order (day_2 before day_10). Raises: UserError for none."""
    with reading(str(path)):
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            files = [f for f in files if not any(name.startswith((".", "_")) for name in f.relative_to(path).parts)]
            check(len(files) > 0, f"{path} has no files.")
            return sorted(files, key=_natural)
        if not path.exists():
            raise missing_file(path.parent, f"no {path.name}")
        return [path]


def sources_of(dataset: Dataset) -> list[Path]:
    """All files that are read: those with rows, then the second files."""
    second = [dataset.path(form.file) for form in dataset.description.attributes.values()]
    return [file for path in (*dataset.files.values(), *second) for file in data_files(path)]


def _natural(path: Path) -> list[str | int]:
    """Numbers within names are sorted by their value."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def source_of(path: Path) -> Source:
    """A file, with the keys of the folders it is in."""
    pairs = [part.split("=", 1) for part in path.parent.parts if re.match(r"[^=.]+=", part)]
    keys = {unquote(key): "" if value == NO_KEY else unquote(value) for key, value in pairs}
    return Source(str(path), partial(_opened, path), keys)


def input_of(raw: str | Path) -> Source:
    """A file to score; "-": standard input."""
    if str(raw) != "-":
        return source_of(Path(raw))
    check(sys.stdin is not None, "cannot read standard input: it is closed.")
    return Source("standard input", partial(_opened, sys.stdin.fileno()))


@contextmanager
def _opened(file: Path | int) -> Iterator[IO[bytes]]:
    with open(file, "rb", closefd=isinstance(file, Path)) as stream:
        yield decompressed(stream)


class Reader:
    """Reads files of one description into record batches, with the description's columns in its order:

    dense int32 or float64, null if missing; rating, weight float64; time float64, in seconds if the unit is known;
    categorical, user, item string, with `encoded` in text perhaps a dictionary of them, or list<string> if a cell may
    hold several values, a cell without a value being one of `form.missing_texts` or an empty list; label, kept and the
    column of a split string, as written.
    Columns that are excluded are left out, and when scoring those of OPTIONAL that the file lacks.
    """

    encoded = False

    def __init__(self, form: Format, scoring: bool = False, columns: Sequence[str] | None = None):
        """columns: those to read; None: all that have a use."""
        self.form, self.scoring = form, scoring
        split = getattr(form.split, "column", None) if isinstance(form, Description) else None
        used = [name for name, column in form.columns.items() if column.role != "excluded" or name == split]
        self.columns: dict[str, Column] = {name: form.columns[name] for name in columns or used}
        # of columns that are parts of others, the latter
        self.origins = {n: c.source for n, c in self.columns.items() if isinstance(c, Categorical) and c.source}
        self.missing = pa.array(form.missing_texts, pa.string())
        self.unit: str | None = None  # of the times; as the first row has it, if the description does not say
        self.types: dict[str, pa.DataType] = {}  # of the columns read so far
        self.text: Text | None = None  # the file being read, None for Parquet
        self.block: Block | None = None  # of the last batch

    def batches(self, source: Source, moved: Callable[[int], object] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a source. moved: called with the number of bytes read from the disk, as they are read.

        Raises: UserError for what the description does not allow, and for a source without rows.
        """
        self.source, self.text = source, None
        self.row = position = 0  # the first row of a batch, counted from 0
        with reading(source.name), source.open() as stream:
            file: Any = getattr(stream, "fileobj", stream)  # below gzip
            for block, batch in self._raw(stream):
                self.block = block
                if moved and file.seekable():  # a pipe has no position
                    moved(file.tell() - position)
                    position = file.tell()
                yield self._checked(batch)
                self.row += len(batch)
        check(self.row > 0, f"{source.name} has no rows; expected the columns {shown(list(self.columns))}.")

    def table(self, path: Path) -> pa.Table:
        """All rows of a file or folder."""
        return pa.Table.from_batches(batch for file in data_files(path) for batch in self.batches(source_of(file)))

    def error(self, row: int, column: str, found: Any, expected: str) -> UserError:
        """A wrong value in a row (counted from 0) of the last batch."""
        place = f"row {self.row + row + 1}"
        if self.text and self.block:
            line, fields = next(islice(self.text.records(self.block), row, None))
            place, found = f"line {line}", dict(zip(self.text.names, fields, strict=True)).get(column, found)
        found = found.as_py() if isinstance(found, pa.Scalar) else found
        return UserError(
            f"{self.source.name}, {place}, column {column}: found {shown('' if found is None else str(found))}, "
            f"expected {expected}. Correct or remove the line."
        )

    def _raw(self, stream: IO[bytes]) -> Iterator[tuple[Block | None, pa.RecordBatch]]:
        """The columns as the file has them."""
        start = stream.read(len(PARQUET))
        if start != PARQUET:
            self.text = text = Text(self.source.name, start, stream, self.form)
            text.names = text.names or self._names_by_width(text.width)
            yield from text.batches({name: self._type_in_text(name) for name in self._wanted(text.names)})
            return
        check(stream.seekable(), f"{self.source.name} is Parquet, which no pipe can give; pass the name of the file.")
        parquet = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        for batch in parquet.iter_batches(PARQUET_ROWS, columns=self._wanted(parquet.schema_arrow.names)):
            batch.validate(full=True)  # texts that are not UTF-8
            yield None, pa.RecordBatch.from_arrays([*map(values.plain, batch.columns)], batch.schema.names)

    def _type_in_text(self, name: str) -> pa.DataType:
        column = self.columns.get(name, Plain(role="kept"))
        if name not in self.origins.values():
            if column.role in NUMBERS:
                return pa.int32() if getattr(column, "type", "") == "integer" else pa.float64()
            if self.encoded and column.role in CATEGORIES and not getattr(column, "separator", None):
                return pa.dictionary(pa.int32(), pa.string())
        return pa.string()

    def _names_by_width(self, width: int) -> list[str]:
        """The columns of a file without a header line: all of them or, when scoring, without labels or what is last."""
        names = self.form.in_file
        without = [name for name in names if self.form.columns[name].role != "label"]
        for shorter in (names[:width], without) if self.scoring else ():
            roles = {self.form.columns[name].role for name in names if name not in shorter}
            if len(shorter) == width and roles <= {*OPTIONAL}:
                return shorter
        return names

    def _wanted(self, names: list[str]) -> list[str]:
        """The columns of the file to read. Raises: UserError if one is missing, or two have the same name."""
        twice = next((name for name in names if name and names.count(name) > 1), None)
        check(twice is None, f"{self.source.name}: found the column name {twice!r} twice; rename one.")
        wanted = dict.fromkeys(self.origins.get(name, name) for name in self.columns)
        for name in wanted:
            optional = self.scoring and name in self.columns and self.columns[name].role in OPTIONAL
            check(
                name in names or name in self.source.keys or optional,
                f"{self.source.name} has no column {name!r}; it has {shown(names)}. Is the separator right, and does "
                "line 1 hold the names of the columns?",
            )
        return [name for name in wanted if name in names]

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns in the types above."""
        arrays = {key: pa.repeat(pa.scalar(text, pa.string()), len(batch)) for key, text in self.source.keys.items()}
        arrays |= dict(zip(batch.schema.names, batch.columns, strict=True))
        found = {}
        for name, column in self.columns.items():
            origin = self.origins.get(name, name)
            if origin in arrays:
                try:
                    found[name] = self._column(column, arrays[origin])
                except BadValue as bad:
                    raise self.error(bad.row, origin, arrays[origin][bad.row], bad.expected) from bad
                kind = found[name].type.value_type if pa.types.is_dictionary(found[name].type) else found[name].type
                expected = self.types.setdefault(name, kind)
                where = f"{self.source.name}, column {name}"
                check(kind == expected, f"{where}: found {kind} in a cell, expected {expected} as before.")
        return pa.RecordBatch.from_pydict(found)

    def _column(self, column: Column, array: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(array.type):  # its distinct values are checked
            try:
                return pa.DictionaryArray.from_arrays(array.indices, self._column(column, array.dictionary))
            except BadValue as bad:
                raise BadValue(array.indices.index(bad.row).as_py(), bad.expected) from bad
        kind = getattr(column, "type", "text")
        is_number = column.role in NUMBERS
        if self.form.decimal == "," and (is_number or kind == "number") and pa.types.is_string(array.type):
            array = pc.replace_substring(pc.replace_substring(array, ".", "'") if is_number else array, ",", ".")
        match column:
            case Dense():
                return values.numbers(array, self.missing, kind == "integer")
            case Rating():
                return values.numbers(array, self.missing, required=not self.scoring)
            case Time():
                array = values.known(array, self.missing)
                if self.unit is None:
                    self.unit = column.unit or values.unit_of(array)
                return values.times(array, self.unit or "", required=not self.scoring)
            case Key():
                return values.ids(array, self.missing, kind)
            case Categorical() if column.pattern:
                parts = pc.struct_field(pc.extract_regex(values.texts(array), column.pattern), 0)
                return values.texts(parts.fill_null(""), kind)
            case Categorical():
                return values.categories(array, self.missing, kind, column.separator)
            case Plain(role="weight"):
                return values.numbers(array, self.missing, required=True, least=0)
        return values.texts(array)
