"""The content of figures: intervals of the reliability diagram, axis limits of the search."""

import numpy as np
import pytest
from ray import tune

from common.cluster.search import distributions
from common.cluster.search_plots import _zoom, plot_search, setting_importance
from common.cluster.search_record import SearchRecord, best_trials
from common.model.comparison import auc_error
from common.training.plots import reliability


def test_reliability_has_the_bins_that_rows_bear_and_covers_the_truth(rng):
    covered, bins = 0, 0
    for _ in range(60):
        probability = rng.beta(1, 3, 4000)
        click = (rng.random(4000) < probability).astype(np.float32)
        found = reliability(probability, click)
        assert len(found) == min(20, int(click.sum()) // 50)
        predicted, observed, low, high = found.T
        assert (np.diff(predicted) > 0).all() and ((low <= observed) & (observed <= high)).all()
        covered, bins = covered + ((low <= predicted) & (predicted <= high)).sum(), bins + len(found)
    assert covered / bins == pytest.approx(0.95, abs=0.02)
    assert len(reliability(np.full(30, 0.1), np.zeros(30))) == 1  # few rows, of one class


def test_standard_error_of_an_auc_is_its_spread(rng):
    def auc(positives: int, negatives: int) -> float:
        return (rng.exponential(3, positives)[:, None] > rng.exponential(1, negatives)).mean()  # the model of the paper

    drawn = [auc(60, 140) for _ in range(2000)]
    assert auc_error(0.75, 60, 140) == pytest.approx(np.std(drawn), rel=0.05)


def test_an_axis_shows_where_trials_differ():
    low, high = _zoom([0.5, 0.70, 0.71, 0.72, 0.73])
    assert 0.68 < low < 0.70 and 0.73 < high < 0.74
    low, high = _zoom([0.6])
    assert low < 0.6 < high


def test_importance_finds_the_setting_that_was_planted(tmp_path, rng):
    space = {
        "learning_rate": tune.loguniform(1e-4, 1e-2),
        "units": tune.choice([(8,), (4, 4)]),
        "one": tune.choice([1]),
    }
    record = SearchRecord(tmp_path)
    for _ in range(20):
        rate, units = float(10 ** rng.uniform(-4, -2)), [[8], [4, 4]][rng.integers(2)]
        trial = record.add({"learning_rate": rate, "units": units, "one": 1})
        trial["rows"] = [{"epoch": 1, "val_auc": 0.8 - 0.01 * abs(np.log10(rate) + 3) + 0.0005 * rng.random()}]
        record.end(trial, "finished")
    found = setting_importance(record, distributions(space))
    assert list(found.index) == ["learning_rate", "units"]  # one value alone explains nothing
    assert found["learning_rate"] > 0.9 and found.sum() == pytest.approx(1)
    plot_search(record, "a title")
    assert (tmp_path / "search.png").exists() and (tmp_path / "settings.png").exists()


def test_the_best_three_finished_trials_keep_their_checkpoints(tmp_path):
    record = SearchRecord(tmp_path)
    for auc, state in ((0.7, "finished"), (0.9, "stopped"), (0.75, "finished"), (0.6, "finished"), (0.8, "finished")):
        trial = record.add({})
        (record.folder(trial["number"]) / "checkpoints").mkdir(parents=True)
        trial["rows"] = [{"epoch": 1, "val_auc": auc}]
        record.end(trial, state)
    assert [trial["number"] for trial in best_trials(record.trials)] == [4, 2, 0]
    assert [i for i in range(5) if (record.folder(i) / "checkpoints").exists()] == [0, 2, 4]
