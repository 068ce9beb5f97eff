"""Sampled negatives for data without ratings: movies that a user has nothing to do with, now or later.

N: rows, M: movie ids.
"""

from collections.abc import Sequence

import numpy as np

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import UserError, shown
from data.movie_history import FIRST_ID

ROUNDS = 20  # of drawing again what a user knows; what is left then is drawn among what it does not know


def sample_negatives(
    user: np.ndarray,
    movie: np.ndarray,
    rows: dict[str, np.ndarray],
    num_movies: int,
    *,
    count: int,
    seed: int,
    names: Sequence[str],
) -> np.ndarray:
    """(count, N) int32: uniform among the training rows' movies that the row's user has in no row.

    user, movie (N,): number and id of all rows. seed: of the training rows' negatives. names: of the users.
    Raises: UserError naming a user who has every movie.
    """
    known = np.unique(user.astype(np.int64) * num_movies + movie)
    negatives = np.empty((count, len(user)), np.int32)
    for i, name in enumerate(SPLITS):
        rng = np.random.default_rng([seed if name == "train" else SPLIT_SEED, i])
        users = np.tile(user[rows[name]], count)
        negatives[:, rows[name]] = _draw(users, known, num_movies, rng, names).reshape(count, -1)
    return negatives


def _draw(
    user: np.ndarray, known: np.ndarray, num_movies: int, rng: np.random.Generator, names: Sequence[str]
) -> np.ndarray:
    drawn = rng.integers(FIRST_ID, num_movies, len(user))
    for _ in range(ROUNDS):
        again = np.flatnonzero(_is_known(user, drawn, known, num_movies))
        if not len(again):
            return drawn
        drawn[again] = rng.integers(FIRST_ID, num_movies, len(again))
    for row in np.flatnonzero(_is_known(user, drawn, known, num_movies)):
        everything = np.arange(FIRST_ID, num_movies)
        unknown = everything[~_is_known(np.full(len(everything), user[row]), everything, known, num_movies)]
        if not len(unknown):
            raise UserError(
                f"user {shown(names[user[row]])} has every item of the training rows, so none can be sampled as a "
                "negative. Leave out its rows, or give the file a column of ratings."
            )
        drawn[row] = rng.choice(unknown)
    return drawn


def _is_known(user: np.ndarray, movie: np.ndarray, known: np.ndarray, num_movies: int) -> np.ndarray:
    key = user.astype(np.int64) * num_movies + movie
    return known[np.searchsorted(known, key).clip(max=len(known) - 1)] == key
