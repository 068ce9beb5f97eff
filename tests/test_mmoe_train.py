"""multitask/train.py and compare.py, on a few rows of the sample."""

import json
import math
from pathlib import Path
from unittest.mock import create_autospec

import pandas as pd
import pytest

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.settings import Settings
from data.census_income import CENSUS_INCOME_KDD, MultiTaskDataModule
from data.samples.census import census_sample
from multitask import compare
from multitask.train import DATA, MODEL, OPTIMIZER, TRAINING, train
from tests.script_process import run_process

SMALL = {"max_epochs": 1, "num_experts": 2, "expert_units": (8, 4), "tower_units": (4,), "batch_size": 256}


@pytest.fixture
def raw(tmp_path) -> Path:
    """DATA_ROOT with the raw files of a small sample."""
    (tmp_path / "census-income-kdd").symlink_to(census_sample(CENSUS_INCOME_KDD, 1_500, 600))
    return tmp_path


def test_script_runs_from_another_folder(raw, outputs):
    done = run_process("multitask/train.py", folder=raw, DATA_ROOT=raw)
    assert done.returncode == 0, done.stderr
    (folder,) = (outputs / "runs" / "multitask").glob("version_*")
    assert done.stdout.splitlines()[-1].endswith(str(folder))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names > {"results.json", "metrics.csv", "gates.png", "learning_curves.png", "checkpoints/best.ckpt"}
    results = json.loads((folder / "results.json").read_text())
    keys = {"auc_income", "auc_never_married", "auc_mean", "log_loss"}
    assert keys == results["test"].keys() == results["validation"].keys()
    assert keys == results["baselines"]["logistic regression"].keys()
    assert results["model"] == "MMoE" and not results["is_sample"]


@pytest.mark.parametrize("variant, tasks", [("omoe", ("income", "education")), ("single_task", ("education",))])
def test_other_models_and_tasks(raw, variant, tasks):
    weights = [1.0] * len(tasks)
    results = train(variant=variant, data_root=str(raw), tasks=tasks, task_weights=weights, **SMALL)
    assert results["test"].keys() == {*(f"auc_{task}" for task in tasks), "auc_mean", "log_loss"}


@pytest.mark.parametrize("tasks", [("income",), ("income", "education")])
def test_tasks_of_one_class_in_validation(raw, outputs, capsys, tasks):
    sample = raw / "census-income-kdd"
    folder = raw / "flat"
    folder.mkdir()
    (folder / "census-income.data").write_bytes((sample / "census-income.data").read_bytes())
    text = (sample / "census-income.test").read_text()
    (folder / "census-income.test").write_text(text.replace(" 50000+.", " - 50000."))
    settings = SMALL | {"max_epochs": 5, "patience": 2, "learning_rate": 0.01}
    results = train(dataset="flat", data_root=str(raw), tasks=tasks, task_weights=(1.0,) * len(tasks), **settings)
    note = "All 300 validation rows are of one class, so their AUC is undefined: the checkpoint is chosen by log loss."
    assert (note in capsys.readouterr().out) == (len(tasks) == 1)
    others = [results["validation"][f"auc_{task}"] for task in tasks[1:]]
    assert math.isnan(results["validation"]["auc_income"])
    assert math.isnan(results["validation"]["auc_mean"]) if not others else results["validation"]["auc_mean"] > 0.5
    run = outputs / "runs" / "multitask" / "version_0"
    history = pd.read_csv(run / "metrics.csv")
    best = history["val_auc_mean"].idxmax() if others else history["val_log_loss"].idxmin()
    assert load_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == history["step"][best]


def test_unknown_tasks_are_refused(raw):
    with pytest.raises(UserError, match=r"tasks is .*'wealth'.*must list one or more of education, never_married"):
        train(data_root=str(raw), tasks=("income", "wealth"), **SMALL)


def test_compare_keeps_finished_runs_and_writes_the_table(raw, outputs, monkeypatch, capsys):
    groups = {"group 2": ("education", "never_married")}
    settings = SMALL | {"data_root": str(raw)}
    first = compare.compare(groups=groups, seeds=(1, 2), candidates=({"dropout": 0.0}, {"dropout": 0.5}), **settings)
    assert set(first.model) == {"logistic regression", "MMoE", "OMoE", "Shared-Bottom", "Single-Task"}
    assert len(first) == 10
    printed = capsys.readouterr().out
    assert len(list(outputs.glob("runs/multitask_compare/*/*-seed*"))) == 15
    assert "built-in sample" not in printed
    assert (first.runs == first.model.map(lambda model: 1 if model == "logistic regression" else 2)).all()
    monkeypatch.setattr(compare, "train", create_autospec(train, side_effect=AssertionError))  # must not train again
    again = compare.compare(groups=groups, seeds=(1, 2), candidates=({"dropout": 0.0}, {"dropout": 0.5}), **settings)
    pd.testing.assert_frame_equal(first, again)
    (folder,) = (outputs / "runs" / "multitask_compare").iterdir()
    for run in folder.glob("*-seed2-*"):  # with the candidate that was best on the validation rows with seed 1
        used = json.loads((run / "results.json").read_text())["settings"]
        tried = [json.loads(path.read_text()) for path in folder.glob("*-seed1-*/results.json")]
        tried = [one for one in tried if all(one["settings"][name] == used[name] for name in ("variant", "tasks"))]
        assert len(tried) == 2
        best = max(tried, key=lambda results: results["validation"]["auc_mean"])
        assert used["dropout"] == best["settings"]["dropout"]
    row = first[(first.model == "MMoE") & (first.task == "education")].iloc[0]
    assert (row["paper best"], row["paper mean"]) == (0.8860, 0.8826)


def test_budgets_are_equal_within_5_percent(raw, monkeypatch):
    data = MultiTaskDataModule(**DATA | {"data_root": str(raw)}, seed=0)
    data.setup()
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING)
    budget = parameters("mmoe", data, (32, 32))
    for variant, tasks, share in (("omoe", 2, 1), ("shared_bottom", 2, 1), ("single_task", 1, 2)):
        units = compare.parameter_matched_units(variant, data.tasks[:tasks], 2, data, settings)
        assert units[1:] == (32,)
        assert abs(share * parameters(variant, data, units, tasks) / budget - 1) < 0.05


def parameters(variant: str, data: MultiTaskDataModule, units: tuple[int, ...], tasks: int = 2) -> int:
    changes = {"variant": variant, "expert_units": units, "task_weights": (1.0,) * tasks}
    sizes = data.bin_edges, data.cardinalities, data.tasks[:tasks]
    return compare.MMoE(*sizes, **MODEL | changes, optimizer=OPTIMIZER).count_parameters()


def test_best_on_main_is_one_run():
    rows = [("a", 1, 0.9), ("b", 1, 0.5), ("a", 2, 0.8), ("b", 2, 0.7)]
    runs = pd.DataFrame([{"group": "g", "model": "MMoE", "task": t, "seed": s, "auc": auc} for t, s, auc in rows])
    table = compare.summarise(runs, {"g": ("a", "b")}).set_index("task")
    assert table["best on main"].to_dict() == {"a": 0.9, "b": 0.5}
    assert table["mean"].round(9).to_dict() == {"a": 0.85, "b": 0.6}
