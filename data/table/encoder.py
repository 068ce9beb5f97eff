"""Vocabularies, scales and bins: fitted on training rows, applied to any rows, kept in a checkpoint.

Ids of a field: 0 unseen or rare, 1 missing, then its vocabulary in order of the texts. N: rows, I: dense inputs, S:
columns of ids: one per field, or W for each field whose cells may hold several values, filled up with EMPTY.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from torch import Tensor

from common.data.parallel import ordered_map
from common.settings import POOLINGS
from data.schema import Categorical, Column, Dense
from data.values import canonical

OOV, MISSING, FIRST_ID = 0, 1, 2
EMPTY = -1
QUANTILE_BINS = 32
PIECEWISE = "piecewise"  # for MMoE: raw numbers with bin edges, and each number as a category too
KINDS = ("number", "bucket", "quantile")  # how a number becomes a category
CHUNK_ROWS = 1 << 18
READ_AHEAD = 2  # batches
NEARLY_ALL = 0.9  # a share of values outside the vocabulary above this is worth a warning

Columns = Mapping[str, Any]  # Arrow arrays (N,) by name


def in_chunks(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """function(values) by chunks, so that the memory for intermediate arrays does not grow with N."""
    parts = [function(values[start : start + CHUNK_ROWS]) for start in range(0, len(values), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else function(values)


def log(raw: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|): (N,) -> (N,) float64, nan if missing."""
    return np.sign(raw) * np.log1p(np.abs(raw))


def clamped_log(raw: np.ndarray) -> np.ndarray:
    """log(1 + max(x, 0)), 0 if missing, as in DLRM's paper and BARS: (N,) -> (N,) float32."""
    return np.log1p(np.maximum(np.nan_to_num(raw), 0).astype(np.float32))


def bucket(raw: np.ndarray) -> np.ndarray:
    """floor(ln(x)^2) for x > 2, otherwise int(x) (BARS Criteo x4); nan stays nan."""
    logarithm = np.log(np.maximum(np.nan_to_num(raw), 1))
    return np.where(raw > 2, np.floor(logarithm**2), np.trunc(raw)) + 0.0  # no -0


def quantile_edges(raw: np.ndarray, num_bins: int) -> list[float]:
    """Ascending edges, from the least to the greatest number, with about equally many rows in each bin.

    Rows with the least number are not counted (many columns are mostly 0): the bins divide the rows above it.
    """
    values, counts = pa.array(raw[~np.isnan(raw)]).value_counts().flatten()
    order = np.argsort(values.to_numpy())
    distinct, weights = values.to_numpy()[order], counts.to_numpy()[order]
    if len(distinct) < 2:
        least = float(distinct[0]) if len(distinct) else 0.0
        return [least, least + 1]
    share = weights[1:].cumsum() / weights[1:].sum()
    upper = distinct[1:][np.searchsorted(share, np.linspace(0, 1, num_bins + 1)[:-1])]
    return np.unique([distinct[0], *upper, distinct[-1]]).tolist()


@dataclass(frozen=True)
class Number:
    """One dense input, centred by mean and divided by std, both of the transformed training rows.

    edges: of the bins of a number that the model encodes itself (PIECEWISE).
    """

    name: str
    transform: str
    mean: float = 0.0
    std: float = 1.0
    edges: list[float] | None = None

    @classmethod
    def fit(cls, name: str, transform: str, raw: np.ndarray, num_bins: int) -> "Number":
        """raw: of the training rows (N,), nan if missing."""
        if transform == PIECEWISE:
            return cls(name, transform, edges=quantile_edges(raw, num_bins))
        if transform == "clamped_log":
            return cls(name, transform, std=float(in_chunks(clamped_log, raw).std(dtype=np.float64)) or 1.0)
        known = in_chunks(log, raw[~np.isnan(raw)])
        if not len(known) or known.min() == known.max():  # its deviation would be 0 or a rounding error
            return cls(name, transform, float(known[0]) if len(known) else 0.0)
        return cls(name, transform, float(known.mean()), float(known.std()))

    @property
    def has_flag(self) -> bool:
        """Whether there is an additional 0/1 input for "missing"."""
        return self.transform.endswith("+missing")

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """The input (N,) float32: 0 if missing, with PIECEWISE nan."""
        if self.transform == PIECEWISE:
            return raw.astype(np.float32)
        if self.transform == "clamped_log":
            return (clamped_log(raw) / np.float64(self.std)).astype(np.float32)
        return np.nan_to_num((log(raw) - self.mean) / self.std).astype(np.float32)


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
    def fit(cls, name: str, column: Column, kind: str, values: Any, missing: list[str], min_count: int) -> "Field":
        """values: of the training rows, texts (N,), lists of texts or, for numbers, float64 with nan if missing."""
        if kind != "text":
            edges = quantile_edges(values, QUANTILE_BINS) if kind == "quantile" else None
            found = pa.array(as_category(kind, edges, values)).value_counts()
            distinct, counts = (part.to_numpy(zero_copy_only=False) for part in found.flatten())
            chosen = distinct[(counts >= min_count) & ~np.isnan(distinct)]
            texts = sorted(canonical(repr(value)) for value in chosen.tolist())
            return cls(name, kind, pa.array(texts, pa.string()), missing, edges)
        options = column if isinstance(column, Categorical) else Categorical()
        is_list = pa.types.is_list(values.type)
        vocabulary = pa.array([], pa.string())
        if not options.hash_size:
            texts, counts = (pc.list_flatten(values) if is_list else values).value_counts().flatten()
            known = pc.invert(pc.is_in(texts, pa.array(missing)))
            vocabulary = texts.filter(pc.and_(pc.greater_equal(counts, options.min_count or min_count), known)).sort()
        pooling = (options.pooling or POOLINGS[0]) if is_list else None
        return cls(name, kind, vocabulary, missing, None, options.hash_size, pooling)

    @property
    def cardinality(self) -> int:
        """Number of ids, including those for unseen and missing values."""
        return FIRST_ID + (self.hash_size or len(self.vocabulary))

    @property
    def looks_up(self) -> bool:
        """Whether its ids come from the `positions` of whole cells."""
        return self.kind == "text" and not self.hash_size and self.pooling is None

    def positions(self, texts: Any) -> Any:
        """The position of each text, an array or an expression, in the missing texts followed by the vocabulary."""
        known = pa.concat_arrays([pa.array(self.missing, pa.string()), self.vocabulary])
        return pc.coalesce(pc.index_in(texts, options=pc.SetLookupOptions(known)), pa.scalar(-1, pa.int32()))

    def ids(self, values: Any) -> np.ndarray:
        """(N,) or, of lists, (all values,) int32. values: positions or texts or numbers (N,)."""
        if self.kind != "text":
            numbers = as_category(self.kind, self.edges, values)
            places = pc.index_in(pa.array(numbers), value_set=self.vocabulary.cast(pa.float64())).fill_null(-FIRST_ID)
            return np.where(np.isnan(numbers), np.int32(MISSING), places.to_numpy() + np.int32(FIRST_ID))
        if self.hash_size:
            encoded = values.dictionary_encode()
            hashed = [
                MISSING if text in self.missing else FIRST_ID + zlib.crc32(text.encode()) % self.hash_size
                for text in encoded.dictionary.to_pylist()
            ]
            return np.array(hashed, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        positions = self.positions(values) if pa.types.is_string(values.type) else values
        index = positions.to_numpy(zero_copy_only=False)
        return np.maximum(index + np.int32(FIRST_ID - len(self.missing)), (index >= 0).astype(np.int32))

    def encode(self, values: Any, width: int) -> np.ndarray:
        """The ids of each row (N, 1), or (N, width) of lists."""
        if self.pooling is None:
            return self.ids(values)[:, None]
        counts = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        cells = np.full((len(counts), width), EMPTY, np.int32)
        cells[counts == 0, 0] = MISSING
        cells[np.arange(width) < counts[:, None]] = self.ids(values.flatten())
        return cells


def as_category(kind: str, edges: list[float] | None, raw: np.ndarray) -> np.ndarray:
    """The category of each number (N,), as a number; nan stays nan."""
    if kind == "bucket":
        return in_chunks(bucket, raw)
    if kind == "quantile":
        assert edges is not None
        return np.where(np.isnan(raw), np.nan, np.searchsorted(edges[1:-1], raw, side="right"))
    return raw + 0.0  # no -0


class TableEncoder:
    """The inputs of a table: numbers and fields, in the order of the columns."""

    def __init__(self, numbers: Sequence[Number], fields: Sequence[Field]):
        self.numbers, self.fields = list(numbers), list(fields)
        self.flags = [number for number in self.numbers if number.has_flag]

    @property
    def num_dense(self) -> int:
        return len(self.numbers) + len(self.flags)

    @property
    def cardinalities(self) -> list[int]:
        return [field.cardinality for field in self.fields]

    @property
    def pooling(self) -> list[str | None]:
        """How the vectors of a field's values are combined: "sum" or "mean"; None if a cell holds one value."""
        return [field.pooling for field in self.fields]

    @property
    def number_names(self) -> list[str]:
        """The columns of numbers."""
        names = [number.name for number in self.numbers] + [f.name for f in self.fields if f.kind != "text"]
        return list(dict.fromkeys(names))

    def width(self, columns: Columns) -> int:
        """The most values in a cell, at least 1."""
        lists = [pc.max(pc.list_value_length(columns[field.name])).as_py() for field in self.fields if field.pooling]
        return max([1, *(longest or 0 for longest in lists)])

    def starts(self, width: int) -> list[int]:
        """The first column of ids of each field, and S; width: W."""
        return np.cumsum([0, *(width if field.pooling else 1 for field in self.fields)]).tolist()

    def encode(self, columns: Columns, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """dense (N, I) float32 and ids (N, S) int32; width: W, otherwise the longest cell of these rows."""
        width = width or self.width(columns)
        raw = {name: as_numbers(columns[name]) for name in self.number_names}
        count = len(next(iter(raw.values()), columns[self.fields[0].name] if self.fields else ()))
        dense, ids = np.empty((count, self.num_dense), np.float32), np.empty((count, self.starts(width)[-1]), np.int32)
        for i, number in enumerate(self.numbers):
            dense[:, i] = number.encode(raw[number.name])
        for i, number in enumerate(self.flags, len(self.numbers)):
            dense[:, i] = np.isnan(raw[number.name])
        for field, start in zip(self.fields, self.starts(width), strict=False):
            cells = field.encode(columns[field.name] if field.kind == "text" else raw[field.name], width)
            ids[:, start : start + cells.shape[1]] = cells
        return dense, ids

    def stream(
        self, batches: Iterator[pa.RecordBatch], width: int | None = None
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray]]:
        """Batches of checked rows, at least one, each with dense and ids as by encode()."""
        first = next(batches)
        names, looked_up = first.schema.names, [field for field in self.fields if field.looks_up]
        # expressions, because each call of a function would build the hash table of a vocabulary again
        columns = {name: ds.field(name) for name in names}
        columns |= {f"\0{field.name}": field.positions(ds.field(field.name)) for field in looked_up}
        scanner = ds.Scanner.from_batches(
            chain([first], batches), schema=first.schema, columns=columns, batch_readahead=READ_AHEAD
        )

        def encode(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray, np.ndarray]:
            found = {name: batch.column(name) for name in names}
            found |= {field.name: batch.column(f"\0{field.name}") for field in looked_up}
            return batch, *self.encode(found, width)

        return ordered_map(encode, scanner.to_batches())

    def count_unseen(self, ids: np.ndarray) -> np.ndarray:
        """Cells out of vocabulary, and cells that are not missing, of each field (2, F), by their first value."""
        pooled = sum(field.pooling is not None for field in self.fields)
        width = (ids.shape[1] - len(self.fields) + pooled) // max(1, pooled)
        first = ids[:, self.starts(width)[:-1]]
        return np.stack([(first == OOV).sum(0), (first != MISSING).sum(0)])

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
        fields = [vars(field) | {"vocabulary": to_tensor({"text": field.vocabulary})} for field in self.fields]
        return {"numbers": [asdict(number) for number in self.numbers], "fields": fields}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "TableEncoder":
        fields = [
            Field(**field | {"vocabulary": from_tensor(field["vocabulary"]).column("text")})
            for field in state["fields"]
        ]
        return cls([Number(**number) for number in state["numbers"]], fields)


def as_numbers(array: Any) -> np.ndarray:
    """(N,) float64, nan for null."""
    return array.cast(pa.float64()).to_numpy(zero_copy_only=False)


def to_tensor(columns: Mapping[str, pa.Array]) -> Tensor:
    """Columns of one length as the bytes of an Arrow stream."""
    batch, sink = pa.RecordBatch.from_pydict(dict(columns)), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())


def from_tensor(content: Tensor) -> pa.RecordBatch:
    """The inverse of to_tensor, without a copy."""
    batch = pa.ipc.open_stream(pa.py_buffer(content.numpy())).read_next_batch()
    batch.validate(full=True)
    return batch


def nearly_unseen(fields: Mapping[str, Sequence[int]]) -> list[str]:
    """Columns with nearly all values out of vocabulary. fields: out-of-vocabulary count and value count, by column."""
    return [name for name, (unseen, values) in fields.items() if values and unseen / values > NEARLY_ALL]


def fit_column(
    name: str, column: Column, values: pa.ChunkedArray, settings: Mapping[str, Any], missing: list[str]
) -> tuple[list[Number], list[Field]]:
    """A column as a number, a field or both. values: of its training rows; settings: dense_transform, min_count,
    num_bins."""
    if not isinstance(column, Dense):
        return [], [Field.fit(name, column, "text", values, missing, settings["min_count"])]
    raw, default = as_numbers(values), settings["dense_transform"]
    # MMoE bins each number itself, whatever transform the column asks for
    transform = default if default == PIECEWISE else column.transform or default
    kind = "number" if transform == PIECEWISE else transform.rpartition("+")[2]
    fields = [Field.fit(name, column, kind, raw, missing, settings["min_count"])] if kind in KINDS else []
    return [Number.fit(name, transform, raw, settings["num_bins"])] if transform not in KINDS else [], fields
