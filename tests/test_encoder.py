"""Vocabularies, scales and bins against their definitions by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.settings import DENSE_TRANSFORMS
from data.schema import Categorical, Dense
from data.table.encoder import EMPTY, MISSING, OOV, Field, Number, TableEncoder, fit_column, quantile_edges

SETTINGS = {"dense_transform": "log", "min_count": 2, "num_bins": 4}


def fitted(values: list, column: Categorical | Dense, **settings) -> TableEncoder:
    array = pa.chunked_array([pa.array(values[:2], type=pa.array(values).type), pa.array(values[2:])])
    return TableEncoder(*fit_column("a", column, array, SETTINGS | settings, ["", "?"]))


def encoded(encoder: TableEncoder, values: list, width: int | None = None) -> tuple[list, list]:
    """By whole columns and by a stream of batches, which must agree."""
    array = pa.array(values, pa.string()) if all(isinstance(value, str) for value in values) else pa.array(values)
    dense, ids = encoder.encode({"a": array}, width)
    batches = [pa.RecordBatch.from_pydict({"a": part}) for part in (array[:1], array[1:])]
    for streamed, start in zip(encoder.stream(iter(batches), width or ids.shape[1]), (0, 1), strict=True):
        assert streamed[0]["a"].equals(batches[start]["a"])
        np.testing.assert_array_equal(streamed[1], dense[start:][: len(batches[start])])
        if width or encoder.pooling == [None]:
            np.testing.assert_array_equal(streamed[2], ids[start:][: len(batches[start])])
    return dense.tolist(), ids.tolist()


RAW = [-3.0, 0.0, None, 1.0, 2.5, 700.0, None, 8.0]


@pytest.mark.parametrize("transform", DENSE_TRANSFORMS)
def test_numbers_by_hand(transform):
    encoder = fitted(RAW, Dense(transform=transform))
    known = [value for value in RAW if value is not None]
    rows = [-3.0, 5.0, None, 1e6]
    dense, ids = encoded(encoder, rows)
    if transform.startswith("log"):
        logs = [math.copysign(math.log1p(abs(value)), value) for value in known]
        mean = sum(logs) / len(logs)
        std = math.sqrt(sum((value - mean) ** 2 for value in logs) / len(logs))
        expected = [0 if x is None else (math.copysign(math.log1p(abs(x)), x) - mean) / std for x in rows]
    elif transform == "clamped_log":  # the paper's: missing and negative numbers are 0, and it is not centred
        logs = np.array([math.log1p(max(value or 0, 0)) for value in RAW])
        expected = [math.log1p(max(x or 0, 0)) / logs.std() for x in rows]
    else:
        expected = None
    flags = [float(x is None) for x in rows] if transform == "log+missing" else None
    columns = [column for column in (expected, flags) if column is not None]
    np.testing.assert_allclose(dense, np.array(columns).T.reshape(len(rows), -1), rtol=1e-6)
    assert encoder.num_dense == len(columns) and bool(encoder.fields) == (
        transform in ("log+quantile", "bucket", "quantile")
    )
    assert not ids[0] or (ids[2][0] == MISSING and ids[0][0] != MISSING)


def test_log_equals_numpy_bit_for_bit():
    rng = np.random.default_rng(0)
    raw = np.where(rng.random(300_000) < 0.1, np.nan, np.floor(np.exp(rng.normal(3, 2, 300_000))) - 2)  # three chunks
    number = Number.fit("a", "log", raw, 0)
    logs = np.sign(raw) * np.log1p(np.abs(raw))
    known = logs[~np.isnan(logs)]
    assert (number.mean, number.std) == (known.mean(), known.std())
    expected = np.nan_to_num((logs - known.mean()) / known.std()).astype(np.float32)
    np.testing.assert_array_equal(number.encode(raw), expected)


@pytest.mark.parametrize(("raw", "mean"), [([5.0] * 7, math.log1p(5)), ([np.nan] * 3, 0)])
def test_a_constant_is_not_scaled(raw, mean):
    number = Number.fit("a", "log", np.array(raw), 0)
    assert (number.mean, number.std) == (pytest.approx(mean), 1) and not number.encode(np.array(raw)).any()


def test_bucket_is_the_rule_of_x4():
    encoder = fitted([float(x) for x in range(-2, 3000)], Dense(transform="bucket"), min_count=1)
    rows = [-2.0, 0.0, 1.9, 2.0, 2.1, 3.0, 20.0, 2999.0, 1e9]
    buckets = [math.floor(math.log(x) ** 2) if x > 2 else int(x) for x in rows]
    texts = dict(enumerate(encoder.fields[0].vocabulary.to_pylist(), 2))
    found = [texts.get(ids[0]) for ids in encoded(encoder, rows)[1]]
    assert found == [str(bucket) if str(bucket) in texts.values() else None for bucket in buckets] and found[-1] is None


def test_quantile_edges_set_the_least_number_apart():
    values = np.array([0.0] * 900 + [np.nan] * 50 + list(range(1, 101)))
    assert quantile_edges(values, 4) == [0, 1, 25, 50, 75, 100]
    assert quantile_edges(np.array([7.0] * 3), 4) == [7, 8]
    assert quantile_edges(np.array([np.nan] * 3), 4) == [0, 1]


def test_texts_get_ids_in_order():
    encoder = fitted(["b", "", "é", "b", "é", "c", "?", "?", "a", "a"], Categorical())
    assert encoder.fields[0].vocabulary.to_pylist() == ["a", "b", "é"] and encoder.cardinalities == [5]
    assert encoded(encoder, ["é", "a", "", "?", "c", "new", "b"])[1] == [
        [4],
        [2],
        [MISSING],
        [MISSING],
        [OOV],
        [OOV],
        [3],
    ]
    assert fitted(["c", "a"] * 2, Categorical(min_count=9)).cardinalities == [2]


def test_ids_by_hash_are_those_of_crc32():
    encoder = fitted(["b", "a", "a"], Categorical(hash_size=7))
    assert encoder.cardinalities == [9]
    assert encoded(encoder, ["123456789", "", "new"])[1] == [[2 + 0xCBF43926 % 7], [MISSING], [2 + 1_810_056_261 % 7]]


@pytest.mark.parametrize("hash_size", [None, 20])
def test_values_beyond_the_longest_cell_of_training_are_kept(hash_size):
    """So that the order of the values in a cell makes no difference."""
    encoder = fitted(
        [["b", "a"], [], ["c", "a", "b", "c"]], Categorical(hash_size=hash_size, min_count=1, pooling="sum")
    )
    one, other = (
        sorted(encoded(encoder, [cell])[1][0])
        for cell in (["c", "a", "x", "b", "a", "c"], ["a", "c", "c", "x", "a", "b"])
    )
    assert one == other and len(one) == 6 and EMPTY not in one
    _, ids = encoded(encoder, [["a"], [], ["", "b"]])
    assert ids[1] == [MISSING, EMPTY] and ids[0][1] == EMPTY and ids[2][0] == MISSING
    assert encoder.count_unseen(np.array(ids, np.int32)).tolist() == [[0], [1]]


def test_an_encoder_survives_a_checkpoint(tmp_path):
    parts = [fitted(["b", "a", "b"], Categorical()), fitted(RAW, Dense(transform="log+quantile"))]
    encoder = TableEncoder([n for part in parts for n in part.numbers], [f for part in parts for f in part.fields])
    torch.save(encoder.state_dict(), tmp_path / "state.pt")
    again = TableEncoder.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.numbers == encoder.numbers and again.fields == encoder.fields


def test_rows_that_another_table_knows_too():
    def encoder(*vocabularies: list[str], hash_size: int | None = None) -> TableEncoder:
        fields = [Field(f"f{i}", "text", pa.array(texts), [""]) for i, texts in enumerate(vocabularies)]
        return TableEncoder([], [*fields, Field("h", "text", pa.array([], pa.string()), [""], hash_size=hash_size)])

    rows, others = encoder(["a", "c"], ["x"], hash_size=3).known_rows(encoder(["a", "b", "c"], ["w", "x"], hash_size=3))
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6, *range(7, 12)]
    assert others.tolist() == [0, 1, 2, 4, 5, 6, 8, *range(9, 14)]
    with pytest.raises(ValueError, match="other fields"):
        encoder(["a"], hash_size=3).known_rows(encoder(["a"], hash_size=4))
