"""Numbers that are not finite stop a run before they reach a checkpoint; the same seed gives the same numbers."""

import pytest
import torch

from bst.train import train as train_bst
from common.checkpoint import load_checkpoint
from common.errors import UserError
from deepfm.deepfm import DeepFM
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from tests.criteo_rows import make_lines, write_lines
from tests.movie_rows import make_ratings, write_1m
from tests.test_predict import SMALL_BST

pytestmark = pytest.mark.usefixtures("undrawn")

COMMON = {"precision": "32-true", "max_epochs": 1}
CLICKS = {"batch_size": 60, "embedding_dim": 4, "validations_per_epoch": 2}  # 10 steps per epoch, validated after 5
TRAINERS = {
    "deepfm": (train_deepfm, CLICKS | {"hidden_units": (8,)}),
    "dlrm": (train_dlrm, CLICKS | {"bottom_mlp_units": (8,), "top_mlp_units": (8,), "dropout": 0.2}),
    "bst": (train_bst, SMALL_BST),
}


@pytest.fixture
def root(tmp_path, rng):
    """DATA_ROOT with a few raw rows of each kind."""
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 700))
    write_1m(tmp_path / "ml-1m", make_ratings(rng, users=30))
    return str(tmp_path)


def run(name: str, root: str, **settings) -> dict:
    train, small = TRAINERS[name]
    return train(data_root=root, **(COMMON | small | settings))


def kept(outputs) -> dict:
    return load_checkpoint(outputs / "runs" / "deepfm" / "version_0" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("step", [3, 10])
def test_a_gradient_that_is_not_finite_stops_before_its_step(root, outputs, monkeypatch, step):
    """Gradients of table rows, with a finite loss; step 10 is followed by a validation and its checkpoints."""
    original = DeepFM.training_step

    def training_step(self, batch, batch_index):
        # 0 * d/dx sqrt(x) at x = 0 is nan
        bad = (0 * self.embedding(batch[1])).sqrt().sum() if self.global_step == step - 1 else 0
        return original(self, batch, batch_index) + bad

    monkeypatch.setattr(DeepFM, "training_step", training_step)
    message = rf"the loss is 0\.\d+ and the sum of its gradients nan in epoch 0, step {step};"
    with pytest.raises(UserError, match=message):
        run("deepfm", root)
    if step > 5:
        assert kept(outputs)["global_step"] == 5
        assert all(weight.isfinite().all() for weight in kept(outputs)["state_dict"].values())


def test_weights_that_are_not_finite_are_not_saved(root, outputs, monkeypatch):
    def poison(self, *_):
        if self.global_step == 10:
            self.embedding.weight.data[7] = float("inf")

    monkeypatch.setattr(DeepFM, "on_train_batch_end", poison)
    with pytest.raises(UserError, match="predictions for the val rows are not finite after step 10"):
        run("deepfm", root)
    assert kept(outputs)["global_step"] == 5


@pytest.mark.parametrize("name", ["dlrm", "bst"])  # a loader of tables and one of histories
def test_same_seed_same_numbers(root, name):
    """To the last digit, whatever the loader workers."""
    first, again = run(name, root), run(name, root, num_workers=2)
    for key in ("validation", "test", "baselines"):
        assert first[key] == again[key]
    assert torch.tensor(list(first["test"].values())).isfinite().all()
