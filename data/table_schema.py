"""The schema of a table: roles of its columns, tasks, text format and split.

Your own dataset is described by DATA_ROOT/<name>/columns.json: `python data/table_data.py FILE NAME` writes it, and you
edit it. Criteo, Census-Income and Adult are schemas in code.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from common.data.data_module import SPLITS
from common.settings import DENSE_TRANSFORMS, POOLINGS, Rule

TYPES = ("text", "number", "integer")
LARGEST_COUNT = 2**31 - 1


@dataclass(frozen=True)
class Column:
    """One column. Inputs have the role dense or categorical; weight is used with `weighted=True`; kept is copied to the
    output of predict.py.

    type: "number" compares categorical values as numbers ("39" equals "39.0"); "integer" requires a dense column to
    hold 32-bit integers. transform: of a dense column; None: DATA["dense_transform"]. separator: between several values
    in a cell, whose vectors are pooled (a list in Parquet needs none). hash_size: ids by hash instead of a vocabulary.
    min_count: overrides DATA["min_count"].
    """

    name: str
    role: str
    type: str = "text"
    transform: str | None = None
    separator: str | None = None
    pooling: str | None = None
    hash_size: int | None = None
    min_count: int | None = None


@dataclass(frozen=True)
class Task:
    """A binary label: 1 if `column` holds a text in `positive`, 0 for one in `negative` (None: any other text)."""

    column: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Schema:
    """A table. Text format: separator; header: whether line 1 names the columns; quoted: whether "a, b" in quotes is
    one value; strip: whether to strip spaces around values; comment: first character of lines to skip before the rows.

    missing: texts that mean "no value". split: None (DATA["split"] decides), {"by": "time" or "random"}, or {"column":
    name, "train": [texts], "val": ..., "test": ...}. group: a categorical column, such as users, for GAUC.
    """

    columns: tuple[Column, ...]
    tasks: dict[str, Task]
    separator: str = ","
    header: bool = True
    quoted: bool = True
    strip: bool = False
    comment: str | None = None
    missing: tuple[str, ...] = ("",)
    split: dict[str, Any] | None = None
    group: str | None = None

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def of_role(self, *roles: str) -> list[Column]:
        return [column for column in self.columns if column.role in roles]

    @property
    def inputs(self) -> list[Column]:
        return self.of_role("dense", "categorical")

    @property
    def label_columns(self) -> list[str]:
        """The label columns without repetition, in the order of the tasks."""
        return list(dict.fromkeys(task.column for task in self.tasks.values()))

    @property
    def split_column(self) -> str | None:
        return self.split.get("column") if self.split else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and cache keys."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Schema":
        """The inverse of to_dict. Raises: ValueError, or a built-in error, for values of other types."""
        for task in state["tasks"].values():
            if type(task["positive"]) is not list or type(task["negative"]) not in (list, type(None)):
                raise ValueError("a label whose values are not a list")
        tasks = {
            name: Task(
                task["column"], tuple(task["positive"]), None if task["negative"] is None else tuple(task["negative"])
            )
            for name, task in state["tasks"].items()
        }
        columns = tuple(Column(**column) for column in state["columns"])
        schema = cls(**(state | {"columns": columns, "tasks": tasks, "missing": tuple(state["missing"])}))
        texts = [*tasks, *schema.missing, schema.separator, *(c.name for c in columns), *(c.role for c in columns)]
        texts += [text for task in tasks.values() for text in (task.column, *task.positive, *(task.negative or ()))]
        optional = [
            schema.comment,
            schema.group,
            *(v for c in columns for v in (c.type, c.transform, c.separator, c.pooling)),
        ]
        counts = [v for c in columns for v in (c.hash_size, c.min_count)]
        flags = [schema.header, schema.quoted, schema.strip]
        for values, types in ((texts, str), (optional, str | None), (counts, int | None), (flags, bool)):
            if not all(isinstance(value, types) for value in values):
                raise ValueError("a table described by values of the wrong type")
        entries = [(c.name, ENTRY_RULES[c.role], asdict(c)) for c in columns]
        entries.append(("", {key: FILE_RULES[key] for key in ("separator", "split", "missing")}, state))
        for name, rules, entry in entries:
            for key, (holds, expected) in rules.items():
                if entry.get(key) is not None and not holds(entry[key]):
                    raise ValueError(f"{key} of a table's column {name!r} that is not {expected}")
        if len(set(schema.names)) < len(columns) or not {*schema.label_columns} <= {*schema.names}:
            raise ValueError("a table with labels that are not columns, or with two columns of the same name")
        return schema


IS_NAME: Rule = (lambda v: type(v) is str and v != "", "a non-empty string")
IS_COUNT: Rule = (lambda v: type(v) is int and 1 <= v <= LARGEST_COUNT, "an integer above 0")
IS_TEXTS: Rule = (
    lambda v: type(v) is list and len(v) > 0 and all(type(text) is str for text in v),
    'a list of strings, such as ["0"]',
)


def one_of(values: tuple[str, ...]) -> Rule:
    return lambda v: v in values, f"one of {', '.join(map(json.dumps, values))}"


# what an entry may hold, by role
ENTRY_RULES: dict[str, dict[str, Rule]] = {
    "label": {"positive": IS_TEXTS, "negative": IS_TEXTS, "task": IS_NAME},
    "dense": {"transform": one_of(DENSE_TRANSFORMS), "type": one_of(("number", "integer"))},
    "categorical": {
        "type": one_of(TYPES),
        "separator": IS_NAME,
        "pooling": one_of(POOLINGS),
        "hash_size": IS_COUNT,
        "min_count": IS_COUNT,
    },
    **{role: {} for role in ("time", "weight", "kept", "excluded")},
}
FILE_RULES: dict[str, Rule] = {
    "file": IS_NAME,
    "files": (
        lambda v: type(v) is dict and {"train", "test"} <= v.keys() <= set(SPLITS) and all(map(IS_NAME[0], v.values())),
        'a dict of the files "train", "test" and, if there is one, "val"',
    ),
    "separator": (
        lambda v: type(v) is str and len(v) == 1 and v.isascii() and v != '"' and (v == "\t" or v.isprintable()),
        "one ASCII character",
    ),
    "header": (lambda v: type(v) is bool, "true or false"),
    "missing": (lambda v: type(v) is list and all(type(text) is str for text in v), "a list of strings"),
    "split": (
        lambda v: v is None or (type(v) is dict and (v in ({"by": "time"}, {"by": "random"}) or _is_column_split(v))),
        'null (for DATA["split"]), {"by": "time"}, {"by": "random"} or '
        '{"column": ..., "train": [...], "val": [...], "test": [...]}',
    ),
    "group": (lambda v: v is None or IS_NAME[0](v), "null or the name of a column"),
    "columns": (lambda v: type(v) is dict and len(v) > 0, "a dict with an entry for each column"),
}


def _is_column_split(value: dict) -> bool:
    return (
        value.keys() == {"column", *SPLITS}
        and IS_NAME[0](value["column"])
        and all(IS_TEXTS[0](value[name]) for name in SPLITS)
    )
