"""What the columns of an interactions file are: a row says that a user had to do with an item, when, and how it rated.

DATA_ROOT/<name>/columns.json describes it: `python data/interactions_data.py FILE NAME` writes it, a human edits it.
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
# of a user or item; its number is cut into bins, of a user one cell holds one value
ATTRIBUTE_RULES: dict[str, dict[str, dict[str, Rule]]] = {
    key: {key: {"type": one_of(TYPES[:2])}, "categorical": rules, "dense": {}, "excluded": {}}
    for key, rules in (
        ("user", {"type": one_of(TYPES[:2])}),
        ("item", {name: ENTRY_RULES["categorical"][name] for name in ("type", "separator")}),
    )
}


@dataclass(frozen=True)
class AttributeTable:
    """A file with a row for each user or item. key: the column with its id; the inputs of the schema are attributes."""

    path: Path
    schema: Schema
    key: str


@dataclass(frozen=True)
class InteractionSchema:
    """The columns of a file of interactions, by role. unit: of the times; click_from: ratings from it on are clicks."""

    schema: Schema  # rating and time are "labels": read in training, and where they are there when rows are scored
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
        """What to_dict gave. Raises: ValueError, or an error of Python's own, for values of other types."""
        found = cls(**state | {"schema": Schema.from_dict(state["schema"])})
        names = [found.user, found.item, found.time, *([found.rating] if found.rating is not None else [])]
        if len(set(names)) < len(names) or not set(names) <= set(found.schema.names) or found.unit not in UNIT_NAMES:
            raise ValueError("interactions whose columns are not described")
        return found


def read_interactions_file(path: Path) -> tuple[Path, InteractionSchema, dict[str, AttributeTable]]:
    """Data file, its columns, and the second files by key of a columns.json.

    Raises: UserError naming file and column of the first entry that is wrong.
    """
    content = load_description(path)
    check(
        describes_interactions(content),
        f'{path}: no column has the role "user" or "item"; bst/train.py trains on interactions, which '
        "`python data/interactions_data.py FILE NAME` describes.",
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
    """roles: others than in the file, by those."""
    return tuple(
        Column(
            name,
            roles.get(entry["role"], entry["role"]),
            **{option: entry[option] for option in ("type", "separator") if option in entry},
        )
        for name, entry in entries.items()
    )
