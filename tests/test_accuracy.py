"""Each model, trained for a few hundred steps on its public dataset, is as good as before: a gate for silent losses."""

import pytest

import bst.train
import deepfm.train
import dlrm.train
import multitask.train

SHORT = {"max_epochs": 1, "validations_per_epoch": 1, "precision": "32-true"}
CLICKS = SHORT | {"dataset": "ml-1m", "split": "random", "batch_size": 1024}


@pytest.mark.parametrize(
    ("script", "changes", "metric", "least"),
    [
        pytest.param(
            deepfm.train, CLICKS | {"embedding_l2": 1e-3}, "auc", 0.8647, marks=pytest.mark.real_data("ml-1m")
        ),
        pytest.param(dlrm.train, CLICKS, "auc", 0.871, marks=pytest.mark.real_data("ml-1m")),
        pytest.param(multitask.train, SHORT, "auc_income", 0.944, marks=pytest.mark.real_data("census-income-kdd")),
        pytest.param(bst.train, SHORT | {"dataset": "ml-100k"}, "rmse", -1.005, marks=pytest.mark.real_data("ml-100k")),
    ],
    ids=["deepfm", "dlrm", "mmoe", "bst"],
)
def test_metric_has_not_fallen(monkeypatch, script, changes, metric, least):
    """least: on validation rows, the mean of 3 seeds minus 4 standard deviations; an RMSE counts negatively."""
    fit = script.fit_and_test
    monkeypatch.setattr(script, "fit_and_test", lambda *given, **named: fit(*given, **named | {"test": False}))
    found = script.train(**changes)["validation"][metric]
    assert (-found if metric == "rmse" else found) > least
