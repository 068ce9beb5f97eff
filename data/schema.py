"""What the files of a dataset hold: one description for all four models, in code or as DATA_ROOT/<name>/columns.json.

`python data/describe.py FILE NAME` writes a columns.json, which you edit. The published datasets are such descriptions
in data/criteo_data.py, data/census_income.py and data/movie_rating_seq.py.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from common.data.data_module import SPLITS
from common.errors import UserError, shown
from common.settings import Pooling, Transform

COLUMNS_FILE = "columns.json"
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of times, per second


def _known_separator(text: str) -> str:
    if text in ("::", ", ") or (len(text) == 1 and text.isascii() and text not in '"\r\n\0'):
        return text
    raise ValueError('"separator" must be one ASCII character, "::" or ", " (with or without the space)')


def _known_pattern(text: str) -> str:
    pc.struct_field(pc.extract_regex(pa.array([""]), text), 0)  # an ArrowInvalid is a ValueError
    return text


Content = Annotated[str, StringConstraints(min_length=0)]  # valid Unicode
Name = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[tuple[Content, ...], Field(min_length=1)]
Separator = Annotated[str, AfterValidator(_known_separator)]
Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
Unit = Literal["s", "ms", "us", "ns", "date"]


class Entry(BaseModel):
    """A part of a description: immutable, without unknown entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(Entry):
    """A binary label: 1 for a text in `positive`, 0 for one in `negative` (None: any other). Empty: unknown."""

    role: Literal["label"] = "label"
    positive: Texts
    negative: Texts | None = None
    task: Name | None = None  # None: the name of the column

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if set(self.positive) & set(self.negative or ()):
            raise ValueError('a value is in both "positive" and "negative"')
        return self


class Rating(Entry):
    """A number, which BST predicts. A click is a rating of at least `click_from`, or one of the texts in `positive`,
    while ratings in neither `positive` nor `negative` are left out."""

    role: Literal["rating"] = "rating"
    click_from: Annotated[float, Field(allow_inf_nan=False)] | None = None
    positive: Texts | None = None
    negative: Texts | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.positive is None) != (self.negative is None) or (self.positive and self.click_from is not None):
            raise ValueError('a click needs either "click_from" or both "positive" and "negative"')
        return self


class Dense(Entry):
    """A number as an input. transform: None: DATA["dense_transform"]. type: "integer" refuses all other values."""

    role: Literal["dense"] = "dense"
    transform: Transform | None = None
    type: Literal["number", "integer"] = "number"


class Categorical(Entry):
    """A category as an input. type: "number" compares by value ("39" equals "39.0"), "boolean" too ("True", "true").

    separator: between several values in a cell (a list in Parquet needs none), whose vectors are pooled. hash_size: ids
    by hash instead of a vocabulary. min_count: overrides DATA["min_count"]. source: another column, of whose texts this
    one is the part that a group of the regular expression `pattern` matches: "(?P<year>[0-9]{4})".
    """

    role: Literal["categorical"] = "categorical"
    type: Literal["text", "number", "boolean"] = "text"
    separator: Name | None = None
    pooling: Pooling | None = None
    hash_size: Count | None = None
    min_count: Count | None = None
    source: Name | None = None
    pattern: Annotated[str, AfterValidator(_known_pattern)] | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.source is None) != (self.pattern is None):
            raise ValueError('"source" and "pattern" need each other')
        return self


class Key(Entry):
    """The id of a user or an item; for click models a category. In a second file, the column that is looked up."""

    role: Literal["user", "item"]
    type: Literal["text", "number"] = "text"


class Time(Entry):
    """Orders the rows. unit: of numbers, since 1970, or "date"; None: as the first row has it."""

    role: Literal["time"] = "time"
    unit: Unit | None = None


class Plain(Entry):
    """weight: of the row in the training loss, with weighted=True; kept: copied to the output of predict.py (of an
    item's file: the item's title); excluded: not used."""

    role: Literal["weight", "kept", "excluded"]


Column = Annotated[Label | Rating | Dense | Categorical | Key | Time | Plain, Field(discriminator="role")]


class Format(Entry):
    """How one file, or a folder of equal files, is written, and what its columns hold.

    header: whether line 1 names the columns; without it, `columns` has their order. quoted: whether "a, b" in quotes is
    one value; None: yes, but what may as well be several rows with lone quotes is refused. missing: texts that mean "no
    value", beside the empty one. comment: how lines to skip before the rows begin.
    """

    file: Name | None = None
    separator: Separator = ","
    header: Annotated[bool, Field(strict=True)] = True
    quoted: Annotated[bool, Field(strict=True)] | None = None
    missing: tuple[Content, ...] = ()
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    comment: Name | None = None
    columns: Annotated[dict[Name, Column], Field(min_length=1)]

    def of_role(self, *roles: str) -> list[str]:
        """The names of the columns with one of these roles."""
        return [name for name, column in self.columns.items() if column.role in roles]

    def only(self, *roles: str) -> str | None:
        """The one column with one of these roles; None if there is none."""
        return next(iter(self.of_role(*roles)), None)

    @property
    def in_file(self) -> list[str]:
        """The columns that a file without a header line has, in order."""
        return [name for name, column in self.columns.items() if getattr(column, "source", None) is None]

    @property
    def missing_texts(self) -> list[str]:
        return list(dict.fromkeys(["", *self.missing]))

    @model_validator(mode="after")
    def _once(self) -> Self:
        for role in ("user", "item", "time", "rating", "weight"):
            if len(self.of_role(role)) > 1:
                raise ValueError(f'more than one column has the role "{role}"')
        for name, column in self.columns.items():
            source = getattr(column, "source", None)
            if source is not None and source not in self.in_file:
                raise ValueError(f'"source" of column {name!r} is {source!r}, which is no column')
        return self


class ColumnSplit(Entry):
    """A column whose texts say to which split a row belongs."""

    column: Name
    train: Texts
    val: Texts
    test: Texts


class BySplit(Entry):
    by: Literal["time", "random"]


class Description(Format):
    """A dataset. files: one per split instead of one `file`. split: None: DATA["split"]. group: a categorical column
    (default: the user) within whose values GAUC is measured. item_attributes, user_attributes: files with a row per
    item or user, whose columns are joined in."""

    files: dict[Literal["train", "val", "test"], Name] | None = None
    split: ColumnSplit | BySplit | None = None
    group: Name | None = None
    item_attributes: Format | None = None
    user_attributes: Format | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.file is None) == (self.files is None):
            raise ValueError('it needs either "file" or "files"')
        if self.files is not None and not {"train", "test"} <= set(self.files):
            raise ValueError('"files" must have "train", "test" and, if there is one, "val"')
        if self.files is not None and self.split is not None:
            raise ValueError('"files" already defines the split; leave out "split"')
        if isinstance(self.split, ColumnSplit):
            role = getattr(self.columns.get(self.split.column), "role", None)
            if role not in ("kept", "excluded"):
                raise ValueError(
                    f'"split" names {self.split.column!r}; it must be a column with the role "excluded" or "kept"'
                )
        if self.group is not None:
            group = self.columns.get(self.group)
            several = isinstance(group, Categorical) and group.separator is not None
            if getattr(group, "role", None) not in ("categorical", "user", "item") or several:
                raise ValueError(f'"group" is {self.group!r}; it must be a categorical column without "separator"')
        if (self.only("user") is None) != (self.only("item") is None):
            raise ValueError('the roles "user" and "item" need each other')
        for role, table in self.attributes.items():
            if table.only(role) is None or table.file is None or self.only(role) is None:
                raise ValueError(f'"{role}_attributes" needs a "file" and one column with the role "{role}"')
        names = [getattr(self.columns[name], "task", None) or name for name in self.of_role("label", "rating")]
        if len(set(names)) < len(names):
            raise ValueError("two labels are the same task")
        if self.only("dense", "categorical", "user", "item") is None:
            raise ValueError("no column is an input: none is dense, categorical, user or item")
        return self

    @property
    def attributes(self) -> dict[Literal["item", "user"], Format]:
        """The second files, by the role of their key."""
        tables: Any = {"user": self.user_attributes, "item": self.item_attributes}
        return {role: table for role, table in tables.items() if table is not None}

    @property
    def tasks(self) -> dict[str, str]:
        """The column of each binary task: the labels, and the rating if it says what a click is."""
        return {
            getattr(column, "task", None) or name: name
            for name, column in self.columns.items()
            if isinstance(column, Label)
            or (isinstance(column, Rating) and (column.positive or column.click_from is not None))
        }


@dataclass(frozen=True)
class Dataset:
    """A described dataset: its name in the cache and in messages, where its files are, and where it is described."""

    name: str
    description: Description
    folder: Path
    where: str  # the columns.json or the first raw file, for messages

    def path(self, file: str | None) -> Path:
        return self.folder / os.path.expanduser(file or "")

    @property
    def files(self) -> dict[str, Path]:
        """The file or folder of files of each split; "all" if they are together."""
        files: Mapping[Any, str | None] = self.description.files or {"all": self.description.file}
        return {part: self.path(files[part]) for part in ("all", *SPLITS) if part in files}


def read_description(path: Path) -> Dataset:
    """The dataset that a columns.json describes. Raises: UserError naming file, column and entry that is wrong."""
    try:
        content = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}. Correct it, or remove it to have it written again.") from error
    return Dataset(path.parent.name, described(content, str(path)), path.parent, str(path))


def described(content: Any, where: str) -> Description:
    """A checked description. Raises: UserError naming column and entry that is wrong."""
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}{_explained(error)}") from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"it has {name!r} twice")
        content[name] = value
    return content


def _explained(error: ValidationError) -> str:
    """The first wrong entry: where it is, what was found, and what it must be."""
    first = error.errors(include_url=False)[0]
    path, found = [str(part) for part in first["loc"]], shown(first["input"])
    place = f", {path.pop(0)}" if path[:1] and path[0].endswith("_attributes") else ""
    if path[:1] == ["columns"] and len(path) > 1:
        place, path = f"{place}, column {path[1]!r}", path[3:] if path[2:3] and path[2] in ROLES else path[2:]
    entry = json.dumps(path[0]) if path else ""
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    expected = f"{message[:1].lower()}{message[1:]}."
    if entry == '"split"':
        return f"""{place}: {entry} must be null, {{"by": "time"}}, {{"by": "random"}} or {SPLIT_BY_COLUMN}."""
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: {path[-1]!r} is not an entry here. Correct or remove it."
        case "missing":
            return f"{place}: it has no {json.dumps(path[-1])}."
        case "union_tag_invalid" | "union_tag_not_found":
            role = shown(first["input"].get("role"))
            return f'{place}: its "role" is {role}; it must be one of {", ".join(map(json.dumps, ROLES))}.'
        case "value_error" if not entry:
            return f"{place}: {expected}"
    return f"{place}: {entry or 'it'} is {found}; {expected}"


ROLES = [role for kind in get_args(get_args(Column)[0]) for role in get_args(kind.model_fields["role"].annotation)]
SPLIT_BY_COLUMN = '{"column": ..., "train": [...], "val": [...], "test": [...]}'
