"""DLRM against a plain model built from the paper's text: one table per field, products in a double loop."""

import json
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from data.criteo_data import CRITEO, ClickDataModule
from data.samples.criteo import criteo_sample
from dlrm.dlrmnet import DLRM
from dlrm.train import train
from tests.checks import build, check_batch_of_one, check_learns_one_batch, check_reload, check_rows_do_not_mix

NUMBERS, SIZES, DIM = 13, [3 + field for field in range(26)], 4


def make_model(**changes) -> DLRM:
    settings = {"num_dense": NUMBERS, "cardinalities": SIZES, "embedding_dim": DIM, "self_interaction": False}
    settings |= {"bottom_mlp_units": [16, 8], "top_mlp_units": [12, 6], "dropout": 0.0}
    return build(DLRM, settings, changes).eval()


def make_batch(rows: int, sizes: list[int] = SIZES) -> list[torch.Tensor]:
    ids = torch.stack([torch.randint(size, (rows,)) for size in sizes], 1).int()
    return [torch.randn(rows, NUMBERS), ids, torch.randint(2, (rows,)).float()]


class PlainDLRM(nn.Module):
    """The paper's model with 26 nn.Embedding, holding the weights of a DLRM."""

    def __init__(self, model: DLRM):
        super().__init__()
        tables = model.embedding.weight.detach().split(list(model.hparams.cardinalities))
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(table.clone(), freeze=False) for table in tables)
        self.bottom_mlp = self._copy([layer for layer in model.bottom_mlp if isinstance(layer, nn.Linear)])
        self.top_mlp = self._copy([layer for layer in model.top_mlp if isinstance(layer, nn.Linear)] + [model.output])
        self.first = 0 if model.hparams.self_interaction else 1

    @staticmethod
    def _copy(layers: list[nn.Linear]) -> nn.ModuleList:
        copies = nn.ModuleList(nn.Linear(layer.in_features, layer.out_features).double() for layer in layers)
        for copy, layer in zip(copies, layers, strict=True):
            copy.load_state_dict(layer.state_dict())
        return copies

    def forward(self, dense, ids):
        dense = dense
        for layer in self.bottom_mlp:
            dense = layer(dense).relu()
        vectors = [dense] + [table(ids[:, field]) for field, table in enumerate(self.tables)]
        products = [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i + 1 - self.first)]
        hidden_units = torch.cat([dense, torch.stack(products, 1)], 1)
        for layer in self.top_mlp[:-1]:
            hidden_units = layer(hidden_units).relu()
        return self.top_mlp[-1](hidden_units)[:, 0]


@pytest.mark.parametrize("self_interaction", [False, True])
def test_interaction_equals_a_double_loop(self_interaction):
    model, vectors = make_model(self_interaction=self_interaction), torch.randn(5, len(SIZES) + 1, DIM).double()
    products = model.dot_products(vectors)
    assert products.shape == (5, 378 if self_interaction else 351)
    for row in range(5):
        expected = [
            sum(float(vectors[row, i, d] * vectors[row, j, d]) for d in range(DIM))
            for i in range(len(SIZES) + 1)
            for j in range(i + 1 if self_interaction else i)
        ]
        torch.testing.assert_close(products[row], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("top_mlp_units", [[12, 6], []])
def test_output_and_a_step_equal_the_plain_model(self_interaction, top_mlp_units):
    model = make_model(
        optimizer="sgd", learning_rate=0.5, self_interaction=self_interaction, top_mlp_units=top_mlp_units
    ).double()
    plain = PlainDLRM(model)
    dense, ids, click = (part.double() if part.is_floating_point() else part for part in make_batch(64))
    before = model(dense, ids)
    torch.testing.assert_close(before, plain(dense, ids), rtol=0, atol=1e-12)

    optimizer = model.configure_optimizers()["optimizer"]
    model.training_step([dense, ids, click], 0).backward()
    optimizer.step()
    functional.binary_cross_entropy(plain(dense, ids).sigmoid(), click).backward()
    torch.optim.SGD(plain.parameters(), 0.5).step()
    assert (model(dense, ids) - before).abs().max() > 1e-3
    torch.testing.assert_close(model(dense, ids), plain(dense, ids), rtol=0, atol=1e-12)
    tables = torch.cat([table.weight for table in plain.tables])
    torch.testing.assert_close(model.embedding.weight, tables, rtol=0, atol=1e-12)


def test_initial_values_are_the_reference_codes():
    model = make_model(cardinalities=[10_000, 100], bottom_mlp_units=[400], embedding_dim=300, top_mlp_units=[500])
    layer = model.top_mlp[0]
    assert layer.in_features == 300 + 3
    assert layer.weight.std().item() == pytest.approx(sqrt(2 / (303 + 500)), rel=0.02)
    assert layer.bias.std().item() == pytest.approx(sqrt(1 / 500), rel=0.15)
    for size, table in zip([10_000, 100], model.embedding.weight.split([10_000, 100]), strict=True):
        assert table.abs().max().item() == pytest.approx(sqrt(1 / size), rel=0.01)
        assert table.abs().max() <= sqrt(1 / size)
        assert table.std().item() == pytest.approx(sqrt(1 / size / 3), rel=0.02)


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_as_every_model(optimizer):
    rate = {"adam": 0.02, "adagrad": 0.1}[optimizer]
    check_rows_do_not_mix(make_model(), make_batch(4))
    check_batch_of_one(make_model(), make_batch(3))
    check_learns_one_batch(make_model(optimizer=optimizer, learning_rate=rate), make_batch(32))
    check_reload(make_model(), make_batch(4))


def test_without_dense_columns():
    model = make_model(num_dense=0)
    _, ids, _ = make_batch(5)
    vectors = torch.stack([t[ids[:, f]] for f, t in enumerate(model.embedding.weight.split(SIZES))], 1)
    products = [(vectors[:, i] * vectors[:, j]).sum(1) for i in range(len(SIZES)) for j in range(i)]
    expected = model.output(model.top_mlp(torch.stack(products, 1))).squeeze(1)
    torch.testing.assert_close(model(torch.empty(5, 0), ids), expected, rtol=0, atol=1e-6)
    batch = [torch.empty(32, 0), *make_batch(32)[1:]]
    check_learns_one_batch(make_model(num_dense=0), batch)


def test_a_trial_sees_no_test_rows(tmp_path, outputs, monkeypatch):
    (tmp_path / "criteo").symlink_to(criteo_sample(CRITEO, 2000))
    monkeypatch.setattr(ClickDataModule, "test_dataloader", lambda self: pytest.fail("a trial read the test split"))
    folder = tmp_path / "trial"
    small = {"bottom_mlp_units": (8,), "top_mlp_units": (8,), "embedding_dim": 4, "data_root": str(tmp_path)}
    results = train(run_folder=str(folder), test=False, **small)
    assert json.loads((folder / "results.json").read_text())["validation"] == results["validation"]
    assert "test" not in results and not list(folder.glob("*.png")) and not (outputs / "runs").exists()


def test_whole_run(tmp_path, outputs):
    (tmp_path / "criteo").symlink_to(criteo_sample(CRITEO, 2000))
    results = train(data_root=str(tmp_path), bottom_mlp_units=(8,), top_mlp_units=(8,), embedding_dim=4)
    run = outputs / "runs" / "dlrm" / "version_0"
    assert Path(results.pop("checkpoint")) == run / "checkpoints" / "best.ckpt"
    assert Path(results.pop("run_folder")) == run
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["model"] == "DLRM" and set(results["baselines"]) == {"logistic regression", "constant"}
    assert {path.name for path in run.glob("*.png")} == {"learning_curves.png", "roc.png", "reliability.png"}
