"""Fits the vocabularies, scales and bin edges of a table on its training rows.

N: rows.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from common.settings import LOG_TRANSFORMS, POOLINGS
from data.table_categories import (
    MISSING_KEY,
    Field,
    distinct_numbers,
    in_order_of_text,
    is_long,
    number_texts,
    text_keys,
)
from data.table_columns import Columns
from data.table_encoder import PIECEWISE, Dense, TableEncoder, as_category, in_chunks, logarithm
from data.table_schema import Column

MAX_SLOTS = 64  # only the first values of a cell are used
QUANTILE_BINS = 32


def fit_encoder(
    settings: dict[str, Any], columns: Columns, train: np.ndarray, each: Callable[[Callable, list], Iterator] = map
) -> TableEncoder:
    """settings: dense_transform, min_count, num_bins. train: (N,) bool, the training rows. each: map, which takes one
    column at a time, or ordered_map, which uses threads.
    """
    default = settings["dense_transform"]

    def fit_column(column: Column) -> tuple[Field | None, Dense | None]:
        if column.role == "categorical":
            return _fit_texts(column, settings, columns, train), None
        # MMoE bins each number itself, whatever transform the column asks for
        transform = PIECEWISE if default == PIECEWISE else column.transform or default
        raw = columns.numbers(column.name)[train]
        if transform in LOG_TRANSFORMS:
            field = _fit_numbers(column, "quantile", settings, raw) if transform == "log+quantile" else None
            return field, Dense(column.name, transform, *_mean_and_std(transform, raw))
        if transform == PIECEWISE:
            edges = quantile_edges(raw, settings["num_bins"])
            return _fit_numbers(column, "number", settings, raw), Dense(column.name, transform, edges=edges)
        return _fit_numbers(column, transform, settings, raw), None

    fields, dense = zip(*each(fit_column, columns.schema.inputs), strict=True)
    return TableEncoder(columns.schema, [f for f in fields if f is not None], [d for d in dense if d is not None])


def _mean_and_std(transform: str, raw: np.ndarray) -> tuple[float, float]:
    """What is subtracted from the logarithms, and what they are divided by."""
    logs = in_chunks(partial(logarithm, transform), raw)
    if transform == "clamped_log":  # the paper's, not centred
        return 0.0, float(logs.std()) or 1.0
    known = logs[~np.isnan(logs)]
    if len(known) == 0 or known.min() == known.max():  # not scaled: the deviation would be 0 or a rounding error
        return float(known[0]) if len(known) else 0.0, 1.0
    return float(known.mean()), float(known.std())


def _fit_texts(column: Column, settings: dict[str, Any], columns: Columns, train: np.ndarray) -> Field:
    counts, most = columns.key_counts(column.name, train)
    keys = columns.keys(column.name)
    chosen = _frequent(keys, counts, column, settings)
    long = is_long(keys)
    texts = columns.long_texts(column.name).filter(pa.array(chosen[long]))
    field = partial(Field, column.name, "text", *in_order_of_text(keys[chosen], texts), hash_size=column.hash_size)
    # most is 0 if no cell may hold several values
    return field(slots=min(most, MAX_SLOTS), pooling=column.pooling or POOLINGS[0]) if most else field()


def _fit_numbers(column: Column, source: str, settings: dict[str, Any], raw: np.ndarray) -> Field:
    edges = quantile_edges(raw, QUANTILE_BINS) if source == "quantile" else None
    distinct, codes = distinct_numbers(as_category(source, edges, raw))
    counts = np.bincount(codes, minlength=len(distinct))
    texts = number_texts(distinct)
    keys = text_keys(texts)
    order = np.argsort(keys)
    keys, counts, texts = keys[order], counts[order], texts.take(pa.array(order))
    chosen = _frequent(keys, counts, column, settings)
    texts = texts.filter(pa.array(chosen & is_long(keys)))
    return Field(column.name, source, *in_order_of_text(keys[chosen], texts), edges)


def _frequent(keys: np.ndarray, counts: np.ndarray, column: Column, settings: dict[str, Any]) -> np.ndarray:
    """Which of the distinct keys enter the vocabulary: those with enough rows, or none if there is a hash_size."""
    if column.hash_size:
        return np.zeros(len(keys), bool)
    return (counts >= (column.min_count or settings["min_count"])) & (keys != MISSING_KEY)


def quantile_edges(values: np.ndarray, num_bins: int) -> list[float]:
    """Ascending edges, from the least to the greatest number, with about equally many rows in each bin.

    Rows with the least number are not counted (many columns are mostly 0): the bins divide the rows above it.
    """
    distinct, weights = np.unique(values[~np.isnan(values)], return_counts=True)
    if len(distinct) < 2:
        least = float(distinct[0]) if len(distinct) else 0.0
        return [least, least + 1]
    share = weights[1:].cumsum() / weights[1:].sum()
    upper = distinct[1:][np.searchsorted(share, np.linspace(0, 1, num_bins + 1)[:-1])]
    return np.unique([distinct[0], *upper, distinct[-1]]).tolist()
