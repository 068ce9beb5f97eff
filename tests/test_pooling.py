"""Fields with several values in a cell: against a double loop, in every model, and from a file to its scores."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.model.embedding import PackedEmbedding, widened
from common.training.baselines import one_hot
from data.census_income import MultiTaskDataModule
from data.criteo_data import ClickDataModule
from deepfm.deepfm import DeepFM
from deepfm.train import DATA as CLICK_DATA
from deepfm.train import train as train_deepfm
from dlrm.dlrmnet import DLRM
from dlrm.train import train as train_dlrm
from multitask.mmoe import MMoE
from multitask.train import DATA as MULTITASK_DATA
from multitask.train import train as train_mmoe
from predict import predict
from tests.checks import OPTIMIZER, check_batch_of_one, check_learns_one_batch, check_reload, check_rows_do_not_mix
from tests.test_predict import by_test_step

pytestmark = pytest.mark.usefixtures("undrawn")

SIZES, POOLING = [4, 7, 9], [None, "mean", "sum"]
WIDTHS = [1, 3, 3]  # columns of ids of each field
MODELS = {
    DeepFM: {"num_dense": 2, "cardinalities": SIZES, "embedding_dim": 4, "hidden_units": [16], "batch_norm": False}
    | {"on_regression": False},
    DLRM: {"num_dense": 2, "cardinalities": SIZES, "embedding_dim": 4, "bottom_mlp_units": [8], "top_mlp_units": [16]}
    | {"self_interaction": False},
    MMoE: {"bin_edges": [[-1.0, 0, 1], [0.0, 2]], "cardinalities": SIZES, "tasks": ["a", "b"], "variant": "mmoe"}
    | {"task_weights": [1.0, 1.0], "num_experts": 2, "expert_units": [8], "tower_units": [4], "embedding_dim": 4},
}


def make_ids(rows: int) -> torch.Tensor:
    """(B, 7): one to all values in a cell, then padding."""
    columns = []
    for size, width in zip(SIZES, WIDTHS, strict=True):
        ids = torch.randint(size, (rows, width))
        columns.append(ids.masked_fill(torch.arange(width) >= torch.randint(1, width + 1, (rows, 1)), -1))
    return torch.cat(columns, 1).int()


def make_table(dim: int = 5) -> PackedEmbedding:
    table = PackedEmbedding(SIZES, dim, POOLING).double()
    torch.nn.init.normal_(table.weight)
    return table


def in_loops(weight: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    parts, rows = weight.split(SIZES), []
    for row in ids:
        fields = []
        for part, cell, how in zip(parts, row.split(WIDTHS), POOLING, strict=True):
            values = [part[value] for value in cell.tolist() if value >= 0]
            fields.append(sum(values) / (len(values) if how == "mean" else 1))
        rows.append(torch.stack(fields))
    return torch.stack(rows)


def test_pooled_rows_and_their_gradient_equal_loops():
    table, ids = make_table(), make_ids(40)
    dense = table.weight.detach().clone().requires_grad_()
    pooled, expected = table(ids), in_loops(dense, ids)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
    (pooled**3).sum().backward()
    (expected**3).sum().backward()
    grad = table.weight.grad
    torch.testing.assert_close(grad.to_dense(), dense.grad, rtol=0, atol=1e-12)
    offsets = torch.tensor([0, *[4] * 3, *[11] * 3])  # the first row of each column's field
    rows = (ids + offsets)[ids >= 0]
    assert grad.is_sparse and grad._indices()[0].tolist() == rows.unique().tolist()  # padding steps no row
    ids[0, 4:] = -1
    assert not table(ids)[0, 2].any()  # of an empty cell


def test_one_value_in_each_cell_is_as_without_pooling():
    plain, one = PackedEmbedding(SIZES, 5), PackedEmbedding(SIZES, 5, [None, "sum", None])
    torch.nn.init.normal_(plain.weight)
    one.load_state_dict(plain.state_dict())
    ids = torch.stack([torch.randint(size, (9,)) for size in SIZES], 1).int()
    assert torch.equal(one(ids), plain(ids))


@pytest.mark.parametrize("kind", MODELS)
def test_as_every_model(kind):
    model = kind(**MODELS[kind], pooling=POOLING, dropout=0.0, optimizer=OPTIMIZER)
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    label = torch.randint(2, (32, 2) if kind is MMoE else (32,)).float()
    batch = [torch.randn(32, 2), make_ids(32), label]
    few = [part[:4] for part in batch]
    padded = few[1].clone()
    padded[:, 1:4] = torch.cat([padded[:, 1:2], torch.full((4, 2), -1)], 1)
    more = widened(few[1], POOLING, 11)  # more padding, as a longer cell in the batch would bring, makes no difference
    torch.testing.assert_close(model.eval()(few[0], more), model(few[0], few[1]), rtol=0, atol=1e-6)
    assert not torch.allclose(model(few[0], padded), model(*few[:2]))  # but values do
    check_rows_do_not_mix(model, few)
    check_batch_of_one(model, few)
    check_reload(model, few)
    check_learns_one_batch(model, batch)


def test_baseline_pools_as_the_models():
    ids = make_ids(20)
    dense = np.random.default_rng(0).random((20, 2), np.float32)
    design, _ = one_hot(dense, ids.numpy(), np.zeros(20), SIZES, POOLING)
    weight = torch.randn(sum(SIZES), 3, dtype=torch.float64)
    expected = in_loops(weight, ids).sum(1).numpy()
    np.testing.assert_allclose(design[:, : sum(SIZES)] @ weight.numpy(), expected, rtol=0, atol=1e-6)


GENRES = ["Action", "Drama", "Sci-Fi", 'Kids, & "co"']
COLUMNS = {
    "row id": {"role": "kept"},
    "clicked?": {"role": "label", "positive": ["yes"], "negative": ["no"], "task": "click"},
    "rating": {"role": "label", "positive": ["1"], "negative": ["0"]},
    'user, "id"': {"role": "categorical"},
    "genres": {"role": "categorical", "separator": "|", "pooling": "mean", "min_count": 1},
    "tags": {"role": "categorical", "separator": "|", "pooling": "sum", "min_count": 1},
    "price €": {"role": "dense", "transform": "log+missing"},
}


def write_table(root: Path, name: str, excluded: tuple[str, ...] = ()) -> Path:
    """DATA_ROOT/mine with 600 rows as CSV, or as Parquet with lists in its cells."""
    rng = np.random.default_rng(0)
    genres = [list(rng.choice(GENRES, rng.integers(1, 4), replace=False)) for _ in range(600)]
    tags = [list(rng.choice(["a", "b", "c"], rng.integers(0, 3))) for _ in range(600)]
    lists = name.endswith(".parquet")
    frame = pd.DataFrame(
        {
            "row id": [f"r{i}" for i in range(600)],
            "clicked?": np.where([("Drama" in cell) ^ (rng.random() < 0.1) for cell in genres], "yes", "no"),
            "rating": rng.integers(0, 2, 600),
            'user, "id"': [f"user-number-{i}" for i in rng.integers(0, 20, 600)],
            "genres": genres if lists else ["|".join(cell) for cell in genres],
            "tags": tags if lists else ["|".join(cell) for cell in tags],
            "price €": np.where(rng.random(600) < 0.1, np.nan, rng.normal(0, 50, 600).round(2)),
        }
    )
    path = root / "mine" / name
    path.parent.mkdir()
    frame.to_parquet(path) if lists else frame.to_csv(path, index=False)
    columns = COLUMNS | {column: {"role": "excluded"} for column in excluded}
    path.with_name("columns.json").write_text(json.dumps({"file": name, "columns": columns}))
    return path


SMALL = {"dataset": "mine", "batch_size": 32, "precision": "32-true"}
NARROW = SMALL | {"max_epochs": 1, "hidden_units": (8,), "embedding_dim": 4}  # for DeepFM


@pytest.mark.parametrize(
    ("train", "name"), [(train_deepfm, "t.csv"), (train_dlrm, "t.parquet"), (train_mmoe, "t.csv")],
    ids=["deepfm", "dlrm", "mmoe"],
)  # fmt: skip
def test_a_table_trains_and_scores(tmp_path, train, name):
    is_mmoe = train is train_mmoe
    path = write_table(tmp_path, name, () if is_mmoe else ("rating",))
    sizes = {
        train_deepfm: {"hidden_units": (8,), "embedding_dim": 4},
        train_dlrm: {"bottom_mlp_units": (8,), "top_mlp_units": (8,), "embedding_dim": 4, "learning_rate": 0.01},
        train_mmoe: {"tasks": ("click", "rating"), "learning_rate": 0.01, "dropout": 0.0, "max_epochs": 6},
    }[train]
    results = train(data_root=str(tmp_path), **{"max_epochs": 4, "patience": 99} | SMALL | sizes)
    auc = "auc_click" if is_mmoe else "auc"
    assert results["test"][auc] > 0.7 and results["baselines"]["logistic regression"][auc] > 0.8
    data_class, defaults = (MultiTaskDataModule, MULTITASK_DATA) if is_mmoe else (ClickDataModule, CLICK_DATA)
    changes = {"dataset": "mine", "data_root": str(tmp_path), "batch_size": 32}
    data = data_class(**defaults | changes | ({"tasks": sizes["tasks"]} if is_mmoe else {}), seed=1)
    expected = by_test_step(results["checkpoint"], data)
    measured = predict(results["checkpoint"], path, tmp_path / "out.csv")["metrics"]
    assert all("auc" in metrics for metrics in measured.values())  # of a task that is called rating, too
    scores = pd.read_csv(tmp_path / "out.csv")
    assert list(scores.columns) == ["row id", *(("click", "rating") if is_mmoe else ("probability",))]
    found = scores.iloc[data.rows["test"], 1:].to_numpy().reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_order_and_length_of_a_cell(tmp_path):
    """A cell with more values than any in training loses none of them, and their order does not matter."""
    path = write_table(tmp_path, "t.csv", ("rating",))
    checkpoint = train_deepfm(data_root=str(tmp_path), **NARROW)["checkpoint"]
    rows = pd.read_csv(path, keep_default_na=False)[:4]
    rows["genres"] = ["Action|Drama|Sci-Fi", GENRES[3], f"Sci-Fi|{GENRES[3]}|Drama|Action", "|".join(GENRES)]
    for name in set(rows) - {"genres", "row id"}:
        rows[name] = rows[name].iloc[0]
    rows.to_csv(tmp_path / "longer.csv", index=False)
    predict(checkpoint, tmp_path / "longer.csv", tmp_path / "out.csv")
    three, one, four, same = pd.read_csv(tmp_path / "out.csv")["probability"]
    assert four == pytest.approx(same, abs=1e-7) and len({three, one, four}) == 3
