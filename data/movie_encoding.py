"""MovieLens ratings in time order, splits, biases, and windows of history that are views into the ordered arrays.

N: ratings, B: batch, L: length of the history, M: movie ids, C: features of a user.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import check
from data.loader import MappedRows
from data.movie_formats import Movies, Users

UNSEEN, PADDING, FIRST_ID = 0, 1, 2
SPLIT_METHODS = ("leave_last", "time", "random")
RANDOM_SPLIT_SEED = 2018  # of "random", not that of the training run
CLICK_RATING = 4.0  # a "click" is a rating of at least this
CLICK_MARGIN = CLICK_RATING - 0.5  # expected rating of an even chance
SHARES = (0.8, 0.1)  # training and validation rows of "time" and "random"
LEAST_TIMESTAMP = 100_000_000  # seconds since 1970; smaller times are ranks
USER_SHRINKAGE, MOVIE_SHRINKAGE = 15.0, 10.0  # ratings of 0 deviation added to a bias (Surprise's defaults)
LEVEL_SHRINKAGE = 5.0  # the same for a user's past
# what a cache depends on beside its files and the settings
CONSTANTS = {"split": (SHARES, RANDOM_SPLIT_SEED), "shrinkage": (USER_SHRINKAGE, MOVIE_SHRINKAGE, LEVEL_SHRINKAGE)}
DISTANCE_BUCKETS = 64  # half powers of two: 0, 1 .. 2^31 seconds, or ratings where times are ranks
ORDERED = ["user", "movie", "rating", "time", "user_row", "start"]  # what does not depend on the split, raw ids
ENCODED = ["movie", "deviation", "expected", "level", "user_ids"]  # user_ids has a row per user


def time_order(ratings: dict[str, np.ndarray]) -> np.ndarray:
    """Row numbers sorted by user and time, ties in the order of the file."""
    return np.lexsort((ratings["time"], ratings["user"]))  # stable


def in_time_order(ratings: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns in time order, with `start` (N,), the first row of the user, and `user_row` (N,), its number."""
    order = time_order(ratings)
    ordered = {name: column[order] for name, column in ratings.items()}
    is_first = np.diff(ordered["user"], prepend=-1) != 0
    ordered["user_row"] = (np.cumsum(is_first) - 1).astype(np.int32)
    ordered["start"] = np.flatnonzero(is_first).astype(np.int32)[ordered["user_row"]]
    return ordered


def split_rows(ordered: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    """Row numbers of train, val and test.

    "leave_last": each user's last rating tests, the one before validates; users with fewer than 3 only train.
    "time": a cut through all users. "random" leaks: a training row may come after a test row of the same user.
    """
    rows = np.arange(len(ordered["user"]))
    if split == "leave_last":
        first = np.flatnonzero(ordered["start"] == rows)
        counts = np.diff(first, append=len(rows))
        last = (first + counts - 1)[counts >= 3]
        part = np.zeros(len(rows), np.int8)
        part[last - 1], part[last] = 1, 2
    elif split == "time":
        check(
            ordered["time"].max() >= LEAST_TIMESTAMP,
            'SPLIT is "time", but the times of this dataset are ranks within each user, not timestamps. '
            'Use SPLIT = "leave_last", or a dataset with timestamps.',
        )
        cuts = np.quantile(ordered["time"], np.cumsum(SHARES), method="lower")
        part = np.searchsorted(cuts, ordered["time"], "left")  # one moment is never cut in two
    else:
        drawn = np.random.default_rng(RANDOM_SPLIT_SEED).random(len(rows))
        part = np.searchsorted(np.cumsum(SHARES), drawn, "right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(("train", "val", "test"))}


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


@dataclass
class MovieEncoder:
    """What the training rows tell: vocabularies, and the biases that the model starts from.

    Ids of movies and users: 0 unseen in training, 1 padding of a history, then the raw ids in ascending order; of a
    user's features and of genres: 0 unseen, then the values in order.
    """

    movie_ids: list[int]
    user_ids: list[int]
    feature_values: list[list[str]]
    genres: list[str]
    mean: float
    movie_bias: list[float]  # by id

    @classmethod
    def fit(
        cls, ordered: dict[str, np.ndarray], train: np.ndarray, movies: Movies, users: Users, biases: bool
    ) -> "MovieEncoder":
        """biases: False leaves every bias, and so every user's level, at 0."""
        movie_ids, movie = np.unique(ordered["movie"][train], return_inverse=True)
        user_ids, user = np.unique(ordered["user"][train], return_inverse=True)
        rating = ordered["rating"][train]
        mean, _, movie_bias = fit_biases(user, movie, rating, len(user_ids), len(movie_ids))
        known = [users[number] for number in user_ids.tolist() if users]
        return cls(
            movie_ids.tolist(),
            user_ids.tolist(),
            [sorted(set(values)) for values in zip(*known, strict=True)],
            sorted({genre for number in movie_ids.tolist() for genre in movies[number][1]}),
            mean,
            [0.0] * FIRST_ID + (movie_bias * biases).tolist(),
        )

    @property
    def num_movies(self) -> int:
        return FIRST_ID + len(self.movie_ids)

    @property
    def user_sizes(self) -> list[int]:
        """Number of ids of the user itself, then of each of its features."""
        return [FIRST_ID + len(self.user_ids), *(1 + len(values) for values in self.feature_values)]

    def genre_shares(self, movies: Movies) -> Tensor:
        """(movie ids, genres): 1 / number of its genres for each genre of a movie."""
        shares = torch.zeros(self.num_movies, len(self.genres))
        for row, number in enumerate(self.movie_ids, FIRST_ID):
            for genre in movies[number][1]:
                shares[row, self.genres.index(genre)] = 1 / len(movies[number][1])
        return shares

    def encode(self, ordered: dict[str, np.ndarray], users: Users, biases: bool) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays ENCODED of ratings in time order, one after the other (they may be large)."""
        rows = np.arange(len(ordered["start"]))
        yield "user_ids", self._encode_users(ordered["user"][ordered["start"] == rows], users)
        movie = encode_ids(ordered["movie"], self.movie_ids)
        yield "movie", movie
        expected = (self.mean + np.array(self.movie_bias))[movie]
        deviation = ordered["rating"] - expected
        yield "deviation", deviation.astype(np.float32)
        # the user's shrunken mean deviation over the past alone
        total = np.concatenate([[0.0], deviation.cumsum()[:-1]])
        total -= total[ordered["start"]]
        level = total / (LEVEL_SHRINKAGE + rows - ordered["start"]) * biases
        yield "expected", expected.astype(np.float32)
        yield "level", level.astype(np.float32)

    def _encode_users(self, raw: np.ndarray, users: Users) -> np.ndarray:
        """Raw ids (U,) -> ids of each user and its features (U, 1 + C) int32."""
        unknown = [""] * len(self.feature_values)
        texts = [users.get(number, unknown) for number in raw.tolist()]
        columns = [encode_ids(raw, self.user_ids)]
        for values, column in zip(self.feature_values, zip(*texts, strict=True), strict=True):
            ids = {value: number for number, value in enumerate(values, 1)}
            columns.append(np.array([ids.get(value, UNSEEN) for value in column], np.int32))
        return np.stack(columns, 1)

    def state_dict(self) -> dict:
        """What a checkpoint carries: plain values."""
        return vars(self)

    @classmethod
    def from_state(cls, state: dict) -> "MovieEncoder":
        return cls(**state)


def encode_ids(raw: np.ndarray, vocabulary: list[int]) -> np.ndarray:
    """Raw ids (N,) -> ids (N,) int32."""
    known = np.array(vocabulary, raw.dtype)
    place = np.searchsorted(known, raw).clip(max=len(known) - 1)
    return np.where(known[place] == raw, place + FIRST_ID, UNSEEN).astype(np.int32)


class Windows(MappedRows):
    """Examples whose histories are windows into the time-ordered arrays ORDERED and ENCODED: nothing is copied.

    history: L; click: the target is "rating of at least CLICK_RATING" instead of the rating; uses_ratings: False takes
    the rating values out of the histories.
    """

    def __init__(self, ordered: Path, encoded: Path, history: int, click: bool, uses_ratings: bool):
        # an absolute name is a path of its own, not one below `encoded`
        super().__init__(encoded, [*ENCODED, *(str(ordered / name) for name in ORDERED[2:])])
        self.history, self.click, self.uses_ratings = history, click, uses_ratings

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row numbers (B,) -> movie (B,), history (B, L), deviation (B, L), distance (B, L), user (B, 1 + C),
        numbers (B, 3): mean + movie bias + level (for clicks from their threshold on), level, log of 1 + number of past
        ratings; target (B,)."""
        movie, deviation, expected, level, user_ids, rating, time, user_row, start = self.arrays
        start, level = start[rows], level[rows] * self.uses_ratings
        history, deviation, distance = past_window(movie, deviation, time, rows, start, time[rows], self.history)
        return (
            movie[rows],
            history,
            deviation * self.uses_ratings,
            distance,
            user_ids[user_row[rows]],
            number_inputs(expected[rows], level, rows - start, self.click),
            (rating[rows] >= CLICK_RATING).float() if self.click else rating[rows],
        )

    def __getstate__(self) -> dict:
        return vars(self) | super().__getstate__()


def past_window(
    movie: Tensor, deviation: Tensor, time: Tensor, place: Tensor, start: Tensor, now: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Movie, deviation and distance to `now` (B, L) of the last ratings before `place` (B,), from `start` (B,) on."""
    window = place.unsqueeze(1) + torch.arange(-length, 0)  # (B, L)
    is_past = window >= start.unsqueeze(1)
    window.clamp_(min=0)
    distance = bucket(now.unsqueeze(1) - time[window]) * is_past
    return movie[window].where(is_past, PADDING), deviation[window].where(is_past, 0.0), distance


def number_inputs(expected: Tensor, level: Tensor, past: Tensor, click: bool) -> Tensor:
    """The inputs `numbers` (B, 3) of Windows; past: number of past ratings."""
    return torch.stack([expected + level - CLICK_MARGIN * click, level, (1.0 + past).log()], 1)


def bucket(distance: Tensor) -> Tensor:
    """Time distances, in seconds or ratings, to half powers of two: 0 -> 0, 1 -> 2, 3 -> 4, 7 -> 6 ... as int32."""
    return (2 * (distance.clamp(min=0) + 1.0).log2()).to(torch.int32).clamp(max=DISTANCE_BUCKETS - 1)
