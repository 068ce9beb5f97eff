"""A user's past ratings before each target, as windows into time-ordered arrays: nothing is copied.

B: rows of a batch, L: length of the history, C: feature columns of a user.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.data.loader import MemmapDataset

OOV, PADDING, FIRST_ID = 0, 1, 2  # ids: unseen in training, no rating (fills up a history), the first of a vocabulary
CLICK_RATING = 4.0  # a "click" is a rating of at least this
CLICK_MARGIN = CLICK_RATING - 0.5  # expected rating at which a click has an even chance
TIME_GAP_BUCKETS = 64  # half powers of two: 0, 1 .. 2^31 seconds, or ratings where times are ranks
ORDERED = ["user", "movie", "rating", "time", "user_row", "start"]  # raw columns in time order; no split changes them
ENCODED = ["movie", "residual", "expected", "user_bias", "user_ids"]  # user_ids has a row per user


class HistoryDataset(MemmapDataset):
    """Examples whose histories are windows into the arrays ORDERED and ENCODED.

    history_length: L; click: the target is "rating of at least CLICK_RATING" instead of the rating; use_ratings: False
    takes the rating values out of the histories.
    """

    def __init__(self, ordered: Path, encoded: Path, *, history_length: int, click: bool, use_ratings: bool):
        # an absolute name is a path of its own, not one below `encoded`
        super().__init__(encoded, [*ENCODED, *(str(ordered / name) for name in ORDERED[2:])])
        self.history_length, self.click, self.use_ratings = history_length, click, use_ratings

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Row numbers (B,) -> movie_id (B,), history (B, L), residual (B, L), time_gap (B, L), user_ids (B, 1 + C),
        dense (B, 3), target (B,)."""
        movie, residual, expected, user_bias, user_ids, rating, time, user_row, start = self.arrays
        start, user_bias = start[rows], user_bias[rows] * self.use_ratings
        history, residual, time_gap = history_window(
            movie, residual, time, rows, start, time[rows], self.history_length
        )
        return (
            movie[rows],
            history,
            residual * self.use_ratings,
            time_gap,
            user_ids[user_row[rows]],
            dense_features(expected[rows], user_bias, rows - start, self.click),
            (rating[rows] >= CLICK_RATING).float() if self.click else rating[rows],
        )

    def __getstate__(self) -> dict:
        return vars(self) | super().__getstate__()


def history_window(
    movie: Tensor, residual: Tensor, time: Tensor, position: Tensor, start: Tensor, now: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Movie, residual and time gap to `now` (B, L) of the last ratings before `position` (B,), from `start` (B,) on."""
    window = position.unsqueeze(1) + torch.arange(-length, 0)  # (B, L)
    is_past = window >= start.unsqueeze(1)
    window.clamp_(min=0)
    time_gap = time_gap_bucket(now.unsqueeze(1) - time[window]) * is_past
    return movie[window].where(is_past, PADDING), residual[window].where(is_past, 0.0), time_gap


def dense_features(expected: Tensor, user_bias: Tensor, past: Tensor, click: bool) -> Tensor:
    """Mean + movie bias + user bias (for clicks: above their threshold), user bias, log of 1 + past ratings: (B, 3)."""
    return torch.stack([expected + user_bias - CLICK_MARGIN * click, user_bias, (1.0 + past).log()], 1)


def time_gap_bucket(time_gap: Tensor) -> Tensor:
    """Time gaps, in seconds or ratings, to half powers of two: 0 -> 0, 1 -> 2, 3 -> 4, 7 -> 6 ... as int32."""
    return (2 * (time_gap.clamp(min=0) + 1.0).log2()).to(torch.int32).clamp(max=TIME_GAP_BUCKETS - 1)
