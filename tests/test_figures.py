"""The content of figures: intervals of the reliability diagram, axis limits of the search."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from matplotlib.figure import Figure
from ray import tune
from sklearn.metrics import roc_auc_score

from bst.plots import plot_history_length_and_attention
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
from common.model.metrics import auc_error
from common.training.plots import plot_clicks, plot_learning_curves, reliability
from common.training.results import BEST_POSSIBLE


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
    space = {"units": tune.choice([(8,), (4, 4)]), "one": tune.choice([1])}
    space |= {"learning_rate": tune.loguniform(1e-4, 1e-2)}
    study = optuna.create_study(direction="maximize")  # in memory, which is faster
    study.set_user_attr("metric", "val_auc")
    for _ in range(20):
        trial = study.ask(distributions(space))
        settings = settings_of(trial.params)
        assert settings["units"] in [(8,), (4, 4)] and settings["one"] == 1
        trial.report(0.8 - 0.01 * abs(np.log10(settings["learning_rate"]) + 3) + 0.0005 * rng.random(), 1)
        end_trial(study, tmp_path, trial.number, "finished")
    found = setting_importance(study)
    assert list(found.index) == ["learning_rate", "units", "one"] and not found["one"]  # which explains nothing
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


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """Figures by the name of their file, as they are saved."""
    figures: dict[str, Figure] = {}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.update({Path(path).name: self}))
    return figures


def test_learning_curves_show_what_was_measured_where(drawn, tmp_path):
    history = [
        {"epoch": 0.5 * (i + 1), "train_loss": 0.6 - 0.05 * i, "val_log_loss": 0.6 - 0.04 * i, "val_auc": auc}
        for i, auc in enumerate([0.70, 0.74, 0.76, 0.75])
    ]
    tested = {"DeepFM": 0.755, "regression": 0.72, "constant": 0.5, BEST_POSSIBLE: 0.78}
    metrics = {name: {"auc": auc} for name, auc in tested.items()}
    results = {"model": "DeepFM", "test": metrics["DeepFM"], "best_possible": metrics[BEST_POSSIBLE]}
    results["baselines"] = {name: metrics[name] for name in ("regression", "constant")}
    plot_learning_curves(history, "val_auc", 1.0, results, "a title", tmp_path)
    loss, auc = drawn["learning_curves.png"].axes
    training, validation = loss.get_lines()
    assert training.get_xdata().tolist() == [0.25, 0.75, 1.25, 1.75]  # means over the steps between validations
    assert validation.get_xdata().tolist() == [0.5, 1.0, 1.5, 2.0] == auc.get_xticks().tolist()
    lines = {line.get_label(): line for line in auc.get_lines()}
    assert lines["tested checkpoint, 0.7600"].get_xdata().tolist() == [1.5]
    levels = {name: line.get_ydata()[0] for name, line in lines.items() if "test rows" in name}
    assert levels == {f"{name}, test rows, {tested[name]:.4f}": tested[name] for name in tested if name != "constant"}
    low, high = auc.get_ylim()
    assert low < 0.70 and high > 0.78
    metrics["regression"]["auc"] = 0.3  # would flatten the curve
    plot_learning_curves(history, "val_auc", None, results, "a title", tmp_path)
    loss, auc = drawn["learning_curves.png"].axes
    assert len(loss.get_lines()) == 1 and auc.get_ylim()[0] > 0.65


def test_roc_has_the_baselines_and_small_probabilities_have_space(drawn, tmp_path, rng):
    click = (rng.random(4000) < 0.1).astype(np.float32)
    probability = np.clip(0.05 + 0.1 * click + 0.04 * rng.standard_normal(4000), 0.001, 1).astype(np.float32)
    other = rng.random(4000).astype(np.float32)
    data = SimpleNamespace(dataset="rows", is_sample=False)
    model = SimpleNamespace(display_name="DLRM")
    predictions = {"DLRM": torch.from_numpy(probability), "another": torch.from_numpy(other)}
    predictions |= {"constant": torch.full((4000,), 0.1)}
    plot_clicks(model, data, predictions, torch.from_numpy(click), tmp_path)
    (roc,), (reliable,) = drawn["roc.png"].axes, drawn["reliability.png"].axes
    labels = [text.get_text() for text in roc.get_legend().get_texts()]
    expected = {"DLRM": roc_auc_score(click, probability), "another": roc_auc_score(click, other)}
    assert labels == [f"{name}, AUC {auc:.4f}" for name, auc in expected.items()]
    left, right = reliable.get_xlim()
    middle = reliable.transLimits.inverted().transform((0.5, 0.5))
    middle = reliable.transScale.inverted().transform(middle)[0]
    assert left == 0 and middle == pytest.approx(right / 4)  # square roots


def test_history_length_has_intervals(drawn, tmp_path, rng):
    length = rng.integers(0, 50, 3000)
    rating = rng.integers(1, 6, 3000).astype(np.float32)
    prediction = torch.from_numpy(rating + rng.normal(0, 0.8, 3000).astype(np.float32))
    data = SimpleNamespace(dataset="ratings", is_sample=False, target="rating", past_rows=lambda split: length)
    model = SimpleNamespace(display_name="BST", hparams={"use_sequence": False})
    predictions = {"BST": prediction, "mean": torch.full((3000,), 3.0), "better": prediction * 0.9 + 0.3}
    plot_history_length_and_attention(model, data, predictions, torch.from_numpy(rating), tmp_path)
    (axes,) = drawn["history_length.png"].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["BST", "better"]
    segments = axes.collections[0].get_segments()
    low, high = np.array([[low, high] for (_, low), (_, high) in segments]).T
    assert len(segments) == 8 and (low + high).mean() / 2 == pytest.approx(0.8, rel=0.03)
    assert (high - low).mean() == pytest.approx(2 * 1.96 * 0.8 / (2 * 3000 / 8) ** 0.5, rel=0.15)  # errors are normal
