"""Rows as numbers, categories and labels for the encoder; every value is checked.

Each distinct text of a block is checked only once. N: rows, K: tasks.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.table_categories import MISSING_KEY, Categories, number_text, text_keys
from data.table_reader import Rows
from data.table_schema import Column, Schema, Task

LARGEST = float(np.finfo(np.float32).max)
CANONICAL_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
SHOWN_LABELS = 8
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
LAST_SECOND = 1e11  # the year 5138: larger numbers are in a smaller unit than seconds
SECONDS_EXPECTED = 'seconds since 1970 (if they are milliseconds, set "unit" to "ms" in columns.json)'
DATE_TYPES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))  # without and with an offset from UTC


@dataclass(frozen=True)
class Values:
    """Input columns of some rows. numbers: (N,) float64, nan if missing."""

    numbers: dict[str, np.ndarray]
    categories: dict[str, Categories]

    def __len__(self) -> int:
        return next(len(values) for part in (self.numbers, self.categories) for values in part.values())


def input_values(rows: Rows, schema: Schema) -> tuple[Values, dict[str, pa.Array]]:
    """The inputs, and the texts that the keys stand for."""
    numbers = {column.name: read_numbers(rows, column) for column in schema.of_role("dense")}
    categories, texts = {}, {}
    for column in schema.of_role("categorical"):
        codes, texts[column.name], counts = read_texts(rows, column, schema)
        counts = None if counts is None else np.append(counts, np.int32(0))
        keys = text_keys(texts[column.name])
        keys = np.append(keys, MISSING_KEY) if counts is None else keys
        categories[column.name] = Categories(codes, keys, counts)
    return Values(numbers, categories), texts


def read_numbers(rows: Rows, column: Column) -> np.ndarray:
    """Numbers (N,) float64, nan if missing. Raises: UserError for a value that is not a number."""
    array = _plain(rows.columns[column.name])
    integer = column.type == "integer"
    kind = pa.int32() if integer else pa.float64()
    expected = "a 32-bit integer, or nothing" if integer else "a number, or nothing"
    if pa.types.is_string(array.type) and not integer:
        array = pc.utf8_trim(array, " \t")  # as pyarrow's reader of numbers does
    values = _cast(array, kind)
    if values is None:
        raise rows.error(_first_bad(array, kind), column.name, expected)
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    if integer:
        return numbers
    bad = np.abs(numbers) > LARGEST
    if rows.is_text:
        bad |= np.isnan(numbers) & array.is_valid().to_numpy(zero_copy_only=False)
    if bad.any():
        raise rows.error(int(bad.argmax()), column.name, f"{expected} (at most {LARGEST:.2g})")
    return numbers


def read_weights(rows: Rows, column: Column) -> np.ndarray:
    """Weights (N,) float64. Raises: UserError for a value that is not a number of at least 0."""
    weights = read_numbers(rows, column)
    if not (weights >= 0).all():
        raise rows.error(int((~(weights >= 0)).argmax()), column.name, "a weight: a number of at least 0")
    return weights


def read_texts(rows: Rows, column: Column, schema: Schema) -> tuple[np.ndarray, pa.Array, np.ndarray | None]:
    """Codes (N,) int32, the texts of the entries (null: missing) and, if an entry may have several, their counts.

    A row without a value has the code after the last entry.
    """
    array = rows.columns[column.name]
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):  # each cell is an entry
        counts = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
        values = _distinct(array.flatten())
        texts = as_texts(rows, values.dictionary, column, schema).take(values.indices)
        return np.arange(len(array), dtype=np.int32), texts, counts
    array = _distinct(array)
    texts = as_texts(rows, array.dictionary, column, schema)
    codes = array.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    if column.separator is None:
        return codes, texts, None
    split = pc.split_pattern(texts, column.separator)
    counts = pc.list_value_length(split).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
    return codes, as_texts(rows, split.flatten(), column, schema), counts


def _distinct(array: pa.Array) -> pa.DictionaryArray:
    if not pa.types.is_dictionary(array.type):
        array = _plain(array).dictionary_encode()
    return array


def _plain(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    is_text = pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
    return array.cast(pa.string()) if is_text else array


def as_texts(rows: Rows, array: pa.Array, column: Column, schema: Schema) -> pa.Array:
    """Texts (N,), null if missing; in a column of numbers, their canonical texts ("39" for "39.0")."""
    array, types = _plain(array), pa.types
    if types.is_floating(array.type):
        array = _each(array.cast(pa.float64()), lambda value: None if value != value else number_text(value))
    elif not types.is_string(array.type) and not types.is_null(array.type):
        known = (types.is_integer, types.is_boolean, types.is_temporal, types.is_decimal)
        if not any(holds(array.type) for holds in known):
            raise rows.error(0, column.name, f"texts, numbers, dates or lists of them (the column holds {array.type})")
    array = array.cast(pa.string())
    if schema.strip:
        array = pc.ascii_trim_whitespace(array)
    missing = pc.is_in(array, pa.array(schema.missing, pa.string()))
    if pc.any(missing).as_py():
        array = pc.if_else(missing, None, array)
    if column.type != "text" and pc.any(pc.invert(pc.match_substring_regex(array, CANONICAL_INTEGER))).as_py():
        array = _each(array, _canonical)
    return array


def _each(array: pa.Array, function) -> pa.Array:
    """function(value) for each non-missing value."""
    return pa.array([None if value is None else function(value) for value in array.to_pylist()], pa.string())


def _canonical(text: str) -> str:
    """The canonical text of a number; other texts are unchanged."""
    number = parse_number(text)
    return text if number is None else number_text(number)


def parse_number(text: str) -> float | None:
    """The number, or None if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST and "_" not in text else None  # float() reads "1_0" as 10


def read_labels(rows: Rows, schema: Schema, tasks: list[str], scoring: bool = False) -> np.ndarray:
    """Labels (N, K) float32 of 0 and 1; when scoring, nan if unknown. Raises: UserError for any other text."""
    labels = [_label(rows, schema, schema.tasks[name], scoring) for name in tasks]
    return np.stack(labels, 1)


def _label(rows: Rows, schema: Schema, task: Task, scoring: bool) -> np.ndarray:
    if scoring and task.column not in rows.columns:
        return np.full(len(rows), np.nan, np.float32)
    codes, texts, _ = read_texts(rows, Column(task.column, "label"), schema)
    values = [np.nan if text is None else _label_value(text, task, schema) for text in texts.to_pylist()]
    known = np.array([text is not None for text in texts.to_pylist()] + [False])
    labels = np.array([*values, np.nan], np.float32)[codes]
    bad = np.isnan(labels)
    if scoring:
        bad &= known[codes]
    if bad.any():
        raise rows.error(int(bad.argmax()), task.column, _expected_labels(task, schema))
    return labels


def _label_value(text: str, task: Task, schema: Schema) -> float:
    forms = {text, _canonical(text)}
    if schema.strip:
        forms.add(text.rstrip("."))  # labels in UCI's test files end with a dot
    if forms & set(task.positive):
        return 1.0
    return 0.0 if task.negative is None or forms & set(task.negative) else np.nan


def _expected_labels(task: Task, schema: Schema) -> str:
    known = sorted({*task.positive, *(task.negative or ())})
    shown = " or ".join(map(repr, known[:SHOWN_LABELS])) + (" or another" if len(known) > SHOWN_LABELS else "")
    return shown + ("" if schema.header else " (the file must have no header line)")


def read_times(rows: Rows, column: Column) -> np.ndarray:
    """Times as numbers (N,) float64 in any unit. Raises: UserError for a value that is neither a number nor a date."""
    numbers = _cast(_plain(rows.columns[column.name]), pa.float64())
    if numbers is not None:
        times = numbers.to_numpy(zero_copy_only=False)
    else:
        times = _microseconds(rows, column, "a number or a date such as 2014-05-31 23:59:00, as in the other rows")
    if not np.isfinite(times).all():
        raise rows.error(int((~np.isfinite(times)).argmax()), column.name, "a time in every row")
    return times


def read_seconds(rows: Rows, column: Column, unit: str, scoring: bool = False) -> np.ndarray:
    """Seconds since 1970 (N,) float64; when scoring, nan if unknown. Raises: UserError for a value out of range."""
    if unit == "date":
        expected = "a date such as 2014-05-31 23:59:00, not before 1970"
        seconds = _microseconds(rows, column, expected) / UNITS["us"]
    else:
        expected = f"{unit} since 1970 (the unit is in columns.json)" if unit != "s" else SECONDS_EXPECTED
        seconds = read_numbers(rows, column) / UNITS[unit]
    bad = ~((seconds >= 0) & (seconds < LAST_SECOND))
    if scoring:
        bad &= _plain(rows.columns[column.name]).is_valid().to_numpy(zero_copy_only=False)
    if bad.any():
        raise rows.error(int(bad.argmax()), column.name, expected)
    return seconds


def _microseconds(rows: Rows, column: Column, expected: str) -> np.ndarray:
    """Dates as microseconds since 1970 (N,) float64, nan if missing."""
    array = _plain(rows.columns[column.name])
    for kind in DATE_TYPES:
        if (dates := _cast(array, kind)) is not None:
            return dates.cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
    raise rows.error(_first_bad(array, *DATE_TYPES), column.name, expected)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The array cast to a kind; None if a value is not of this kind."""
    if pa.types.is_integer(array.type) and pa.types.is_timestamp(kind):
        return None  # pyarrow would read it as microseconds
    is_text = pa.types.is_string(array.type) and pa.types.is_integer(kind)
    if is_text and pc.any(pc.match_substring(array, "x", ignore_case=True)).as_py():
        return None  # pyarrow would read it as hexadecimal
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _first_bad(array: pa.Array, *kinds: pa.DataType) -> int:
    """The first row whose value is of none of these kinds."""
    cells = (array.slice(row, 1) for row in range(len(array)))
    return next((i for i, cell in enumerate(cells) if all(_cast(cell, kind) is None for kind in kinds)), 0)
