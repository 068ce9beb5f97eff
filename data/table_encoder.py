"""Encodes the values of a table for a model, and itself for a checkpoint; fitted by data/table_fit.py.

N: rows, I: dense inputs, F: categorical fields.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data.table_categories import (
    FIRST_ID,
    Categories,
    Field,
    distinct_numbers,
    is_long,
    number_texts,
    text_bytes,
    text_keys,
    texts_of,
)
from data.table_schema import Schema
from data.table_values import Values

CHUNK_ROWS = 1 << 18
NEARLY_ALL = 0.9  # a share of values outside the vocabulary above this is worth a warning
PIECEWISE = "piecewise"  # for MMoE: raw numbers with bin edges, and each number as a category too
OF_FIELD = ("name", "source", "edges", "hash_size", "slots", "pooling")  # what a checkpoint has for each field


def signed_log(raw: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|), nan if missing: (N,) -> (N,) float64."""
    return np.sign(raw) * np.log1p(np.abs(raw))


def clamped_log(raw: np.ndarray) -> np.ndarray:
    """log(1 + max(x, 0)), 0 if missing: (N,) -> (N,) float64."""
    return np.log1p(np.maximum(np.nan_to_num(raw), 0))


def bucket_dense(raw: np.ndarray) -> np.ndarray:
    """floor(ln(x)^2) for x > 2, otherwise int(x) (BARS Criteo x4); nan stays nan."""
    logarithm = np.log(np.maximum(np.nan_to_num(raw), 1))
    return np.where(raw > 2, np.floor(logarithm**2), np.trunc(raw))


def in_chunks(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """function(values) by chunks, so that the memory for intermediate arrays does not grow with N."""
    parts = [function(values[start : start + CHUNK_ROWS]) for start in range(0, len(values), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else function(values)


def as_category(source: str, edges: list[float] | None, raw: np.ndarray) -> np.ndarray:
    """The category of each raw number (N,), as a number; nan stays nan."""
    if source == "bucket":
        return in_chunks(bucket_dense, raw)
    if source == "quantile":
        assert edges is not None
        return np.where(np.isnan(raw), np.nan, np.searchsorted(edges[1:-1], raw, side="right"))
    return raw


@dataclass(frozen=True)
class Dense:
    """One dense input. mean, std: of the logarithms of training rows; edges: of the bins of raw numbers."""

    name: str
    transform: str
    mean: float = 0.0
    std: float = 1.0
    edges: list[float] | None = None

    @property
    def has_flag(self) -> bool:
        """Whether there is an additional 0/1 input for "missing"."""
        return self.transform.endswith("+missing")

    def encode(self, values: Values) -> np.ndarray:
        """The input (N,) float32; with PIECEWISE nan if missing."""
        raw = values.numbers[self.name]
        if self.transform == PIECEWISE:
            return raw.astype(np.float32)
        # a missing number is 0, the mean, and contributes nothing to products
        return np.nan_to_num((logarithm(self.transform, raw) - self.mean) / self.std).astype(np.float32)


def logarithm(transform: str, raw: np.ndarray) -> np.ndarray:
    return clamped_log(raw) if transform == "clamped_log" else signed_log(raw)


class TableEncoder:
    """Vocabularies, scales and bin edges, fitted on the training rows."""

    def __init__(self, schema: Schema, fields: list[Field], dense: list[Dense]):
        self.schema, self.fields, self.dense = schema, fields, dense
        self.flags = [column for column in dense if column.has_flag]

    @property
    def num_dense(self) -> int:
        return len(self.dense) + len(self.flags)

    @property
    def cardinalities(self) -> list[int]:
        return [field.cardinality for field in self.fields]

    @property
    def slots(self) -> list[int]:
        """Number of columns of ids of each field."""
        return [field.slots for field in self.fields]

    @property
    def starts(self) -> np.ndarray:
        """The first column of ids of each field."""
        return np.cumsum([0, *self.slots])[:-1]

    @property
    def bin_edges(self) -> list[list[float]]:
        """The edges of each dense column that is binned."""
        return [column.edges for column in self.dense if column.edges is not None]

    def encode(
        self, values: Values, ids_of: Callable[[Field, np.ndarray], np.ndarray] = Field.ids
    ) -> tuple[np.ndarray, np.ndarray]:
        """dense (N, I) float32 and ids (N, F) int32. ids_of(field, keys): the ids of keys."""
        dense = np.empty((len(values), self.num_dense), np.float32)
        for i, column in enumerate(self.dense):
            dense[:, i] = column.encode(values)
        for i, column in enumerate(self.flags, len(self.dense)):
            dense[:, i] = np.isnan(values.numbers[column.name])
        ids = np.empty((len(values), sum(self.slots)), np.int32)
        start = 0
        for field in self.fields:
            if field.source == "text":
                categories = values.categories[field.name]
                of_keys = ids_of(field, categories.keys)
            else:
                numbers = as_category(field.source, field.edges, values.numbers[field.name])
                distinct, codes = distinct_numbers(numbers)
                categories = Categories(codes, text_keys(number_texts(distinct)))
                of_keys = field.ids(categories.keys)
            ids[:, start : start + field.slots] = field.encode(categories, of_keys)
            start += field.slots
        return dense, ids

    def known_rows(self, other: "TableEncoder") -> tuple[np.ndarray, np.ndarray]:
        """Rows of the packed table whose values another encoder knows too, and their rows in that encoder's table.

        Raises: ValueError if that encoder has other fields.
        """
        ours, theirs = ([(f.name, f.source, f.hash_size) for f in each.fields] for each in (self, other))
        if ours != theirs:
            raise ValueError("other fields")
        rows, others, start, other_start = [], [], 0, 0
        for field, known in zip(self.fields, other.fields, strict=True):
            if field.hash_size:
                found = other_found = np.arange(field.cardinality)
            else:
                _, position, other_position = np.intersect1d(field.keys, known.keys, True, return_indices=True)
                unseen_and_missing = np.arange(FIRST_ID)
                found = np.concatenate([unseen_and_missing, FIRST_ID + position])
                other_found = np.concatenate([unseen_and_missing, FIRST_ID + other_position])
            rows.append(start + found)
            others.append(other_start + other_found)
            start, other_start = start + field.cardinality, other_start + known.cardinality
        return np.concatenate(rows), np.concatenate(others)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        keys = np.concatenate([np.empty(0, np.uint64), *(field.keys for field in self.fields)])
        long = pa.concat_arrays([pa.array([], pa.large_binary()), *(field.long for field in self.fields)])
        content, starts = text_bytes(long)
        return {
            "schema": self.schema.to_dict(),
            "keys": torch.from_numpy(keys.view(np.int64)),
            "texts": torch.from_numpy(content.copy()),  # of the long keys, concatenated
            "lengths": torch.from_numpy(np.diff(starts)),
            "fields": [
                {"size": len(field.keys)} | {name: getattr(field, name) for name in OF_FIELD} for field in self.fields
            ],
            "dense": [asdict(column) for column in self.dense],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TableEncoder":
        joined = state["keys"].numpy().view(np.uint64)
        sizes = [field["size"] for field in state["fields"]]
        if joined.shape != (sum(sizes),):
            raise ValueError(f"vocabularies of shape {joined.shape} for fields with {sum(sizes)} categories")
        texts, end = texts_of(state["texts"].numpy(), state["lengths"].numpy()), 0
        if len(texts) != is_long(joined).sum():
            raise ValueError(f"{len(texts)} texts for {is_long(joined).sum()} categories")
        fields = []
        for content, keys in zip(state["fields"], np.split(joined, np.cumsum(sizes, dtype=int))[:-1], strict=True):
            start, end = end, end + int(is_long(keys).sum())
            field = {name: value for name, value in content.items() if name != "size"}
            fields.append(Field(keys=keys, long=texts[start:end], **field))
        schema, dense = Schema.from_dict(state["schema"]), [Dense(**column) for column in state["dense"]]
        if any(not task.positive or task.negative == () for task in schema.tasks.values()):
            raise ValueError("a label without values")
        encoded = {field.name for field in fields} | {column.name for column in dense}
        if not encoded or {column.name for column in schema.inputs} != encoded:
            raise ValueError("columns that do not match their vocabularies and scales")
        return cls(schema, fields, dense)


def nearly_unseen(fields: Mapping[str, Sequence[int]]) -> list[str]:
    """Columns with nearly all values out of vocabulary. fields: out-of-vocabulary count and value count, by column."""
    return [name for name, (unseen, values) in fields.items() if values and unseen / values > NEARLY_ALL]
