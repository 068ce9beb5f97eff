"""An interactions file as numbered users and items, with the attributes of both; the texts of the ids are kept.

N: interactions.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from common.errors import check
from data.interactions_schema import KEYS, AttributeTable, InteractionSchema, read_interactions_file
from data.history.dataset import Scale
from data.movie_encoder import Attributes, Users
from data.table_fit import quantile_edges
from data.table_reader import Rows, data_files, read_files
from data.table_schema import Column, Schema
from data.table_values import CANONICAL_INTEGER, read_numbers, read_seconds, read_texts

ATTRIBUTE_BINS = 16  # per numeric attribute, each with about equally many users or items of the training rows
USUAL_SPREAD = 4.0  # between the least and the greatest rating of MovieLens, for which BST's settings were chosen


class Interactions:
    """What HistoryDataModule needs to know about interactions that a columns.json describes."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.parent.name
        file, self.columns, self.tables = read_interactions_file(path)
        self.parts = data_files(file)
        self.files = [*self.parts, *(part for table in self.tables.values() for part in data_files(table.path))]
        self.key = {"columns": self.columns.to_dict(), "parts": len(self.parts)}
        self.key |= {key: [table.schema.to_dict(), table.key] for key, table in self.tables.items()}

    @property
    def has_ratings(self) -> bool:
        return self.columns.rating is not None

    def read(self, target: Path) -> dict[str, np.ndarray]:
        """user, movie (N,) int32, rating (N,) float32, time (N,) int64, by time; rows of equal time in file order.

        Writes what `open` reads. Raises: UserError naming the file, line and column of a wrong row.
        """
        numbers: dict[str, dict[str, int]] = {key: {} for key in KEYS}
        blocks: list[list[np.ndarray]] = []
        size = sum(part.stat().st_size for part in self.parts)
        with tqdm(total=size, unit="B", unit_scale=True, desc="Reading", delay=2) as bar:
            read = partial(read_block, self.columns)
            for ids, ratings, seconds in read_files(self.parts, self.columns.schema, read, bar.update):
                numbered = [_numbered(encoded, numbers[key]) for key, encoded in zip(KEYS, ids, strict=True)]
                blocks.append([*numbered, ratings, seconds])
        user, item, rating, seconds = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
        texts = {}
        for key, column in zip(KEYS, (user, item), strict=True):
            texts[key], rank = in_order(list(numbers[key]))
            column[:] = rank[column]
            content = {"ids": texts[key], "attributes": self._attributes(key, texts[key])}
            (target / f"{key}s.json").write_text(json.dumps(content))
        order = np.argsort(seconds, kind="stable")  # fractions of a second matter only here
        columns = {"user": user, "movie": item, "rating": rating, "time": seconds.astype(np.int64)}
        return {name: column[order] for name, column in columns.items()}

    def _attributes(self, key: str, ids: list[str]) -> dict[str, list]:
        if key not in self.tables:
            return {}
        table = self.tables[key]
        attributes, lacking = read_attributes(table, {text: number for number, text in enumerate(ids)})
        check(
            lacking < len(ids),
            f"{table.path}: column {table.key!r} has none of the {len(ids):,} ids of {key}s in {self.path.parent}. "
            f'If another column holds the ids, give that one the role "{key}" in {self.path}.',
        )
        if lacking:
            print(f"{lacking:,} of {len(ids):,} {key}s have no attributes in {table.path}.", flush=True)
        return attributes

    def open(self, ordered: Path) -> None:
        """Load the ids and attributes that `read` has written to this folder."""
        content = {key: json.loads((ordered / f"{key}s.json").read_text()) for key in KEYS}
        self.ids = {key: content[key]["ids"] for key in KEYS}
        self.attributes = {key: content[key]["attributes"] for key in KEYS}

    def movies(self, train: np.ndarray) -> Attributes:
        """Values of each attribute of the items; numbers are binned by quantiles of the training items `train`."""
        columns = {name: _in_bins(values, train) for name, values in self.attributes["item"].items()}
        named = [[[f"{name}: {text}" for text in cell] for cell in cells] for name, cells in columns.items()]
        return dict(enumerate(map(list, zip(*named, strict=True)))) if named else {}

    def users(self, train: np.ndarray) -> Users:
        """The attributes of each user, "" if unknown."""
        columns = [_in_bins(values, train) for values in self.attributes["user"].values()]
        return dict(enumerate([cell[0] if cell else "" for cell in cells] for cells in zip(*columns, strict=True)))

    def scale(self, ratings: np.ndarray) -> Scale:
        """The scale of the ratings, from the training ratings (N,)."""
        if not self.has_ratings:
            return Scale(0.0, 1.0, 1.0, 0.0, has_ratings=False)
        least, greatest = float(ratings.min()), float(ratings.max())
        where = f"{self.path}, column {self.columns.rating!r}"
        check(least < greatest, f'{where}: all training ratings are {least:g}; give the column the role "excluded".')
        click_from, unit = self.columns.click_from, (greatest - least) / USUAL_SPREAD
        if click_from is None:
            return Scale(least, greatest, None, 0.0, least - unit, unit)
        check(
            least < click_from <= greatest,
            f'{where}: "click_from" is {click_from:g}; it must be above {least:g} and at most {greatest:g}, the least '
            "and greatest training rating.",
        )
        margin = (click_from + float(ratings[ratings < click_from].max())) / 2
        return Scale(least, greatest, click_from, (margin - least + unit) / unit, least - unit, unit)

    def title(self, number: int) -> str:
        return self.ids["item"][number]

    def state_dict(self) -> dict[str, Any]:
        """What is needed to read new rows."""
        return {"columns": self.columns.to_dict(), "ids": self.ids}


def read_block(columns: InteractionSchema, rows: Rows) -> tuple[list[pa.DictionaryArray], np.ndarray, np.ndarray]:
    """Ids of users and items, ratings (N,) float32 (1 if there are none), seconds (N,). Raises: UserError for a missing
    value."""
    ids = [read_ids(rows, columns.schema, name) for name in (columns.user, columns.item)]
    seconds = read_seconds(rows, columns.schema[columns.time], columns.unit)
    if columns.rating is None:
        return ids, np.ones(len(rows), np.float32), seconds
    ratings = read_numbers(rows, columns.schema[columns.rating])
    if np.isnan(ratings).any():
        raise rows.error(int(np.isnan(ratings).argmax()), columns.rating, "a rating in every row")
    return ids, ratings.astype(np.float32), seconds


def read_ids(rows: Rows, schema: Schema, name: str) -> pa.DictionaryArray:
    """The texts of a column of ids (N,). Raises: UserError for a missing id."""
    codes, entries, counts = read_texts(rows, schema[name], schema)
    is_missing = np.append(entries.is_null().to_numpy(zero_copy_only=False), True)
    if counts is not None or is_missing[codes].any():
        row = 0 if counts is not None else is_missing[codes].argmax()
        raise rows.error(int(row), name, "one id in every row")
    return entries.take(pa.array(codes)).dictionary_encode()


def _numbered(texts: pa.DictionaryArray, numbers: dict[str, int]) -> np.ndarray:
    """Numbers of the texts (N,) int32; new texts get the next numbers."""
    known = [numbers.setdefault(text, len(numbers)) for text in texts.dictionary.to_pylist()]
    return np.array(known, np.int32)[texts.indices.to_numpy()]


def in_order(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The texts sorted (numerically if all are integers), and the position of each (texts,)."""
    integers = all(re.match(CANONICAL_INTEGER, text) for text in texts)
    values = list(map(int, texts)) if integers else texts
    order = sorted(range(len(texts)), key=values.__getitem__)
    rank = np.empty(len(texts), np.int32)
    rank[order] = np.arange(len(texts))
    return [texts[i] for i in order], rank


def read_attributes(table: AttributeTable, numbers: dict[str, int]) -> tuple[dict[str, list], int]:
    """Cells by column, in the order of `numbers` (texts, a number, None if unknown), and how many ids have no row."""
    cells: dict[str, list] = {name: [None] * len(numbers) for name in _attribute_names(table)}
    found: set[str] = set()
    convert = partial(_attribute_cells, table)
    for rows, ids, columns in read_files(data_files(table.path), table.schema, convert):
        for row, text in enumerate(ids):
            if text in found:
                raise rows.error(row, table.key, "an id that no earlier line has")
            found.add(text)
            if text in numbers:
                for name, column in columns.items():
                    cells[name][numbers[text]] = column[row]
    lacking = len(numbers.keys() - found)
    return cells, lacking


def _attribute_names(table: AttributeTable) -> list[str]:
    return [column.name for column in table.schema.inputs if column.name != table.key]


def _attribute_cells(table: AttributeTable, rows: Rows) -> tuple[Rows, list[str], dict[str, list]]:
    columns: dict[str, list] = {}
    for name in _attribute_names(table):
        column = table.schema[name]
        if column.role == "dense":
            columns[name] = [None if value != value else value for value in read_numbers(rows, column).tolist()]
        else:
            columns[name] = _text_cells(rows, column, table.schema)
    return rows, read_ids(rows, table.schema, table.key).to_pylist(), columns


def _text_cells(rows: Rows, column: Column, schema: Schema) -> list[list[str]]:
    codes, texts, counts = read_texts(rows, column, schema)
    ends = np.cumsum(np.ones(len(texts), np.int32) if counts is None else counts).tolist()
    values = texts.to_pylist()
    entries = [
        [text for text in values[start:end] if text is not None]
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    entries.append([])  # for code -1, a missing value
    return [entries[code] for code in codes.tolist()]


def _in_bins(cells: list, train: np.ndarray) -> list[list[str]]:
    """Lists of texts; numbers are replaced by their bin."""
    if not any(isinstance(cell, float) for cell in cells):
        return [cell or [] for cell in cells]
    values = np.array([np.nan if cell is None else cell for cell in cells])
    edges = quantile_edges(values[train], ATTRIBUTE_BINS)
    bins = np.searchsorted(edges[1:-1], values, side="right").tolist()
    return [[] if cell is None else [f"bin {number}"] for cell, number in zip(cells, bins, strict=True)]
