"""Checks that every model must pass. A batch is a list of tensors with the target last."""

import tempfile
from pathlib import Path

import torch

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.model.recommender import Recommender

OPTIMIZER = {"optimizer": "adam", "learning_rate": 0.02, "embedding_learning_rate": None, "embedding_l2": 0.0}
OPTIMIZER |= {"schedule": "plateau", "warmup_steps": 0}


def build(model_class: type[Recommender], settings: dict, changes: dict) -> Recommender:
    """A model from its arguments; `changes` may include settings of OPTIMIZER."""
    optimizer = OPTIMIZER | {name: value for name, value in changes.items() if name in OPTIMIZER}
    others = {name: value for name, value in changes.items() if name not in OPTIMIZER}
    return model_class(**settings | others, optimizer=optimizer)


def check_rows_do_not_mix(model: Recommender, batch: list[torch.Tensor]) -> None:
    """Replacing all rows except the first does not change the first row's output."""
    *inputs, _ = batch
    changed = [torch.cat([part[:1], part[1:].flip(0).roll(1, 0)]) for part in inputs]
    before, after = model(*inputs), model(*changed)
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=1e-6)
    assert not torch.allclose(before[1:], after[1:])


def check_batch_of_one(model: Recommender, batch: list[torch.Tensor]) -> None:
    *inputs, _ = batch
    torch.testing.assert_close(model(*(part[:1] for part in inputs)), model(*inputs)[:1], rtol=0, atol=1e-5)


def check_learns_one_batch(model: Recommender, batch: list[torch.Tensor], steps: int = 200) -> None:
    """The loss on one batch falls to a fifth: gradients reach all parameters that matter."""
    model.train()
    optimizer = model.configure_optimizers()["optimizer"]
    first = None
    for _ in range(steps):
        loss = model.training_step(batch, 0)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 5, (first, loss.item())


def check_reload(model: Recommender, batch: list[torch.Tensor]) -> None:
    """A model built from a checkpoint's hyperparameters and weights gives the same outputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ckpt"
        content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        MappedCheckpointIO().save_checkpoint(content, path)
        content = load_checkpoint(path)
        again = type(model)(**content["hyper_parameters"])
        again.load_state_dict(content["state_dict"])
        torch.testing.assert_close(again.eval()(*batch[:-1]), model.eval()(*batch[:-1]), rtol=0, atol=0)
