"""MMoE and the models it generalises against loops over samples, tasks and experts."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch.utils.data import TensorDataset

from common.errors import UserError
from common.model.metrics import auc_difference
from multitask.expert_usage import expert_usage, plot_gates
from multitask.mmoe import MMoE, PiecewiseLinear
from tests.checks import build, check_batch_of_one, check_learns_one_batch, check_reload, check_rows_do_not_mix

EDGES, SIZES, TASKS = [[0.0, 1.0, 3.0], [-1.0, 1.0]], [4, 6, 5], ["a", "b", "c"]
BINS, DIM = 3, 4


def make_model(variant: str = "mmoe", tasks: list[str] = TASKS, **changes) -> MMoE:
    settings = {"variant": variant, "bin_edges": EDGES, "cardinalities": SIZES, "tasks": tasks, "num_experts": 3}
    settings |= {"task_weights": [1.0] * len(tasks), "expert_units": [8, 5], "tower_units": [6], "embedding_dim": DIM}
    settings["dropout"] = 0.0
    model = build(MMoE, settings, changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def make_batch(rows: int, tasks: int = len(TASKS)) -> list[torch.Tensor]:
    ids = torch.stack([torch.randint(size, (rows,)) for size in SIZES], 1).int()
    return [torch.randn(rows, len(EDGES)), ids, torch.randint(2, (rows, tasks)).float()]


def layers_of(mlp: torch.nn.Sequential, which: int, x: torch.Tensor) -> torch.Tensor:
    """The `which`-th of parallel MLPs on one row (in,)."""
    for layer in mlp:
        x = x @ layer.weight[which] + layer.bias[which, 0] if hasattr(layer, "weight") else layer(x)
    return x


@pytest.mark.parametrize("variant", ["mmoe", "omoe", "shared_bottom"])
@pytest.mark.parametrize("expert_units", [[8, 5], [5]])
def test_equals_a_loop_over_samples_tasks_and_experts(variant, expert_units):
    model = make_model(variant, expert_units=expert_units).double()
    dense, ids, _ = make_batch(6)
    logits = model(dense.double(), ids)
    tables = model.embedding.weight.split(SIZES)
    for row in range(6):
        bins = [  # piecewise linear encoding
            min(max((dense[row, column].double() - left) / (right - left), 0.0), 1.0)
            for column, edges in enumerate(EDGES)
            for left, right in pairwise(edges)
        ]
        x = torch.cat([torch.tensor(bins).double(), *(table[i] for table, i in zip(tables, ids[row], strict=True))])
        for k in range(len(TASKS)):
            if variant == "shared_bottom":
                mixed = layers_of(model.experts, 0, x)  # eq. 1
            else:
                gate = k if variant == "mmoe" else 0
                scores = [x @ model.gates.weight[gate, :, i] + model.gates.bias[gate, 0, i] for i in range(3)]
                total = sum(score.exp() for score in scores)
                mixed = sum(scores[i].exp() / total * layers_of(model.experts, i, x) for i in range(3))  # eq. 7 and 8
            expected = layers_of(model.towers, k, mixed) @ model.outputs.weight[k] + model.outputs.bias[k, 0]
            torch.testing.assert_close(logits[row, k : k + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", ["mmoe", "omoe", "shared_bottom", "single_task"])
def test_what_every_model_must_pass(variant):
    tasks = TASKS[:1] if variant == "single_task" else TASKS
    batch = make_batch(8, len(tasks))
    model = make_model(variant, tasks)
    check_rows_do_not_mix(model, batch)
    check_batch_of_one(model, batch)
    check_reload(model, batch)
    check_learns_one_batch(model, make_batch(16, len(tasks)))


def test_each_task_has_its_weight_in_the_loss():
    logits, target = torch.randn(7, 3), make_batch(7)[-1]
    alone = [make_model(task_weights=[float(i == k) for i in range(3)]).loss(logits, target) for k in range(3)]
    both = make_model(task_weights=[2.0, 0.0, 0.5]).loss(logits, target)
    torch.testing.assert_close(both, 2 * alone[0] + 0.5 * alone[2])
    assert len({round(loss.item(), 6) for loss in alone}) == 3


def test_piecewise_linear_bins():
    dense = torch.tensor([[2.0, 0.0], [-5.0, 9.0], [float("nan"), 1.0]])
    expected = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(PiecewiseLinear(EDGES)(dense), expected)


def test_expert_use_is_the_mean_over_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("multitask.expert_usage.BATCH_SIZE", 5)
    model, (dense, ids, label) = make_model(), make_batch(8)
    dataset = TensorDataset(dense, ids, label)
    data = SimpleNamespace(rows={"test": range(8)}, examples=lambda: dataset, is_sample=False, dataset="made-up")
    weights = expert_usage(model, data, "test")
    x = model.inputs(dense, ids)
    torch.testing.assert_close(weights, model.gate_weights(x).mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    plot_gates(model, data, {}, label, tmp_path)
    assert (tmp_path / "gates.png").stat().st_size > 1000


def test_loss_weight_makes_the_losses_of_training_and_validation_equal():
    model, logits, target = make_model(task_weights=[2.0] * 3), torch.randn(6, 3), torch.randint(2, (6, 3)).float()
    validation = model.metrics.measure(model.predict(logits), target)["log_loss"]
    assert model.loss(logits, target).item() == pytest.approx(model.loss_weight * validation, rel=1e-5)
    assert make_model(task_weights=[1.0, 2.0, 1.0]).loss_weight is None


@pytest.mark.parametrize(
    "changes, words", [({"variant": "single_task"}, "takes one task"), ({"task_weights": [1.0]}, "task_weights is")]
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        make_model(**changes)


def test_a_label_that_is_not_known_is_left_out():
    """Of its task's loss, by hand, and of its gradient; of metrics and intervals, as on the known rows alone."""
    model = make_model(task_weights=[1.0, 0.5, 2.0])
    logits, label, weight = torch.randn(6, 3, requires_grad=True), torch.randint(2, (6, 3)).float(), torch.rand(6)
    label[[0, 3, 4], 1], label[:, 2], label[0, 0] = math.nan, math.nan, math.nan
    expected = 0.0
    for k, task_weight in enumerate([1.0, 0.5]):
        rows = [row for row in range(6) if not math.isnan(label[row, k])]
        probabilities = [1 / (1 + math.exp(-logits[row, k].item())) for row in rows]
        losses = [-math.log(p if label[row, k] == 1 else 1 - p) for row, p in zip(rows, probabilities, strict=True)]
        expected += task_weight * sum(weight[row].item() * x for row, x in zip(rows, losses, strict=True)) / len(rows)
    loss = model.loss(logits, label, weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert ((logits.grad == 0) == label.isnan()).all()

    label, (one, other) = torch.randint(2, (50, 3)).float(), torch.rand(2, 50, 3)
    label[:20, 1] = math.nan
    found, metrics = model.metrics.compare(one, other, label), model.metrics.measure(one, label)
    assert metrics["auc_mean"] == pytest.approx(sum(metrics[f"auc_{task}"] for task in TASKS) / 3)
    one_class = model.metrics.measure(one, label.clone().index_fill_(1, torch.tensor(2), 1.0))
    assert math.isnan(one_class["auc_c"]) and one_class["auc_mean"] == (metrics["auc_a"] + metrics["auc_b"]) / 2
    for k, task in enumerate(TASKS):
        rows = slice(20 * (k == 1), 50)
        assert metrics[f"auc_{task}"] == pytest.approx(roc_auc_score(label[rows, k], one[rows, k]), abs=1e-6)
        assert found[f"auc_{task}"] == auc_difference(one[rows, k], other[rows, k], label[rows, k])
    losses = [log_loss(label[20 * (k == 1) :, k], one[20 * (k == 1) :, k].double()) for k in range(3)]
    assert metrics["log_loss"] == pytest.approx(sum(losses) / 3)
