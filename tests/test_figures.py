"""The content of figures: intervals of the reliability diagram, axis limits of the search."""

import numpy as np
import optuna
import pytest
from ray import tune

from common.cluster.study import (
    best_trials,
    best_value,
    distributions,
    end_trial,
    open_study,
    plot_search,
    setting_importance,
    settings_of,
    trial_folder,
)
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


def test_importance_finds_the_setting_that_was_planted(tmp_path, rng):
    space = {
        "learning_rate": tune.loguniform(1e-4, 1e-2),
        "units": tune.choice([(8,), (4, 4)]),
        "one": tune.choice([1]),
    }
    study = optuna.create_study(direction="maximize")  # in memory, which is faster
    study.set_user_attr("metric", "val_auc")
    for _ in range(20):
        trial = study.ask(distributions(space))
        settings = settings_of(trial.params)
        assert settings["units"] in [(8,), (4, 4)] and settings["one"] == 1
        trial.report(0.8 - 0.01 * abs(np.log10(settings["learning_rate"]) + 3) + 0.0005 * rng.random(), 1)
        end_trial(study, tmp_path, trial.number, "finished")
    found = setting_importance(study)
    assert list(found.index) == ["learning_rate", "units"]  # one value alone explains nothing
    assert found["learning_rate"] > 0.9 and found.sum() == pytest.approx(1)
    plot_search(study, tmp_path, "a title")
    assert (tmp_path / "search.png").exists() and (tmp_path / "settings.png").exists()


@pytest.mark.parametrize(("metric", "best"), [("val_auc", [4, 2, 0]), ("val_log_loss", [3, 0, 2])])
def test_the_best_three_finished_trials_keep_their_checkpoints(tmp_path, metric, best):
    study = open_study(tmp_path, metric)
    for value, state in ((0.7, "finished"), (0.9, "stopped"), (0.75, "finished"), (0.6, "finished"), (0.8, "finished")):
        trial = study.ask()
        (trial_folder(tmp_path, trial.number) / "checkpoints").mkdir(parents=True)
        trial.report(value, 2)
        trial.report(0.7, 1)
        end_trial(study, tmp_path, trial.number, state)
    assert [trial.number for trial in best_trials(study)] == best
    kept = [i for i in range(5) if (trial_folder(tmp_path, i) / "checkpoints").exists()]
    assert kept == sorted(best) and best_value(study, study.trials[4]) == (0.8 if metric == "val_auc" else 0.7)
