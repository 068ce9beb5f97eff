"""Your own data: `python data/describe.py FILE [NAME] [--items FILE] [--users FILE]` guesses the columns' roles.

FILE is a table with labels, or interactions of users with items; --items and --users name files with a row per item or
user. With NAME it writes DATA_ROOT/NAME/columns.json, which holds the paths of the files: correct it by hand, then set
`dataset="NAME"` in a train.py. The files are CSV, TSV or Parquet, plain or .gz, or folders of such files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pandas as pd
import pyarrow as pa

from common.errors import UserError, check, run_script
from common.files import atomic_write
from common.paths import data_root
from data.guess import guess_attributes, guess_roles
from data.reader import Reader, data_files, source_of
from data.schema import COLUMNS_FILE, Format, described
from data.sniff import Look, conversion_command, file_format

SAMPLE_ROWS, SAMPLE_FILES = 100_000, 10  # looked at


class Table:
    """The first rows of a file or folder. entries: of columns.json, but not the columns.

    Raises: UserError for a file that cannot be read as a table.
    """

    def __init__(self, path: Path):
        self.path, self.files = path, data_files(path)
        self.entries, columns, self.notes = file_format(self.files[0])
        for file in self.files:
            columns |= {key: {"role": "kept"} for key in source_of(file).keys if key not in columns}
        if len(self.files) > 1:
            first, last = (file.relative_to(path) for file in (self.files[0], self.files[-1]))
            self.notes.append(f"{len(self.files)} files, in natural order of their names, from {first} to {last}.")
        form = Format.model_validate(self.entries | {"columns": columns})
        cells = first_cells(self.files, form)
        self.looks = [Look(name, cells[name], form) for name in cells.column_names]
        is_again = form.header and all(look.name in look.values for look in self.looks)
        check(not is_again, f"{path} has the names of the columns in several lines. Remove the others.")

    def content(self) -> dict[str, Any]:
        """Of columns.json."""
        columns = {look.name: look.entry for look in self.looks}
        return {"file": str(self.path.resolve())} | self.entries | {"columns": columns}

    def report(self) -> str:
        """The guess as a table for the terminal, and notes."""
        lines = []
        for c in self.looks:
            examples = ", ".join(text if len(text) <= 16 else f"{text[:13]}..." for text in c.values[:3])
            lines.append([c.name, c.role, c.kind, f"{len(c.values):,}", f"{c.missing:.1%}", examples, c.why])
        table = pd.DataFrame(lines, columns=["column", "role", "type", "distinct", "missing", "examples", "why"])
        entries = [f", {name} {json.dumps(value)}" for name, value in self.entries.items() if name != "missing"]
        head = f"{self.path}: the first {self.looks[0].rows:,} rows, {len(lines)} columns{''.join(entries)}"
        notes = [*self.notes]
        if odd := "; ".join(f"{c.name!r} has {c.conversion[0]}" for c in self.looks if c.conversion[0]):
            how = conversion_command(self.files[0], self.entries, {c.name: c.conversion[1] for c in self.looks})
            notes.append(f"To use them, convert the file and describe the new one: {odd}. `{how}`")
        return "\n".join([head, "", table.to_string(index=False), "", *notes, ""])


def first_cells(files: list[Path], form: Format) -> pa.Table:
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
    table = Table(path)
    others = {role: Table(file) for role, file in (("item", items), ("user", users)) if file}
    keys: dict[str, Look | None] = {}  # columns of both files that have another value in each row of the second
    for role, other in others.items():
        unique = [look.name for look in other.looks if len(look.values) == look.rows]
        keys[role] = next((look for name in unique for look in table.looks if look.name == name), None)
    more = guess_roles(table.looks, keys, table.notes)
    taken = {look.name for look in table.looks}
    for role, other in others.items():
        ids = next((look for look in table.looks if look.role == role), None)
        if ids is None:
            raise UserError(f"{path}: no columns look like users and items. Name them user_id and item_id.")
        is_key = guess_attributes(other.looks, role, ids, taken)
        check(is_key, f"{other.path} has no column with the ids of column {ids.name!r} in {path}.")
        taken |= {look.name for look in other.looks}
    content = table.content() | more | {f"{role}_attributes": other.content() for role, other in others.items()}
    return content, "\n".join(one.report() for one in (table, *others.values()))


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
