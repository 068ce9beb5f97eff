"""Arrow columns of any file -> columns of the types that encoders take; every value is checked.

N: rows.
"""

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.schema import UNITS

LARGEST = float(np.finfo(np.float32).max)
MOST_VALUES = 1024  # in a cell
CANONICAL = r"^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]*[1-9])$"
LAST_SECOND = 1e11  # the year 5138: a larger number is in a smaller unit than seconds
RECENT = 631_152_000, 2_524_608_000  # the years 1990 and 2050, in seconds
DATES = pa.timestamp("us"), pa.timestamp("us", "UTC")
ZONED = r":.*(Z|[+-][0-9:]+)$"
NUMBER, INTEGER, DATE = "a number, or nothing", "a 32-bit integer, or nothing", "a date such as 2014-05-31 23:59:00"


class BadValue(Exception):
    """A value that the description does not allow: its row, and what was expected."""

    def __init__(self, row: int, expected: str):
        super().__init__(expected)
        self.row, self.expected = row, expected


def plain(array: pa.Array) -> pa.Array:
    """Without dictionaries, nan, and the large, view and fixed-size types of Arrow."""
    types = pa.types
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_large_string(array.type) or types.is_string_view(array.type):
        return array.cast(pa.string())
    if types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        return array.cast(pa.list_(array.type.value_type))
    return pc.if_else(pc.is_nan(array), None, array) if types.is_floating(array.type) else array


def known(array: pa.Array, missing: pa.Array) -> pa.Array:
    """Texts without the spaces around them, null if missing; other columns as they are."""
    if not pa.types.is_string(array.type):
        return array
    trimmed = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.is_in(trimmed, missing), None, trimmed)


def numbers(
    array: pa.Array, missing: pa.Array, integer: bool = False, required: bool = False, least: float = -LARGEST
) -> pa.Array:
    """Numbers (N,), null if missing: int32 if `integer`, otherwise float64."""
    found = cast(known(array, missing), *((pa.int32(), INTEGER) if integer else (pa.float64(), NUMBER)))
    is_possible = pc.and_(pc.greater_equal(found, least), pc.less_equal(found, LARGEST))  # not true for nan
    _check(is_possible, f"a number from {least:.2g} to {LARGEST:.2g}")
    if required:
        _check(found.is_valid(), "a number in every row")
    return found


def texts(array: pa.Array, kind: str = "text") -> pa.Array:
    """Texts (N,) as written, never null; equal values of one type are equal texts whatever the file's format."""
    types = pa.types
    if types.is_floating(array.type):
        array = _by_value(array.cast(pa.string()))
    elif types.is_boolean(array.type):
        array = pc.if_else(array, "True", "False")
    elif types.is_temporal(array.type):
        array = pc.replace_substring_regex(array.cast(pa.string()), r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
        array = pc.replace_substring_regex(array, r"( 00:00:00)?\.?(Z?)$", r"\2")
    elif not any(holds(array.type) for holds in (types.is_string, types.is_integer, types.is_decimal, types.is_null)):
        raise BadValue(0, f"texts, numbers, dates or lists of them (the column holds {array.type})")
    array = array.cast(pa.string()).fill_null("")
    if kind == "boolean":
        return pc.utf8_lower(array)
    if kind == "number" and not pc.all(pc.match_substring_regex(array, CANONICAL), min_count=0).as_py():
        return _by_value(array)
    return array


def categories(array: pa.Array, missing: pa.Array, kind: str, separator: str | None = None) -> pa.Array:
    """Categories (N,) string, or list<string> if a cell may hold several values; a cell without a value is empty."""
    if separator and not pa.types.is_list(array.type):
        cells = texts(array)
        array = pc.split_pattern(pc.if_else(pc.is_in(cells, missing), None, cells), separator)
    if not pa.types.is_list(array.type):
        return texts(array, kind)
    lengths = pc.list_value_length(array).fill_null(0)
    _check(pc.less_equal(lengths, MOST_VALUES), f"at most {MOST_VALUES:,} values in a cell")
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy())])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts(plain(array.flatten()), kind))


def ids(array: pa.Array, missing: pa.Array, kind: str) -> pa.Array:
    """Ids of users or items (N,) string."""
    found = texts(array, kind)
    _check(pc.invert(pc.is_in(found, missing)), "one id in every row")
    return found


def canonical(text: str) -> str:
    """A number by its value, exactly: "39.0" and "+39" are "39", "1e3" is "1000"; other texts are unchanged."""
    if not re.fullmatch(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\s*", text):
        return text
    digits = format(Decimal(text), "f")
    short = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if short == "-0" else short


def unit_of(array: pa.Array) -> str | None:
    """The unit of times, by the first one: "date", or that in which a number is a recent time; "" for other numbers.

    None if there is no time.
    """
    first = array.drop_null()[:1]
    number = cast_or_none(first, pa.float64())
    if not len(first) or number is None:
        return "date" if len(first) else None
    return next((u for u, per_second in UNITS.items() if RECENT[0] < number[0].as_py() / per_second < RECENT[1]), "")


def times(array: pa.Array, unit: str, required: bool) -> pa.Array:
    """Times (N,) float64 in seconds since 1970 (if the unit is "", as they are), null if missing."""
    if pa.types.is_temporal(array.type) or unit == "date":
        found = _dates(array)
    else:
        others = ", ".join(other for other in UNITS if other != unit)
        expected = f'{unit} since 1970, as in the other rows or columns.json (other units: {others}, "date")'
        per_second = float(UNITS.get(unit, 1))
        found = pc.divide(cast(array, pa.float64(), expected if unit else NUMBER), per_second)
        least, most = (0.0 if unit == "s" else LAST_SECOND / 1000, LAST_SECOND) if unit else (-LARGEST, LARGEST)
        _check(pc.and_(pc.greater_equal(found, least), pc.less(found, most)), expected if unit else NUMBER)
    if required:
        _check(found.is_valid(), "a time in every row")
    return found


def _dates(array: pa.Array) -> pa.Array:
    """Seconds since 1970, UTC if they name no zone."""
    if pa.types.is_string(array.type):
        array = pc.replace_substring_regex(array, r"(\.[0-9]{6})[0-9]+", r"\1")
        zoned = pc.match_substring_regex(array, ZONED)
        parts = pc.if_else(zoned, None, array), pc.if_else(zoned, array, None)
        found = pc.coalesce(*(cast(p, kind, DATE).cast(pa.int64()) for p, kind in zip(parts, DATES, strict=True)))
    else:
        found = cast(array, pa.timestamp("us", getattr(array.type, "tz", None)), DATE).cast(pa.int64())
    return pc.divide(found.cast(pa.float64(), safe=False), 1e6)


def cast_or_none(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The array in this type, None if that is impossible; no number is a time, although Arrow takes it for one."""
    types = pa.types
    is_free = types.is_string(array.type) or types.is_null(array.type)
    if not is_free and types.is_temporal(array.type) != types.is_timestamp(kind):
        return None
    try:
        return array.cast(kind, safe=types.is_integer(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def cast(array: pa.Array, kind: pa.DataType, expected: str) -> pa.Array:
    """Raises: BadValue for the first value that is not of this kind."""
    found = cast_or_none(array, kind)
    if found is None:
        rows = (row for row in range(len(array)) if cast_or_none(array[row : row + 1], kind) is None)
        raise BadValue(next(rows, 0), expected)
    return found


def _check(holds: pa.Array, expected: str) -> None:
    """Raise BadValue for the first row for which it does not hold; null holds."""
    if not pc.all(holds, min_count=0).as_py():
        raise BadValue(int(np.argmin(holds.fill_null(True).to_numpy(zero_copy_only=False))), expected)


def _by_value(array: pa.Array) -> pa.Array:
    """Texts (N,) with numbers in their canonical form."""
    encoded = array.dictionary_encode()
    return pa.array([canonical(text) for text in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
