"""The columns of an interactions file, in which a row is a user, an item, a time and perhaps a rating.

DATA_ROOT/<name>/columns.json describes them: `python data/interactions_data.py FILE NAME` writes it, and you edit it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import check
from common.settings import Rule
from data.table_description import (
    check_entries,
    column_entries,
    described_file,
    describes_interactions,
    load_description,
    text_format,
)
from data.table_schema import ENTRY_RULES, FILE_RULES, TYPES, Column, Schema, Task, one_of
from data.table_values import UNITS

KEYS = ("user", "item")
UNIT_NAMES = (*UNITS, "date")
IS_NUMBER: Rule = (lambda v: type(v) in (int, float), "a number")
TABLE_RULES = {name: FILE_RULES[name] for name in ("file", "separator", "header", "missing", "columns")}
IS_TABLE: Rule = (lambda v: v is None or type(v) is dict, 'null, or a dict with "file" and "columns"')
ATTRIBUTES = {key: f"{key}_attributes" for key in KEYS}  # names of the entries that describe a second file
INTERACTION_RULES: dict[str, dict[str, Rule]] = {
    **{key: {"type": one_of(TYPES[:2])} for key in KEYS},
    "time": {"unit": one_of(UNIT_NAMES)},
    "rating": {"click_from": IS_NUMBER},
    "kept": {},
    "excluded": {},
}
# attributes of users or items; numbers are binned; a user's cell holds a single value
ATTRIBUTE_RULES: dict[str, dict[str, dict[str, Rule]]] = {
    key: {key: {"type": one_of(TYPES[:2])}, "categorical": rules, "dense": {}, "excluded": {}}
    for key, rules in (
        ("user", {"type": one_of(TYPES[:2])}),
        ("item", {name: ENTRY_RULES["categorical"][name] for name in ("type", "separator")}),
    )
}


@dataclass(frozen=True)
class AttributeTable:
    """A file with a row per user or item. key: the column with its id; the schema's other inputs are attributes."""

    path: Path
    schema: Schema
    key: str


@dataclass(frozen=True)
class InteractionSchema:
    """The columns of an interactions file, by role. unit: of the times; click_from: the least rating of a click."""

    schema: Schema  # rating and time are "labels": required in training, optional when rows are scored
    user: str
    item: str
    time: str
    unit: str
    rating: str | None
    click_from: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and cache keys."""
        return vars(self) | {"schema": self.schema.to_dict()}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "InteractionSchema":
        """The inverse of to_dict. Raises: ValueError, or a built-in error, for values of other types."""
        found = cls(**state | {"schema": Schema.from_dict(state["schema"])})
        names = [found.user, found.item, found.time, *([found.rating] if found.rating is not None else [])]
        if len(set(names)) < len(names) or not set(names) <= set(found.schema.names) or found.unit not in UNIT_NAMES:
            raise ValueError("columns of interactions that are not described")
        return found


def read_interactions_file(path: Path) -> tuple[Path, InteractionSchema, dict[str, AttributeTable]]:
    """Data file, its columns, and the attribute files by key, as a columns.json describes them.

    Raises: UserError naming the file and column of the first wrong entry.
    """
    content = load_description(path)
    check(
        describes_interactions(content),
        f'{path}: no column has the role "user" or "item"; bst/train.py trains on interactions: describe yours with '
        "`python data/interactions_data.py FILE NAME`.",
    )
    rules = TABLE_RULES | dict.fromkeys(ATTRIBUTES.values(), IS_TABLE)
    check_entries(content, rules, str(path))
    entries = _entries(content, INTERACTION_RULES, str(path))
    names = {role: _of_role(entries, role) for role in INTERACTION_RULES}
    for role in ("user", "item", "time", "rating"):
        check(len(names[role]) <= 1, f'{path}: more than one column has the role "{role}".')
        check(bool(names[role]) or role == "rating", f'{path}: no column has the role "{role}".')
    (user,), (item,), (time,), rating = names["user"], names["item"], names["time"], names["rating"]
    unit = entries[time].get("unit", "")
    check(unit != "", f'{path}, column {time!r}: a time needs "unit", {one_of(UNIT_NAMES)[1]}.')
    columns = _columns(entries, {"user": "categorical", "item": "categorical", "time": "label", "rating": "label"})
    schema = Schema(columns, {name: Task(name, ()) for name in (time, *rating)}, **text_format(content))
    attributes = {}
    for key, name in ATTRIBUTES.items():
        if content.get(name):
            attributes[key] = _attribute_table(content[name], key, f"{path}, {name}", path.parent)
    file = described_file(path.parent, content["file"])
    click_from = entries[rating[0]].get("click_from") if rating else None
    return file, InteractionSchema(schema, user, item, time, unit, next(iter(rating), None), click_from), attributes


def _attribute_table(content: dict[str, Any], key: str, where: str, folder: Path) -> AttributeTable:
    check_entries(content, TABLE_RULES, where)
    entries = _entries(content, ATTRIBUTE_RULES[key], where)
    keys = _of_role(entries, key)
    check(len(keys) == 1, f'{where}: one column must have the role "{key}"; {len(keys)} have it.')
    schema = Schema(_columns(entries, {key: "categorical"}), {}, **text_format(content))
    check(len(schema.inputs) > 1, f"{where}: no column is an attribute.")
    return AttributeTable(described_file(folder, content["file"]), schema, keys[0])


def _entries(content: dict[str, Any], rules: dict[str, dict[str, Rule]], where: str) -> dict[str, dict[str, Any]]:
    check("file" in content, f'{where}: it has no "file".')
    return column_entries(content, rules, where)


def _of_role(entries: dict[str, dict[str, Any]], role: str) -> list[str]:
    return [name for name, entry in entries.items() if entry["role"] == role]


def _columns(entries: dict[str, dict[str, Any]], roles: dict[str, str]) -> tuple[Column, ...]:
    """roles: replacements for the roles in the file."""
    return tuple(
        Column(
            name,
            roles.get(entry["role"], entry["role"]),
            **{option: entry[option] for option in ("type", "separator") if option in entry},
        )
        for name, entry in entries.items()
    )
