"""Logistic regression inside DeepFM: the weights of scikit-learn's, kept through training and in the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from common.model.fixed_regression import FixedRegression
from common.training.predictions import saved_predictions
from data.criteo_data import ClickDataModule
from deepfm.deepfm import DeepFM
from deepfm.train import DATA, MODEL, train
from inspect_model import embeddings, vectors_of
from models import load
from tests.checks import OPTIMIZER, check_learns_one_batch, check_reload, check_rows_do_not_mix
from tests.criteo_rows import make_lines, write_lines

SMALL = {"embedding_dim": 2, "hidden_units": (4,), "max_epochs": 1, "precision": "32-true", "on_regression": True}
UNTRAINED = {"learning_rate": 1e-12, "embedding_learning_rate": 1e-12}
SIZES, WIDTHS, POOLING = [4, 7, 9], [1, 3, 3], [None, "mean", "sum"]


def columns_in_loops(dense: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """What scikit-learn is given: the share or number of each value in its cell, then the dense columns."""
    rows = []
    for row, numbers in zip(ids, dense, strict=True):
        parts = []
        for size, cell, how in zip(SIZES, row.split(WIDTHS), POOLING, strict=True):
            values = [value for value in cell.tolist() if value >= 0]
            counts = np.array([values.count(value) for value in range(size)], float)
            parts.append(counts / len(values) if how == "mean" else counts)
        rows.append(np.concatenate([*parts, numbers]))
    return np.stack(rows)


def test_logits_are_those_of_scikit_learn():
    columns = [torch.randint(size, (60, width)) for size, width in zip(SIZES, WIDTHS, strict=True)]
    padding = torch.rand(60, 7) < torch.tensor([0, 0, 0.5, 0.8, 0, 0.5, 0.8])
    dense, ids, label = torch.randn(60, 2), torch.cat(columns, 1).masked_fill(padding, -1).int(), np.arange(60) % 2
    x = columns_in_loops(dense, ids)
    truth = LogisticRegression(C=3.0).fit(x, label)
    regression = FixedRegression(2, SIZES, POOLING)
    assert not regression(dense, ids).any()
    regression.set(truth.coef_[0], truth.intercept_.item())
    expected = torch.from_numpy(truth.decision_function(x)).float()
    torch.testing.assert_close(regression(dense, ids), expected, rtol=0, atol=1e-5)


def test_as_every_model():
    model = DeepFM(2, [4, 7], **MODEL | {"dropout": 0.0, "on_regression": True}, optimizer=OPTIMIZER)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = [torch.randn(8, 2), torch.randint(4, (8, 2)).int(), torch.randint(2, (8,)).float()]
    kept = [parameter.clone() for parameter in model.regression.parameters()]
    check_rows_do_not_mix(model.eval(), batch)
    check_reload(model, batch)
    check_learns_one_batch(model, batch)
    assert all(map(torch.equal, kept, model.regression.parameters()))
    assert model._ddp_params_and_buffers_to_ignore == ["embedding.weight"]  # DDP averages no gradient that is none


@pytest.mark.parametrize("negative_rate", [1.0, 0.5])
def test_training_starts_at_the_baseline(tmp_path, rng, undrawn, negative_rate):
    lines = [f"{int(i % 5 == 0)}{line[1:]}" for i, line in enumerate(make_lines(rng, 700, distinct=4))]
    write_lines(tmp_path / "criteo" / "train.txt", lines)
    same = SMALL | {"data_root": str(tmp_path), "batch_size": 50, "negative_rate": negative_rate}
    results = train(**same, **UNTRAINED)
    before, _ = load(results["checkpoint"])
    data = ClickDataModule(**DATA | {name: same[name] for name in DATA if name in same}, seed=1)
    data.setup()
    dense, ids, _ = map(torch.from_numpy, data.read(data.rows["test"]))
    baseline = saved_predictions(Path(results["run_folder"]))["logistic regression"].logit()
    found = before.bias + before.regression(dense, ids)
    torch.testing.assert_close(found.double(), baseline.double(), rtol=0, atol=1e-4)
    after, preprocessor = load(train(**same, embedding_learning_rate=0.1, embedding_l2=0.0)["checkpoint"])
    assert after.regression.table.weight.any()
    for name, weight in before.regression.state_dict().items():
        assert torch.equal(weight, after.regression.state_dict()[name])
    assert not torch.equal(before.embedding.weight, after.embedding.weight)
    field = preprocessor.encoder.fields[1]
    row = after.embedding.offsets[1] + 2  # of the first value
    first_order = after.embedding.weight[row, -1] + after.regression.table.weight[row, 0]
    assert vectors_of(embeddings(after, preprocessor, field.name, None))[0, -1] == pytest.approx(first_order.item())
