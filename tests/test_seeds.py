"""Several seeds: kept and continued runs, averaged predictions and paired differences."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from scipy import stats
from torchmetrics.functional.classification import binary_auroc

import seeds
from common.errors import UserError
from common.model.metrics import task_metrics
from common.training.predictions import PREDICTIONS
from common.training.seeds import averaged_metrics, paired_difference, train_seeds, values, with_sd
from data.census_sample import census_sample
from data.criteo_data import ClickDataModule
from deepfm.train import train
from multitask.train import train as train_mmoe
from tests.criteo_rows import make_lines, write_lines

SMALL = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 1, "batch_size": 64}


@pytest.fixture
def rows(tmp_path, rng, monkeypatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 700))


def counted_fits(monkeypatch) -> list:
    fits, fit = [], pl.Trainer.fit
    monkeypatch.setattr(pl.Trainer, "fit", lambda *a, **k: (fits.append(1), fit(*a, **k)))
    return fits


def test_the_command_continues_and_adds_seeds(rows, outputs, capsys, monkeypatch):
    fits = counted_fits(monkeypatch)
    variants = {"plain": SMALL, "wide": SMALL | {"hidden_units": (16,)}}
    two = seeds.seeds("deepfm", "2", variants)
    home = outputs / "runs" / "deepfm_seeds"
    (home / "version_0" / "seeds.json").unlink()  # as if it was stopped before its end
    three = seeds.seeds("deepfm", "3", variants)
    assert len(fits) == 6 and [path.name for path in home.iterdir()] == ["version_0"]
    assert [run["test"] for run in three["plain"][:2]] == [run["test"] for run in two["plain"]]
    printed = capsys.readouterr().out
    assert "plain, 3 seeds" in printed and "wide - plain" in printed and "plain - logistic regression" in printed
    assert f"predict.py {home}/version_0/plain/seed_*/checkpoints/best.ckpt RAW_FILE" in printed
    assert seeds.seeds("deepfm", "1", {"other": SMALL}) and (home / "version_1").exists()
    with pytest.raises(UserError, match="found 'fm', expected one of deepfm, dlrm"):
        seeds.seeds("fm")
    with pytest.raises(UserError, match="found 'x', expected a number of seeds"):
        seeds.seeds("deepfm", "x")


def test_other_rows_are_not_taken_for_finished_runs(rows, tmp_path, rng):
    train_seeds(train, [1], tmp_path / "runs", **SMALL)
    with pytest.raises(UserError, match=r"seed_1 had other settings: \{'dropout': 0.2\}"):
        train_seeds(train, [1], tmp_path / "runs", **SMALL, dropout=0.5)
    write_lines(rows, make_lines(rng, 720))
    with pytest.raises(UserError, match="seed_1 had other data"):
        train_seeds(train, [1], tmp_path / "runs", **SMALL)


def test_averaged_predictions_of_two_tasks(tmp_path):
    (tmp_path / "census-income-kdd").symlink_to(census_sample(1_500, 600))
    small = {"num_experts": 2, "expert_units": (4,), "tower_units": (4,), "max_epochs": 1, "data_root": str(tmp_path)}
    runs = train_seeds(train_mmoe, (1, 2), tmp_path / "runs", **small)
    tasks, path = ["income", "never_married"], Path(runs[1]["run_folder"], PREDICTIONS)
    frames = [pd.read_parquet(Path(run["run_folder"], PREDICTIONS)) for run in runs]
    one, two = (torch.tensor(frame[[f"prediction {task}" for task in tasks]].to_numpy()) for frame in frames)
    target = torch.tensor(frames[0][[f"target {task}" for task in tasks]].to_numpy())
    mean = (one.double() + two.double()) / 2
    assert averaged_metrics(runs) == pytest.approx(task_metrics(tasks, mean, target.double()), abs=1e-9)
    assert task_metrics(tasks, one, target) == pytest.approx(runs[0]["test"], abs=1e-5)
    assert list(frames[0].columns[:3]) == ["row", "target income", "target never_married"]
    labels = [line.strip().endswith("50000+.") for line in (census_sample(1_500, 600) / "census-income.test").open()]
    assert frames[0]["target income"].tolist() == [float(labels[row - 1_500]) for row in frames[0]["row"]]
    frames[1].iloc[::-1].to_parquet(path)
    with pytest.raises(UserError, match="are not for the same test rows"):
        averaged_metrics(runs)
    path.unlink()
    with pytest.raises(UserError, match=f"{PREDICTIONS} is missing"):
        averaged_metrics(runs)


def test_paired_difference_is_students():
    ours, theirs = np.array([0.75, 0.76, 0.74, 0.78]), np.array([0.74, 0.745, 0.735, 0.75])
    mean, low, high = paired_difference(ours, theirs)
    test = stats.ttest_rel(ours, theirs)
    assert mean == pytest.approx(np.mean(ours - theirs))
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_undefined_metrics_are_nan():
    runs = [{"test": {"auc": None}, "baselines": {"constant": {"auc": 0.5}}}]
    assert np.isnan(values(runs, "auc"))[0] and values(runs, "auc", "constant")[0] == 0.5


def test_equal_numbers_have_no_spread():
    assert np.std([0.1] * 3, ddof=1) > 0  # by rounding
    assert with_sd([0.1] * 3) == "0.1000" and with_sd([0.1, 0.3]) == "0.2000 ± 0.1414"


def test_kept_columns_stand_beside_the_predictions(rows, monkeypatch):
    def kept(self, split: str) -> dict[str, list[str]]:
        return {"row": ["x"] * len(self.rows[split]), "user name": [f"user {row}" for row in self.rows[split]]}

    monkeypatch.setattr(ClickDataModule, "kept", kept, raising=False)
    results = train(**SMALL)
    frame = pd.read_parquet(Path(results["run_folder"], PREDICTIONS))
    assert list(frame) == ["row", "user name", "target", "prediction", "logistic regression", "constant"]
    assert frame["row"].tolist() == list(range(650, 700)) and frame["user name"][3] == "user 653"
    labels = [float(line[0]) for line in rows.read_text().splitlines()[650:]]
    assert frame["target"].tolist() == labels
    assert binary_auroc(torch.tensor(frame["prediction"]), torch.tensor(labels).int()) == pytest.approx(
        results["test"]["auc"], abs=1e-6
    )
