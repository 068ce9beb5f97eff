"""From values of a table to what a model takes; everything is fitted on training rows only.

N: rows, I: dense inputs, F: categorical fields. Ids of a field: 0 unseen or rare, 1 missing, then its vocabulary in
order of text. Fields of several values in a cell take several columns of the ids, filled up with EMPTY_SLOT.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.table_keys import MISSING_KEY, bucket_ids, in_chunks, is_long, key_text, number_keys, number_text, text_keys
from data.table_schema import LOG_TRANSFORMS, Schema
from data.table_values import Cells, Values

OOV, MISSING, FIRST_ID = 0, 1, 2
EMPTY_SLOT = -1
MAX_SLOTS = 64  # values of a cell that count: its first ones
QUANTILE_BINS = 32
PIECEWISE = "piecewise"  # raw numbers with the edges of bins, and each number a category too: for MMoE


def log_dense(raw: np.ndarray) -> np.ndarray:
    """log(1 + max(x, 0)), missing 0: (N,) -> (N,) float32."""
    return np.log1p(np.maximum(np.nan_to_num(raw), 0).astype(np.float32))


def signed_log_dense(raw: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), missing 0: (N,) -> (N,) float32."""
    raw = np.nan_to_num(raw)
    return (np.sign(raw) * np.log1p(np.abs(raw))).astype(np.float32)


def bucket_dense(raw: np.ndarray) -> np.ndarray:
    """floor(ln(x)^2) for x > 2, else int(x) (BARS Criteo x4); nan stays."""
    logarithm = np.log(np.maximum(np.nan_to_num(raw), 1))
    return np.where(raw > 2, np.floor(logarithm**2), np.trunc(raw))


def quantile_edges(values: np.ndarray, num_bins: int) -> list[float]:
    """Ascending edges, from the least to the greatest number, with about equally many rows in each bin.

    The least number stands apart (many columns are mostly 0): the bins share the rows above it.
    """
    distinct, weights = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(distinct) < 2:
        least = float(distinct[0]) if len(distinct) else 0.0
        return [least, least + 1]
    share = weights[1:].cumsum() / weights[1:].sum()
    upper = distinct[1:][np.searchsorted(share, np.linspace(0, 1, num_bins + 1)[:-1])]
    return np.unique([distinct[0], *upper, distinct[-1]]).tolist()


@dataclass(frozen=True)
class Field:
    """One categorical input. source: "text", or how its number becomes a category: "number", "bucket", "quantile".

    keys: of the vocabulary, in order of id; long: texts of those keys that do not hold them.
    """

    name: str
    source: str
    keys: np.ndarray  # (keys,) uint64
    long: dict[int, str]
    edges: list[float] | None = None
    hash_size: int | None = None
    slots: int = 1
    pooling: str | None = None
    _order: np.ndarray | None = dataclasses.field(init=False)  # sorts the keys; None: they are sorted
    _sorted: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        order = None if (self.keys[1:] > self.keys[:-1]).all() else np.argsort(self.keys)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_sorted", self.keys if order is None else self.keys[order])

    @property
    def cardinality(self) -> int:
        """Number of ids, those for unseen and missing included."""
        return FIRST_ID + (self.hash_size or len(self.keys))

    def texts(self) -> list[str]:
        """The vocabulary in order of id."""
        return [self.long.get(key) or key_text(key) for key in self.keys.tolist()]

    def category_keys(self, values: Values) -> np.ndarray | Cells:
        if self.source == "text":
            return values.keys[self.name]
        return number_keys(self.category_numbers(values.numbers[self.name]))

    def category_numbers(self, raw: np.ndarray) -> np.ndarray:
        """The number (N,) that is the category of each raw one; nan stays."""
        if self.source == "bucket":
            return in_chunks(bucket_dense, raw)
        if self.source == "quantile":
            assert self.edges is not None
            return np.where(np.isnan(raw), np.nan, np.searchsorted(self.edges[1:-1], raw, side="right"))
        return raw

    def encode(self, values: Values) -> np.ndarray:
        """(N, slots) int32."""
        keys = self.category_keys(values)
        if not isinstance(keys, Cells):
            return self._ids(keys)[:, None]
        ids = np.full((len(keys), self.slots), EMPTY_SLOT, np.int32)
        ids[:, 0] = np.where(keys.counts == 0, MISSING, EMPTY_SLOT)
        rows = np.repeat(np.arange(len(keys)), keys.counts)
        slot = np.arange(len(rows)) - np.repeat(np.cumsum(keys.counts) - keys.counts, keys.counts)
        kept = slot < self.slots
        ids[rows[kept], slot[kept]] = self._ids(keys.keys[kept])
        return ids

    def _ids(self, keys: np.ndarray) -> np.ndarray:
        if self.hash_size:
            return np.where(keys == MISSING_KEY, MISSING, bucket_ids(keys, self.hash_size) + FIRST_ID).astype(np.int32)
        if len(self.keys) == 0:
            return np.where(keys == MISSING_KEY, MISSING, OOV).astype(np.int32)
        order = np.argsort(keys)  # sorted values walk through a large vocabulary instead of jumping: 3 times faster
        position = np.empty(len(keys), np.int64)
        position[order] = np.searchsorted(self._sorted, keys[order])
        position = np.minimum(position, len(self.keys) - 1)
        known = self._sorted[position] == keys
        position = position if self._order is None else self._order[position]
        ids = np.where(known, position + FIRST_ID, np.where(keys == MISSING_KEY, MISSING, OOV))
        return ids.astype(np.int32)


@dataclass(frozen=True)
class Dense:
    """One dense column as input. std: of the transformed training rows (1 for raw numbers, of which edges are kept)."""

    name: str
    transform: str
    std: float = 1.0
    edges: list[float] | None = None

    @property
    def has_flag(self) -> bool:
        """Whether "missing" is an input of its own."""
        return self.transform.endswith("+missing")

    def encode(self, values: Values) -> np.ndarray:
        """(N,) float32, of PIECEWISE nan where missing."""
        raw = values.numbers[self.name]
        if self.transform == PIECEWISE:
            return raw.astype(np.float32)
        # not centred: a missing number, 0, then adds nothing to a product with its value
        return (_transformed(self.transform, raw) / np.float64(self.std)).astype(np.float32)


def _transformed(transform: str, raw: np.ndarray) -> np.ndarray:
    return signed_log_dense(raw) if transform.startswith("signed") else log_dense(raw)


class TableEncoder:
    """Vocabularies, scales and bin edges of the training rows."""

    def __init__(self, schema: Schema, fields: list[Field], dense: list[Dense]):
        self.schema, self.fields, self.dense = schema, fields, dense
        self.flags = [column for column in dense if column.has_flag]

    @classmethod
    def fit(
        cls,
        schema: Schema,
        settings: dict[str, Any],
        train: Callable[[str], Values],
        long_texts: Callable[[str, np.ndarray], dict[int, str]],
        each: Callable[[Callable, list], Iterator] = map,
    ) -> "TableEncoder":
        """settings: dense_transform, min_count, num_bins. train(name): the training rows of a column; long_texts(name,
        keys): the texts of long keys. each: as map, one column after the other or in threads.
        """
        default = settings["dense_transform"]

        def fit_column(column) -> tuple[Field | None, Dense | None]:
            values = train(column.name)
            if column.role == "categorical":
                return _fit_field(column.name, "text", values, column, settings, long_texts), None
            # MMoE bins each number itself, whatever the other models take
            transform = PIECEWISE if default == PIECEWISE else column.transform or default
            raw = values.numbers[column.name]
            dense = None
            if transform in LOG_TRANSFORMS:
                transformed = in_chunks(partial(_transformed, transform), raw)
                del values, raw
                std = float(transformed.std(dtype=np.float64))
                return None, Dense(column.name, transform, std if std > 0 else 1.0)  # a constant stays as it is
            if transform == PIECEWISE:
                dense = Dense(column.name, transform, edges=quantile_edges(raw, settings["num_bins"]))
            source = "number" if transform == PIECEWISE else transform
            return _fit_field(column.name, source, values, column, settings, long_texts), dense

        fields, dense = zip(*each(fit_column, schema.inputs), strict=True)
        return cls(schema, [f for f in fields if f is not None], [d for d in dense if d is not None])

    @property
    def num_dense(self) -> int:
        return len(self.dense) + len(self.flags)

    @property
    def cardinalities(self) -> list[int]:
        return [field.cardinality for field in self.fields]

    @property
    def slots(self) -> list[int]:
        """Columns of the ids that each field takes."""
        return [field.slots for field in self.fields]

    @property
    def starts(self) -> np.ndarray:
        """The first column of the ids of each field."""
        return np.cumsum([0, *self.slots])[:-1]

    @property
    def bin_edges(self) -> list[list[float]]:
        """Of the dense columns that are cut into bins."""
        return [column.edges for column in self.dense if column.edges is not None]

    def encode(self, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """(dense (N, I) float32, ids (N, F) int32)."""
        dense = np.empty((len(values), self.num_dense), np.float32)
        for i, column in enumerate(self.dense):
            dense[:, i] = column.encode(values)
        for i, column in enumerate(self.flags, len(self.dense)):
            dense[:, i] = np.isnan(values.numbers[column.name])
        ids = np.empty((len(values), sum(self.slots)), np.int32)
        start = 0
        for field in self.fields:
            ids[:, start : start + field.slots] = field.encode(values)
            start += field.slots
        return dense, ids

    def known_rows(self, other: "TableEncoder") -> tuple[np.ndarray, np.ndarray]:
        """Rows of a packed table whose values another encoder knows too, and their rows in a table of its.

        Raises: ValueError if that one has other fields.
        """
        if [(f.name, f.source, f.hash_size) for f in self.fields] != [
            (f.name, f.source, f.hash_size) for f in other.fields
        ]:
            raise ValueError("other fields")
        rows, others, start, other_start = [], [], 0, 0
        for ours, theirs in zip(self.fields, other.fields, strict=True):
            if ours.hash_size:
                found = other_found = np.arange(ours.cardinality)
            else:
                _, position, other_position = np.intersect1d(ours.keys, theirs.keys, True, return_indices=True)
                unseen_and_missing = np.arange(FIRST_ID)
                found = np.concatenate([unseen_and_missing, FIRST_ID + position])
                other_found = np.concatenate([unseen_and_missing, FIRST_ID + other_position])
            rows.append(start + found)
            others.append(other_start + other_found)
            start, other_start = start + ours.cardinality, other_start + theirs.cardinality
        return np.concatenate(rows), np.concatenate(others)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint carries: plain values and tensors."""
        keys = [field.keys for field in self.fields]
        joined = np.concatenate(keys) if keys else np.empty(0, np.uint64)
        return {
            "schema": self.schema.to_dict(),
            "keys": torch.from_numpy(joined.view(np.int64)),
            "fields": [
                {
                    "name": field.name,
                    "source": field.source,
                    "size": len(field.keys),
                    "long": list(field.long.values()),
                    "edges": field.edges,
                    "hash_size": field.hash_size,
                    "slots": field.slots,
                    "pooling": field.pooling,
                }
                for field in self.fields
            ],
            "dense": [
                {"name": column.name, "transform": column.transform, "std": column.std, "edges": column.edges}
                for column in self.dense
            ],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TableEncoder":
        joined = state["keys"].numpy().view(np.uint64)
        sizes = [field["size"] for field in state["fields"]]
        if joined.shape != (sum(sizes),):
            raise ValueError(f"vocabularies of the shape {joined.shape} for fields of {sum(sizes)} categories")
        fields = []
        for content, keys in zip(state["fields"], np.split(joined, np.cumsum(sizes, dtype=int))[:-1], strict=True):
            field = {name: value for name, value in content.items() if name not in ("size", "long")}
            long = dict(zip(keys[is_long(keys)].tolist(), content["long"], strict=True))
            fields.append(Field(keys=keys, long=long, **field))
        schema, dense = Schema.from_dict(state["schema"]), [Dense(**column) for column in state["dense"]]
        encoded = {field.name for field in fields} | {column.name for column in dense}
        if not encoded or {column.name for column in schema.inputs} != encoded:
            raise ValueError("columns that do not fit their vocabularies and scales")
        return cls(schema, fields, dense)


def _fit_field(name: str, source: str, values: Values, column, settings: dict, long_texts: Callable) -> Field:
    edges = quantile_edges(values.numbers[name], QUANTILE_BINS) if source == "quantile" else None
    field = Field(name, source, np.empty(0, np.uint64), {}, edges, column.hash_size)
    keys = field.category_keys(values)
    options = {"edges": edges, "hash_size": column.hash_size}
    if isinstance(keys, Cells):
        most = int(keys.counts.max(initial=1))
        options |= {"slots": min(max(most, 1), MAX_SLOTS), "pooling": column.pooling or "sum"}
        keys = keys.keys
    if column.hash_size:
        return Field(name, source, np.empty(0, np.uint64), {}, **options)
    known = frequent_keys(keys, column.min_count or settings["min_count"])
    long = known[is_long(known)]
    if len(long) and source != "text":
        distinct = np.unique(field.category_numbers(values.numbers[name]))
        texts = [number_text(value) for value in distinct[~np.isnan(distinct)].tolist()]
        long = {key: text for key, text in zip(text_keys(pa.array(texts)).tolist(), texts, strict=True)}
    else:
        long = long_texts(name, long) if len(long) else {}
    if long:  # short keys sort as their texts do, long ones do not
        encoded = [(long.get(key) or key_text(key)).encode() for key in known.tolist()]
        known = known[np.array(sorted(range(len(encoded)), key=encoded.__getitem__))]
        long = {key: long[key] for key in known[is_long(known)].tolist()}
    return Field(name, source, known, long, **options)


def frequent_keys(keys: np.ndarray, min_count: int) -> np.ndarray:
    """Ascending distinct keys with at least min_count rows, without the missing one."""
    keys = np.sort(keys)
    keys = keys[: np.searchsorted(keys, MISSING_KEY)]
    starts = np.flatnonzero(np.concatenate([[len(keys) > 0], keys[1:] != keys[:-1]]))
    counts = np.diff(starts, append=len(keys))
    return keys[starts[counts >= min_count]]
