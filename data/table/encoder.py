"""Vocabularies, and all inputs of a table: fitted on training rows, applied to any rows, kept in a checkpoint.

A column is taken apart into its distinct values, which are encoded once each, and the place of each row's value among
them. Ids of a field: 0 unseen or rare, 1 missing, then its vocabulary in order of the texts. N: rows, V: distinct
values, I: dense inputs, S: columns of ids: one per field, or W for each field whose cells may hold several values,
filled up with EMPTY.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from common.settings import POOLINGS
from data.schema import Categorical, Column, Dense
from data.table.numbers import KINDS, PIECEWISE, QUANTILE_BINS, Number, as_category, quantile_edges
from data.values import canonical

OOV, MISSING, FIRST_ID = 0, 1, 2
EMPTY = -1
BLOCK = 1 << 20  # values counted at a time
NEARLY_ALL = 0.9  # a share of values outside the vocabulary above this is worth a warning


@dataclass(frozen=True)
class Values:
    """A column. places: of each row's value in `distinct` (N,) unsigned; of lists, of all values, and lengths (N,)."""

    distinct: pa.Array  # (V,)
    places: np.ndarray
    lengths: np.ndarray | None = None

    @classmethod
    def of(cls, column: pa.Array | pa.ChunkedArray) -> "Values":
        lengths = None
        if pa.types.is_list(column.type):
            lengths, column = pc.list_value_length(column).to_numpy(zero_copy_only=False), pc.list_flatten(column)
        encoded = pa.chunked_array(column)
        if pa.types.is_dictionary(column.type):  # each batch has its own
            # from the system, which gets back what a growing hash table no longer needs
            encoded = encoded.unify_dictionaries(pa.system_memory_pool())
        else:
            encoded = encoded.dictionary_encode()
        chunks = encoded.chunks or [pa.array([], column.type).dictionary_encode()]
        distinct, missing = chunks[0].dictionary, any(chunk.null_count for chunk in chunks)
        indices = [chunk.indices.fill_null(len(distinct)).to_numpy() for chunk in chunks]
        places = np.concatenate(indices, dtype=np.min_scalar_type(len(distinct)), casting="unsafe")
        return cls(pa.concat_arrays([distinct, pa.nulls(missing, distinct.type)]), places, lengths)

    @property
    def numbers(self) -> np.ndarray:
        """The distinct values (V,) float64, nan if missing."""
        return self.distinct.cast(pa.float64()).to_numpy(zero_copy_only=False)

    def counts(self, train: np.ndarray) -> np.ndarray:
        """How often each distinct value occurs in training rows (V,). train: whether a row is one (N,)."""
        places = self.places[train if self.lengths is None else np.repeat(train, self.lengths)]
        size = max(len(self.distinct), BLOCK)  # in blocks, because bincount copies its input in 64 bits
        blocks = (places[start : start + size] for start in range(0, len(places), size))
        return sum((np.bincount(block, minlength=len(self.distinct)) for block in blocks), np.zeros(1, np.int64))


@dataclass(frozen=True)
class Field:
    """One categorical input. kind: "text", or how a number becomes a category: "number", "bucket" or "quantile".

    vocabulary: texts in order of id. edges: of quantiles. pooling: of several values in a cell, otherwise None.
    """

    name: str
    kind: str
    vocabulary: pa.Array
    missing: list[str]
    edges: list[float] | None = None
    hash_size: int | None = None
    pooling: str | None = None

    @classmethod
    def of_texts(cls, name: str, column: Column, values: Values, counts: np.ndarray, missing: list[str], least: int):
        """And the ids of the distinct texts (V,), None if they are hashed. counts: of those in training rows (V,); at
        least `least`, unless the column says so."""
        options = column if isinstance(column, Categorical) else Categorical()
        pooling = None if values.lengths is None else options.pooling or POOLINGS[0]
        if options.hash_size:
            return cls(name, "text", pa.array([], pa.string()), missing, None, options.hash_size, pooling), None
        is_missing = pc.is_in(values.distinct, pa.array(missing)).to_numpy(zero_copy_only=False)
        frequent = np.flatnonzero((counts >= (options.min_count or least)) & ~is_missing)
        order = frequent[pc.sort_indices(values.distinct.take(frequent)).to_numpy()]
        ids = np.where(is_missing, np.int32(MISSING), np.int32(OOV))
        ids[order] = np.arange(FIRST_ID, FIRST_ID + len(order))
        return cls(name, "text", values.distinct.take(order), missing, None, None, pooling), ids

    @classmethod
    def of_numbers(cls, name: str, kind: str, raw: np.ndarray, counts: np.ndarray, missing: list[str], least: int):
        """raw: distinct numbers (V,), and their counts in training rows."""
        edges = quantile_edges(raw, counts, QUANTILE_BINS) if kind == "quantile" else None
        known = ~np.isnan(raw)
        found, places = np.unique(as_category(kind, edges, raw[known]), return_inverse=True)
        frequent = found[np.bincount(places, counts[known], len(found)) >= least]
        texts = sorted(canonical(repr(number)) for number in frequent.tolist())
        return cls(name, kind, pa.array(texts, pa.string()), missing, edges)

    @property
    def cardinality(self) -> int:
        """Number of ids, including those for unseen and missing values."""
        return FIRST_ID + (self.hash_size or len(self.vocabulary))

    def looked_up(self, texts: Any) -> Any:
        """The id of each text in the vocabulary, of an array or an expression."""
        known = pa.concat_arrays([pa.array(self.missing[:1]), self.vocabulary, pa.array(self.missing[1:], pa.string())])
        place = pc.coalesce(pc.index_in(texts, options=pc.SetLookupOptions(known)), pa.scalar(-1, pa.int32()))
        ids = pc.add(place, pa.scalar(MISSING, pa.int32()))
        return pc.if_else(pc.less(ids, pa.scalar(self.cardinality, pa.int32())), ids, pa.scalar(MISSING, pa.int32()))

    def ids(self, values: Values) -> np.ndarray:
        """The ids of distinct values (V,) int32."""
        if self.kind != "text":
            numbers = as_category(self.kind, self.edges, values.numbers)
            places = pc.index_in(pa.array(numbers), value_set=self.vocabulary.cast(pa.float64())).fill_null(-FIRST_ID)
            return np.where(np.isnan(numbers), np.int32(MISSING), places.to_numpy() + np.int32(FIRST_ID))
        if self.hash_size:
            texts = values.distinct.to_pylist()
            hashed = (FIRST_ID + zlib.crc32(text.encode()) % self.hash_size for text in texts)
            pairs = zip(texts, hashed, strict=True)
            return np.array([MISSING if text in self.missing else bucket for text, bucket in pairs], np.int32)
        return self.looked_up(values.distinct).to_numpy(zero_copy_only=False)

    def encode(self, values: Values, width: int, ids: np.ndarray | None = None) -> np.ndarray:
        """The ids of each row (N, 1), or (N, width) of lists. ids: of the distinct values, if known."""
        ids = (self.ids(values) if ids is None else ids)[values.places]
        if self.pooling is None:
            return ids[:, None]
        assert values.lengths is not None
        cells = np.full((len(values.lengths), width), EMPTY, np.int32)
        cells[values.lengths == 0, 0] = MISSING
        cells[np.arange(width) < values.lengths[:, None]] = ids
        return cells


def fit_column(
    name: str, column: Column, values: Values, train: np.ndarray, settings: Mapping[str, Any], missing: list[str]
) -> tuple[Number | None, Field | None, np.ndarray | None]:
    """A column as a number, a field or both, and the ids of its distinct texts, if known. train: whether a row is for
    training (N,); settings: dense_transform, min_count, num_bins."""
    counts, least = values.counts(train), settings["min_count"]
    if not isinstance(column, Dense):
        return None, *Field.of_texts(name, column, values, counts, missing, least)
    raw, default = values.numbers, settings["dense_transform"]
    # MMoE bins each number itself, whatever transform the column asks for
    transform = default if default == PIECEWISE else column.transform or default
    kind = "number" if transform == PIECEWISE else transform.rpartition("+")[2]
    number = None if transform in KINDS else Number.fit(name, transform, raw, counts, settings["num_bins"])
    return number, Field.of_numbers(name, kind, raw, counts, missing, least) if kind in KINDS else None, None


class TableEncoder:
    """The inputs of a table: numbers and fields, in the order of the columns.

    num_dense: I; pooling: how the vectors of a field's values are combined, None if a cell holds one value.
    """

    def __init__(self, numbers: Sequence[Number], fields: Sequence[Field]):
        self.numbers, self.fields = list(numbers), list(fields)
        self.flags = [number.name for number in self.numbers if number.has_flag]  # columns of 0 and 1 after the numbers
        self.num_dense = len(self.numbers) + len(self.flags)
        self.cardinalities = [field.cardinality for field in self.fields]
        self.pooling = [field.pooling for field in self.fields]

    def encode(self, columns: Mapping[str, pa.Array], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dense (N, I) float32, ids (N, S) int32 and unseen (F, 2), see count_unseen, of a batch; W: its longest cell.

        Instead of texts, a column may hold their ids, see Field.looked_up."""
        given = {f.name for f in self.fields if f.kind == "text" and pa.types.is_int32(columns[f.name].type)}
        names = {*(n.name for n in self.numbers), *(f.name for f in self.fields)} - given
        values = {name: Values.of(columns[name]) for name in names}
        width = max([1, *(int(v.lengths.max(initial=0)) for v in values.values() if v.lengths is not None)])
        dense, cells = [np.empty((rows, 0), np.float32)], [np.empty((rows, 0), np.int32)]
        for number in self.numbers:
            dense.append(number.encode(values[number.name].numbers)[values[number.name].places, None])
        for name in self.flags:
            dense.append(np.isnan(values[name].numbers)[values[name].places, None])
        for field in self.fields:
            name = field.name
            cells.append(columns[name].to_numpy()[:, None] if name in given else field.encode(values[name], width))
        unseen = np.array([count_unseen(ids) for ids in cells[1:]], np.int64).reshape(-1, 2)
        return np.concatenate(dense, 1, dtype=np.float32), np.concatenate(cells, 1), unseen

    def known_rows(self, other: "TableEncoder") -> tuple[np.ndarray, np.ndarray]:
        """Rows of the packed table whose values another encoder knows too, and their rows in that encoder's table.

        Raises: ValueError if that encoder has other fields.
        """
        ours, theirs = ([(f.name, f.kind, f.hash_size) for f in each.fields] for each in (self, other))
        if ours != theirs:
            raise ValueError("other fields")
        rows, others, start, other_start = [], [], 0, 0
        for field, known in zip(self.fields, other.fields, strict=True):
            place = pc.index_in(field.vocabulary, value_set=known.vocabulary).fill_null(-1).to_numpy()
            always = np.arange(field.cardinality if field.hash_size else FIRST_ID)
            rows.append(start + np.concatenate([always, FIRST_ID + np.flatnonzero(place >= 0)]))
            others.append(other_start + np.concatenate([always, FIRST_ID + place[place >= 0]]))
            start, other_start = start + field.cardinality, other_start + known.cardinality
        return np.concatenate(rows), np.concatenate(others)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        texts = [to_tensor(pa.record_batch([field.vocabulary], ["text"])) for field in self.fields]
        fields = [vars(field) | {"vocabulary": text} for field, text in zip(self.fields, texts, strict=True)]
        return {"numbers": [vars(number) for number in self.numbers], "fields": fields}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "TableEncoder":
        fields = [Field(**f | {"vocabulary": from_tensor(f["vocabulary"]).column("text")}) for f in state["fields"]]
        return cls([Number(**number) for number in state["numbers"]], fields)


def to_tensor(batch: pa.RecordBatch) -> Tensor:
    """The bytes of an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())


def from_tensor(content: Tensor) -> pa.RecordBatch:
    """The inverse of to_tensor, without a copy."""
    batch = pa.ipc.open_stream(pa.py_buffer(content.numpy())).read_next_batch()
    batch.validate(full=True)
    return batch


def count_unseen(cells: np.ndarray) -> list[int]:
    """How many cells (N, 1 or W) are out of vocabulary, and how many are not missing, by their first value."""
    return [int((cells[:, 0] == OOV).sum()), int((cells[:, 0] != MISSING).sum())]


def nearly_unseen(fields: Mapping[str, Sequence[int]]) -> list[str]:
    """Columns with nearly all values out of vocabulary. fields: out-of-vocabulary count and value count, by column."""
    return [name for name, (unseen, values) in fields.items() if values and unseen / values > NEARLY_ALL]
