"""Metrics of ranking all items against loops, and the recommenders that BST is compared with."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from bst.baselines import cosine, ease, ranking_baselines
from bst.train import DATA
from common.model.ranking import RankingMetrics, mean_interval, of_rows, ranked
from data.movie_rating_seq import HistoryDataModule
from tests.movie_rows import make_ratings, write_1m

ROWS, ITEMS = 40, 70


@pytest.fixture
def scored():
    """Scores with many ties, and targets; the last row's item is not among the items."""
    score = torch.randint(8, (ROWS, ITEMS)).float()
    target = torch.where(torch.rand(ROWS, ITEMS) < 0.2, torch.nan, 0.0)
    target[torch.arange(ROWS), torch.randint(ITEMS, (ROWS,))] = 1.0
    target[-1] = target[-1].where(target[-1] != 1, 0.0)
    return score, target


def rank_in_a_loop(score: torch.Tensor, target: torch.Tensor) -> int:
    """How many candidates score at least as much as the item that came, including itself."""
    (own, *_) = [*(float(s) for s, t in zip(score, target, strict=True) if t == 1), math.nan]
    return sum(float(s) >= own for s, t in zip(score, target, strict=True) if not math.isnan(t))


def test_ranks_and_lists(scored):
    score, target = scored
    found = ranked(score, target)
    assert found.shape == (ROWS, 11) and found[-1, 0] == 0
    for row, (one, truth) in enumerate(zip(score, target, strict=True)):
        assert found[row, 0] == rank_in_a_loop(one, truth)
        listed = found[row, 1:].long()
        assert len(set(listed.tolist())) == 10 and not truth[listed].isnan().any()
        others = [float(one[i]) for i in range(ITEMS) if i not in listed and not truth[i].isnan()]
        assert one[listed].min() >= max(others) and (one[listed].diff() <= 0).all()
    few = ranked(score[:, :4], target[:, :4].nan_to_num(1.0) * 0 + torch.tensor([1.0, torch.nan, 0.0, 0.0]))
    assert (few[:, 4:] == -1).all() and (few[:, 1:4] >= 0).all()
    assert ranked(score.fill_(math.nan), target)[:, 0].isnan().all()


def test_metrics_in_loops(scored):
    metrics = RankingMetrics()
    for part in zip(scored[0].split(7), scored[1].split(7), strict=True):
        metrics.update(*part)
    metrics.gather()
    measured = metrics.measure(metrics.prediction, metrics.target)
    ranks = [rank_in_a_loop(*row) for row in zip(*scored, strict=True)]
    hit = [1 <= rank <= 10 for rank in ranks]
    listed = set(ranked(*scored)[:, 1:].flatten().tolist())
    assert measured == pytest.approx(
        {
            "hr": sum(hit) / ROWS,
            "ndcg": sum(1 / math.log2(1 + rank) for rank, top in zip(ranks, hit, strict=True) if top) / ROWS,
            "mrr": sum(1 / rank for rank in ranks if rank) / ROWS,
            "recall_50": sum(1 <= rank <= 50 for rank in ranks) / ROWS,
            "coverage": len(listed) / ITEMS,
        }
    )
    other = ranked(torch.randn(ROWS, ITEMS), scored[1])
    difference = metrics.compare(metrics.prediction, other, metrics.target)["ndcg"]
    ndcg = [of_rows(ranks[:, 0])["ndcg"].mean().item() for ranks in (metrics.prediction, other)]
    assert difference["difference"] == pytest.approx(ndcg[0] - ndcg[1])


def test_intervals_are_over_users(rng):
    """Rows of a user repeat each other: the interval is that of resampled users, not of rows."""
    groups = np.repeat(np.arange(80), rng.integers(1, 9, 80))
    values = rng.normal(size=80)[groups] + rng.normal(0, 0.1, len(groups))
    found = mean_interval(values, groups)
    of_user = [values[groups == user] for user in range(80)]
    means = [np.concatenate([of_user[user] for user in rng.integers(80, size=80)]).mean() for _ in range(2000)]
    assert found["difference"] == pytest.approx(values.mean())
    assert found["high"] - found["difference"] == pytest.approx(1.96 * np.std(means), rel=0.1)
    alone = mean_interval(values, None)
    assert alone["high"] - alone["difference"] == pytest.approx(
        1.96 * values.std(ddof=1) / len(values) ** 0.5, rel=1e-4
    )
    assert alone["high"] - alone["low"] < 0.7 * (found["high"] - found["low"])


def test_similarities_of_items(rng):
    """EASE is a ridge regression of each item on the others."""
    had = (rng.random((60, 12)) < 0.3).astype(np.float32)
    together, weights = had.T @ had, ease(had.T @ had, 3.0)
    for j in range(12):
        others = np.arange(12) != j
        expected = Ridge(alpha=3.0, fit_intercept=False, tol=1e-10).fit(had[:, others], had[:, j]).coef_
        np.testing.assert_allclose(weights[others, j], expected, atol=1e-5)
        assert weights[j, j] == 0
    found = cosine(together)
    for i, a in enumerate(had.T):
        for j, b in enumerate(had.T):
            assert found[i, j] == pytest.approx(0 if i == j else a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-6)


def test_recommenders_rank_by_what_a_user_had(tmp_path, rng):
    write_1m(tmp_path / "ml", make_ratings(rng, users=40))
    settings = {"dataset": "ml", "data_root": str(tmp_path), "target": "item", "seed": 0}
    data = HistoryDataModule(**DATA | settings)
    data.setup()
    results = ranking_baselines(data)
    user, item, _ = data.user_item_target()
    train = [(user[row], item[row] - 2) for row in data.rows["train"]]
    items = data.encoder.num_items - 2
    count = [sum(i == j for _, j in train) for i in range(items)]
    sets = [{u for u, j in train if j == i} for i in range(items)]
    for number, row in enumerate(data.rows["test"]):
        had = {item[n] - 2 for n in range(row) if user[n] == user[row]}
        scores = {
            "popularity": count,
            "item to item (cosine)": [
                sum(len(sets[i] & sets[j]) / (len(sets[i]) * len(sets[j])) ** 0.5 for i in had if i != j and i >= 0)
                for j in range(items)
            ],
        }
        own = item[row] - 2
        for name, score in scores.items():
            better = sum(score[j] >= score[own] - 1e-6 for j in range(items) if j not in had)
            assert results[name][number, 0] == (better if own >= 0 else 0), (name, number)
    assert len(results["EASE"]) == len(data.rows["test"])
