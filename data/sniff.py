"""How a file is written: separator, quotes, encoding, names of the columns; what cannot be read, and how to convert it."""

import csv
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from common.errors import UserError, check
from data.reader import PARQUET, parquet_errors, source_of
from data.schema import Format
from data.text import Text, first_rows

LINES = 1000  # looked at
MISSING = ("?", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>", "\\N")
SEPARATORS = ("\t", ";", "|", "\x01", "::", ",", " ")  # the first of those that fit equally well
NUMBER = r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*"
DATE = r"\d{4}-\d\d-\d\d.*"  # that the reader understands
DATE_TEXT = (  # other dates: 28/09/2023 21:00, Feb 19, 2009, 19-Feb-09, Wed Apr 08 10:00:00 +0000 2020
    r"(\w{3}, )?(\d{1,4}([/.-])\d{1,2}\3\d{1,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4})"
    r"([ T,]+\d{1,2}:\d{2}.*)?|\w{3} \w{3} +\d{1,2} [0-9:]{8} .*"
)
VALUE = rf"{NUMBER}|{DATE}|{DATE_TEXT}"
ANY = {"header": False, "columns": {"any": {"role": "kept"}}}


def file_format(path: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The entries of columns.json that say how a file is written, its columns ("kept", "categorical" for lists, or the
    type that cannot be read), and notes. Raises: UserError for what must be converted."""
    source = source_of(path)
    with source.open() as stream:
        start = stream.read(len(PARQUET))
        if start == PARQUET:
            with parquet_errors(source.name):
                schema = pyarrow.parquet.ParquetFile(stream).schema_arrow
            check_names(path, schema.names)
            return {}, {field.name: parquet_role(field.type) for field in schema}, []
        content = Text(source.name, start, stream, Format.model_validate(ANY)).rest
    entries: dict[str, Any] = {}
    notes: list[str] = []
    content = content[: content.rfind(b"\n") + 1] or content
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text, entries["encoding"] = content.decode("latin-1"), "latin-1"
        notes.append("The file is not UTF-8 and is read as latin-1. If letters look wrong, convert it with iconv.")
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()][:LINES]
    check(bool(lines), f"{path} is empty.")
    check(
        not re.fullmatch(r"[^\s,;|]+:", lines[0]),
        f"{path} has blocks of rows, each below a line like {lines[0]!r}. Convert it with `awk '/:\\r?$/ "
        f'{{sub(/:\\r?$/, ""); id = $0; next}} {{print id "," $0}}\' {shlex.quote(str(path))} > NEW_FILE`.',
    )
    if match := re.fullmatch("(sep=)(.)", lines[0], re.I):
        entries, lines = entries | {"separator": match[2], "comment": match[1]}, lines[1:]
    below = [line for line in lines if not line.startswith("#")]
    if (
        lines[0].startswith("#")
        and below
        and len({len(row) for row in rows_of([lines[0], below[0]], separator_of(below))}) > 1
    ):
        entries, lines = entries | {"comment": "#"}, below
    separator = entries.get("separator") or separator_of(lines)
    if separator == "," and sum(line.count(", ") == line.count(",") for line in lines) > 0.9 * len(lines):
        separator = ", "
    if separator != ",":
        entries["separator"] = separator
    fields = [field for line in lines for field in line.split(separator)]
    if any(field.startswith('"') and not re.fullmatch(r'"([^"]|"")*"', field) for field in fields):
        strict = rows_of(lines, separator, strict=True)
        if '\\"' in text and not strict:
            how = {"escapechar": "\\", "doublequote": False}
            raise UserError(
                f"{path} has quotes behind backslashes. Convert it with `{command(path, entries, {}, **how)}`."
            )
        if len(strict) < len(lines) and len({line.count(separator) for line in lines}) == 1:
            entries["quoted"] = False
            notes.append('Lone quotes begin some values, so quotes are characters like any other ("quoted": false).')

    def read(header: bool) -> Text:
        form = Format.model_validate(ANY | entries | {"header": header})
        return Text(source.name, b"", io.BytesIO(content), form)

    rows = first_rows(read(header=False), LINES)
    check(len(rows[0]) > 1, f"{path}: found only one column ({lines[0][:80]!r}). Is it a table with a header line?")
    if has_names(rows):
        names = read(header=True).names or []
        check_names(path, names)
    else:
        entries["header"], names = False, [f"c{number}" for number in range(1, len(rows[0]) + 1)]
        notes.append(
            f"Does line 1 ({', '.join(rows[0])[:60]}) hold values? It looks so: the columns are named c1 to {names[-1]}; "
            "rename them in columns.json, in this order. Otherwise correct the names in line 1."
        )
    if "" in names:
        notes.append(f"Columns without a name are not read: {names.count('')}.")
    return entries, dict.fromkeys(filter(None, names), "kept"), notes


def check_names(path: Path, names: list[str]) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    check(twice is None, f"{path}: found the column name {twice!r} twice; rename one.")


def parquet_role(kind: pa.DataType) -> str:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if is_list or types.is_dictionary(kind) else kind
    discrete = (types.is_string, types.is_large_string, types.is_integer, types.is_null)
    others = (types.is_floating, types.is_decimal, types.is_boolean, types.is_timestamp, types.is_date)
    if any(holds(value) for holds in (discrete if is_list else discrete + others)):
        return "categorical" if is_list else "kept"
    return str(kind)


def separator_of(lines: list[str]) -> str:
    """The one that splits most lines into as many fields as the first, and into most fields."""

    def fit(separator: str) -> tuple[float, int]:
        widths = [len(rows_of([line], separator)[0]) for line in lines]
        return (round(widths.count(widths[0]) / len(widths), 2), widths[0]) if widths[0] > 1 else (0, 0)

    return max(SEPARATORS, key=fit) if max(map(fit, SEPARATORS))[1] else ","


def rows_of(lines: list[str], separator: str, strict: bool = False) -> list[list[str]]:
    """The fields of each row; if strict, nothing if there are quotes that are neither doubled nor around a field."""
    if len(separator.strip(" ")) > 1:
        return [line.split(separator) for line in lines]
    rows = []
    try:
        for row in csv.reader(lines, delimiter=separator[0], strict=strict):
            rows.append(row)
    except csv.Error as error:
        return rows if "unexpected end" in str(error) else []
    return rows


def has_names(rows: list[list[str]]) -> bool:
    """Whether row 1 has names: a text above numbers or, if no column has that, neither values nor what is below."""
    first, *others = rows
    columns = [[cell for cell in column if cell not in ("", *MISSING)] for column in zip(*others, strict=False)]
    is_value = [re.fullmatch(VALUE, name) is not None for name in first]
    pairs = [(name, named, column) for name, named, column in zip(first, is_value, columns, strict=False) if column]
    if not pairs or first in [[str(n) for n in range(start, start + len(first))] for start in (0, 1)]:
        return True
    for name, named, column in pairs:
        if not named and name not in ("", *MISSING) and all(re.fullmatch(VALUE, cell) for cell in column):
            return True
    return not any(is_value) and not any(column.count(name) > len(column) / 100 for name, _, column in pairs)


def command(path: Path, entries: dict[str, Any], changes: dict[str, str], **options: Any) -> str:
    """The command that writes a file anew as CSV. changes: of columns, expressions of `t[c]` in pandas; "" for none."""
    given = {"sep": entries.get("separator"), "encoding": entries.get("encoding")} | options
    given |= {"skiprows": 1} if entries.get("comment") == "sep=" else {}
    arguments = "".join(f", {name}={as_code(value)}" for name, value in given.items() if value is not None)
    arguments += f", header=None, names={as_code(list(changes))}" if entries.get("header") is False else ""
    read = f"csv({as_code(str(path))}, dtype=str, keep_default_na=False{arguments})"
    read = f"parquet({as_code(str(path))})" if ".parquet" in path.name else read
    code = ["import ast, pandas", f"t = pandas.read_{read}", 't.to_csv("NEW_FILE", index=False)']
    for name, expression in changes.items():
        if expression:
            column = f"t[{as_code(name)}]"
            code.insert(-1, f"{column} = {expression.replace('t[c]', column)}")
    return f"python -c {shlex.quote('; '.join(code))}"


def as_code(value: Any) -> str:
    """In Python, with double quotes."""
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
