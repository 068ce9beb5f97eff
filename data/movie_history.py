"""A user's ratings before each target, as windows into time-ordered arrays: nothing is copied in advance.

B: rows of a batch, L: length of the history, C: feature columns of a user.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.data.loader import MemmapDataset

OOV, PADDING, FIRST_ID = 0, 1, 2  # ids: unseen in training, no rating (fills up a history), the first of a vocabulary
TIME_GAP_BUCKETS = 64  # half powers of two: 0, 1 .. 2^31 seconds (or ratings, if times are ranks)
ORDERED = ["user", "movie", "rating", "time", "user_row", "start"]  # raw columns in time order, the same for any split
# movie: followed by the movies of the sampled negatives; expected: by movie id; user_ids: a row per user
ENCODED = ["movie", "residual", "expected", "user_bias", "user_ids"]

Attributes = dict[int, list[list[str]]]  # the values of each attribute of a movie (genres, say), by raw id
Users = dict[int, list[str]]  # gender, age group and the like, by raw id


@dataclass(frozen=True)
class Scale:
    """What ratings mean. click_from: a "click" is a rating of at least this; None: clicks are not defined.

    The model sees (rating - offset) / unit, which has the spread of MovieLens' ratings. even_chance: the expected
    rating, in these units, at which a click has probability one half. has_ratings: False if every row is a click and
    negatives are sampled; what is expected of a movie is then the logit of a click.
    """

    least: float
    greatest: float
    click_from: float | None
    even_chance: float
    offset: float = 0.0
    unit: float = 1.0
    has_ratings: bool = True

    def clicks(self, rating: Tensor) -> Tensor:
        """1 for a rating of at least click_from, otherwise 0; nan stays nan."""
        assert self.click_from is not None
        return torch.where(rating.isnan(), rating, (rating >= self.click_from).float())


class HistoryDataset(MemmapDataset):
    """Examples whose histories are windows into the arrays ORDERED and ENCODED: all rows, then their sampled negatives.

    history_length: L; click: whether the target is a click instead of the rating; use_ratings: False removes the rating
    values from the histories.
    """

    def __init__(
        self, ordered: Path, encoded: Path, scale: Scale, *, history_length: int, click: bool, use_ratings: bool
    ):
        # the absolute names are not looked for below `encoded`
        super().__init__(encoded, [*ENCODED, *(str(ordered / name) for name in ORDERED[2:])])
        self.scale, self.history_length, self.click, self.use_ratings = scale, history_length, click, use_ratings

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row numbers (B,) -> movie_id (B,), history (B, L), residual (B, L), time_gap (B, L), user_ids (B, 1 + C),
        dense (B, 3), target (B,)."""
        movie, residual, expected, user_bias, user_ids, _, time, user_row, start = self.arrays
        position = rows % len(time)  # a negative has the history of the row it was sampled for
        start, user_bias = start[position], user_bias[position] * self.use_ratings
        history, residual, time_gap = history_window(
            movie, residual, time, position, start, time[position], self.history_length
        )
        movie_id = movie[rows]
        even_chance = self.scale.even_chance if self.click else 0.0
        return (
            movie_id,
            history,
            residual * self.use_ratings,
            time_gap,
            user_ids[user_row[position]],
            dense_features(expected[movie_id], user_bias, position - start, even_chance),
            self.targets(rows),
        )

    def targets(self, rows: Tensor) -> Tensor:
        """Row numbers (B,) -> ratings or clicks (B,); 0 for negatives."""
        rating = self.arrays[len(ENCODED)]
        rating = rating[rows % len(rating)] * (rows < len(rating))
        return self.scale.clicks(rating) if self.click else rating

    def __getstate__(self) -> dict:
        return vars(self) | super().__getstate__()


def history_window(
    movie: Tensor, residual: Tensor, time: Tensor, position: Tensor, start: Tensor, now: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Movie, residual and time gap to `now` (B, L) of the last ratings before `position` (B,), none before `start`."""
    window = position.unsqueeze(1) + torch.arange(-length, 0)  # (B, L)
    is_past = window >= start.unsqueeze(1)
    window.clamp_(min=0)
    time_gap = time_gap_bucket(now.unsqueeze(1) - time[window]) * is_past
    return movie[window].where(is_past, PADDING), residual[window].where(is_past, 0.0), time_gap


def dense_features(expected: Tensor, user_bias: Tensor, past: Tensor, even_chance: float) -> Tensor:
    """Mean + movie bias + user bias (minus even_chance), user bias, log of 1 + number of past ratings: (B, 3)."""
    return torch.stack([expected + user_bias - even_chance, user_bias, (1.0 + past).log()], 1)


def time_gap_bucket(time_gap: Tensor) -> Tensor:
    """Buckets of time gaps (seconds or ratings) by half powers of two: 0 -> 0, 1 -> 2, 3 -> 4, 7 -> 6 ...; int32."""
    return (2 * (time_gap.clamp(min=0) + 1.0).log2()).to(torch.int32).clamp(max=TIME_GAP_BUCKETS - 1)
