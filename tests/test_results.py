"""benchmarks/results.py: it trains what is missing, and the pages have the numbers of the runs."""

import json
from dataclasses import replace
from importlib import import_module
from statistics import mean, stdev

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks import results
from common.errors import UserError
from common.settings import Settings
from common.training.predictions import PREDICTIONS
from data.criteo_data import CRITEO, PUBLISHED, ClickDataModule
from data.samples.criteo import criteo_sample

CHANGES = {"max_epochs": 1, "hidden_units": (8,), "batch_size": 128}


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The pages in tmp_path, one small run, and rows that count as real."""
    (tmp_path / "criteo").symlink_to(criteo_sample(CRITEO, 2_000))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    (tmp_path / "docs").mkdir()
    parts = [
        f"<!-- {part}: python benchmarks/results.py -->\nold\n<!-- end of {part} -->\n" for part in ("first", "results")
    ]
    (tmp_path / "README.md").write_text("before\n" + "kept\n".join(parts) + "after\n")
    (tmp_path / "docs" / "results.md").write_text(parts[1])
    monkeypatch.setattr(results, "REPO", tmp_path)
    monkeypatch.setattr(results, "RUNS", {"deepfm-clicks": results.Run("Clicks", "deepfm", CHANGES)})
    monkeypatch.setattr(results, "SEEDS", (1, 2))
    return tmp_path / "README.md", tmp_path / "docs" / "results.md"


def test_the_pages_have_the_numbers_of_the_runs(pages, outputs, undrawn):
    with pytest.raises(UserError, match="has no results"):
        results.main()
    results.main("run", "deepfm-clicks")
    folders = [outputs / "runs" / "results" / "deepfm-clicks" / f"seed_{seed}" for seed in (1, 2)]
    written = [(folder / "results.json").stat().st_mtime_ns for folder in folders]
    results.main("run")
    assert written == [(folder / "results.json").stat().st_mtime_ns for folder in folders]
    results.main()

    found = [json.loads((folder / "results.json").read_text()) for folder in folders]
    aucs = [each["test"]["auc"] for each in found]
    name = max(found[0]["baselines"], key=lambda name: found[0]["baselines"][name]["auc"])
    baseline = found[0]["baselines"][name]["auc"]
    rows = [pd.read_parquet(folder / PREDICTIONS) for folder in folders]
    averaged = roc_auc_score(rows[0]["target"], sum(each["prediction"] for each in rows))
    half = np.mean([(d["high"] - d["low"]) / 2 for d in (each["differences"][name]["auc"] for each in found)])
    score = f"{mean(aucs):.4f} ± {stdev(aucs):.4f}"
    seconds = f"{mean(each['wall_seconds'] for each in found):.0f}"
    readme, page = (page.read_text().replace("\u00a0", " ") for page in pages)
    assert f"| DeepFM | Clicks | AUC **{score}** | {name} {baseline:.4f} | {seconds} |" in readme
    difference = f"{mean(aucs) - baseline:+.4f} ± {half:.4f}"
    assert f"| DeepFM | {score} | {averaged:.4f} | {name} {baseline:.4f} | {difference} |" in readme
    assert readme.startswith("before\n") and "kept" in readme and readme.endswith("after\n") and "old" not in readme
    assert f"| DeepFM, 2 seeds | {score} |" in page
    assert "from deepfm.train import train; train(max_epochs=1, hidden_units=(8,), batch_size=128)" in page


def test_rows_of_the_sample_are_refused(pages, monkeypatch, tmp_path, undrawn):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nothing"))
    sample = replace(PUBLISHED["criteo"], sample=lambda: criteo_sample(CRITEO, 2_000))
    monkeypatch.setattr(ClickDataModule, "published", {"criteo": sample})
    with pytest.raises(UserError, match="is not of real data"):
        results.main("run")
    with pytest.raises(UserError, match="there is no run deepfm;"):
        results.main("run", "deepfm")


def test_the_runs_have_settings_of_their_scripts():
    for name, run in results.RUNS.items():
        script = import_module(f"{run.script}.train")
        Settings(script.DATA, script.MODEL, script.OPTIMIZER, script.TRAINING).changed(run.changes)
        assert name.startswith(run.script) or run.script == "multitask"
    assert {*results.FIRST_SCREEN, *results.ELSEWHERE} <= results.RUNS.keys()
