"""Baselines on the same split: the mean, biases and a matrix factorization of ratings; simple recommenders of items.

N: rows, Z: factors, M: items.
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from common.data.loader import BatchLoader
from common.model.ranking import of_rows, ranked
from common.process_group import on_rank_zero
from data.history.dataset import FIRST_ID
from data.history.encoder import fit_biases
from data.movie_rating_seq import HistoryDataModule

FACTORS = 30
SWEEPS = 9
PENALTIES = (0.07, 0.1, 0.15)  # on the vectors, per rating of a user or item; validation RMSE chooses
BIAS_PENALTY = 0.02
EASE_PENALTIES = (100.0, 300.0, 1000.0)  # validation NDCG chooses
MOST_ITEMS = 10_000  # for the baselines that need a matrix of all pairs of items
EXTRA_RATINGS = 5  # added to the number of ratings in the penalty, for users and items with few


@on_rank_zero
def baselines_of(data: HistoryDataModule) -> dict[str, Tensor]:
    """What fit_and_test compares the model with on the test rows, by name."""
    return ranking_baselines(data) if data.target == "item" else rating_baselines(data)


def ranking_baselines(data: HistoryDataModule) -> dict[str, Tensor]:
    """What `ranked` returns for the test rows (N, 11): by popularity, and by similarity to the items a user had."""
    user, item, _ = data.user_item_target()
    train, test = data.rows["train"], data.test_dataloader()
    pairs = sparse.csr_array((np.ones(len(train), np.float32), (user[train], item[train] - FIRST_ID)))
    pairs.data[:] = 1  # a user who had an item twice counts once
    results = {"popularity": ranks(test, np.bincount(item[train] - FIRST_ID).astype(np.float32))}
    if len(data.encoder.items) > MOST_ITEMS:
        print(f"No baselines by pairs of items: there are more than {MOST_ITEMS:,} items.", flush=True)
        return results
    together = (pairs.T @ pairs).toarray()  # (M, M)
    tried = [ease(together, penalty) for penalty in EASE_PENALTIES]
    ndcg = [of_rows(ranks(data.val_dataloader(), weights)[:, 0])["ndcg"].mean() for weights in tried]
    return results | {
        "item to item (cosine)": ranks(test, cosine(together)),
        "EASE": ranks(test, tried[int(np.argmax(ndcg))]),
    }


def ranks(rows: BatchLoader, weights: np.ndarray) -> Tensor:
    """`ranked` by weights (M,), or by the sum of the weights (M, M) of the items that the user of a row had before."""
    parts, table = [], torch.from_numpy(weights)
    for *_, target in rows:
        had = target.isnan().float()
        parts.append(ranked(had @ table if table.dim() == 2 else table.expand_as(had), target))
    return torch.cat(parts)


def cosine(together: np.ndarray) -> np.ndarray:
    """Similarity of items by their users, from how many users they share (M, M)."""
    norm = np.sqrt(together.diagonal())
    similarity = together / norm / norm[:, None]
    np.fill_diagonal(similarity, 0)
    return similarity


def ease(together: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (M, M) of the linear autoencoder of Steck (2019, arXiv:1905.03375), equation 8."""
    inverse = np.linalg.inv(together.astype(np.float64) + penalty * np.eye(len(together)))
    weights = inverse / -inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def rating_baselines(data: HistoryDataModule) -> dict[str, Tensor]:
    """Predicted test ratings or clicks (N,), fitted on train and, as BST's histories include it, on train + val."""
    user, item, rating = data.user_item_target()
    train, val, test = data.rows.values()
    (least, most), (offset, unit) = data.encoder.scale.range, data.encoder.scale.units
    if data.target == "click":  # a linear probability model
        least, most, offset, unit = 0.01, 0.99, 0.0, 1.0

    def fit(rows: np.ndarray, penalty: float) -> dict[str, np.ndarray]:
        """Predictions for all rows (N,), fitted on `rows`."""
        known = user[rows], item[rows], rating[rows]
        mean, user_bias, item_bias = fit_biases(*known, user.max() + 1, item.max() + 1)
        users, items = factorize(*known, user_bias, item_bias, penalty)
        return {
            "mean": np.full(len(user), mean),
            "user + item bias": mean + user_bias[user] + item_bias[item],
            "matrix factorization": mean + predict(users, items, user, item),
        }

    tried = {penalty: fit(train, penalty) for penalty in PENALTIES}
    best = min(tried, key=lambda penalty: np.square(tried[penalty]["matrix factorization"][val] - rating[val]).sum())
    both = fit(np.concatenate([train, val]), best)
    return {
        f"{name} ({part})": torch.from_numpy((fitted[name][test] * unit + offset).clip(least, most).astype(np.float32))
        for part, fitted in (("train", tried[best]), ("train + val", both))
        for name in fitted
    }


def factorize(
    user: np.ndarray, item: np.ndarray, rating: np.ndarray, user_bias: np.ndarray, item_bias: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """User rows and item rows [vector, bias] (Z + 1), which predict rating - mean.

    Alternating least squares with penalties proportional to the number of ratings (Zhou et al. 2008), started from the
    biases. user, item, rating (N,)."""
    residual = (rating - rating.mean(dtype=np.float64)).astype(np.float32)
    random = np.random.default_rng(0).normal(0, 0.1, (len(item_bias), FACTORS))
    users = np.column_stack([np.zeros((len(user_bias), FACTORS)), user_bias]).astype(np.float32)
    items = np.column_stack([random, item_bias]).astype(np.float32)
    for _ in range(SWEEPS):
        for own, ids, others, other_ids in ((users, user, items, item), (items, item, users, user)):
            _solve(own, ids, others, other_ids, residual, penalty)
    return users, items


def predict(users: np.ndarray, items: np.ndarray, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Predictions of rating - mean (N,)."""
    return (users[user, :-1] * items[item, :-1]).sum(1) + users[user, -1] + items[item, -1]


def _solve(
    own: np.ndarray, ids: np.ndarray, others: np.ndarray, other_ids: np.ndarray, residual: np.ndarray, penalty: float
) -> None:
    """Set each row of `own`, the vector and bias of a user or item, by a ridge regression on its ratings."""
    penalties = np.array([penalty] * FACTORS + [BIAS_PENALTY], np.float32)
    groups = np.split(np.argsort(ids, kind="stable"), np.bincount(ids, minlength=len(own)).cumsum()[:-1])
    for row, ratings in enumerate(groups):
        x = others[other_ids[ratings]]  # (ratings of the row, Z + 1)
        y, x[:, -1] = residual[ratings] - x[:, -1], 1
        gram = x.T @ x
        gram.flat[:: FACTORS + 2] += penalties * (len(ratings) + EXTRA_RATINGS)
        own[row] = np.linalg.solve(gram, x.T @ y)
