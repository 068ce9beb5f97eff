"""Writes and reads DATA_ROOT/<name>/columns.json, which describes your own table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, check
from common.files import write_json
from common.paths import data_root
from common.settings import Rule
from data.table_schema import ENTRY_RULES, FILE_RULES, Column, Schema, Task, one_of

COLUMNS_FILE = "columns.json"


@dataclass(frozen=True)
class Description:
    """A table: its name in the cache, its columns, and its files (or folders of files): "all", or one per split."""

    name: str
    schema: Schema
    files: dict[str, Path]


def show_guess(content: dict[str, Any], report: str, command: str, name: str | None) -> None:
    """Print a guess; with a name, write it to DATA_ROOT/<name>/columns.json, which must not exist yet."""
    print(report)
    if name is None:
        print(f"`{command} NAME` writes this to {data_root()}/NAME/{COLUMNS_FILE}.")
        return
    check(name == Path(name).name and not name.startswith("."), f"{name!r} cannot be the name of a folder.")
    path = data_root() / name / COLUMNS_FILE
    check(not path.exists(), f"{path} exists already; edit it, or remove it to have it written again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    print(f"Written to {path}. Check the roles and correct what is wrong; then set dataset={name!r} in a train.py.")


def load_description(path: Path) -> dict[str, Any]:
    """The content of a columns.json; its entries are not checked."""
    try:
        content = json.loads(path.read_text())
        json.dumps(content, ensure_ascii=False).encode()  # raises for a lone surrogate
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Correct it, or remove it to have it written again.") from error
    check(type(content) is dict, f"{path}: found a {type(content).__name__}, expected a dict.")
    return content


def describes_interactions(content: dict[str, Any]) -> bool:
    """Whether a columns.json has the role "user" or "item", which only interactions have."""
    columns = content.get("columns")
    entries = columns.values() if type(columns) is dict else ()
    return any(type(entry) is dict and entry.get("role") in ("user", "item") for entry in entries)


def read_description(path: Path) -> Description:
    """The table that a columns.json describes. Raises: UserError naming file and column of the first wrong entry."""
    content = load_description(path)
    check(not describes_interactions(content), f"{path} describes interactions, which only bst/train.py can use.")
    check_entries(content, FILE_RULES, str(path))
    check(("file" in content) != ("files" in content), f'{path}: it needs either "file" or "files".')
    files = {"all": content["file"]} if "file" in content else content["files"]
    schema = _schema(content, path)
    check(
        "file" in content or schema.split is None,
        f'{path}: "files" already defines the split; set "split" to null or leave it out.',
    )
    return Description(path.parent.name, schema, {name: described_file(path.parent, f) for name, f in files.items()})


def described_file(folder: Path, file: str) -> Path:
    """The path of a file that the columns.json in `folder` names."""
    try:
        return folder / Path(file).expanduser()
    except RuntimeError as error:  # ~NAME for an unknown user
        raise UserError(f"{folder / COLUMNS_FILE}: there is no file {file!r}: {error}") from error


def check_entries(content: dict, rules: dict[str, Rule], where: str, of: str = "") -> None:
    for key, value in content.items():
        known = ", ".join(map(json.dumps, rules)) or "nothing but the role"
        check(key in rules, f"{where}: {key!r} is not an entry{of}; known entries: {known}.")
        holds, expected = rules[key]
        check(holds(value), f"{where}: {key!r} is {json.dumps(value)[:100]}; it must be {expected}.")


def column_entries(content: dict, rules: dict[str, dict[str, Rule]], where: str) -> dict[str, dict[str, Any]]:
    """The entries of the columns, by name. Raises: UserError for an unknown role or an entry that breaks its rules."""
    check("columns" in content, f'{where}: it has no "columns".')
    for name, entry in content["columns"].items():
        column = f"{where}, column {name!r}"
        is_known = type(entry) is dict and entry.get("role") in tuple(rules)
        check(is_known, f'{column}: its "role" must be {one_of(tuple(rules))[1]}.')
        options = {key: value for key, value in entry.items() if key != "role"}
        check_entries(options, rules[entry["role"]], column, f' of a column of role "{entry["role"]}"')
    return content["columns"]


def text_format(content: dict[str, Any]) -> dict[str, Any]:
    """The text format that a columns.json gives, as arguments of Schema."""
    given = {key: content[key] for key in ("separator", "header") if key in content}
    return given | ({"missing": tuple(content["missing"])} if "missing" in content else {})


def _schema(content: dict[str, Any], path: Path) -> Schema:
    entries, columns, tasks = column_entries(content, ENTRY_RULES, str(path)), [], {}
    for name, entry in entries.items():
        options = {"type": "number"} if entry["role"] == "dense" else {}
        if entry["role"] == "label":
            where = f"{path}, column {name!r}"
            check("positive" in entry, f'{where}: a label needs "positive", a list of values such as ["1"].')
            negative = tuple(entry["negative"]) if "negative" in entry else None
            both = set(entry["positive"]) & set(negative or ())
            check(not both, f'{where}: a value is in both "positive" and "negative".')
            task = entry.get("task", name)
            check(task not in tasks, f"{where}: there are two tasks {task!r}.")
            tasks[task] = Task(name, tuple(entry["positive"]), negative)
            columns.append(Column(name, "label"))
        else:
            columns.append(Column(name, **options | entry))
    check(bool(tasks), f'{path}: no column has the role "label".')
    check(any(c.role in ("dense", "categorical") for c in columns), f"{path}: no column is an input.")
    check(sum(c.role == "time" for c in columns) <= 1, f'{path}: more than one column has the role "time".')
    split, group = content.get("split"), content.get("group")
    if split and "column" in split:
        check(split["column"] in entries, f'{path}: "split" names {split["column"]!r}, which is no column.')
        role = entries[split["column"]]["role"]
        check(
            role in ("kept", "excluded"),
            f"{path}, column {split['column']!r}: it defines the split, so its role must be "
            f'"excluded" or "kept", not "{role}".',
        )
    if group:
        entry = entries.get(group, {})
        check(
            entry.get("role") == "categorical" and "separator" not in entry,
            f'{path}: "group" is {group!r}; it must be a column with the role "categorical", without "separator".',
        )
    return Schema(tuple(columns), tasks, split=split, group=group, **text_format(content))
