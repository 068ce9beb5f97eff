"""inspect_model.py: importance against planted effects, embeddings against the table, for tables and movies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bst.train import train as train_bst
from common.checkpoint import load_checkpoint
from common.errors import UserError
from deepfm.train import train
from inspect_model import importance, inspect, read_rows, vectors_of
from models import load
from tests.criteo_rows import make_lines, write_lines
from tests.movie_rows import make_ratings, write_1m
from tests.test_predict import SMALL_BST


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, Path]:
    """Checkpoint and rows in which only C3 decides the click."""
    root, rng = tmp_path_factory.mktemp("root"), np.random.default_rng(0)
    fields = [line.split("\t") for line in make_lines(rng, 1500, distinct=6)]
    for row in fields:
        row[16] = row[16] or "00000000"
        row[0] = str(int(int(row[16], 16) // 85899345 % 2))
    raw = write_lines(root / "criteo" / "train.txt", ["\t".join(row) for row in fields])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPUT_ROOT", str(root))
        small = {"hidden_units": (8,), "embedding_dim": 3, "batch_size": 32, "learning_rate": 0.02}
        return train(data_root=str(root), on_regression=False, **small)["checkpoint"], raw


def test_the_column_that_makes_the_click_matters(run, capsys):
    checkpoint, raw = run
    found = inspect(checkpoint, raw, field="C3", value="051eb851")
    table = found["importance"]
    assert len(table) == 39 and table["column"].iloc[0] == "C3" and table["low"].iloc[0] > 0.3
    others = table.iloc[1:]
    assert others["rise"].abs().max() < 0.02 and (others["low"] < 0.01).all()
    files = {f"{name}.{suffix}" for name in ("embeddings", "importance") for suffix in ("csv", "png")}
    assert {path.name for path in Path(found["folder"]).iterdir()} == files
    printed = capsys.readouterr().out
    assert "Nearest to C3 051eb851:" in printed and found["folder"] in printed


def test_intervals_are_those_of_a_loop(run):
    checkpoint, raw = run
    model, scorer = load(checkpoint)
    inputs, target = read_rows(scorer, raw)
    table = importance(model, scorer, inputs, target).set_index("column")
    generator = torch.Generator().manual_seed(0)
    probability = model(*inputs).sigmoid().double()
    losses = -torch.where(target[:, 0] == 1, probability, 1 - probability).log()
    rise = torch.zeros(len(target), dtype=torch.float64)
    for _ in range(3):  # of I1, the first one: the number and its category move together
        order = torch.randperm(len(target), generator=generator)
        dense, ids = (column.clone() for column in inputs)
        dense[:, 0], ids[:, 0] = dense[order, 0], ids[order, 0]
        p = model(dense, ids).sigmoid().double()
        rise += (-torch.where(target[:, 0] == 1, p, 1 - p).log() - losses).detach() / 3
    assert table.loc["I1", "rise"] == pytest.approx(rise.mean().item(), abs=1e-6)
    assert table.loc["I1", "high"] == pytest.approx((rise.mean() + 1.96 * rise.std() / 1500**0.5).item(), abs=1e-6)


def test_embeddings_have_raw_values_counts_and_neighbours(run, tmp_path):
    checkpoint, raw = run
    found = inspect(checkpoint, raw, field="C3")
    table = pd.read_csv(Path(found["folder"], "embeddings.csv"), dtype={"value": str})
    in_file = pd.Series([line.split("\t")[16] for line in raw.read_text().splitlines()]).value_counts()
    assert dict(zip(table["value"], table["count"], strict=True)) == in_file.to_dict()
    weights = load_checkpoint(checkpoint)["state_dict"]["embedding.weight"]
    _, scorer = load(checkpoint)
    start = sum(scorer.encoder.cardinalities[:15])  # after those of 13 numbers
    ids = [scorer.encoder.fields[15].vocabulary.to_pylist().index(value) + 2 for value in table["value"]]
    expected = weights[start + torch.tensor(ids)]
    np.testing.assert_allclose(table.filter(like="v").drop(columns="value"), expected, rtol=1e-6)
    vectors = table.set_index("value").drop(columns="count")
    one = vectors.loc[in_file.index[0]]
    cosine = (vectors @ one) / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(one))
    expected = cosine.drop(in_file.index[0]).sort_values(ascending=False)
    assert found["neighbours"]["value"].tolist() == expected.index.tolist()[:10]
    np.testing.assert_allclose(found["neighbours"]["cosine"], expected[:10], rtol=1e-5)
    alone = inspect(checkpoint, field="C3")
    assert alone["importance"] is None and "count" not in alone["embeddings"]
    with pytest.raises(UserError, match="C3 has no value 'zz'"):
        inspect(checkpoint, field="C3", value="zz")
    with pytest.raises(UserError, match="no field 'C99'; the fields are I1, I2"):
        inspect(checkpoint, field="C99")
    with pytest.raises(TypeError, match="feild"):
        inspect(checkpoint, feild="C3")
    unlabelled = write_lines(tmp_path / "new.txt", [line[2:] for line in raw.read_text().splitlines()])
    with pytest.raises(UserError, match="has no labelled rows"):
        inspect(checkpoint, unlabelled)


def test_movies_and_users(tmp_path, rng):
    ratings = make_ratings(rng, users=30)
    write_1m(tmp_path / "mine", ratings)
    checkpoint = train_bst(dataset="mine", data_root=str(tmp_path), max_epochs=1, **SMALL_BST)["checkpoint"]
    found = inspect(checkpoint, tmp_path / "mine" / "ratings.dat", field="movie")
    assert {"movie", "history", "user", "bias of user"} <= set(found["importance"]["column"])
    counts = pd.Series([movie for _, movie, *_ in ratings]).value_counts()
    known = found["embeddings"].set_index("value")["count"]
    assert all(counts[int(movie)] == count for movie, count in known.items())
    weights = load_checkpoint(checkpoint)["state_dict"]["factors.weight"]
    assert torch.isin(torch.tensor(vectors_of(found["embeddings"])), weights).all()
    assert len(inspect(checkpoint, field="user")["embeddings"]) == 30


def test_a_column_of_texts_is_the_default(tmp_path, outputs, rng):
    """Here numbers are categories too, and one of them has the most values."""
    rows = [line.split("\t") for line in make_lines(rng, 300, distinct=6)]
    for i, row in enumerate(rows):
        row[1] = str(i)
    write_lines(tmp_path / "criteo" / "train.txt", ["\t".join(row) for row in rows])
    small = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 1, "min_count": 1, "dense_transform": "quantile"}
    found = inspect(train(data_root=str(tmp_path), **small)["checkpoint"])["embeddings"]
    assert found["value"].str.fullmatch("[0-9a-f]{8}").all()
