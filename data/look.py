"""What the values of a column are, in the first rows.

N: rows.
"""

import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data.schema import UNITS, Format
from data.sniff import DATE_TEXT, NUMBER
from data.values import LARGEST, RECENT, BadValue, cast_or_none, times

FEW = 31  # distinct numbers that may be categories
MANY_DIGITS = 16  # of an id, which nobody computes with
COMPACT_DATES = {8: ("%Y%m%d", "%y%m%d%H"), 10: ("%Y%m%d%H",), 12: ("%Y%m%d%H%M",), 14: ("%Y%m%d%H%M%S",)}
GROUPS = r"\d{1,3}([,.' \xa0\u202f]\d{3})+"
GROUPED = rf"[-+]?[$€£¥]? ?({GROUPS}|\d+)([.,]\d+)?( ?[%€$£¥])?"  # 31,273 or 1.234,50 € or 45%
LIST_SEPARATORS = ("|", ";", "\x01", "\x02", "\x03", ", ", ",", "/", " ")


class Look:
    """A column in the first rows.

    words: the name in lower case, "user_id" for "userId" and "User ID"; "" if the file has no names. values: the
    distinct ones, in the order of the file, without missing ones. codes (N,): the number of each row's value, -1 if
    missing (of lists: of each element). numbers (values,): None unless all values are numbers.
    """

    def __init__(self, name: str, cells: pa.ChunkedArray, form: Format):
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        self.name, self.rows, self.form = name, len(cells), form
        self.words = re.sub(r"[^a-z0-9]+", "_", spaced).strip("_") if form.header else ""
        array = cells.combine_chunks()
        self.is_list = pa.types.is_list(array.type)
        encoded = (array.flatten() if self.is_list else array).dictionary_encode()
        texts, indices = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        known = np.array([text.strip() not in form.missing_texts for text in texts], bool)
        self.codes = np.append(np.where(known, known.cumsum() - 1, -1), -1)[indices]
        self.values = [text for text, is_known in zip(texts, known, strict=True) if is_known]
        self.counts = np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))
        self.known = int(self.counts.sum())
        self.missing = float(np.mean(pc.equal(pc.list_value_length(array), 0) if self.is_list else self.codes < 0))
        self.numbers = None if self.is_list or not self.values else numbers_of(self.values, form.decimal)
        self.is_whole = self.numbers is not None and bool((self.numbers == np.floor(self.numbers)).all())
        self.is_date = bool(self.values) and self.numbers is None and are_dates(self.values)
        self.is_code = any(re.fullmatch(rf"0\d+|\d{{{MANY_DIGITS},}}", value) for value in self.values)
        is_number = self.numbers is not None and not self.is_code
        self.kind = "list" if self.is_list else "date" if self.is_date else "number" if is_number else "text"

    def named(self, words: str, within: bool = False) -> bool:
        """Whether the name is one of these words or, `within`, has one of them."""
        return bool(re.search(rf"(^|_)({words})(_|$)", self.words) if within else re.fullmatch(words, self.words))

    def all_are(self, pattern: str) -> bool:
        return len(self.values) > 1 and all(re.fullmatch(pattern, value) for value in self.values)

    @property
    def units(self) -> list[str]:
        """The units in which the values are recent times; "date" for dates."""
        if self.is_date:
            return ["date"] if min(self.values) >= "1990" and max(self.values) < "2050" else []
        if self.numbers is None:
            return []
        least, most = self.numbers.min(), self.numbers.max()
        return [unit for unit, n in UNITS.items() if RECENT[0] < least / n <= most / n < RECENT[1]]

    @property
    def is_narrow(self) -> bool:
        """Whether numbers are so near to each other that, in a unit of time, they are times whatever the name."""
        if self.numbers is None or self.units[:1] not in (["s"], ["ms"]):
            return False
        return bool(self.numbers.max() < 1.5 * self.numbers.min()) and len(self.values) > FEW

    @property
    def has_decimal_commas(self) -> bool:
        """Whether these are numbers such as 664,80. "31,273" has thousands, unless semicolons separate the columns."""
        is_sure = self.form.separator == ";" or not self.all_are(rf"[-+]?(\d{{1,3}}|{GROUPS})")
        return is_sure and self.all_are(r"[-+]?\d+(,\d+)?") and any("," in value for value in self.values)

    @property
    def odd(self) -> list[str]:
        """One or two texts among many numbers."""
        odd = [value for value in self.values if not re.fullmatch(NUMBER, value)]
        return odd if 0 < len(odd) <= 2 and len(self.values) > FEW and not self.is_list else []

    @property
    def separator(self) -> str | None:
        """What separates several values in a cell: parts that come again in other cells."""
        values = self.values[:10_000] if self.numbers is None else []
        for separator in LIST_SEPARATORS:
            if 4 * sum(separator in value for value in values) <= len(values):
                continue
            cells = [value.split(separator) for value in values]
            parts, lengths = {part for cell in cells for part in cell}, [len(cell) for cell in cells]
            again = len(parts) < len(cells) or (len(parts) <= FEW and len(parts) < sum(lengths))
            varies = separator not in ", /" or len(set(lengths)) > 2
            ids = separator != " " or all(re.search(r"\d", part) for part in parts)  # no words of a sentence
            if again and varies and ids:
                return separator
        return None

    @property
    def conversion(self) -> tuple[str, str] | None:
        """What the values are, if the reader does not know such, and an expression of a column `t[c]` in pandas that
        makes them what it knows."""
        if self.kind in ("date", "list") or not self.values:
            return None
        first = self.values[0]
        if self.is_whole and self.all_are(rf"\d{{{len(first)}}}"):
            for form in COMPACT_DATES.get(len(first), ()):
                dates = pd.to_datetime(pd.Series(self.values), format=form, errors="coerce")
                if dates.dt.year.between(1990, 2049).all():
                    return f"dates like {first} ({form})", f'pandas.to_datetime(t[c], format="{form}")'
        if self.all_are(DATE_TEXT):
            a, b = np.max([[*map(int, re.findall(r"\d+", value)), 0][:2] for value in self.values], axis=0)
            order = "year" if a > 31 else "day" if a > 12 else "month" if b > 12 else "day or month"
            is_day = order.startswith("day")
            return (
                f"dates like {first!r}, {order} first",
                f'pandas.to_datetime(t[c], dayfirst={is_day}, format="mixed")',
            )
        if self.numbers is None and self.all_are(GROUPED):
            comma = any(re.search(r"\.\d{3},|,(\d{1,2}|\d{4,})\D*$", value) for value in self.values)
            digits = "[^-0-9,]" if comma or self.form.decimal == "," else "[^-0-9.]"
            return f"numbers like {first!r}", f't[c].str.replace("{digits}", "", regex=True).str.replace(",", ".")'
        if self.all_are(r"\[.*\]"):
            return "lists as texts", 't[c].map(lambda x: "|".join(map(str, ast.literal_eval(x))) if x else x)'
        return None

    def target(self, entry: dict[str, Any]) -> np.ndarray:
        """1 for a click, 0 for none, nan if unknown (N,), if this column is a label or the rating."""
        is_click = [value in entry.get("positive", ()) for value in self.values]
        if "click_from" in entry:
            is_click = (np.array(self.numbers) >= entry["click_from"]).tolist()
        return np.array([*map(float, is_click), np.nan])[self.codes]


def are_dates(values: list[str]) -> bool:
    """Whether the reader takes these texts for dates."""
    try:
        times(pa.array(values, pa.string()), "date", required=False)
    except BadValue:
        return False
    return True


def numbers_of(values: list[str], decimal: str) -> np.ndarray | None:
    """The numbers that texts are; None unless all are."""
    array = pc.utf8_trim_whitespace(pa.array(values, pa.string()))
    if decimal == ",":
        array = pc.replace_substring(pc.replace_substring(array, ".", "x"), ",", ".")
    found = cast_or_none(array, pa.float64())
    return found.to_numpy() if found is not None and (np.abs(found.to_numpy()) <= LARGEST).all() else None
