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


def baselines_of(data: HistoryDataModule) -> dict[str, Tensor]:
    """What fit_and_test compares the model with on the test rows, by name."""
    return ranking_baselines(data) if data.target == "item" else rating_baselines(data)


@on_rank_zero
def ranking_baselines(data: HistoryDataModule) -> dict[str, Tensor]:
    """What `ranked` returns for the test rows (N, 11): by popularity, and by similarity to the items a user had."""
    user, item, _ = data.user_item_target()
    train = data.rows["train"]
    pairs = sparse.csr_array((np.ones(len(train), np.float32), (user[train], item[train] - FIRST_ID)))
    pairs.data[:] = 1  # a user who had an item twice counts once
    results = {"popularity": ranks(data.test_dataloader(), np.bincount(item[train] - FIRST_ID).astype(np.float32))}
    if len(data.encoder.items) > MOST_ITEMS:
        print(f"No baselines by pairs of items: there are more than {MOST_ITEMS:,} items.", flush=True)
        return results
    together = (pairs.T @ pairs).toarray()  # (M, M)
    results["item to item (cosine)"] = ranks(data.test_dataloader(), cosine(together))
    tried = {penalty: ease(together, penalty) for penalty in EASE_PENALTIES}
    ndcg = {penalty: of_rows(ranks(data.val_dataloader(), tried[penalty])[:, 0])["ndcg"].mean() for penalty in tried}
    best = max(EASE_PENALTIES, key=ndcg.__getitem__)
    results["EASE"] = ranks(data.test_dataloader(), tried[best])
    return results


def ranks(rows: BatchLoader, weights: np.ndarray) -> Tensor:
    """`ranked` by weights (M,), or by the sum of the weights (M, M) of the items that the user of a row had before."""
    parts = []
    for *_, target in rows:
        had, table = target.isnan().float(), torch.from_numpy(weights)
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


@on_rank_zero
def rating_baselines(data: HistoryDataModule) -> dict[str, Tensor]:
    """Predicted test ratings or clicks (N,), fitted on train and, as BST's histories include it, on train + val."""
    user, item, rating = data.user_item_target()
    test, (least, most), (offset, unit) = data.rows["test"], data.encoder.scale.range, data.encoder.scale.units
    if data.target == "click":  # a linear probability model
        least, most, offset, unit = 0.01, 0.99, 0.0, 1.0

    def clipped(predicted: np.ndarray) -> Tensor:
        return torch.from_numpy((predicted * unit + offset).clip(least, most).astype(np.float32))

    def fit(rows: np.ndarray, penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Mean, and the predictions of the biases and of the factorization for all rows (N,), fitted on `rows`."""
        known = user[rows], item[rows], rating[rows]
        mean, user_bias, item_bias = fit_biases(*known, user.max() + 1, item.max() + 1)
        vectors = factorize(*known, user_bias, item_bias, penalty)
        return mean, mean + user_bias[user] + item_bias[item], mean + predict(*vectors, user, item)

    train, val = data.rows["train"], data.rows["val"]
    tried = {penalty: fit(train, penalty) for penalty in PENALTIES}
    best = min(PENALTIES, key=lambda penalty: np.square(tried[penalty][-1][val] - rating[val]).sum())
    results = {}
    for name, fitted in (("train", tried[best]), ("train + val", fit(np.concatenate([train, val]), best))):
        mean, bias, factorization = fitted
        results[f"mean ({name})"] = clipped(np.full(len(test), mean))
        results[f"user + item bias ({name})"] = clipped(bias[test])
        results[f"matrix factorization ({name})"] = clipped(factorization[test])
    return results


def factorize(
    user: np.ndarray,
    item: np.ndarray,
    rating: np.ndarray,
    user_bias: np.ndarray,
    item_bias: np.ndarray,
    penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """User rows [vector, bias, 1] and item rows [vector, 1, bias] whose product is rating - mean.

    Alternating least squares with penalties proportional to the number of ratings (Zhou et al. 2008), started from the
    biases. user, item, rating (N,).
    """
    residual = (rating - rating.mean(dtype=np.float64)).astype(np.float32)
    random = np.random.default_rng(0).normal(0, 0.1, (len(item_bias), FACTORS))
    users = np.column_stack([np.zeros((len(user_bias), FACTORS)), user_bias, np.ones(len(user_bias))])
    items = np.column_stack([random, np.ones(len(item_bias)), item_bias])
    users, items = users.astype(np.float32), items.astype(np.float32)
    by_user, by_item = _groups(user, len(users)), _groups(item, len(items))
    penalties = np.array([penalty] * FACTORS + [BIAS_PENALTY], np.float32)
    for _ in range(SWEEPS):
        others, bias = items[:, [*range(FACTORS), -2]], items[:, -1]
        _solve(users, by_user, others, bias, item, residual, penalties, bias_column=FACTORS)
        others, bias = users[:, [*range(FACTORS), -1]], users[:, -2]
        _solve(items, by_item, others, bias, user, residual, penalties, bias_column=FACTORS + 1)
    return users, items


def predict(users: np.ndarray, items: np.ndarray, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Predictions of rating - mean (N,)."""
    return (users[user] * items[item]).sum(1)


def _groups(ids: np.ndarray, count: int) -> list[np.ndarray]:
    """The row numbers of each id."""
    return np.split(np.argsort(ids, kind="stable"), np.bincount(ids, minlength=count).cumsum()[:-1])


def _solve(
    own: np.ndarray,
    groups: list[np.ndarray],
    others: np.ndarray,
    other_bias: np.ndarray,
    other: np.ndarray,
    residual: np.ndarray,
    penalties: np.ndarray,
    bias_column: int,
) -> None:
    """Set the vector and bias of each row of `own` by a ridge regression on its ratings."""
    for row, ratings in enumerate(groups):
        x = others[other[ratings]]  # (ratings of the row, Z + 1), with ones in the last column
        gram = x.T @ x
        gram.flat[:: FACTORS + 2] += penalties * (len(ratings) + EXTRA_RATINGS)
        solved = np.linalg.solve(gram, x.T @ (residual[ratings] - other_bias[other[ratings]]))
        own[row, :FACTORS], own[row, bias_column] = solved[:-1], solved[-1]
