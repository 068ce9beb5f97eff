"""Baselines of a rating model on the same split: the mean, biases, and a matrix factorization.

N: ratings, Z: factors.
"""

import numpy as np
import torch
from torch import Tensor

from common.process_group import on_rank_zero
from data.history.encoder import fit_biases
from data.movie_rating_seq import HistoryDataModule

FACTORS = 30
SWEEPS = 9
PENALTIES = (0.07, 0.1, 0.15)  # on the vectors, per rating of a user or movie; validation RMSE chooses
BIAS_PENALTY = 0.02
EXTRA_RATINGS = 5  # added to the number of ratings in the penalty, for users and movies with few


@on_rank_zero
def rating_baselines(data: HistoryDataModule) -> dict[str, Tensor]:
    """Predicted test ratings or clicks (N,), fitted on train and, as BST's histories include it, on train + val."""
    user, movie, rating = data.user_item_target()
    test, bounds, (offset, unit) = data.rows["test"], data.rating_range, data.rating_units
    if data.target == "click":  # a linear probability model
        bounds, (offset, unit) = (0.01, 0.99), (0.0, 1.0)

    def clipped(predicted: np.ndarray) -> Tensor:
        return torch.from_numpy((predicted * unit + offset).clip(*bounds).astype(np.float32))

    def fit(rows: np.ndarray, penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Mean, and the predictions of the biases and of the factorization for all rows (N,), fitted on `rows`."""
        known = user[rows], movie[rows], rating[rows]
        mean, user_bias, movie_bias = fit_biases(*known, user.max() + 1, movie.max() + 1)
        vectors = factorize(*known, user_bias, movie_bias, penalty)
        return mean, mean + user_bias[user] + movie_bias[movie], mean + predict(*vectors, user, movie)

    train, val = data.rows["train"], data.rows["val"]
    tried = {penalty: fit(train, penalty) for penalty in PENALTIES}
    best = min(PENALTIES, key=lambda penalty: np.square(tried[penalty][-1][val] - rating[val]).sum())
    results = {}
    for name, fitted in (("train", tried[best]), ("train + val", fit(np.concatenate([train, val]), best))):
        mean, bias, factorization = fitted
        results[f"mean ({name})"] = clipped(np.full(len(test), mean))
        results[f"user + movie bias ({name})"] = clipped(bias[test])
        results[f"matrix factorization ({name})"] = clipped(factorization[test])
    return results


def factorize(
    user: np.ndarray,
    movie: np.ndarray,
    rating: np.ndarray,
    user_bias: np.ndarray,
    movie_bias: np.ndarray,
    penalty: float,
) -> tuple[np.ndarray, np.ndarray]:
    """User rows [vector, bias, 1] and movie rows [vector, 1, bias] whose product is rating - mean.

    Alternating least squares with penalties proportional to the number of ratings (Zhou et al. 2008), started from the
    biases. user, movie, rating (N,).
    """
    residual = (rating - rating.mean(dtype=np.float64)).astype(np.float32)
    random = np.random.default_rng(0).normal(0, 0.1, (len(movie_bias), FACTORS))
    users = np.column_stack([np.zeros((len(user_bias), FACTORS)), user_bias, np.ones(len(user_bias))])
    movies = np.column_stack([random, np.ones(len(movie_bias)), movie_bias])
    users, movies = users.astype(np.float32), movies.astype(np.float32)
    by_user, by_movie = _groups(user, len(users)), _groups(movie, len(movies))
    penalties = np.array([penalty] * FACTORS + [BIAS_PENALTY], np.float32)
    for _ in range(SWEEPS):
        others, bias = movies[:, [*range(FACTORS), -2]], movies[:, -1]
        _solve(users, by_user, others, bias, movie, residual, penalties, bias_column=FACTORS)
        others, bias = users[:, [*range(FACTORS), -1]], users[:, -2]
        _solve(movies, by_movie, others, bias, user, residual, penalties, bias_column=FACTORS + 1)
    return users, movies


def predict(users: np.ndarray, movies: np.ndarray, user: np.ndarray, movie: np.ndarray) -> np.ndarray:
    """Predictions of rating - mean (N,)."""
    return (users[user] * movies[movie]).sum(1)


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
