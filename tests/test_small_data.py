"""What a run on few rows prints, and where its output starts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.data_module import RecommendationDataModule
from common.errors import UserError
from common.training.results import better_baselines, likely_cause, print_steps
from data.criteo_data import ClickDataModule
from deepfm.train import DATA as CLICK_DATA
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from multitask.train import train as train_mmoe
from predict import predict

pytestmark = pytest.mark.usefixtures("undrawn")

USER, SHOP = 'user, "id"', "shop (name)"
COLUMNS = {
    "clicked?": {"role": "label", "positive": ["yes"], "negative": ["no"], "task": "click"},
    "bought": {"role": "label", "positive": ["1"], "negative": ["0"]},
    USER: {"role": "categorical"},
    SHOP: {"role": "categorical"},
    "price €": {"role": "dense", "transform": "log"},
}


def open_data(root: Path, **changes) -> ClickDataModule:
    data = ClickDataModule(**CLICK_DATA | {"dataset": "mine", "data_root": str(root)} | changes, seed=1)
    data.setup()
    return data


def write_table(root: Path, excluded: tuple[str, ...] = ()) -> None:
    """DATA_ROOT/mine: 400 rows, 10 % clicks."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "clicked?": np.where(rng.random(400) < 0.1, "yes", "no"),
            "bought": (rng.random(400) < 0.7).astype(int),
            USER: [f"user-number-{i}" for i in rng.integers(0, 20, 400)],
            SHOP: rng.choice(['the "best", really', "naïve | co", ""], 400),
            "price €": rng.normal(0, 50, 400).round(2),
        }
    )
    folder = root / "mine"
    folder.mkdir()
    frame.to_csv(folder / "rows.csv", index=False)
    columns = COLUMNS | {column: {"role": "excluded"} for column in excluded}
    (folder / "columns.json").write_text(json.dumps({"file": "rows.csv", "columns": columns}))


@pytest.mark.parametrize("train", [train_deepfm, train_dlrm, train_mmoe], ids=["deepfm", "dlrm", "mmoe"])
def test_output_starts_at_the_rate_of_the_training_rows(tmp_path, monkeypatch, train):
    write_table(tmp_path, () if train is train_mmoe else ("bought",))
    seen = []
    keep = lambda model, data, *_, **__: seen.append((model, data))  # noqa: E731
    monkeypatch.setitem(train.__wrapped__.__globals__, "fit_and_test", keep)
    train(dataset="mine", data_root=str(tmp_path), **{"tasks": ("bought", "click")} if train is train_mmoe else {})
    ((model, data),) = seen
    *inputs, label = map(torch.from_numpy, data.read(data.rows["train"]))
    rates = label.mean(0)
    torch.testing.assert_close(torch.tensor(data.base_logits).float().sigmoid().squeeze(), rates)
    predicted = model.eval().predict(model(*inputs)).mean(0)
    assert (predicted - rates).abs().max() < 0.06 and (predicted - 0.5).abs().min() > 0.1


def test_rates_of_one_class_are_finite(tmp_path):
    write_table(tmp_path, ("bought",))
    path = tmp_path / "mine" / "rows.csv"
    path.write_text(path.read_text().replace("yes", "no"))
    data = open_data(tmp_path)
    assert -7 < data.base_logits[0] < -5


def make_data(is_sample: bool, batch_size: int = 1024) -> RecommendationDataModule:
    data = RecommendationDataModule(dataset="mine", data_root=None, batch_size=batch_size, num_workers=0, seed=0)
    data.rows, data.is_sample = {"train": range(8571)}, is_sample
    return data


def test_few_steps_are_told(capsys):
    print_steps(2, 150, "32-true", make_data(False))
    assert capsys.readouterr().out == "Training for 2 epochs of 150 steps, batch_size 1,024, precision 32-true.\n"
    print_steps(6, 9, "32-true", make_data(False))
    advice = '54 steps may be too few to learn from 8,571 rows. Set batch_size=64 and max_epochs=6, or "auto".'
    assert capsys.readouterr().out.splitlines()[1] == advice
    print_steps(4, 9, "32-true", make_data(False, batch_size=64))  # as many as "auto" gives
    print_steps(6, 9, "32-true", make_data(True))  # its settings are known to be enough
    assert "may be" not in capsys.readouterr().out


@pytest.mark.parametrize(("own", "baselines", "better"), [
    ({"auc": 0.7, "log_loss": 0.5}, {"regression": {"auc": 0.5, "log_loss": 0.4}}, ""),
    ({"auc": 0.7, "log_loss": 0.5}, {"constant": {"auc": 0.5, "log_loss": 0.4}}, "constant (log_loss)"),
    ({"auc": 0.7}, {"a": {"auc": 0.70004}, "b": {"auc": 0.8}, "c": {"auc": 0.71}}, "b (auc) and c (auc)"),
    ({"rmse": 0.92, "mae": 0.7}, {"bias": {"rmse": 0.91, "mae": 0.8}}, "bias (rmse)"),
    ({"auc_a": 0.7, "auc_mean": 0.75}, {"l": {"auc_a": 0.71, "auc_mean": 0.705}}, "l (auc_a)"),
    ({"auc": float("nan")}, {"a": {"auc": float("nan")}}, ""),
])  # fmt: skip
def test_better_baselines_are_named(own, baselines, better):
    assert better_baselines(own, baselines) == better


def test_the_cause_is_named():
    assert likely_cause([0.3, 0.4, 0.5]) == "it was still improving; set a larger max_epochs or a smaller batch_size"
    assert likely_cause([0.3, 0.5, 0.4]).startswith("it overfitted, best at validation 2 of 3; set a larger embedding")


def test_a_run_on_few_rows_says_so(tmp_path, capsys):
    write_table(tmp_path, ("bought",))
    few_steps = {"batch_size": 1024, "max_epochs": 1, "on_regression": False, "embedding_l2": 3e-3}
    results = train_deepfm(dataset="mine", data_root=str(tmp_path), **few_steps)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Training for 1 epoch of 1 step, batch_size 1,024, ") for line in lines)
    assert any(line.startswith("1 step may be") for line in lines)
    better = better_baselines(results["test"], results["baselines"])
    assert better and f"Worse than {better}. Likely cause: {likely_cause([0.5])}." in lines


def test_dlrm_trains_without_dense_columns(tmp_path):
    write_table(tmp_path, ("bought", "price €"))
    results = train_dlrm(dataset="mine", data_root=str(tmp_path), top_mlp_units=(8,), embedding_dim=4)
    assert results["test"].keys() == results["baselines"]["logistic regression"].keys()


def test_dlrm_needs_a_pair(tmp_path):
    write_table(tmp_path, ("bought", "price €", USER))
    with pytest.raises(UserError, match="a single categorical column makes no pair"):
        train_dlrm(dataset="mine", data_root=str(tmp_path))


@pytest.mark.parametrize("train", [train_deepfm, train_dlrm], ids=["deepfm", "dlrm"])
def test_a_table_of_numbers_alone_trains(tmp_path, train):
    write_table(tmp_path, ("bought", USER, SHOP))
    results = train(dataset="mine", data_root=str(tmp_path))
    assert (results["settings"]["batch_size"], results["settings"]["max_epochs"]) == (32, 4)  # few rows, small batches
    assert np.isfinite(results["test"]["log_loss"])
    scored = predict(results["checkpoint"], tmp_path / "mine" / "rows.csv", tmp_path / "out.csv")
    assert scored["rows"] == 400 and scored["unseen"] == {}


def test_several_labels_of_a_table_train_together(tmp_path):
    write_table(tmp_path)
    settings = {"tasks": ("click", "bought"), "max_epochs": 1, "num_experts": 2, "expert_units": (8,)}
    results = train_mmoe(dataset="mine", data_root=str(tmp_path), **settings)
    keys = {"auc_click", "auc_bought", "auc_mean", "log_loss"}
    assert keys == results["test"].keys() == results["baselines"]["logistic regression"].keys()
    with pytest.raises(UserError, match=r"tasks is .*; it must list one or more of click, bought, each once"):
        train_mmoe(dataset="mine", data_root=str(tmp_path))
