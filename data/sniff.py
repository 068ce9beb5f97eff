"""How a file is written: separator, quotes, encoding, names of its columns; and how to convert what cannot be read."""

import csv
import io
import json
import re
import shlex
from itertools import takewhile
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
SEPARATORS = ("\t", ";", "|", "\x01", "::", ",")  # the first of those that fit equally well
NUMBER = r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*"
DATE_TEXT = (  # dates that the reader does not know: 28/09/2023 21:00, Feb 19, 2009, Wed Apr 08 10:00:00 +0000 2020
    r"(\w{3}, )?(\d{1,4}([/.-])\d{1,2}\3\d{1,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4})"
    r"([ T,]+\d{1,2}:\d{2}.*)?|\w{3} \w{3} +\d{1,2} [0-9:]{8} .*"
)
VALUE = rf"{NUMBER}|\d{{4}}-\d\d-\d\d.*|{DATE_TEXT}"
ODD_LINES = {  # what line 1 says about files that must be converted
    r"[^\s,;|]+:": 'blocks of rows, each below a line with its id: `awk \'/:\\r?$/ {sub(/:\\r?$/, ""); id = $0; next} '
    '{print id "," $0}\' FILE > NEW_FILE` makes a table',
    r"\S+( \d+:\S+)+": "rows as svmlight has them: `python -c 'import pandas as p, sklearn.datasets as d, sys; "
    "x, y = d.load_svmlight_file(sys.argv[1]); p.DataFrame(x.toarray()).assign(label=y).to_csv(sys.argv[2], index=0)' "
    "FILE NEW_FILE` makes a table",
}
ANY = {"header": False, "columns": {"any": {"role": "kept"}}}


def file_format(path: Path) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The entries of columns.json that say how a file is written; its columns: "kept", "categorical" for
    lists, or a type that cannot be read; and notes. Raises: UserError for what must be converted."""
    source, file = source_of(path), shlex.quote(str(path))
    with source.open() as stream:
        start = stream.read(len(PARQUET))
        if start == PARQUET:
            with parquet_errors(source.name):
                schema = pyarrow.parquet.ParquetFile(stream).schema_arrow
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
    for pattern, what in ODD_LINES.items():
        check(not re.fullmatch(pattern, lines[0]), f"{path} has {what.replace('FILE', file, 1)}.")
    if match := re.fullmatch("(sep=)(.)", lines[0], re.I):
        entries, lines = entries | {"separator": match[2], "comment": match[1]}, lines[1:]
    separator = entries.get("separator") or separator_of(lines[len(lines) // 2 :])
    titles = list(takewhile(lambda line: len(fields_of(line, separator)) == 1, lines))
    if 0 < len(titles) < len(lines):
        comment, lines = titles[0] if len(titles) == 1 else titles[0][0], lines[len(titles) :]
        check(
            all(line.startswith(comment) for line in titles) and not lines[0].startswith(comment),
            f"{path}: the table begins below {len(titles)} other lines. Cut them off with "
            f"`tail -n +{len(titles) + 1} {file} > NEW_FILE`.",
        )
        entries["comment"] = comment
    if separator == "," and sum(line.count(", ") == line.count(",") for line in lines) > 0.9 * len(lines):
        separator = ", "
    if separator != ",":
        entries["separator"] = separator
    first, *others = [fields_of(line, separator) for line in lines]
    if {len(fields) for fields in others} == {len(first) + 1}:
        named = any(fields[-1] for fields in others)
        how = f"1 s/^/row{separator}/" if named else f"2,$ s/{separator}$//"
        raise UserError(
            f"{path}: line 1 has a field less than the other lines{'' if named else ', which end with a separator'}. "
            f"Convert it with `sed '{how}' {file} > NEW_FILE`."
        )
    cells = [cell for line in lines for cell in line.split(separator)]
    if any(cell.startswith('"') and not re.fullmatch(r'"([^"]|"")*"', cell) for cell in cells):
        rows = strict_rows(lines, separator)
        if '\\"' in text and not rows:
            how = command(path, entries, {}, escapechar="\\", doublequote=False)
            raise UserError(f"{path} has quotes behind backslashes. Convert it with `{how}`.")
        if len(rows) < len(lines) and len({line.count(separator) for line in lines}) == 1:
            entries["quoted"] = False
            notes.append('Lone quotes begin some values, so quotes are characters like any other ("quoted": false).')

    def read(header: bool) -> Text:
        return Text(source.name, b"", io.BytesIO(content), Format.model_validate(ANY | entries | {"header": header}))

    rows = first_rows(read(header=False), LINES)
    check(len(rows[0]) > 1, f"{path}: found only one column ({lines[0][:80]!r}). Is it a table with a header line?")
    if has_names(rows):
        names = read(header=True).names or []
    else:
        entries["header"], names = False, [f"c{number}" for number in range(1, len(rows[0]) + 1)]
        notes.append(
            f"Does line 1 ({', '.join(rows[0])[:60]}) hold values? It seems so, and the columns are c1 to {names[-1]}; "
            'rename them in columns.json, in this order ("header": false). Better for the guess: add a line of names '
            f"with `sed '1i NAME{separator}NAME...' {file} > NEW_FILE`."
        )
    if "" in names:
        notes.append(f"Columns without a name are not read: {names.count('')}.")
    return entries, dict.fromkeys(filter(None, names), "kept"), notes


def parquet_role(kind: pa.DataType) -> str:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if is_list or types.is_dictionary(kind) else kind
    unread = [types.is_nested, types.is_binary, types.is_large_binary, types.is_duration, types.is_time]
    if any(holds(value) for holds in [*unread, *([types.is_floating] if is_list else [])]):
        return str(kind)
    return "categorical" if is_list else "kept"


def separator_of(lines: list[str]) -> str:
    """The one that splits most lines into as many fields, and into most fields."""

    def fit(separator: str) -> tuple[float, int]:
        widths = [len(fields_of(line, separator)) for line in lines]
        width = max(widths, key=widths.count)
        return (round(widths.count(width) / len(lines), 2), width) if width > 1 else (0, 0)

    best = max(SEPARATORS, key=fit)
    return best if fit(best)[1] else " " if fit(" ")[0] > 0.9 else ","


def fields_of(line: str, separator: str) -> list[str]:
    return line.split(separator) if separator == "::" else next(csv.reader([line], delimiter=separator[0]))


def strict_rows(lines: list[str], separator: str) -> list[list[str]]:
    """The rows, of several lines if quotes say so; none if a quote is neither doubled nor around a field."""
    rows = []
    try:
        for row in csv.reader(lines, delimiter=separator[0], strict=True):
            rows.append(row)
    except csv.Error as error:
        return rows if "unexpected end" in str(error) else []
    return rows


def has_names(rows: list[list[str]]) -> bool:
    """Whether row 1 has names: a text above values or, if no column has that, neither values nor what is below."""
    missing = {"", *MISSING}
    columns = [(name, [c for c in cells if c not in missing]) for name, *cells in zip(*rows, strict=False)]
    values = [name for name in rows[0] if re.fullmatch(VALUE, name)]
    if any(rows[0] == [str(n + start) for n in range(len(rows[0]))] for start in (0, 1)) or len(rows) == 1:
        return True
    for name, cells in columns:
        if cells and name not in (*missing, *values) and all(re.fullmatch(VALUE, cell) for cell in cells):
            return True
    return not values and not any(cells.count(name) > len(cells) / 100 for name, cells in columns)


def command(path: Path, entries: dict[str, Any], changes: dict[str, str], **options: Any) -> str:
    """The command that writes a file anew as CSV. changes: of columns, expressions of `t[c]` in pandas; "" for none."""
    given = {"sep": entries.get("separator"), "encoding": entries.get("encoding")} | options
    given |= {"skiprows": 1} if "comment" in entries else {}
    arguments = "".join(f", {name}={as_code(value)}" for name, value in given.items() if value is not None)
    arguments += f", header=None, names={as_code(list(changes))}" if entries.get("header") is False else ""
    read = f"csv({as_code(str(path))}, dtype=str, keep_default_na=False{arguments})"
    read = f"parquet({as_code(str(path))})" if ".parquet" in path.name else read
    code = ["import ast, pandas", f"t = pandas.read_{read}"]
    for name, expression in changes.items():
        column = f"t[{as_code(name)}]"
        code += [f"{column} = {expression.replace('t[c]', column)}"] if expression else []
    code.append('t.to_csv("NEW_FILE", index=False)')
    return f"python -c {shlex.quote('; '.join(code))}"


def as_code(value: Any) -> str:
    """In Python, with double quotes."""
    return repr(value) if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
