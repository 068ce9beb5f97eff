"""Differences between two models on the same rows, against double loops and the bootstrap; AUC within groups."""

import math

import numpy as np
import pytest
import torch

from common.model.metrics import (
    TaskMetrics,
    auc,
    auc_difference,
    click_metrics,
    fit_temperature,
    gauc,
    interval,
    rating_metrics,
    rmse_difference,
    tempered,
)


def scores(rng: np.random.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two scores with ties, the second one worse, and labels."""
    label = rng.random(rows) < 0.3
    shared = rng.normal(0.8 * label, 1)
    pair = [np.round(shared + rng.normal(0, noise, rows), 1) for noise in (0.3, 1.0)]
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1]), torch.from_numpy(label).float()


def test_delong_is_the_double_loop(rng):
    """Eq. 3 to 6 of DeLong et al. 1988, for the contrast (1, -1)."""
    first, second, label = scores(rng, 60)
    psi = []
    for score in (first, second):
        positives, negatives = score[label == 1].tolist(), score[label == 0].tolist()
        psi.append([[1.0 if p > n else 0.5 if p == n else 0.0 for n in negatives] for p in positives])
    psi = np.array(psi)  # (2, m, n)
    covariances = [np.cov(psi.mean(2)) / psi.shape[1], np.cov(psi.mean(1)) / psi.shape[2]]
    contrast = np.array([1, -1])
    error = math.sqrt(contrast @ sum(covariances) @ contrast)
    expected = interval(contrast @ psi.mean((1, 2)), error)
    assert auc_difference(first, second, label) == pytest.approx(expected)
    assert expected["difference"] == pytest.approx(auc(first, label) - auc(second, label))
    assert expected["high"] - expected["low"] == pytest.approx(2 * 1.96 * error, rel=1e-4)


def test_intervals_are_those_of_the_bootstrap(rng):
    first, second, label = scores(rng, 1000)
    ratings = torch.from_numpy(rng.normal(3, 1, 1000))
    for compare, metric, target in (
        (auc_difference, auc, label),
        (rmse_difference, lambda p, y: rating_metrics(p, y)["rmse"], ratings),
    ):
        found = compare(first, second, target)
        assert found["difference"] == pytest.approx(metric(first, target) - metric(second, target))
        differences = []
        for _ in range(400):
            rows = torch.from_numpy(rng.integers(1000, size=1000))
            differences.append(metric(first[rows], target[rows]) - metric(second[rows], target[rows]))
        assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(np.std(differences), rel=0.12)


def test_an_undefined_difference_is_nan():
    label = torch.zeros(4)
    assert math.isnan(auc_difference(torch.rand(4), torch.rand(4), label)["low"])
    same = TaskMetrics(["a", "b"]).compare(
        *[torch.tensor([[0.1, 0.2], [0.3, 0.4]])] * 2, torch.tensor([[0, 1], [1, 1]])
    )
    assert same["auc_a"] == interval(0.0, 0.0) and math.isnan(same["auc_b"]["difference"])


def test_gauc_is_the_loop_over_groups(rng):
    score, _, label = scores(rng, 300)
    group = rng.integers(60, size=300)
    total = weight = 0.0
    for number in set(group.tolist()):
        rows = torch.from_numpy(group == number)
        if not math.isnan(value := auc(score[rows], label[rows])):
            total, weight = total + value * int(rows.sum()), weight + int(rows.sum())
    assert 0 < weight < 300
    assert gauc(score, label, group) == pytest.approx(total / weight)
    assert math.isnan(gauc(score, torch.ones(300), group))


def test_the_temperature_of_overconfident_probabilities_is_found(rng):
    logits = torch.from_numpy(rng.normal(0, 1.5, 20_000))
    label = torch.from_numpy(rng.random(20_000)).lt(logits.sigmoid()).float()
    probability = (1.7 * logits).sigmoid().float()
    temperature = fit_temperature(probability, label)
    assert temperature == pytest.approx(1.7, abs=0.07)
    losses = [click_metrics(tempered(probability, t), label)["log_loss"] for t in (temperature, 1, 0.97, 1.03)]
    assert min(losses) == losses[0]
    torch.testing.assert_close(tempered(probability, 1.7), logits.sigmoid().float(), atol=1e-4, rtol=1e-4)
