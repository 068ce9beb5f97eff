"""How a file is written (separator, quotes, encoding, names), and what the first rows of its columns hold.

N: rows.
"""

import csv
import json
import re
import shlex
from collections import Counter
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from common.errors import UserError, check
from data.reader import PARQUET, reading, source_of
from data.schema import UNITS, Format
from data.text import Text
from data.values import RECENT, BadValue, times

LINES = 1000  # looked at
MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>", "\\N")
SEPARATORS = ("\t", ";", "|", "\x01", "::", ",")  # the first of those that fit equally well
LISTS = ("|", ";", "\x01", "\x02", "\x03", ", ", ",", "/", " ")  # between several values in a cell
FEW = 31  # distinct values that may be few by chance
BLOCKS = """awk '/:\\r?$/ {sub(/:\\r?$/, ""); id = $0; next} {print id "," $0}'"""

NUMBER = r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*"
GROUPED = r"[-+$€£¥ ]*(\d{{1,3}}([{}' \xa0\u202f]\d{{3}})+|\d+)({}\d+)?[ %€$£¥]*"  # 31,273 or 1.234,50 € or 45%
YEAR, MONTH, DAY, HOUR = r"(199\d|20[0-4]\d)", r"(0[1-9]|1[0-2])", r"(0[1-9]|[12]\d|3[01])", r"([01]\d|2[0-3])"
COMPACT_DATES = {
    pattern: (f"dates ({form})", f'pandas.to_datetime({{}}, format="{form}")')
    for pattern, form in {
        YEAR + MONTH + DAY: "%Y%m%d",
        r"\d\d" + MONTH + DAY + HOUR: "%y%m%d%H",
        YEAR + MONTH + DAY + HOUR: "%Y%m%d%H",
        YEAR + MONTH + DAY + HOUR + r"[0-5]\d[0-5]\d": "%Y%m%d%H%M%S",
    }.items()
}
DAY_FIRST = r"\d{1,2}[/.-](0?[1-9]|1[0-2])[/.-](\d\d|\d{4})\b.*"
OTHER_DATES = r"(0?[1-9]|1[0-2])[/.-]\d{1,2}[/.-](\d\d|\d{4})\b.*|\d{4}[/.]\d{1,2}[/.]\d{1,2}\b.*"
OTHER_DATES += r"|(?=.*\d\D.*\d\d).*\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\b.{3,24}"
CONVERSIONS = {  # of texts that the reader does not know: what they are, and how pandas makes a column `{}` readable
    DAY_FIRST: ("dates (day first?)", 'pandas.to_datetime({}, dayfirst=True, format="mixed")'),
    OTHER_DATES: ("dates", 'pandas.to_datetime({}, format="mixed")'),
    GROUPED.format(",", "[.]"): ("numbers", '{}.str.replace("[^-0-9.]", "", regex=True)'),
    GROUPED.format(".", ","): ("numbers", '{}.str.replace("[^-0-9,]", "", regex=True).str.replace(",", ".")'),
    r"\[.*\]": ("lists", '{}.str.strip("[]").str.replace("[\\x22\\x27]", "", regex=True)'),
}
VALUE = "|".join([NUMBER, r"\d{4}-\d\d-\d\d.*", *CONVERSIONS])


def file_format(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The entries of columns.json that say how a file is written; the columns, to be read as they are; and notes.

    Raises: UserError for what must be converted."""
    source, file = source_of(path), shlex.quote(str(path))
    entries: dict[str, Any] = {"missing": [*MISSING[1:]]}
    notes: list[str] = []
    with source.open() as stream:
        start = stream.read(len(PARQUET))
        if start == PARQUET:
            with reading(source.name):
                schema = pyarrow.parquet.ParquetFile(stream).schema_arrow
            roles = {field.name: parquet_role(field.type) for field in schema}
            if unread := [f"{field.name} ({field.type})" for field in schema if not roles[field.name]]:
                notes.append(f"Columns of types that cannot be read: {', '.join(unread)}.")
            return entries, {name: {"role": role} for name, role in roles.items() if role}, notes
        content = Text(source.name, start, stream, without_header({})).rest
    content = content[: content.rfind(b"\n") + 1] or content  # no half letter at its end
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text, entries["encoding"] = content.decode("latin-1"), "latin-1"
        notes.append("The file is not UTF-8 and is read as latin-1. If letters look wrong, convert it with iconv.")
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()][:LINES]
    check(bool(lines), f"{path} is empty.")
    if re.fullmatch(r"[^\s,;|]+:", lines[0]):
        raise UserError(f"{path} has rows below lines with their id. Convert it with `{BLOCKS} {file} > NEW_FILE`.")
    if match := re.fullmatch("(sep=)(.)", lines[0], re.I):  # by Excel
        entries |= {"comment": match[1], "separator": match[2]}
        lines = lines[1:]
    separator = entries.get("separator") or separator_of(lines)
    if separator != ",":
        entries["separator"] = separator
    if re.search(rf'\\"[^"\r\n{re.escape(separator)}]', text):
        how = conversion_command(path, entries | {"escapechar": "\\"}, {})
        raise UserError(f"{path} has quotes behind backslashes. Convert it with `{how}`.")

    def read() -> list[list[str]]:
        with source.open() as stream:
            text = Text(source.name, b"", stream, without_header(entries))
            return list(islice((fields for block in text.blocks() for _, fields in text.records(block)), LINES))

    try:
        rows = read()
    except UserError:
        if len({line.count(separator) for line in lines}) > 1:
            raise
        entries["quoted"] = False
        notes.append('Lone quotes begin some values, so quotes are characters like any other ("quoted": false).')
        rows = read()
    found = f"found only one column ({lines[0][:80]!r})"
    check(len(rows[0]) > 1, f"{path}: {found}. Line 1 must hold the names; remove what is above them.")
    values = [[cell for cell in column if cell not in MISSING] for column in zip(*rows[1:], strict=False)]
    comma = r"[-+]?\d+(,\d+)?" if separator == ";" else r"[-+]?\d+(,(\d\d?|\d{4,}))?"  # 31,273 may have thousands
    if all_are(comma, values) - all_are(r"[-+]?\d+", values) and not all_are(r"[-+]?\d+\.\d+", values):
        entries["decimal"] = ","
    names = [name.strip() for name in rows[0]]
    if not has_names(names, values):
        entries["header"], names = False, [f"c{number}" for number in range(1, len(names) + 1)]
        notes.append(
            f"Does line 1 ({', '.join(rows[0])[:60]}) hold values? It seems so, and the columns are c1 to {names[-1]}. "
            f"Better for the guess: add a line of names with `sed '1i NAME{separator}NAME...' {file} > NEW_FILE`."
        )
    if "" in names:
        notes.append(f"Columns without a name are not read: {names.count('')}.")
    return entries, {name: {"role": "kept"} for name in names if name}, notes


def without_header(entries: dict[str, Any]) -> Format:
    return Format.model_validate(entries | {"header": False, "columns": {"any": {"role": "kept"}}})


def parquet_role(kind: pa.DataType) -> str | None:
    """The role that reads values of a type as they are; None if there is none."""
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if is_list or types.is_dictionary(kind) else kind
    unread = [types.is_nested, types.is_binary, types.is_large_binary, types.is_duration, types.is_time]
    if any(holds(value) for holds in unread) or (is_list and types.is_floating(value)):
        return None
    return "categorical" if is_list else "kept"


def separator_of(lines: list[str]) -> str:
    """The one that splits most lines into as many fields, and into most fields."""

    def fit(mark: str) -> tuple[float, int]:
        rows = [line.split(mark) if mark == "::" else next(csv.reader([line], delimiter=mark)) for line in lines]
        width, count = Counter(map(len, rows)).most_common(1)[0]
        return (round(count / len(lines), 2), width) if width > 1 else (0, 0)

    best = max(SEPARATORS, key=fit)
    is_spaced = sum(line.count(", ") == line.count(",") for line in lines) > 0.9 * len(lines)
    return ", " if best == "," and is_spaced else best


def all_are(pattern: str, columns: list[list[str]]) -> set[int]:
    """The columns whose values all match."""
    return {i for i, cells in enumerate(columns) if cells and all(re.fullmatch(pattern, cell) for cell in cells)}


def has_names(names: list[str], columns: list[list[str]]) -> bool:
    """Whether line 1 has names: a text above values or, if no column has that, texts that do not come again."""
    texts = {i for i, name in enumerate(names) if name not in MISSING and not re.fullmatch(VALUE, name)}
    again = any(cells.count(name) > len(cells) / 100 for name, cells in zip(names, columns, strict=False))
    return bool(texts & all_are(VALUE, columns)) or not (again or any(re.fullmatch(VALUE, name) for name in names))


def conversion_command(path: Path, entries: dict[str, Any], changes: dict[str, str]) -> str:
    """Writes a file anew as CSV. changes: of columns, expressions of `{}` in pandas; "" for none."""
    options = {"sep": entries.get("separator")} | {key: entries.get(key) for key in ("encoding", "escapechar")}
    options |= {"skiprows": int("comment" in entries), "names": [] if entries.get("header", True) else list(changes)}
    given = "".join(f", {name}={json.dumps(value)}" for name, value in options.items() if value)
    read = "parquet({})" if ".parquet" in path.name else f"csv({{}}, dtype=str, keep_default_na=False{given})"
    code = ["import pandas", f"t = pandas.read_{read}".replace("{}", json.dumps(str(path)))]
    for name, expression in changes.items():
        column = f"t[{json.dumps(name)}]"
        code += [f"{column} = {expression.replace('{}', column)}"] if expression else []
    code.append('t.to_csv("NEW_FILE", index=False)')
    return f"python -c {shlex.quote('; '.join(code))}"


class Look:
    """A column in the first rows, and the guess of its role.

    words: the name in lower case, "user_id" for "userId" and "User ID"; "" if the file has no names. values: the
    distinct ones, in the order of the file, without missing ones. codes (N,): the number of each row's value, -1 if
    missing (of lists: of each element). numbers (values,): nan unless all values are numbers or dates, in seconds.
    kind: "number", "date", "list" or "text"; numbers that nobody computes with are "text". entry: of columns.json.
    target (N,), of a label: 1 for a click, 0 for none, nan if unknown.
    """

    def __init__(self, name: str, cells: pa.ChunkedArray, form: Format):
        spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        self.name, self.rows = name, len(cells)
        self.guess({})
        self.target: np.ndarray | None = None
        self.words = re.sub(r"[^a-z0-9]+", "_", spaced).strip("_") if form.header else ""
        is_list = pa.types.is_list(cells.type)
        texts = pc.list_flatten(cells) if is_list else cells
        is_missing = pc.is_in(pc.utf8_trim_whitespace(texts), pa.array(form.missing_texts, pa.string()))
        self.codes, values = pd.factorize(np.array(pc.if_else(is_missing, None, texts).to_pylist(), object))
        self.values: list[str] = values.tolist()
        self.counts = np.bincount(self.codes[self.codes >= 0], minlength=len(values))
        self.known = int(self.counts.sum())
        self.repeats = self.known / max(len(values), 1)  # rows per value
        self.missing = float(np.mean(pc.equal(pc.list_value_length(cells), 0) if is_list else self.codes < 0))
        numbers = pd.to_numeric(pd.Series(self.values, dtype=object).str.replace(form.decimal, "."), errors="coerce")
        self.numbers, self.kind = numbers.to_numpy(float, copy=True), "text"
        if is_list:
            self.kind = "list"
        elif (dates := dates_of(self.values)) is not None:
            self.kind, self.numbers = "date", dates
        elif not np.isfinite(self.numbers).all():
            self.numbers[:] = np.nan
        elif not any(re.fullmatch(r"0\d+|\d{16,}", value) for value in self.values):
            self.kind = "number"
        self.is_whole = self.kind == "number" and bool((self.numbers == np.floor(self.numbers)).all())
        self.is_code = self.is_whole and bool((self.numbers >= -1).all())

    def guess(self, entry: dict[str, Any], why: str = "") -> None:
        self.entry, self.role, self.why = entry, entry.get("role"), why

    def per_row(self, values: Any) -> np.ndarray:
        """A number (N,) for each row from those of the values, nan if missing."""
        return np.append(np.array(values, float), np.nan)[self.codes]

    @property
    def unit(self) -> str | None:
        """The unit in which all values (of which there are some) are recent times; "date" for dates."""
        units = {"date": 1} if self.kind == "date" else UNITS
        ends = self.numbers.min(), self.numbers.max()
        return next((unit for unit, n in units.items() if all(RECENT[0] < end / n < RECENT[1] for end in ends)), None)

    @cached_property
    def separator(self) -> str | None:
        """What separates several values in a cell: parts that come again in other cells."""
        for separator in LISTS:
            cells = [value.split(separator) for value in self.values[:10_000]]
            lengths, parts = [len(cell) for cell in cells], {part for cell in cells for part in cell}
            is_usual = 4 * sum(length > 1 for length in lengths) > len(cells)
            varies = separator not in ", /" or len(set(lengths)) > 2
            is_sentence = separator == " " and not all(re.search(r"\d", part) for part in parts)
            if is_usual and varies and not is_sentence and len(parts) < min(sum(lengths), max(FEW + 1, len(cells))):
                return separator
        return None

    @cached_property
    def conversion(self) -> tuple[str, str]:
        """What the values are, if the reader does not know such, and the expression of CONVERSIONS; else empty."""
        if len(self.values) > 1 and self.kind not in ("list", "date"):
            for pattern, (what, change) in (CONVERSIONS if np.isnan(self.numbers).all() else COMPACT_DATES).items():
                if all_are(pattern, [self.values]):
                    return f"{what} like {self.values[0]!r}", change
        return "", ""


def dates_of(values: list[str]) -> np.ndarray | None:
    """The dates that texts are, in seconds since 1970; None unless the reader takes all for dates."""
    with suppress(BadValue):
        return times(pa.array(values, pa.string()), "date", required=False).to_numpy() if values else None
    return None
