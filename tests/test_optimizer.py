"""LazyAdam and DenseAdam against torch.optim.Adam, and LazyAdam against a loop over rows."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.model.embedding import PackedEmbedding
from common.model.optimizer import DenseAdam, LazyAdam, build_optimizer

ROWS, DIM, STEPS = 6, 3, 20
LINEAR = {"schedule": "linear", "warmup_steps": 0}


def sparse(rows: list[int], values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, DIM), check_invariants=True)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("optimizer", "always"), [(LazyAdam, range(ROWS)), (DenseAdam, ())])
def test_equals_adam(optimizer, always, weight_decay):
    """LazyAdam if every row is touched, DenseAdam whichever are."""
    start = torch.randn(ROWS, DIM)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    settings = {"lr": 0.03, "weight_decay": weight_decay, "fused": True}
    optimizers = optimizer([ours], **settings), torch.optim.Adam([theirs], **settings)
    for _ in range(STEPS):
        rows = torch.tensor([*always, *torch.randint(ROWS, (4,)).tolist()])  # with repetitions
        grad = torch.randn(len(rows), DIM) * 1e-6  # as small as eps matters
        ours.grad, theirs.grad = sparse(rows.tolist(), grad), torch.zeros(ROWS, DIM).index_add(0, rows, grad)
        for each in optimizers:
            each.step()
            each.zero_grad()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_equals_a_loop_over_the_touched_rows():
    """Adam's step (Kingma & Ba 2015, algorithm 1) written out; other rows and their moments do not change."""
    lr, beta1, beta2, eps, l2 = 0.05, 0.9, 0.999, 1e-8, 0.01
    table = torch.randn(ROWS, DIM, dtype=torch.float64).requires_grad_()
    value = [row.clone() for row in table.detach()]
    first = [torch.zeros(DIM, dtype=torch.float64) for _ in range(ROWS)]
    second = [torch.zeros(DIM, dtype=torch.float64) for _ in range(ROWS)]
    optimizer = LazyAdam([table], lr=lr, weight_decay=l2, fused=True)
    for t in range(1, STEPS + 1):
        rows = torch.randint(ROWS, (4,)).tolist()  # with repetitions, whose gradients add up
        grad = torch.randn(4, DIM, dtype=torch.float64)
        table.grad = sparse(rows, grad)
        optimizer.step()
        for row in set(rows):
            g = sum(grad[i] for i in range(4) if rows[i] == row) + l2 * value[row]
            first[row] = beta1 * first[row] + (1 - beta1) * g
            second[row] = beta2 * second[row] + (1 - beta2) * g**2
            m, v = first[row] / (1 - beta1**t), second[row] / (1 - beta2**t)
            value[row] = value[row] - lr * m / (v.sqrt() + eps)
    state = optimizer.state[table]
    for ours, loop in ((table, value), (state["exp_avg"], first), (state["exp_avg_sq"], second)):
        torch.testing.assert_close(ours.detach(), torch.stack(loop), rtol=0, atol=1e-12)


def test_dense_parameters_take_adams_step_beside_a_sparse_one():
    start = torch.randn(4)
    ours, theirs, table = start.clone().requires_grad_(), start.clone().requires_grad_(), torch.zeros(ROWS, DIM)
    table.requires_grad_()
    optimizers = LazyAdam([ours, table], fused=True), torch.optim.Adam([theirs], fused=True)
    for _ in range(STEPS):
        ours.grad = torch.randn(4)
        theirs.grad = ours.grad.clone()
        table.grad = sparse([1], torch.ones(1, DIM))
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert table[1].abs().min() > 0 and table[0].abs().max() == 0


def test_a_reloaded_state_goes_on_exactly():
    def steps(optimizer, table, count):
        generator = torch.Generator().manual_seed(int(optimizer.state[table]["step"]) if optimizer.state[table] else 0)
        for _ in range(count):
            table.grad = sparse([0, 2], torch.randn(2, DIM, generator=generator))
            optimizer.step()

    once = torch.ones(ROWS, DIM).requires_grad_()
    optimizer = LazyAdam([once], fused=True)
    steps(optimizer, once, 5)
    again = once.detach().clone().requires_grad_()
    restored = LazyAdam([again], fused=True)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    steps(optimizer, once, 5)
    steps(restored, again, 5)
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "dense_adam"])
def test_l2_reaches_the_tables_alone_and_only_with_an_adam(optimizer):
    model = torch.nn.ModuleDict({"table": PackedEmbedding([3], 2), "dense": torch.nn.Linear(2, 1)})
    settings = {"learning_rate": 1e-3, "embedding_learning_rate": None, "embedding_l2": 0.5} | LINEAR
    built = build_optimizer(model, 10, optimizer=optimizer, **settings)
    decay = {id(p): g["weight_decay"] for g in built["optimizer"].param_groups for p in g["params"]}
    assert decay == {id(p): 0.5 * (p is model["table"].weight) for p in model.parameters()}
    with pytest.raises(UserError, match=r"embedding_l2 is 0\.5; with 'sgd' it must be 0"):
        build_optimizer(model, 10, optimizer="sgd", **settings)


def rates(schedule: str, warmup_steps: int, total_steps: int, optimizer: str = "sgd") -> list[list[float]]:
    """The rates of each step, of a dense layer and of a table, for base rates of 0.1 and 0.4."""
    model = torch.nn.ModuleDict({"table": PackedEmbedding([3], 2), "dense": torch.nn.Linear(2, 1)})
    settings = {"optimizer": optimizer, "learning_rate": 0.1, "embedding_learning_rate": 0.4, "embedding_l2": 0.0}
    built = build_optimizer(model, total_steps, **settings, schedule=schedule, warmup_steps=warmup_steps)
    found = []
    for _ in range(total_steps + 1):
        found.append([group["lr"] for group in built["optimizer"].param_groups])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    return found


@pytest.mark.parametrize("optimizer", ["adam", "dense_adam", "adagrad", "sgd"])
def test_linear_schedule_ends_at_zero_for_each_group(optimizer):
    assert rates("linear", 0, 4, optimizer) == [[0.1 * left, 0.4 * left] for left in (1, 0.75, 0.5, 0.25, 0)]


def test_cosine_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    peer = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, 9)
    for rate, _ in rates("cosine", 0, 9):
        assert rate == pytest.approx(peer.param_groups[0]["lr"], abs=1e-12)
        peer.step()
        schedule.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "plateau"])
def test_warm_up_grows_linearly_and_then_the_schedule_begins(schedule):
    found, warm = np.array(rates(schedule, 3, 8)), [[0.025, 0.1], [0.05, 0.2], [0.075, 0.3]]
    assert found == pytest.approx(np.array([*warm, *rates(schedule, 0, 5)]))
    with pytest.raises(UserError, match="warmup_steps is 8; the whole run has 8 steps"):
        rates(schedule, 8, 8)
