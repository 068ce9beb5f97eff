"""Row weights in the training loss, and training on a share of the rows without a click."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.errors import UserError
from common.training.predictions import saved_predictions
from data.criteo_data import ClickDataModule
from deepfm.deepfm import DeepFM
from deepfm.train import DATA, MODEL, OPTIMIZER
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from multitask.mmoe import MMoE
from multitask.train import MODEL as MMOE
from multitask.train import train as train_mmoe

SMALL = {"embedding_dim": 4, "batch_size": 64, "learning_rate": 0.005, "dropout": 0.0, "precision": "32-true"}


def write_table(root: Path, rows: int, weight: str = "weight", rate: float = 0.25) -> np.ndarray:
    """DATA_ROOT/mine: clicks with a planted probability per shop; positive rows have weight 3, others 1."""
    rng = np.random.default_rng(0)
    shop = rng.integers(0, 4, rows)
    odds = rate / (1 - rate) * np.exp(np.array([-1.0, -0.3, 0.3, 1.0])[shop])
    click = (rng.random(rows) < odds / (1 + odds)).astype(int)
    columns = {"shop": shop, "day": rng.integers(0, 7, rows), "click": click, "w": 3.0 * click + (1 - click)}
    (root / "mine").mkdir()
    pd.DataFrame(columns).to_csv(root / "mine" / "rows.csv", index=False)
    roles = {"shop": {"role": "categorical"}, "day": {"role": "categorical"}, "w": {"role": weight}}
    roles["click"] = {"role": "label", "positive": ["1"]}
    (root / "mine" / "columns.json").write_text(json.dumps({"file": "rows.csv", "columns": roles}))
    return click


def bce(logit: float, target: float) -> float:
    p = 1 / (1 + np.exp(-float(logit)))
    return -(float(target) * np.log(p) + (1 - float(target)) * np.log(1 - p))


def test_a_row_of_weight_counts_as_often():
    logits, target, weight = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 2, 0])
    ctr = DeepFM(0, [3, 3], **MODEL, optimizer=OPTIMIZER)
    expected = sum(w * bce(x, y) for x, y, w in zip(logits, target, weight, strict=True)) / 3
    assert ctr.loss(logits, target, weight).item() == pytest.approx(expected.item())
    mmoe = MMoE([], [3, 3], ["a", "b"], **MMOE | {"task_weights": (1.0, 0.5)}, optimizer=OPTIMIZER)
    both, targets = torch.stack([logits, -logits], 1), torch.stack([target, target], 1)
    expected += sum(0.5 * w * bce(-x, y) for x, y, w in zip(logits, target, weight, strict=True)) / 3
    assert mmoe.loss(both, targets, weight).item() == pytest.approx(expected.item())


def watch_curves(monkeypatch) -> list:
    """The scale of the losses that are drawn, None if they cannot be compared."""
    drawn = []
    monkeypatch.setattr("common.training.fit.plot_learning_curves", lambda *given: drawn.append(given[2]))
    return drawn


@pytest.mark.parametrize("train", [train_deepfm, train_mmoe], ids=["deepfm", "mmoe"])
def test_weights_move_the_predictions_and_no_metric(tmp_path, monkeypatch, train):
    """With weights that double the share of clicks, the predictions equal that share. Losses that cannot be compared
    are not drawn beside each other."""
    drawn = watch_curves(monkeypatch)
    click = write_table(tmp_path, 4_000)
    changes = {"dataset": "mine", "data_root": str(tmp_path), "max_epochs": 2} | SMALL
    changes |= {"tasks": ("click",), "task_weights": (1.0,)} if train is train_mmoe else {"split": "random"}
    plain, weighted = train(**changes), train(**changes, weighted=True)
    assert drawn == [1.0, None]
    assert weighted["settings"]["weighted"] and not plain["settings"]["weighted"]
    share = 3 * click.mean() / (1 + 2 * click.mean())

    def predicted(results: dict) -> float:
        return float(saved_predictions(Path(results["run_folder"]))["prediction"].mean())

    ratio = weighted["train_samples_per_second"] / plain["train_samples_per_second"]
    assert 1 / 5 < ratio < 5  # counting pairs of target and weight, it would be 1/32
    assert predicted(plain) == pytest.approx(click.mean(), abs=0.05)
    assert predicted(weighted) == pytest.approx(share, abs=0.1)
    name = "auc_click" if train is train_mmoe else "auc"
    assert weighted["test"][name] == pytest.approx(plain["test"][name], abs=0.02)


def open_data(root: Path, **changes) -> ClickDataModule:
    data = ClickDataModule(**DATA | {"dataset": "mine", "data_root": str(root), "batch_size": 64} | changes, seed=0)
    data.setup()
    return data


def test_training_batches_alone_have_weights_of_mean_1(tmp_path):
    click = write_table(tmp_path, 700)
    data = open_data(tmp_path, weighted=True)
    pairs = [target for *_, target in data.train_dataloader()]
    label, weight = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert weight.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weight, (1 + 2 * label) / (1 + 2 * label).mean())
    assert all(isinstance(target, torch.Tensor) for *_, target in data.val_dataloader())
    assert label.sum() == click[:600].sum()


@pytest.mark.parametrize(("old", "new", "message"), [
    (",1.0\n", ",-1\n", r"rows.csv, line \d+, column w: found '-1', expected a number from 0 to"),
    (",1.0\n", ",\n", r"rows.csv, line \d+, column w: found '', expected a number in every row"),
    (".0\n", "e-999\n", r"rows.csv: all training rows have the weight 0|columns.json: all training rows"),
])  # fmt: skip
def test_what_is_no_weight_is_refused_where_weights_count(tmp_path, old, new, message):
    write_table(tmp_path, 700)
    path = tmp_path / "mine" / "rows.csv"
    path.write_text(path.read_text().replace(old, new))
    open_data(tmp_path)
    with pytest.raises(UserError, match=message):
        open_data(tmp_path, weighted=True)


def test_weights_need_a_column(tmp_path):
    write_table(tmp_path, 700, weight="excluded")
    with pytest.raises(UserError, match=r'json: weighted=True needs one column with the role "weight"; found 0'):
        open_data(tmp_path, weighted=True)


def test_a_share_of_the_rows_without_a_click_is_kept(tmp_path):
    write_table(tmp_path, 7_000)
    whole, part, again = (open_data(tmp_path, negative_rate=rate) for rate in (1.0, 0.2, 0.2))
    assert part.rows["train"].tolist() == again.rows["train"].tolist()
    assert [part.rows[name].tolist() == whole.rows[name].tolist() for name in ("val", "test")] == [True, True]
    assert set(part.rows["train"]) <= set(whole.rows["train"].tolist())
    clicks, kept = int(whole.targets("train").sum()), part.targets("train")
    assert kept.sum() == clicks and int((kept == 0).sum()) == pytest.approx(0.2 * (6_000 - clicks), rel=0.1)
    assert part.base_logits == whole.base_logits and part.cardinalities == whole.cardinalities


@pytest.mark.parametrize("train", [train_deepfm, train_dlrm], ids=["deepfm", "dlrm"])
def test_probabilities_are_those_of_all_rows(tmp_path, monkeypatch, train):
    """Calibration of a model trained on a tenth of the rows without a click; uncorrected it would be near 6."""
    write_table(tmp_path, 30_000, rate=0.05)
    changes = {"dataset": "mine", "data_root": str(tmp_path), "split": "random", "max_epochs": 2} | SMALL
    drawn = watch_curves(monkeypatch)
    results = train(**changes, negative_rate=0.1)
    assert drawn == [None]
    assert results["rows"]["train"] < 7_000
    for metrics in (results["test"], *results["baselines"].values()):
        assert metrics["calibration"] == pytest.approx(1, abs=0.15)
    assert results["test"]["auc"] > results["baselines"]["constant"]["auc"] + 0.1
