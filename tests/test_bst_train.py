"""bst/train.py from raw files to results.json, and the sample's planted order."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bst.baselines import factorize, predict, rating_baselines
from bst.bst import BST
from bst.train import DATA, train
from common.checkpoint import load_checkpoint
from common.data.raw_files import Published
from common.errors import UserError
from common.model.metrics import rating_metrics
from common.paths import REPO
from data.movie_rating_seq import PUBLISHED, HistoryDataModule
from data.samples.movies import movie_sample
from tests.movie_rows import make_ratings, write_1m, write_csv
from tests.script_process import run_process

SMALL = {
    "embedding_dim": 8,
    "num_heads": 2,
    "num_factors": 4,
    "hidden_units": (8,),
    "batch_size": 64,
    "max_epochs": 1,
    "history_length": 5,
}


def test_planted_order_is_found_and_lost_when_shuffled(tmp_path, outputs, monkeypatch):
    sample = Published("a command", partial(movie_sample, 1000))
    monkeypatch.setitem(PUBLISHED, "ml-1m", sample)
    monkeypatch.setattr("bst.baselines.PENALTIES", (0.07,))
    results = train(data_root=str(tmp_path), history_length=8, batch_size=256, max_epochs=2)
    test, baselines = results["test"]["rmse"], {name: m["rmse"] for name, m in results["baselines"].items()}
    bias, best = baselines["user + item bias (train)"], results["best_possible"]["rmse"]
    assert results["is_sample"] and best < test < bias - 0.75 * (bias - best)
    assert baselines["BST without its sequence"] > bias - 0.2 * (bias - best)

    data = HistoryDataModule(**DATA | {"data_root": str(tmp_path), "history_length": 8}, seed=0)
    data.setup()
    content = load_checkpoint(next(outputs.glob("runs/bst/version_0/checkpoints/best.ckpt")))
    model = BST(**content["hyper_parameters"])
    model.load_state_dict(content["state_dict"])
    *inputs, target = data.examples()[torch.from_numpy(np.array(data.rows["test"]))]
    with torch.no_grad():
        again = rating_metrics(model.eval().predict(model(*inputs)), target)["rmse"]
        order = torch.rand(inputs[1].shape).argsort(1)
        inputs[1:4] = [part.gather(1, order) for part in inputs[1:4]]
        shuffled = rating_metrics(model.predict(model(*inputs)), target)["rmse"]
    assert again == pytest.approx(test, abs=1e-5)
    assert shuffled > bias - 0.1 * (bias - best)


@pytest.mark.parametrize("write", [write_1m, write_csv])
@pytest.mark.parametrize("target", ["rating", "click", "item"])
def test_whole_run(tmp_path, rng, outputs, write, target):
    write(tmp_path / "mine", make_ratings(rng, users=30))
    results = train(dataset="mine", data_root=str(tmp_path), target=target, **SMALL)
    run = outputs / "runs" / "bst" / "version_0"
    assert Path(results.pop("run_folder")) == run and Path(results.pop("checkpoint")).exists()
    assert json.loads((run / "results.json").read_text()) == json.loads(json.dumps(results))
    names = {
        "rating": {"rmse", "mae"},
        "click": {"auc", "log_loss", "normalized_entropy", "calibration"},
        "item": {"hr", "ndcg", "mrr", "recall_50", "coverage"},
    }[target]
    assert set(results["test"]) == set(results["validation"]) == names
    assert set(results["baselines"]["BST without its sequence"]) == names
    assert len(results["baselines"]) == (4 if target == "item" else 7) and not results["is_sample"]
    assert {path.name for path in run.glob("*.png")} == {"attention.png", "history_length.png", "learning_curves.png"}
    whole, without = (json.loads((folder / "settings.json").read_text()) for folder in (run, run / "without_sequence"))
    assert {name for name in whole if whole[name] != without[name]} == {"use_sequence"}
    state = load_checkpoint(run / "checkpoints" / "best.ckpt")
    assert state["HistoryDataModule"]["encoder"]["items"]


def test_heads_that_do_not_fit_are_refused(tmp_path, rng):
    write_1m(tmp_path / "mine", make_ratings(rng, users=30))
    with pytest.raises(UserError, match="num_heads is 3; it must divide embedding_dim, which is 8"):
        train(dataset="mine", data_root=str(tmp_path), **(SMALL | {"num_heads": 3}))


def test_factorization_reaches_its_minimum(rng):
    """The ridge regressions of the last sweep have zero gradients, and a planted factorization is found."""
    user, movie = rng.integers(80, size=4000), rng.integers(60, size=4000)
    planted = rng.normal(size=(80, 2)), rng.normal(size=(60, 2))
    rating = 3 + (planted[0][user] * planted[1][movie]).sum(1) + rng.normal(0, 0.1, 4000)
    users, movies = factorize(user, movie, rating, np.zeros(80), np.zeros(60), 0.07)
    error = rating - rating.mean() - predict(users, movies, user, movie)
    assert error.std() < 0.4 * rating.std()
    for m in range(3):
        rows = movie == m
        gradient = -(error[rows, None] * users[user[rows], :-1]).sum(0) + 0.07 * (rows.sum() + 5) * movies[m, :-1]
        np.testing.assert_allclose(gradient, 0, atol=2e-3)


@pytest.mark.real_data("ml-1m")
def test_factorization_is_no_straw_man(monkeypatch):
    """Surprise's tuned SVD has a test RMSE of 0.9155."""
    monkeypatch.setattr("bst.baselines.PENALTIES", (0.07,))  # what validation chooses
    data = HistoryDataModule(**DATA, seed=0)
    data.setup()
    target = data.targets("test")
    results = {name: rating_metrics(found, target)["rmse"] for name, found in rating_baselines(data).items()}
    assert results["mean (train)"] == pytest.approx(1.1760, abs=1e-3)
    assert results["user + item bias (train)"] == pytest.approx(0.9664, abs=2e-3)
    assert results["matrix factorization (train)"] < 0.9155 + 0.003


def test_runs_from_another_folder(tmp_path, rng, monkeypatch):
    write_1m(tmp_path / "mine", make_ratings(rng, users=30))
    arguments = f"dataset='mine', data_root={str(tmp_path)!r}, **{SMALL!r}"
    script = tmp_path / "mine.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(REPO)!r}); from bst.train import train; train({arguments})")
    done = run_process(script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "BST without its sequence" in done.stdout and done.stdout.count("Test metrics") == 1
    write_1m(tmp_path / "ml-1m", make_ratings(rng, users=30))
    done = run_process("data/movie_rating_seq.py", folder=tmp_path, DATA_ROOT=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "by 30 users, who gave 1 to" in done.stdout
