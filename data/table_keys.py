"""Category values as 64-bit keys: one array operation for a column of texts, whatever their lengths.

A text of up to 8 bytes is its own key (its bytes, the first one highest, so that keys sort as texts do); a longer one
is a hash of 56 bits, marked by a first byte that no UTF-8 text starts with. Two of a million long texts share a key,
and then an id, with a chance of 1 in 100,000. N: rows.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa

LONG = np.uint64(0xFF << 56)
CHUNK_ROWS = 1 << 18
MISSING_KEY = np.uint64(2**64 - 1)


def text_keys(texts: pa.Array) -> np.ndarray:
    """string (N,) -> keys (N,) uint64, MISSING_KEY for null."""
    texts = texts.cast(pa.string()) if texts.type != pa.string() else texts
    _, offsets, content = texts.buffers()
    if len(texts) == 0:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(last - first + 8, np.uint8)  # a word may be read at the start of every text
    padded[:-8] = np.frombuffer(content, np.uint8)[first:last] if content is not None else 0
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))[offsets[:-1] - first].byteswap()
    lengths = np.diff(offsets)
    rest = (8 * (8 - np.minimum(lengths, 8))).astype(np.uint64)  # bits of what follows the text
    keys = np.where(lengths > 0, words >> rest << rest, np.uint64(0))
    is_long = np.flatnonzero(lengths > 8)
    if len(is_long):
        keys[is_long] = _by_value(texts.take(pa.array(is_long)), long_keys)
    if texts.null_count:
        keys[texts.is_null().to_numpy(zero_copy_only=False)] = MISSING_KEY
    return keys


def long_keys(texts: list[str]) -> np.ndarray:
    """Keys of texts of more than 8 bytes."""
    hashed = pd.util.hash_array(np.array([*texts, None], object)[:-1], categorize=False)
    return np.minimum(LONG | (hashed >> np.uint64(8)), MISSING_KEY - np.uint64(1))


def _by_value(texts: pa.Array, function) -> np.ndarray:
    """function(distinct texts) for each text, which must not be null where it is used."""
    encoded = texts.dictionary_encode()
    values = function(encoded.dictionary.to_pylist())
    return values[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)]


def key_text(key: int) -> str:
    """The text of a key that is not LONG."""
    return key.to_bytes(8, "big").rstrip(b"\0").decode("utf-8", "replace")


def is_long(keys: np.ndarray) -> np.ndarray:
    return (keys >= LONG) & (keys != MISSING_KEY)


def number_text(value: float) -> str:
    """The one text of a number: 39.0 -> "39", 0.50 -> "0.5"."""
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)


def number_keys(values: np.ndarray) -> np.ndarray:
    """(N,) float64 -> keys (N,), of their texts; nan is missing."""
    return in_chunks(_number_keys, values)


def _number_keys(values: np.ndarray) -> np.ndarray:
    distinct, inverse = np.unique(values, return_inverse=True)
    texts = [None if math.isnan(value) else number_text(value) for value in distinct.tolist()]
    return text_keys(pa.array(texts, pa.string()))[inverse]


def in_chunks(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """function(values), in memory for intermediate arrays that does not grow with N."""
    parts = [function(values[start : start + CHUNK_ROWS]) for start in range(0, len(values), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else function(values)


def bucket_ids(keys: np.ndarray, size: int) -> np.ndarray:
    """Keys -> 0 to size - 1, spread evenly (the finalizer of SplitMix64)."""
    mixed = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(size)).astype(np.int64)
