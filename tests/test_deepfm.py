"""DeepFM against double loops over its equations."""

from itertools import combinations

import pytest
import torch

from deepfm.deepfm import DeepFM
from tests import checks
from tests.checks import OPTIMIZER, build

NUMBERS, SIZES, DIM = 3, [4, 6, 5], 4


def make_model(**changes) -> DeepFM:
    settings = {"num_dense": NUMBERS, "cardinalities": SIZES, "embedding_dim": DIM, "hidden_units": [16, 8]}
    settings |= {"dropout": 0.0, "batch_norm": False, "on_regression": False}
    model = build(DeepFM, settings, changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def make_batch(rows: int) -> list[torch.Tensor]:
    ids = torch.stack([torch.randint(size, (rows,)) for size in SIZES], 1).int()
    return [torch.randn(rows, NUMBERS), ids, torch.randint(2, (rows,)).float()]


@pytest.mark.parametrize("hidden_units", [[16, 8], []])
def test_logit_equals_the_equations_in_loops(hidden_units):
    model = make_model(hidden_units=hidden_units).double()
    dense, ids, _ = make_batch(6)
    dense = dense.double()
    tables = model.embedding.weight.split(SIZES)
    for row in range(6):
        x = [(float(dense[row, i]), model.dense_embedding[i]) for i in range(NUMBERS)]  # (value, its row of w and V)
        x += [(1.0, tables[f][ids[row, f]]) for f in range(len(SIZES))]
        first_order = sum(value * weights[-1] for value, weights in x)
        pairs = sum((a[:-1] @ b[:-1]) * x_a * x_b for (x_a, a), (x_b, b) in combinations(x, 2))
        deep = torch.cat([value * weights[:-1] for value, weights in x])
        for layer in model.deep:
            deep = layer(deep)
        expected = model.bias + first_order + pairs + model.deep_output(deep)[0]
        torch.testing.assert_close(model(dense, ids)[row], expected, rtol=0, atol=1e-6)


def test_as_every_model():
    checks.check_rows_do_not_mix(make_model(), make_batch(4))
    checks.check_batch_of_one(make_model(), make_batch(3))
    checks.check_learns_one_batch(make_model(), make_batch(32))
    checks.check_reload(make_model(), make_batch(4))


def test_starts_near_the_loss_of_a_coin():
    settings = {"num_dense": 13, "cardinalities": [1000] * 26, "embedding_dim": 16, "hidden_units": [400]}
    model = DeepFM(**settings, dropout=0.0, batch_norm=False, on_regression=False, optimizer=OPTIMIZER)
    dense, ids = torch.randn(256, 13), torch.randint(1000, (256, 26)).int()
    assert model.loss(model(dense, ids), torch.randint(2, (256,)).float()) < 0.75


def test_dropout_and_batch_norm_reach_the_deep_part():
    kinds = [type(layer).__name__ for layer in make_model(dropout=0.3, batch_norm=True).deep]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2
