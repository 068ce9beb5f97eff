"""Several seeds: kept and continued runs, averaged predictions and paired differences."""

import io
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import roc_auc_score

import seeds
from common.errors import UserError
from common.model.metrics import ClickMetrics, RatingMetrics, TaskMetrics
from common.model.ranking import RankingMetrics
from common.training.predictions import PREDICTIONS
from common.training.seeds import averaged_metrics, metrics_of, paired_difference, train_seeds, values, with_sd
from compare_runs import compare_runs
from data.census_income import CENSUS_INCOME_KDD
from data.samples.census import census_sample
from deepfm.train import train
from multitask.train import train as train_mmoe
from tests.criteo_rows import make_lines, write_lines

SMALL = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 1, "batch_size": 64}
pytestmark = pytest.mark.usefixtures("undrawn")


def counted_fits(monkeypatch) -> list:
    fits, fit = [], pl.Trainer.fit
    monkeypatch.setattr(pl.Trainer, "fit", lambda *a, **k: (fits.append(1), fit(*a, **k)))
    return fits


def test_the_command_continues_and_adds_seeds(criteo, outputs, capsys, monkeypatch):
    fits = counted_fits(monkeypatch)
    variants = {"plain": SMALL, "wide": SMALL | {"hidden_units": (16,)}}
    one = seeds.seeds("deepfm", "1", variants)
    home = outputs / "runs" / "deepfm_seeds"
    (home / "version_0" / "seeds.json").unlink()  # as if it was stopped before its end
    two = seeds.seeds("deepfm", "2", variants)
    assert len(fits) == 4 and [path.name for path in home.iterdir()] == ["version_0"]
    assert two["plain"][0]["test"] == one["plain"][0]["test"]
    printed = capsys.readouterr().out
    assert (
        "deepfm/train.py, 2 seeds" in printed and "wide - plain" in printed and "plain - logistic regression" in printed
    )
    assert f"predict.py {home}/version_0/plain/seed_*/checkpoints/best.ckpt RAW_FILE" in printed
    assert seeds.seeds("deepfm", "1", {"other": SMALL}) and (home / "version_1").exists()
    with pytest.raises(UserError, match="found 'fm', expected one of bst, deepfm, dlrm"):
        seeds.seeds("fm")
    with pytest.raises(UserError, match="found 'x', expected a number of seeds"):
        seeds.seeds("deepfm", "x")


def test_other_rows_are_not_taken_for_finished_runs(criteo, tmp_path, rng):
    train_seeds(train, [1], tmp_path / "runs", **SMALL)
    with pytest.raises(UserError, match=r"seed_1 had other settings: \{'dropout': 0.2\}"):
        train_seeds(train, [1], tmp_path / "runs", **SMALL, dropout=0.5)
    write_lines(criteo, make_lines(rng, 720))
    with pytest.raises(UserError, match="seed_1 had other data"):
        train_seeds(train, [1], tmp_path / "runs", **SMALL)


def test_averaged_predictions_of_two_tasks(tmp_path):
    sample = census_sample(CENSUS_INCOME_KDD, 1_500, 600)
    (tmp_path / "census-income-kdd").symlink_to(sample)
    small = {"num_experts": 2, "expert_units": (4,), "tower_units": (4,), "max_epochs": 1, "data_root": str(tmp_path)}
    runs = train_seeds(train_mmoe, (1, 2), tmp_path / "runs", **small)
    tasks, path = ["income", "never_married"], Path(runs[1]["run_folder"], PREDICTIONS)
    frames = [pd.read_parquet(Path(run["run_folder"], PREDICTIONS)) for run in runs]
    one, two = (torch.tensor(frame[[f"prediction {task}" for task in tasks]].to_numpy()) for frame in frames)
    target = torch.tensor(frames[0][[f"target {task}" for task in tasks]].to_numpy())
    mean = (one.double() + two.double()) / 2
    assert averaged_metrics(runs) == pytest.approx(TaskMetrics(tasks).measure(mean, target.double()), abs=1e-9)
    assert TaskMetrics(tasks).measure(one, target) == pytest.approx(runs[0]["test"], abs=1e-5)
    labels = [line.strip().endswith("50000+.") for line in (sample / "census-income.test").open()]
    assert frames[0]["target income"].tolist() == [float(labels[row - 1_500]) for row in frames[0]["row"]]
    for other in (frames[1].iloc[::-1], frames[1].assign(row=frames[1]["row"] + 1)):
        other.to_parquet(path)
        with pytest.raises(UserError, match="are not for the same test rows"):
            averaged_metrics(runs)
    path.unlink()
    with pytest.raises(UserError, match=f"{PREDICTIONS} is missing"):
        averaged_metrics(runs)


def test_paired_difference_is_students():
    ours, theirs = np.array([0.75, 0.76, 0.74, 0.78]), np.array([0.74, 0.745, 0.735, 0.75])
    mean, low, high = paired_difference(ours, theirs)
    differences = [0.01, 0.015, 0.005, 0.03]
    half = 3.182446 * statistics.stdev(differences) / 4**0.5  # the quantile of Student's t with 3 degrees of freedom
    assert (mean, low, high) == pytest.approx((0.015, 0.015 - half, 0.015 + half), abs=1e-6)


def test_results_tell_their_metrics():
    kinds = {"rmse mae": RatingMetrics, "auc gauc log_loss": ClickMetrics, "hr ndcg": RankingMetrics}
    assert all(type(metrics_of(names.split())) is kind for names, kind in kinds.items())
    assert metrics_of(["auc_a", "auc_b", "auc_mean", "log_loss"]).tasks == ["a", "b"]


def test_undefined_metrics_are_nan():
    runs = [{"test": {"auc": None}, "baselines": {"constant": {"auc": 0.5}}}]
    assert np.isnan(values(runs, "auc"))[0] and values(runs, "auc", "constant")[0] == 0.5


def test_equal_numbers_have_no_spread():
    assert np.std([0.1] * 3, ddof=1) > 0  # by rounding
    assert with_sd([0.1] * 3) == "0.1000" and with_sd([0.1, 0.3]) == "0.2000 ± 0.1414"


def test_runs_are_compared_on_the_same_rows(criteo, tmp_path, rng, outputs, capsys):
    runs = [train(**SMALL, dropout=dropout, on_regression=False) for dropout in (0.0, 0.5)]
    write_lines(tmp_path / "other_root" / "criteo" / "train.txt", make_lines(rng, 500))
    runs.append(train(**SMALL, on_regression=False, data_root=str(tmp_path / "other_root")))
    table = compare_runs()
    assert table["run"].tolist() == [f"deepfm/version_{i}" for i in range(3)]
    assert list(table.columns)[3 : list(table.columns).index("auc")] == ["data_root", "dropout"]  # all others are equal
    assert table["dropout"].tolist() == ["0.0", "0.5", "0.2"]
    assert table["auc"].tolist() == pytest.approx([run["test"]["auc"] for run in runs])
    assert table["compared with"].fillna("").tolist() == ["", "deepfm/version_0", ""]
    frames = [pd.read_parquet(Path(run["run_folder"], PREDICTIONS)) for run in runs]
    first, second, _ = (roc_auc_score(frame["target"], frame["prediction"]) for frame in frames)
    difference = second - first
    assert table["auc: difference"][1] == pytest.approx(difference, abs=1e-6)
    assert table["auc: low"][1] < difference < table["auc: high"][1]
    assert f"{difference:+.4f} ± " in capsys.readouterr().out
    written = pd.read_csv(outputs / "runs" / "compare_runs.csv", dtype=str, keep_default_na=False)
    assert written.equals(pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str, keep_default_na=False))
    assert compare_runs(runs[1]["run_folder"])["run"].tolist() == ["deepfm/version_1"]
    with pytest.raises(UserError, match="nowhere has no tested run"):
        compare_runs(tmp_path / "nowhere")
