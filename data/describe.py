"""Your own data: `python data/describe.py FILE [NAME] [--items FILE] [--users FILE]` guesses the columns' roles.

FILE is a table with labels, or interactions of users with items; --items and --users name files with a row per item or
user. With NAME it writes DATA_ROOT/NAME/columns.json, which holds the paths of the files: correct it by hand, then set
`dataset="NAME"` in a train.py. The files are CSV, TSV or Parquet, plain or .gz, or folders of such files.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pandas as pd
import pyarrow as pa

from common.errors import check, run_script
from common.files import atomic_write
from common.paths import data_root
from data.guess import Guesses, guess_attributes, guess_roles
from data.reader import Reader, data_files, source_of
from data.schema import COLUMNS_FILE, Format, described
from data.sniff import Look, conversion_command, file_format

SAMPLE_ROWS, SAMPLE_FILES = 100_000, 10  # looked at


@dataclass(frozen=True)
class Table:
    """The first rows of a file or folder. entries: of columns.json, but not the columns."""

    path: Path
    entries: dict[str, Any]
    looks: dict[str, Look]
    notes: list[str]

    def content(self, guesses: Guesses) -> dict[str, Any]:
        """Of columns.json."""
        columns = {name: entry for name, (entry, _) in guesses.items()}
        return {"file": str(self.path.resolve())} | self.entries | {"columns": columns}

    def report(self, guesses: Guesses, notes: list[str]) -> str:
        """The guess as a table for the terminal."""
        lines = []
        for name, look in self.looks.items():
            entry, why = guesses[name]
            examples = ", ".join(text if len(text) <= 16 else f"{text[:13]}..." for text in look.values[:3])
            seen = [look.kind, f"{len(look.values):,}", f"{look.missing:.1%}", examples]
            lines.append([name, entry["role"], *seen, why])
        table = pd.DataFrame(lines, columns=["column", "role", "type", "distinct", "missing", "examples", "why"])
        entries = [f", {name} {json.dumps(value)}" for name, value in self.entries.items() if name != "missing"]
        rows = next(iter(self.looks.values())).rows
        head = f"{self.path}: the first {rows:,} rows, {len(lines)} columns{''.join(entries)}"
        return "\n".join([head, "", table.to_string(index=False), "", *self.notes, *notes, ""])


def look_at(path: Path) -> Table:
    """Raises: UserError for a file that cannot be read as a table."""
    files = data_files(path)
    entries, columns, notes = file_format(files[0])
    for file in files:
        columns |= {key: {"role": "kept"} for key in source_of(file).keys if key not in columns}
    if len(files) > 1:
        first, last = (file.relative_to(path) for file in (files[0], files[-1]))
        notes.append(f"{len(files)} files, in natural order of their names, from {first} to {last}.")
    form = Format.model_validate(entries | {"columns": columns})
    cells = sample(files, form)
    looks = {name: Look(name, cells[name], form) for name in cells.column_names}
    is_again = form.header and all(name in look.values for name, look in looks.items())
    check(not is_again, f"{path} has the names of the columns in several lines. Remove the others.")
    return Table(path, entries, looks, notes)


def sample(files: list[Path], form: Format) -> pa.Table:
    """The first rows of several files, because one may hold a single day, or one value of a folder's key=value."""
    chosen = files[:: -(-len(files) // SAMPLE_FILES)]
    batches: list[pa.RecordBatch] = []
    for file in chosen:
        left = SAMPLE_ROWS // len(chosen)
        for batch in Reader(form).batches(source_of(file)):
            batches.append(batch[:left])
            left -= len(batch)
            if left <= 0:
                break
    return pa.Table.from_batches(batches)


def describe(path: Path, items: Path | None = None, users: Path | None = None) -> tuple[dict[str, Any], str]:
    """The content of a columns.json for a table or interactions, and a report of it."""
    table = look_at(path)
    others = {role: look_at(file) for role, file in (("item", items), ("user", users)) if file}
    keys = {role: same_column(table, other) for role, other in others.items()}
    guesses, notes, content = guess_roles(table.looks, keys)
    odd = {name: look.conversion or ("", "") for name, look in table.looks.items()}
    if found := "; ".join(f"{name!r} has {what}" for name, (what, _) in odd.items() if what):
        how = conversion_command(
            data_files(path)[0], table.entries, {name: change for name, (_, change) in odd.items()}
        )
        notes.append(f"To use them, convert the file and describe the new one: {found}. `{how}`")
    parts, taken = [], set(table.looks)
    for role, other in others.items():
        ids = [table.looks[name] for name, (entry, _) in guesses.items() if entry["role"] == role]
        check(bool(ids), f"{path}: no columns look like users and items. Name them user_id and item_id.")
        more = guess_attributes(other.looks, role, ids[0], taken)
        is_key = any(entry["role"] == role for entry, _ in more.values())
        check(is_key, f"{other.path} has no column with the ids of column {ids[0].name!r} in {path}.")
        content[f"{role}_attributes"] = other.content(more)
        parts.append(other.report(more, []))
        taken |= set(more)
    return table.content(guesses) | content, "\n".join([table.report(guesses, notes), *parts])


def same_column(table: Table, other: Table) -> str | None:
    """A column of both files that has another value in each row of the second."""
    return next((n for n, look in other.looks.items() if n in table.looks and len(look.values) == look.rows), None)


def main(*given: str) -> None:
    """Print a guess of the columns' roles; with a name, write columns.json."""
    parser = argparse.ArgumentParser(prog="python data/describe.py")
    parser.add_argument("FILE", type=Path)
    parser.add_argument("NAME", nargs="?")
    parser.add_argument("--items", type=Path, metavar="FILE")
    parser.add_argument("--users", type=Path, metavar="FILE")
    arguments = parser.parse_args(given)
    content, report = describe(arguments.FILE, arguments.items, arguments.users)
    print(report)
    name = arguments.NAME
    if name is None:
        print(f"With a NAME, this is written to {data_root()}/NAME/{COLUMNS_FILE}.")
        return
    check(name == Path(name).name and not name.startswith("."), f"{name!r} cannot be the name of a folder.")
    path = data_root() / name / COLUMNS_FILE
    check(not path.exists(), f"{path} exists already; edit it, or remove it to have it written again.")
    described(content, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
    print(f"Written to {path}. Check the roles and correct what is wrong; then set dataset={name!r} in a train.py.")


if __name__ == "__main__":
    run_script(main, "[FILE...]")
