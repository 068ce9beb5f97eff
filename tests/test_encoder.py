"""Vocabularies, scales and bins against their definitions by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.settings import DENSE_TRANSFORMS
from data.schema import Categorical, Dense
from data.table.encoder import (
    EMPTY,
    MISSING,
    OOV,
    Field,
    TableEncoder,
    Values,
    count_unseen,
    fit_column,
)
from data.table.numbers import Number, quantile_edges

SETTINGS = {"dense_transform": "log", "min_count": 2, "num_bins": 4}


def fitted(values: list, column: Categorical | Dense, **settings) -> TableEncoder:
    array = pa.chunked_array([pa.array(values[:2], type=pa.array(values).type), pa.array(values[2:])])
    train = np.ones(len(values), bool)
    number, field, _ = fit_column("a", column, Values.of(array), train, SETTINGS | settings, ["", "?"])
    return TableEncoder([number] if number else [], [field] if field else [])


def encoded(encoder: TableEncoder, values: list) -> tuple[list, list]:
    array = pa.array(values, pa.string()) if all(isinstance(value, str) for value in values) else pa.array(values)
    dense, ids, unseen = encoder.encode({"a": array}, len(values))
    for field in encoder.fields:
        assert unseen.tolist() == [count_unseen(ids)]
        if field.kind == "text" and not (field.hash_size or field.pooling):  # whole cells may be given by their ids
            assert (encoder.encode({"a": field.looked_up(array)}, len(values))[1] == ids).all()
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


def test_log_equals_numpy():
    rng = np.random.default_rng(0)
    raw = np.where(rng.random(300_000) < 0.1, np.nan, np.floor(np.exp(rng.normal(3, 2, 300_000))) - 2)
    values = Values.of(pa.array(raw, from_pandas=True))
    number = Number.fit("a", "log", values.numbers, np.bincount(values.places), 0)
    logs = np.sign(raw) * np.log1p(np.abs(raw))
    known = logs[~np.isnan(logs)]
    assert (number.mean, number.std) == pytest.approx((known.mean(), known.std()), 1e-12) and len(
        values.distinct
    ) < 10_000
    expected = np.nan_to_num((logs - number.mean) / number.std).astype(np.float32)
    np.testing.assert_array_equal(number.encode(values.numbers)[values.places], expected)


@pytest.mark.parametrize(("raw", "mean"), [([5.0] * 7, math.log1p(5)), ([np.nan] * 3, 0)])
def test_a_constant_is_not_scaled(raw, mean):
    number = Number.fit("a", "log", np.array(raw), np.ones(len(raw), int), 0)
    assert (number.mean, number.std) == (pytest.approx(mean), 1) and not number.encode(np.array(raw)).any()


def test_bucket_is_the_rule_of_x4():
    encoder = fitted([float(x) for x in range(-2, 3000)], Dense(transform="bucket"), min_count=1)
    rows = [-2.0, 0.0, 1.9, 2.0, 2.1, 3.0, 20.0, 2999.0, 1e9]
    buckets = [math.floor(math.log(x) ** 2) if x > 2 else int(x) for x in rows]
    texts = dict(enumerate(encoder.fields[0].vocabulary.to_pylist(), 2))
    found = [texts.get(ids[0]) for ids in encoded(encoder, rows)[1]]
    assert found == [str(bucket) if str(bucket) in texts.values() else None for bucket in buckets] and found[-1] is None


def test_quantile_edges_set_the_least_number_apart():
    distinct, counts = np.array([np.nan, *range(101)]), np.array([50, 900, *[1] * 100])
    shuffled = np.random.default_rng(0).permutation(102)
    assert quantile_edges(distinct[shuffled], counts[shuffled], 4) == [0, 1, 25, 50, 75, 100]
    assert quantile_edges(np.array([9.0, 7.0]), np.array([0, 3]), 4) == [7, 8]
    assert quantile_edges(np.array([np.nan]), np.array([3]), 4) == [0, 1]


def test_rows_that_are_not_for_training_have_no_influence():
    train = np.array([True, True, False, True, False])
    for raw in (["a", "a", "b", "c", "b"], [["a"], ["a", "c"], ["b", "b"], ["c"], []]):
        _, field, _ = fit_column("a", Categorical(), Values.of(pa.array(raw)), train, SETTINGS, [""])
        assert field.vocabulary.to_pylist() == (["a"] if isinstance(raw[0], str) else ["a", "c"])
    for transform in DENSE_TRANSFORMS:
        found = [
            fit_column("a", Dense(transform=transform), Values.of(pa.array(raw)), np.array(rows), SETTINGS, [""])
            for raw, rows in (([1.0, 4.0, 900.0, 4.0], [True, True, False, True]), ([1.0, 4.0, 4.0], [True] * 3))
        ]
        assert found[0] == found[1]


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
    assert count_unseen(np.array(ids, np.int32)) == [0, 1]


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
