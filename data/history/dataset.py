"""A user's past before a row, as windows into arrays in the order of users and time: nothing is copied in advance.

N: all rows, B: rows of a batch, Q: candidate items of a row, L: length of the history, M: item ids, C: feature columns
of a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.loader import MemmapDataset
from common.errors import UserError, shown

OOV, PADDING, FIRST_ID = 0, 1, 2  # ids: unseen in training, nothing (fills up a history), the first of a vocabulary
TIME_GAP_BUCKETS = 64  # half powers of two: 0, 1 .. 2^31 seconds (or rows, if times are ranks)
USER_BIAS_SHRINKAGE = 5.0  # past ratings with residual 0 added to a user's bias
WEIGHT_BITS = 32  # of the weights that negatives are drawn with: their sum, times the users, fits into 64 bits

Target = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Scale:
    """What ratings mean. range: the least and the greatest; units: the offset and unit of (rating - offset) / unit,
    which the model sees: it has the spread of MovieLens' ratings.

    click_from: a "click" is a rating of at least this; None: clicks are not defined. even_chance: the expected rating,
    in units, at which a click has probability one half. has_ratings: False if every row is a positive; what is expected
    of an item is then the log of its popularity.
    """

    range: Sequence[float] = (0.0, 1.0)
    units: Sequence[float] = (0.0, 1.0)
    click_from: float | None = 1.0
    even_chance: float = 0.0
    has_ratings: bool = True

    def in_units(self, rating: np.ndarray) -> np.ndarray:
        offset, unit = self.units
        return (rating - offset) / unit

    def clicks(self, rating: Tensor) -> Tensor:
        """1 for a rating of at least click_from, otherwise 0; nan stays nan."""
        assert self.click_from is not None
        return torch.where(rating.isnan(), rating, (rating >= self.click_from).float())


class Histories(NamedTuple):
    """What all users did, by user and time."""

    item: Tensor  # ids (N,)
    residual: Tensor  # ratings minus those expected of the items (N,)
    total: Tensor  # sums of the residuals before each row, and of all (N + 1,) float64
    user_ids: Tensor  # of each user and its features (users, 1 + C)
    expected: Tensor  # rating, or log of the popularity, of each item id (M,)
    time: Tensor  # (N,)
    first: Tensor  # the first row of each user, and N (users + 1,)


@dataclass(frozen=True)
class View:
    """What the model sees of histories: the last `history_length` rows (L), with ratings or without."""

    history_length: int
    use_ratings: bool
    even_chance: float  # of a Scale if the target is a click, otherwise 0

    def inputs(self, data: Histories, items: Tensor, user: Tensor, position: Tensor, now: Tensor) -> list[Tensor]:
        """Candidates (B, Q) of rows of users (B,) whose past ends before a position (B,) of data, at a time (B,) ->
        items (B, Q), history (B, L), residual (B, L), time_gap (B, L), user_ids (B, 1 + C), dense (B, Q, 3)."""
        start = data.first[user]
        window = position.unsqueeze(1) + torch.arange(-self.history_length, 0)  # (B, L)
        is_past = window >= start.unsqueeze(1)
        window.clamp_(min=0)
        past = position - start
        bias = (data.total[position] - data.total[start]) / (past + USER_BIAS_SHRINKAGE)  # a shrunken mean
        bias = bias.float() * self.use_ratings
        dense = torch.empty(*items.shape, 3)
        dense[..., 0] = data.expected[items] + bias.unsqueeze(1) - self.even_chance
        dense[..., 1] = bias.unsqueeze(1)
        dense[..., 2] = (1.0 + past).log().unsqueeze(1)
        return [
            items,
            data.item[window].where(is_past, PADDING),
            data.residual[window].where(is_past, 0.0) * self.use_ratings,
            time_gap_bucket(now.unsqueeze(1) - data.time[window]) * is_past,
            data.user_ids[user],
            dense,
        ]


def time_gap_bucket(time_gap: Tensor) -> Tensor:
    """Buckets of time gaps (seconds or rows) by half powers of two: 0 -> 0, 1 -> 2, 3 -> 4, 7 -> 6 ...; int32."""
    return (2 * (time_gap.clamp(min=0) + 1.0).log2()).to(torch.int32).clamp(max=TIME_GAP_BUCKETS - 1)


class HistoryDataset(MemmapDataset):
    """Rows and their pasts. click: whether the target is a click instead of the rating; candidates: own_item, all_items
    or a SampledItems."""

    def __init__(self, events: Path, encoded: Path, scale: Scale, view: View, click: bool, candidates: "Candidates"):
        # the absolute names are not looked for below `encoded`
        whole = [str(events / name) for name in ("time", "first", "rating", "user")]
        super().__init__(encoded, ["item", "residual", "total", "user_ids", "expected", *whole])
        self.scale, self.view, self.click, self.candidates = scale, view, click, candidates

    @property
    def histories(self) -> Histories:
        return Histories(*self.arrays[:-2])

    @property
    def user(self) -> Tensor:
        return self.arrays[-1]

    def __getitem__(self, rows: Tensor) -> tuple[Any, ...]:
        """Row numbers (B,) -> View.inputs and target (B, Q)."""
        data = self.histories
        items, target = self.candidates(self, rows)
        return *self.view.inputs(data, items, self.user[rows], rows, data.time[rows]), target

    def targets(self, rows: Tensor) -> Tensor:
        """Row numbers (B,) -> ratings or clicks (B,)."""
        rating = self.arrays[-2][rows]
        return self.scale.clicks(rating) if self.click else rating


Candidates = Callable[[HistoryDataset, Tensor], tuple[Tensor, Target]]  # row numbers (B,) -> items, target (B, Q)


def own_item(data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
    """The row's own item alone, with its rating or click."""
    return data.histories.item[rows].unsqueeze(1), data.targets(rows).unsqueeze(1)


def all_items(data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
    """All items. The target is 1 for the row's own, nan for those that the user had before."""
    item, first, total = data.histories.item, data.histories.first, len(data.histories.expected)
    target = torch.zeros(len(rows), total)
    for row, (start, end) in enumerate(zip(first[data.user[rows]].tolist(), rows.tolist(), strict=True)):
        target[row, item[start:end].long()] = torch.nan
    target[torch.arange(len(rows)), item[rows].long()] = 1.0  # also if the user had it before
    items = torch.arange(FIRST_ID, total, dtype=torch.int32).expand(len(rows), -1)
    return items, target[:, FIRST_ID:]  # an item that is new to the model is no candidate: a miss


@dataclass(frozen=True)
class SampledItems:
    """The row's own item, whose target is 1, and `count` negatives, drawn anew each epoch."""

    negatives: "Negatives"
    count: int
    seed: int

    def __call__(self, data: HistoryDataset, rows: Tensor) -> tuple[Tensor, Target]:
        bits = random_bits([self.seed, data.epoch], rows.numpy(), self.count)
        drawn = self.negatives.draw(data.user[rows].numpy(), bits)
        items = torch.cat([data.histories.item[rows].unsqueeze(1), torch.from_numpy(drawn)], 1)
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
        user, item = np.divmod(np.unique(user.astype(np.int64) * len(count) + item), len(count))
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
