"""Arrow columns of any file -> columns of the types that encoders take; every value is checked.

N: rows.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.schema import UNITS, Categorical, Column, Dense, Key

LARGEST = float(np.finfo(np.float32).max)
MOST_VALUES = 1024  # in a cell
MOST_DIGITS = 400  # of a number as a category
CANONICAL = r"^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]*[1-9])$"
LAST_SECOND = 1e11  # the year 5138: a larger number is in a smaller unit than seconds
DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
NUMBER, INTEGER, DATE = "a number, or nothing", "a 32-bit integer, or nothing", "a date such as 2014-05-31 23:59:00"


class BadValue(Exception):
    """A value that the description does not allow: its row (None: any), and what was expected."""

    def __init__(self, row: int | None, expected: str):
        super().__init__(expected)
        self.row, self.expected = row, expected


def plain(array: pa.Array) -> pa.Array:
    """Without dictionaries and the large and view types of Arrow."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    is_text = pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type)
    return array.cast(pa.string()) if is_text else array


def numbers(
    array: pa.Array, column: Column, missing: pa.Array, required: bool = False, nan_is_missing: bool = False
) -> pa.Array:
    """Numbers (N,), null if missing: int32 of a column of integers, otherwise float64."""
    integer = isinstance(column, Dense) and column.type == "integer"
    kind, expected = (pa.int32(), INTEGER) if integer else (pa.float64(), NUMBER)
    is_text = pa.types.is_string(array.type)
    if is_text:
        array = pc.utf8_trim_whitespace(array)
        array = pc.if_else(pc.is_in(array, missing), None, array)
    found = cast(array, kind)
    if not integer and nan_is_missing:
        found = pc.if_else(pc.is_nan(found), None, found)
    if not integer:
        _check(pc.less_equal(pc.abs(found), LARGEST), f"{expected} (at most {LARGEST:.2g})")  # not true for nan
    if required:
        _check(found.is_valid(), "a number in every row")
    return found


def weights(array: pa.Array, column: Column, missing: pa.Array) -> pa.Array:
    """Weights (N,) float64."""
    found = numbers(array, column, missing, nan_is_missing=True)
    _check(pc.and_(found.is_valid(), pc.fill_null(pc.greater_equal(found, 0), False)), "a weight: a number from 0 on")
    return found


def texts(array: pa.Array, type_of: str = "text") -> pa.Array:
    """Texts (N,) as written, never null; equal values of one type are equal texts whatever the file's format."""
    types = pa.types
    if types.is_floating(array.type):
        array = _each(array.cast(pa.float64()), lambda value: "" if value != value else canonical(repr(value)))
    elif types.is_boolean(array.type):
        array = pc.if_else(array, "True", "False")
    elif types.is_temporal(array.type):
        array = pc.replace_substring_regex(array.cast(pa.string()), r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
        array = pc.replace_substring_regex(array, r"( 00:00:00)?\.?(Z?)$", r"\2")
    elif not any(holds(array.type) for holds in (types.is_string, types.is_integer, types.is_decimal, types.is_null)):
        raise BadValue(None, f"texts, numbers, dates or lists of them (the column holds {array.type})")
    array = array.cast(pa.string()).fill_null("")
    if type_of == "boolean":
        return pc.utf8_lower(array)
    if type_of == "number" and not pc.all(pc.match_substring_regex(array, CANONICAL), min_count=0).as_py():
        return _each(array, canonical)
    return array


def categories(array: pa.Array, column: Column, missing: pa.Array) -> pa.Array:
    """Categories (N,) string, or list<string> if a cell may hold several values; a cell without a value is empty."""
    type_of = column.type if isinstance(column, Categorical | Key) else "text"
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy())])
        array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts(plain(array.flatten()), type_of))
    elif isinstance(column, Categorical) and column.separator is not None:
        cells = texts(array)
        cells = pc.if_else(pc.is_in(cells, missing), pa.scalar(None, pa.string()), cells)
        return categories(
            pc.split_pattern(cells, column.separator), column.model_copy(update={"separator": None}), missing
        )
    else:
        return texts(array, type_of)
    _check(pc.less_equal(pc.list_value_length(array), MOST_VALUES), f"at most {MOST_VALUES:,} values in a cell")
    return array


def ids(array: pa.Array, column: Column, missing: pa.Array) -> pa.Array:
    """Ids of users or items (N,) string."""
    found = categories(array, column, missing)
    if pa.types.is_list(found.type):
        raise BadValue(0, "one id in every row")
    _check(pc.invert(pc.is_in(found, missing)), "one id in every row")
    return found


def canonical(text: str) -> str:
    """A number by its value, exactly: "39.0" and "+39" are "39", "1e3" is "1000"; other texts are unchanged."""
    if not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*", text):
        return text
    try:
        number = Decimal(text.strip())
        short = format(number.normalize(), "f") if number else "0"
    except InvalidOperation:
        return text
    exact = len(text) <= 28 or Decimal(short) == number  # normalize rounds to 28 digits
    return short if exact and len(short) <= MOST_DIGITS else text.strip()


def unit_of(array: pa.Array) -> str:
    """The unit of times, by the first row: "date", or that in which a number is a recent time; "" for other numbers."""
    if cast_or_none(array[:1], pa.float64()) is None:
        return "date"
    value = array[:1].cast(pa.float64())[0].as_py() or 0.0
    return next((unit for unit, per_second in UNITS.items() if 631_152_000 < value / per_second < 2_524_608_000), "")


def times(array: pa.Array, unit: str, required: bool) -> pa.Array:
    """Times (N,) float64 in seconds since 1970 (if the unit is "", as they are), null if missing."""
    is_text = pa.types.is_string(array.type)
    if is_text:
        array = pc.if_else(pc.equal(array, ""), None, array)
    if pa.types.is_temporal(array.type) or (unit == "date" and is_text):
        found = _dates(array)
    elif unit == "date":
        raise BadValue(0, f"{DATE}, as in the other rows or columns.json")
    else:
        found = cast(
            array, pa.float64(), f"{unit} since 1970, as in the other rows or columns.json" if unit else NUMBER
        )
        least, most = 0.0 if unit == "s" else LAST_SECOND * UNITS.get(unit, 1) / 1000, LAST_SECOND * UNITS.get(unit, 1)
        if unit:
            inside = pc.and_(pc.greater_equal(found, least), pc.less(found, most))
            others = ", ".join(other for other in UNITS if other != unit)
            _check(inside, f'{unit} since 1970, as in the other rows or columns.json (other units: {others}, "date")')
            found = pc.divide(found, float(UNITS[unit]))
        _check(pc.is_finite(found), NUMBER)
    if required:
        _check(found.is_valid(), "a time in every row")
    return found


def _dates(array: pa.Array) -> pa.Array:
    for kind in DATES:
        dates = cast_or_none(array, kind)
        if dates is not None:
            per_second = UNITS[kind.unit]
            return pc.divide(dates.cast(pa.int64()).cast(pa.float64(), safe=False), float(per_second))
    raise BadValue(_first_bad(array, *DATES), DATE)


def cast_or_none(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    if pa.types.is_timestamp(kind) and not (pa.types.is_string(array.type) or pa.types.is_temporal(array.type)):
        return None
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def cast(array: pa.Array, kind: pa.DataType, expected: str | None = None) -> pa.Array:
    """Raises: BadValue for the first value that is not of this kind."""
    found = cast_or_none(array, kind)
    if found is None:
        raise BadValue(_first_bad(array, kind), expected or (INTEGER if pa.types.is_integer(kind) else NUMBER))
    return found


def _first_bad(array: pa.Array, *kinds: pa.DataType) -> int:
    return next(
        (row for row in range(len(array)) if all(cast_or_none(array[row : row + 1], kind) is None for kind in kinds)), 0
    )


def _check(holds: pa.Array, expected: str) -> None:
    """Raise BadValue for the first row for which it does not hold; null holds."""
    if not pc.all(holds, min_count=0).as_py():
        raise BadValue(int(np.argmin(holds.fill_null(True).to_numpy(zero_copy_only=False))), expected)


def _each(array: pa.Array, function: Callable) -> pa.Array:
    """function(value) for each distinct value."""
    encoded = array.dictionary_encode()
    changed = pa.array([function(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return changed.take(encoded.indices)
