"""What the files of a dataset hold: one description for all four models, in code or as DATA_ROOT/<name>/columns.json.

`python data/describe.py FILE NAME` writes a columns.json, which you edit. The published datasets are such descriptions
in data/criteo_data.py, data/census_income.py and data/movie_rating_seq.py.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from common.data.data_module import SPLITS
from common.errors import UserError, shown
from common.settings import Pooling, Transform

COLUMNS_FILE = "columns.json"
SPLIT = '{"by": "time"}, {"by": "random"} or {"column": ..., "train": [...], "val": [...], "test": [...]}'
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of times, per second


Name = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Rules = Iterator[tuple[object, str]]


class Entry(BaseModel):
    """A part of a description: immutable, without unknown entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def rules(self) -> Rules:
        """What would be wrong, if it is true, and its message."""
        yield from ()

    @model_validator(mode="after")
    def _follow_rules(self) -> Self:
        for wrong, message in self.rules():
            if wrong:
                raise ValueError(message)
        return self


class Label(Entry):
    """A binary label: 1 for a text in `positive`, 0 for one in `negative` (None: any other). Empty: unknown."""

    role: Literal["label"] = "label"
    positive: Texts
    negative: Texts | None = None
    task: Name | None = None  # None: the name of the column

    def rules(self) -> Rules:
        yield {*self.positive} & {*(self.negative or ())}, 'a value is in both "positive" and "negative"'


class Rating(Entry):
    """A number, which BST predicts. A click is a rating of at least `click_from`, or one of the texts in `positive`,
    while ratings in neither `positive` nor `negative` are left out."""

    role: Literal["rating"] = "rating"
    click_from: FiniteFloat | None = None
    positive: Texts | None = None
    negative: Texts | None = None

    def rules(self) -> Rules:
        is_one = (self.positive is None) == (self.negative is None) and None in (self.positive, self.click_from)
        yield not is_one, 'a click needs either "click_from" or both "positive" and "negative"'


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
    pattern: Name | None = None

    def rules(self) -> Rules:
        yield (self.source is None) != (self.pattern is None), '"source" and "pattern" need each other'
        if self.pattern:
            pc.struct_field(pc.extract_regex(pa.array([""]), self.pattern), 0)  # its ArrowInvalid is a ValueError


class Key(Entry):
    """The id of a user or an item; for click models a category. In a second file, the column that is looked up."""

    role: Literal["user", "item"]
    type: Literal["text", "number"] = "text"


class Time(Entry):
    """Orders the rows. unit: of numbers, since 1970, or "date"; None: as the first row has it."""

    role: Literal["time"] = "time"
    unit: Literal["s", "ms", "us", "ns", "date"] | None = None


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
    separator: Name = ","
    header: bool = True
    quoted: bool | None = None
    missing: tuple[str, ...] = ()
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

    def with_columns(self, columns: Mapping[str, Column]) -> Self:
        """The same with some columns added or described anew."""
        return self.model_copy(update={"columns": {**self.columns, **columns}})

    def rules(self) -> Rules:
        is_character = len(self.separator) == 1 and self.separator.isascii() and self.separator not in '"\r\n\0'
        is_known = is_character or self.separator in ("::", ", ")
        yield not is_known, '"separator" must be one ASCII character, "::" or ", " (with or without the space)'
        for role in ("user", "item", "time", "rating", "weight"):
            yield len(self.of_role(role)) > 1, f'more than one column has the role "{role}"'
        for name, column in self.columns.items():
            source = getattr(column, "source", None)
            yield (
                source and source not in self.in_file,
                f'"source" of column {name!r} is {source!r}, which is no column',
            )


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
    split: BySplit | ColumnSplit | None = None
    group: Name | None = None
    item_attributes: Format | None = None
    user_attributes: Format | None = None

    def rules(self) -> Rules:
        yield from super().rules()
        yield (self.file is None) == (self.files is None), 'it needs either "file" or "files"'
        yield self.files and not {"train", "test"} <= {*self.files}, '"files" must have "train" and "test"'
        yield self.files and self.split, '"files" already defines the split; leave out "split"'
        column, possible = getattr(self.split, "column", None), self.of_role("kept", "excluded")
        yield column and column not in possible, f'"split" names {column!r}; its role must be "kept" or "excluded"'
        keys = self.of_role("user", "item")
        single = [n for n in self.of_role("categorical") if not getattr(self.columns[n], "separator", None)]
        is_group = self.group in (None, *keys, *single)
        yield not is_group, f'"group" is {self.group!r}; it must be a categorical column without "separator"'
        yield len(keys) == 1, 'the roles "user" and "item" need each other'
        for role, table in self.attributes.items():
            is_known = table.file and table.only(role) and self.only(role)
            yield not is_known, f'"{role}_attributes" needs a "file" and one column with the role "{role}"'
        tasks = [getattr(self.columns[name], "task", None) or name for name in self.of_role("label", "rating")]
        yield len({*tasks}) < len(tasks), "two labels are the same task"
        yield self.only("dense", "categorical", "user", "item") is None, "no column is an input, such as dense"

    @property
    def attributes(self) -> dict[Literal["item", "user"], Format]:
        """The second files, by the role of their key."""
        tables: Any = {"user": self.user_attributes, "item": self.item_attributes}
        return {role: table for role, table in tables.items() if table is not None}

    @property
    def tasks(self) -> dict[str, str]:
        """The column of each binary task: the labels, and the rating if it says what a click is."""
        tasks = {}
        for name in self.of_role("label", "rating"):
            column: Any = self.columns[name]
            if column.role == "label" or column.positive or column.click_from is not None:
                tasks[getattr(column, "task", None) or name] = name
        return tasks


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
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}. Correct it, or remove it to have it written again.") from error
    return Dataset(path.parent.name, described(content, str(path)), path.parent, str(path))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len({*names}) < len(names):
        raise ValueError(f"an entry comes twice among {shown(names)}")
    return dict(pairs)


def described(content: Any, where: str) -> Description:
    """A checked description. Raises: UserError naming column and entry that is wrong."""
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if place.startswith("split."):
            place, message = "split", f"Input should be {SPLIT}"
        found = "" if isinstance(first["input"], Entry | dict) else f" (found {shown(first['input'])})"
        raise UserError(f"{where}{', ' * bool(place)}{place}: {message}{found}.") from error
