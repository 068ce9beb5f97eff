"""Categories as 64-bit keys, and keys as ids: a few array operations per column of texts, whatever their lengths.

The key of a text of up to 8 bytes is the text itself (big-endian, so that keys sort as texts do). The key of a longer
one is a hash of 56 bits after a first byte with which no UTF-8 text starts. The chance that any two of a million long
texts share a key, and thus an id, is 1 in 100,000. Ids of a field: 0 unseen or rare, 1 missing, then its vocabulary in
order of the texts. A field whose cells may hold several values has several columns of ids, filled up with EMPTY_SLOT.
N: rows.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LONG = np.uint64(0xFF << 56)
MISSING_KEY = np.uint64(2**64 - 1)
OOV, MISSING, FIRST_ID = 0, 1, 2
EMPTY_SLOT = -1


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a string or large binary array (N,), and where each text starts in them, plus the end: (N + 1,)."""
    _, offsets, content = texts.buffers()
    if len(texts) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int32)
    width = np.int64 if pa.types.is_large_binary(texts.type) else np.int32
    starts = np.frombuffer(offsets, width)[texts.offset : texts.offset + len(texts) + 1]
    used = np.empty(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)[starts[0] : starts[-1]]
    return used, starts - starts[0]


def texts_of(content: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Large binary array of consecutive texts. Raises: ValueError if they do not fill the content exactly."""
    starts = np.concatenate([[0], lengths.cumsum(dtype=np.int64)])
    if content.dtype != np.uint8 or starts[-1] != len(content) or (lengths < 0).any():
        raise ValueError("lengths of texts that do not match the texts")
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def text_keys(texts: pa.Array) -> np.ndarray:
    """string (N,) -> keys (N,) uint64, MISSING_KEY for null."""
    content, starts = text_bytes(texts)
    padded = np.append(content, np.zeros(8, np.uint8))  # so that 8 bytes can be read from the start of every text
    words = np.ndarray(len(content) + 1, "<u8", padded, strides=(1,))
    lengths = np.diff(starts)
    keys = _words(words, starts[:-1], lengths)
    if len(long := np.flatnonzero(lengths > 8)):
        keys[long] = _long_keys(words, starts[long], lengths[long])
    if texts.null_count:
        keys[texts.is_null().to_numpy(zero_copy_only=False)] = MISSING_KEY
    return keys


def _words(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each text, with zeros after its end."""
    rest = (8 * (8 - np.clip(lengths, 1, 8))).astype(np.uint64)
    return np.where(lengths > 0, words[starts].byteswap() >> rest << rest, np.uint64(0))


def _long_keys(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    hashed, there = lengths.astype(np.uint64), np.arange(len(lengths))
    for at in range(0, int(lengths.max()), 8):
        there = there[lengths[there] > at]
        hashed[there] = _mixed(hashed[there] ^ _words(words, starts[there] + at, lengths[there] - at))
    return np.minimum(LONG | (hashed >> np.uint64(8)), MISSING_KEY - np.uint64(1))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A step of SplitMix64: flipping a bit of a value flips each bit of the result with probability one half."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def bucket_ids(keys: np.ndarray, size: int) -> np.ndarray:
    """Keys -> 0 to size - 1, spread evenly."""
    return (_mixed(keys) % np.uint64(size)).astype(np.int64)


def is_long(keys: np.ndarray) -> np.ndarray:
    return (keys >= LONG) & (keys != MISSING_KEY)


def key_text(key: int) -> str:
    """The text of a key that is not LONG."""
    return key.to_bytes(8, "big").rstrip(b"\0").decode("utf-8", "replace")


def key_bytes(keys: np.ndarray) -> pa.Array:
    """The texts (N,) of keys that are not LONG, as large binary."""
    return pa.array(keys.byteswap().view("S8"), pa.large_binary())


def number_text(value: float) -> str:
    """The canonical text of a number: 39.0 -> "39", 0.50 -> "0.5"."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)


def number_texts(numbers: np.ndarray) -> pa.Array:
    """The canonical text of each number (N,), null for nan."""
    return pa.array([None if number != number else number_text(number) for number in numbers.tolist()], pa.string())


def distinct_numbers(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct numbers, of which nan may be one, and the position of each number (N,) among them.

    Arrow's hash table takes a tenth of the time of np.unique, which sorts.
    """
    encoded = pa.array(numbers + 0.0).dictionary_encode()  # -0.0 + 0.0 is 0.0
    return encoded.dictionary.to_numpy(zero_copy_only=False), encoded.indices.to_numpy()


@dataclass(frozen=True)
class Categories:
    """A categorical column of some rows. codes: (N,) int32, the entry of each row; an entry is one key of `keys`.

    counts: if a cell may hold several values, the number of keys of each entry, which are consecutive in `keys`. The
    last entry stands for a missing value; two entries may have the same key.
    """

    codes: np.ndarray
    keys: np.ndarray  # uint64
    counts: np.ndarray | None = None  # int32

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Field:
    """One categorical input. source: "text", or how a number becomes a category: "number", "bucket" or "quantile".

    keys: the vocabulary in order of id; long: the texts of those keys that are hashes, in the same order.
    """

    name: str
    source: str
    keys: np.ndarray  # uint64
    long: pa.Array
    edges: list[float] | None = None
    hash_size: int | None = None
    slots: int = 1
    pooling: str | None = None
    _order: np.ndarray | None = dataclasses.field(init=False)  # sorts the keys; None if they are sorted
    _sorted: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self):
        order = None if (self.keys[1:] > self.keys[:-1]).all() else np.argsort(self.keys)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_sorted", self.keys if order is None else self.keys[order])

    @property
    def cardinality(self) -> int:
        """Number of ids, including those for unseen and missing values."""
        return FIRST_ID + (self.hash_size or len(self.keys))

    def texts(self) -> list[str]:
        """The vocabulary in order of id."""
        long = (text.decode("utf-8", "replace") for text in self.long.to_pylist())
        return [next(long) if key >= int(LONG) else key_text(key) for key in self.keys.tolist()]

    def encode(self, categories: Categories, ids: np.ndarray) -> np.ndarray:
        """The ids of each row (N, slots) int32. ids: of `categories.keys`."""
        if categories.counts is None:
            return ids[categories.codes][:, None]
        entry = np.repeat(np.arange(len(categories.counts)), categories.counts)
        slot = np.arange(len(ids)) - np.repeat(np.cumsum(categories.counts) - categories.counts, categories.counts)
        kept = slot < self.slots
        cells = np.full((len(categories.counts), self.slots), EMPTY_SLOT, np.int32)
        cells[:, 0] = np.where(categories.counts == 0, MISSING, EMPTY_SLOT)
        cells[entry[kept], slot[kept]] = ids[kept]
        return cells[categories.codes]

    def ids(self, keys: np.ndarray) -> np.ndarray:
        """The id of each key, int32."""
        if self.hash_size:
            return np.where(keys == MISSING_KEY, MISSING, bucket_ids(keys, self.hash_size) + FIRST_ID).astype(np.int32)
        if len(self.keys) == 0:
            return np.where(keys == MISSING_KEY, MISSING, OOV).astype(np.int32)
        order = np.argsort(keys)  # searching sorted keys is 3 times faster in a large vocabulary
        position = np.empty(len(keys), np.int64)
        position[order] = np.searchsorted(self._sorted, keys[order])
        position = np.minimum(position, len(self.keys) - 1)
        known = self._sorted[position] == keys
        position = position if self._order is None else self._order[position]
        return np.where(known, position + FIRST_ID, np.where(keys == MISSING_KEY, MISSING, OOV)).astype(np.int32)


def in_order_of_text(keys: np.ndarray, long: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Keys, and the texts of the long ones, sorted by text; both are passed in the order of the keys."""
    long = long.cast(pa.large_binary())
    if len(long) == 0:  # short keys are already in the order of their texts
        return keys, long
    texts = pa.concat_arrays([key_bytes(keys[: len(keys) - len(long)]), long])
    order = pc.array_sort_indices(texts)
    keys = keys[order.to_numpy()]
    return keys, texts.take(order).filter(pa.array(is_long(keys)))
