"""Sampled negatives for data without ratings: movies that the user interacts with in no row, earlier or later.

N: rows.
"""

from collections.abc import Sequence

import numpy as np

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import UserError, shown
from data.movie_history import FIRST_ID

ROUNDS = 20  # of redrawing movies that the user knows; the remaining ones are drawn from those it does not know


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
    """Negatives of each row (count, N) int32: uniform over the training rows' movies, except those of the row's user.

    user, movie (N,): number and id of all rows. seed: of the training rows' negatives. names: of the users.
    Raises: UserError naming a user who has interacted with every movie.
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
                f"user {shown(names[user[row]])} has interacted with every item of the training rows, so there is no "
                "negative to sample. Remove this user's rows, or add a column of ratings to the file."
            )
        drawn[row] = rng.choice(unknown)
    return drawn


def _is_known(user: np.ndarray, movie: np.ndarray, known: np.ndarray, num_movies: int) -> np.ndarray:
    key = user.astype(np.int64) * num_movies + movie
    return known[np.searchsorted(known, key).clip(max=len(known) - 1)] == key
