"""What figures show: intervals of the reliability, limits of the search's axes."""

import numpy as np
import pytest

from common.cluster.search_plots import _zoom
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
