"""Ratings in time order, their splits, and what is fitted on the training rows: vocabularies and biases.

N: ratings, M: movie ids, C: feature columns of a user.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import check
from data.history.dataset import FIRST_ID, OOV, Scale

SPLIT_METHODS = ("leave_last", "time", "random")
Attributes = dict[int, list[list[str]]]  # the values of each attribute of a movie (genres, say), by raw id
Users = dict[int, list[str]]  # gender, age group and the like, by raw id
SHARES = (0.8, 0.1)  # of training and validation rows, for "time" and "random"
LEAST_TIMESTAMP = 100_000_000  # seconds since 1970; smaller times are ranks
# pseudo-ratings with residual 0 added to each bias (Surprise's defaults), and to the bias over a user's past
USER_SHRINKAGE, MOVIE_SHRINKAGE = 15.0, 10.0
USER_BIAS_SHRINKAGE = 5.0


def time_order(ratings: dict[str, np.ndarray]) -> np.ndarray:
    """Row numbers sorted by user and time; ties stay in file order."""
    return np.lexsort((ratings["time"], ratings["user"]))  # stable


def in_time_order(ratings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns in time order, plus `start` (N,), the user's first row, and `user_row` (N,), the user's number."""
    order = time_order(ratings)
    ordered = {name: column[order] for name, column in ratings.items()}
    starts_user = np.diff(ordered["user"], prepend=-1) != 0
    ordered["user_row"] = (np.cumsum(starts_user) - 1).astype(np.int32)
    ordered["start"] = np.flatnonzero(starts_user).astype(np.int32)[ordered["user_row"]]
    return ordered


def split_rows(ordered: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    """Row numbers of train, val and test.

    "leave_last": each user's last rating is a test row, the one before it a validation row; users with fewer than 3
    ratings have training rows only. "time": the same cut-off times for all users. "random" leaks: a training row may be
    later than a test row of the same user.
    """
    rows = np.arange(len(ordered["user"]))
    if split == "leave_last":
        first = np.flatnonzero(ordered["start"] == rows)
        counts = np.diff(first, append=len(rows))
        last = (first + counts - 1)[counts >= 3]
        part: np.ndarray = np.zeros(len(rows), np.int8)
        part[last - 1], part[last] = 1, 2
    elif split == "time":
        check(
            ordered["time"].max() >= LEAST_TIMESTAMP,
            'split is "time", but the times of this dataset are ranks within each user, not timestamps. '
            'Set split="leave_last", or use a dataset with timestamps.',
        )
        cuts = np.quantile(ordered["time"], np.cumsum(SHARES), method="lower")
        part = np.searchsorted(cuts, ordered["time"], "left")  # equal times are in the same split
    else:
        drawn = np.random.default_rng(SPLIT_SEED).random(len(rows))
        part = np.searchsorted(np.cumsum(SHARES), drawn, "right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}


def fit_biases(
    user: np.ndarray, movie: np.ndarray, rating: np.ndarray, num_users: int, num_movies: int, sweeps: int = 10
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, user biases and movie biases of rating = mean + b_user + b_movie, by alternating least squares."""
    mean = float(rating.mean(dtype=np.float64))
    user_bias = np.zeros(num_users)
    user_count, movie_count = np.bincount(user, minlength=num_users), np.bincount(movie, minlength=num_movies)
    for _ in range(sweeps):
        rest = np.bincount(movie, rating - mean - user_bias[user], num_movies)
        movie_bias = rest / (MOVIE_SHRINKAGE + movie_count)
        rest = np.bincount(user, rating - mean - movie_bias[movie], num_users)
        user_bias = rest / (USER_SHRINKAGE + user_count)
    return mean, user_bias, movie_bias


def fit_popularity(movie: np.ndarray) -> np.ndarray:
    """The log of how many rows each item (M,) has, and what an average one has; the sum of both is what is expected."""
    counts = np.bincount(movie)
    return np.log(counts + 1) - np.log(counts.mean() + 1)


def in_units(rating: np.ndarray, scale: Scale) -> np.ndarray:
    """Ratings (N,) in the units of the model."""
    return (rating - scale.offset) / scale.unit


@dataclass
class MovieEncoder:
    """What is fitted on the training rows: vocabularies, and the biases that the model starts from.

    Ids of movies and users: 0 unseen in training, 1 padding of a history, then the raw ids in ascending order. Ids of a
    user's features: 0 unseen, then the values in order.
    """

    movie_ids: list[int]
    user_ids: list[int]
    feature_values: list[list[str]]
    genres: list[str]
    mean: float
    movie_bias: list[float]  # by id
    scale: Scale

    @classmethod
    def fit(
        cls,
        ordered: dict[str, np.ndarray],
        train: np.ndarray,
        attributes: Attributes,
        users: Users,
        scale: Scale,
        *,
        start_from_biases: bool,
    ) -> "MovieEncoder":
        """start_from_biases: False leaves every bias at 0.

        `attributes` has every movie or is empty; `users` likewise.
        """
        movie_ids, movie = np.unique(ordered["movie"][train], return_inverse=True)
        user_ids, user = np.unique(ordered["user"][train], return_inverse=True)
        if scale.has_ratings:
            rating = in_units(ordered["rating"][train], scale)
            mean, _, movie_bias = fit_biases(user, movie, rating, len(user_ids), len(movie_ids))
        else:
            mean, movie_bias = 0.0, fit_popularity(movie)
        known = [users[number] for number in user_ids.tolist() if users]
        movies = [attributes[number] for number in movie_ids.tolist() if attributes]
        return cls(
            movie_ids.tolist(),
            user_ids.tolist(),
            [sorted(set(values)) for values in zip(*known, strict=True)],
            sorted({value for cells in movies for values in cells for value in values}),
            mean,
            [0.0] * FIRST_ID + (movie_bias * start_from_biases).tolist(),
            scale,
        )

    @property
    def num_movies(self) -> int:
        return FIRST_ID + len(self.movie_ids)

    @property
    def num_genres(self) -> int:
        """Number of values of all attributes together; at least 1, because torch's layers need a width."""
        return max(1, len(self.genres))

    @property
    def user_cardinalities(self) -> list[int]:
        """Number of ids of the user itself, then of each of its features."""
        return [FIRST_ID + len(self.user_ids), *(1 + len(values) for values in self.feature_values)]

    def genre_shares(self, attributes: Attributes) -> Tensor:
        """(M, G): 1 / number of its genres for each genre of a movie; the same for other attributes."""
        shares = torch.zeros(self.num_movies, self.num_genres)
        columns = {genre: column for column, genre in enumerate(self.genres)}
        for row, number in enumerate(self.movie_ids, FIRST_ID):
            for values in attributes.get(number, ()):
                for value in values:
                    shares[row, columns[value]] += 1 / len(values)
        return shares

    @property
    def expected(self) -> np.ndarray:
        """Expected rating, or logit of a click, of each movie (M,)."""
        return self.mean + np.array(self.movie_bias)

    def residuals(self, rating: np.ndarray, movie: np.ndarray) -> np.ndarray:
        """Ratings (N,) minus the expected ratings of the movies (N,); 0 if the data has no ratings."""
        return (in_units(rating, self.scale) - self.expected[movie]) * self.scale.has_ratings

    def encode(
        self, ordered: dict[str, np.ndarray], users: Users, start_from_biases: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Name and array of each of ENCODED, for ratings in time order; one at a time, because they may be large."""
        rows = np.arange(len(ordered["start"]))
        yield "user_ids", self._encode_users(ordered["user"][ordered["start"] == rows], users)
        movie = encode_ids(ordered["movie"], self.movie_ids)
        yield "item", movie
        yield "expected", self.expected.astype(np.float32)
        residual = self.residuals(ordered["rating"], movie)
        yield "residual", residual.astype(np.float32)
        # over earlier ratings only
        total = np.concatenate([[0.0], residual.cumsum()[:-1]])
        total -= total[ordered["start"]]
        user_bias = past_user_bias(total, rows - ordered["start"]) * start_from_biases
        yield "user_bias", user_bias.astype(np.float32)

    def _encode_users(self, raw: np.ndarray, users: Users) -> np.ndarray:
        """Raw ids (users,) -> ids of each user and its features (users, 1 + C) int32."""
        unknown = [""] * len(self.feature_values)
        texts = [users.get(number, unknown) for number in raw.tolist()]
        columns = [encode_ids(raw, self.user_ids)]
        for values, column in zip(self.feature_values, zip(*texts, strict=True), strict=True):
            ids = {value: number for number, value in enumerate(values, 1)}
            columns.append(np.array([ids.get(value, OOV) for value in column], np.int32))
        return np.stack(columns, 1)

    def state_dict(self) -> dict:
        """Plain values for a checkpoint."""
        return vars(self) | {"scale": asdict(self.scale)}

    @classmethod
    def from_state(cls, state: dict) -> "MovieEncoder":
        return cls(**state | {"scale": Scale(**state["scale"])})


def past_user_bias(total: np.ndarray, past: np.ndarray) -> np.ndarray:
    """Shrunken mean residual of `past` earlier ratings, whose residuals sum to `total`."""
    return total / (USER_BIAS_SHRINKAGE + past)


def encode_ids(raw: np.ndarray, vocabulary: list[int] | np.ndarray) -> np.ndarray:
    """Raw ids (N,) -> ids (N,) int32."""
    known = np.array(vocabulary, raw.dtype)
    position = np.searchsorted(known, raw).clip(max=len(known) - 1)
    return np.where(known[position] == raw, position + FIRST_ID, OOV).astype(np.int32)
