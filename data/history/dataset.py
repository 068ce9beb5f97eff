"""A user's past before each target, as windows into time-ordered arrays: nothing is copied in advance.

B: rows of a batch, Q: candidate items of a row, L: length of the history, M: item ids, C: feature columns of a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.loader import MemmapDataset
from common.errors import UserError, shown

OOV, PADDING, FIRST_ID = 0, 1, 2  # ids: unseen in training, nothing (fills up a history), the first of a vocabulary
TIME_GAP_BUCKETS = 64  # half powers of two: 0, 1 .. 2^31 seconds (or rows, if times are ranks)
EVENTS = ["rating", "time", "user", "start"]  # columns in time order, the same for any split
ENCODED = ["item", "residual", "expected", "user_bias", "user_ids"]  # expected: by item id; user_ids: a row per user
WEIGHT_BITS = 32  # of the weights that negatives are drawn with: their sum, times the users, fits into 64 bits

Target = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scale:
    """What ratings mean. click_from: a "click" is a rating of at least this; None: clicks are not defined.

    The model sees (rating - offset) / unit, which has the spread of MovieLens' ratings. even_chance: the expected
    rating, in these units, at which a click has probability one half. has_ratings: False if every row is a positive;
    what is expected of an item is then the log of its popularity.
    """

    least: float
    greatest: float
    click_from: float | None
    even_chance: float
    offset: float = 0.0
    unit: float = 1.0
    has_ratings: bool = True

    @property
    def range(self) -> tuple[float, float]:
        return self.least, self.greatest

    @property
    def units(self) -> tuple[float, float]:
        return self.offset, self.unit

    def clicks(self, rating: Tensor) -> Tensor:
        """1 for a rating of at least click_from, otherwise 0; nan stays nan."""
        assert self.click_from is not None
        return torch.where(rating.isnan(), rating, (rating >= self.click_from).float())


class HistoryDataset(MemmapDataset):
    """Rows whose histories are windows into the arrays ENCODED and EVENTS.

    history_length: L; click: whether the target is a click instead of the rating; use_ratings: False removes the rating
    values from the histories; candidates: own_item, all_items or a SampledItems.
    """

    def __init__(
        self,
        events: Path,
        encoded: Path,
        scale: Scale,
        *,
        history_length: int,
        click: bool,
        use_ratings: bool,
        candidates: "Candidates",
    ):
        # the absolute names are not looked for below `encoded`
        super().__init__(encoded, [*ENCODED, *(str(events / name) for name in EVENTS)])
        self.scale, self.history_length, self.click, self.use_ratings = scale, history_length, click, use_ratings
        self.candidates = candidates

    def __getitem__(self, rows: Tensor) -> tuple[Any, ...]:
        """Row numbers (B,) -> items (B, Q), history (B, L), residual (B, L), time_gap (B, L), user_ids (B, 1 + C),
        dense (B, Q, 3), target (B, Q)."""
        item, residual, expected, user_bias, user_ids, _, time, user, start = self.arrays
        items, target = self.candidates(self, rows)
        window = item, residual, time, rows, start[rows], time[rows], self.history_length
        history, residual, time_gap = history_window(*window)
        even_chance = self.scale.even_chance if self.click else 0.0
        bias = user_bias[rows] * self.use_ratings
        return (
            items,
            history,
            residual * self.use_ratings,
            time_gap,
            user_ids[user[rows]],
            dense_features(expected[items], bias, rows - start[rows], even_chance),
            target,
        )

    def targets(self, rows: Tensor) -> Tensor:
        """Row numbers (B,) -> ratings or clicks (B,)."""
        rating = self.arrays[len(ENCODED)][rows]
        return self.scale.clicks(rating) if self.click else rating


Candidates = Callable[[HistoryDataset, Tensor], tuple[Tensor, Target]]  # row numbers (B,) -> items, target (B, Q)


def own_item(data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
    """The row's own item alone, with its rating or click."""
    return data.arrays[0][rows].unsqueeze(1), data.targets(rows).unsqueeze(1)


def all_items(data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
    """All items. The target is 1 for the row's own, nan for those that the user had before."""
    item, start, total = data.arrays[0], data.arrays[-1][rows].long(), len(data.arrays[2])
    target = torch.zeros(len(rows), total)
    past = rows - start
    row = torch.arange(len(rows)).repeat_interleave(past)
    earlier = torch.arange(len(row)) + (start - past.cumsum(0) + past)[row]
    target[row, item[earlier].long()] = torch.nan
    target[torch.arange(len(rows)), item[rows].long()] = 1.0  # also if the user had it before
    items = torch.arange(FIRST_ID, total, dtype=torch.int32).expand(len(rows), -1)
    return items, target[:, FIRST_ID:]  # an item that is new to the model is no candidate: a miss


class SampledItems:
    """The row's own item, whose target is 1, and `count` negatives, drawn anew each epoch."""

    def __init__(self, negatives: "Negatives", count: int, seed: int):
        self.negatives, self.count, self.seed = negatives, count, seed

    def __call__(self, data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
        own, user = data.arrays[0][rows].unsqueeze(1), data.arrays[-2][rows].numpy()
        drawn = self.negatives.draw(user, random_bits([self.seed, data.epoch], rows.numpy(), self.count))
        items = torch.cat([own, torch.from_numpy(drawn)], 1)
        target = torch.zeros(items.shape)
        target[:, 0] = 1.0
        log_q = self.negatives.log_q
        return items, target if log_q is None else (target, log_q[items])


class Negatives:
    """Draws items that a user has in no row, in proportion to (rows of the item in training) ^ power.

    user, item (N,): number and id of all rows; count (M,): training rows of each item id. names: of the users.
    Raises: UserError naming a user who has every item.
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, count: np.ndarray, power: float, names: Sequence[str]):
        share = np.where(count > 0, np.maximum(count, 1.0) ** power, 0.0)
        weight = np.ceil(share / share.sum() * 2**WEIGHT_BITS).astype(np.int64)  # integers, so that draws are exact
        self.log_q = torch.from_numpy(np.log(np.maximum(weight, 1) / weight.sum())).float() if power else None
        self.ends, self.span = weight.cumsum(), weight.sum() + 1
        known = np.unique(user.astype(np.int64) * len(count) + item)
        user, item = np.divmod(known, len(count))
        self.first = np.searchsorted(user, np.arange(len(names) + 1))
        self.removed = np.concatenate([[0], weight[item].cumsum()])  # by the known items before
        self.free = weight.sum() - np.diff(self.removed[self.first])
        # where each known item would be among the weights of the unknown ones
        place = self.ends[item] - weight[item] - self.removed[:-1] + self.removed[self.first[user]]
        self.places = user * self.span + place  # ascending
        if not self.free.all():
            raise UserError(
                f"user {shown(names[int(self.free.argmin())])} has interacted with every item of the training rows, so "
                "there is no negative to sample. Remove this user's rows, or add a column of ratings to the file."
            )

    def draw(self, user: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """User numbers (B,) and random numbers (B, n) uint64 -> ids of items (B, n) int32."""
        point = (bits % self.free[user, None].astype(np.uint64)).astype(np.int64)
        known_before = np.searchsorted(self.places, user[:, None] * self.span + point, side="right")
        point += self.removed[known_before] - self.removed[self.first[user], None]
        return np.searchsorted(self.ends, point, side="right").astype(np.int32)


def random_bits(seed: Sequence[int], rows: np.ndarray, count: int) -> np.ndarray:
    """Random numbers (B, count) uint64 that depend on the seed and the row alone, not on the process or the batch.

    SplitMix64 (Steele, Lea and Flood 2014) with a state for each row and number.
    """
    (start,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    state = (rows.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(
        0x9E3779B97F4A7C15
    ) + start
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def history_window(
    item: Tensor, residual: Tensor, time: Tensor, position: Tensor, start: Tensor, now: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Item, residual and time gap to `now` (B, L) of the last rows before `position` (B,), none before `start`."""
    window = position.unsqueeze(1) + torch.arange(-length, 0)  # (B, L)
    is_past = window >= start.unsqueeze(1)
    window.clamp_(min=0)
    time_gap = time_gap_bucket(now.unsqueeze(1) - time[window]) * is_past
    return item[window].where(is_past, PADDING), residual[window].where(is_past, 0.0), time_gap


def dense_features(expected: Tensor, user_bias: Tensor, past: Tensor, even_chance: float) -> Tensor:
    """Expected of the items (B, Q) + user bias (B,) (minus even_chance), user bias, log of 1 + the number of past rows
    (B,): (B, Q, 3)."""
    dense = expected.new_empty(*expected.shape, 3)
    dense[..., 0] = expected + user_bias.unsqueeze(1) - even_chance
    dense[..., 1] = user_bias.unsqueeze(1)
    dense[..., 2] = (1.0 + past).log().unsqueeze(1)
    return dense


def time_gap_bucket(time_gap: Tensor) -> Tensor:
    """Buckets of time gaps (seconds or rows) by half powers of two: 0 -> 0, 1 -> 2, 3 -> 4, 7 -> 6 ...; int32."""
    return (2 * (time_gap.clamp(min=0) + 1.0).log2()).to(torch.int32).clamp(max=TIME_GAP_BUCKETS - 1)
