"""The splits of rows in the order of time, and what is fitted on the training rows: vocabularies and biases.

N: rows, M: item ids, A: values of the items' attributes, C: feature columns of a user.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import check
from data.history.dataset import FIRST_ID, OOV, Scale
from data.history.events import Cells
from data.table.encoder import quantile_edges

SPLIT_METHODS = ("leave_last", "time", "random")
SHARES = (0.8, 0.1)  # of training and validation rows, for "time" and "random"
LEAST_TIMESTAMP = 100_000_000  # seconds since 1970; smaller times are ranks
ATTRIBUTE_BINS = 16  # per numeric attribute, each with about equally many users or items of the training rows
USUAL_SPREAD = 4.0  # between the least and the greatest rating of MovieLens, for which BST's settings were chosen
# pseudo-ratings with residual 0 added to each bias (Surprise's defaults), and to the bias over a user's past
USER_SHRINKAGE, ITEM_SHRINKAGE = 15.0, 10.0
USER_BIAS_SHRINKAGE = 5.0

Columns = Mapping[str, np.ndarray]  # user, item (numbers), rating, time, start (N,): in time order


def split_rows(events: Columns, split: str) -> dict[str, np.ndarray]:
    """Row numbers of train, val and test.

    "leave_last": each user's last row is a test row, the one before it a validation row; users with fewer than 3 rows
    have training rows only. "time": the same cut-off times for all users. "random" leaks: a training row may be later
    than a test row of the same user.
    """
    rows = np.arange(len(events["user"]))
    if split == "leave_last":
        first = np.flatnonzero(events["start"] == rows)
        counts = np.diff(first, append=len(rows))
        last = (first + counts - 1)[counts >= 3]
        part: np.ndarray = np.zeros(len(rows), np.int8)
        part[last - 1], part[last] = 1, 2
    elif split == "time":
        check(
            events["time"].max() >= LEAST_TIMESTAMP,
            'split is "time", but the times of this dataset are ranks within each user, not timestamps. '
            'Set split="leave_last", or use a dataset with timestamps.',
        )
        cuts = np.quantile(events["time"], np.cumsum(SHARES), method="lower")
        part = np.searchsorted(cuts, events["time"], "left")  # equal times are in the same split
    else:
        drawn = np.random.default_rng(SPLIT_SEED).random(len(rows))
        part = np.searchsorted(np.cumsum(SHARES), drawn, "right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}


def fit_scale(ratings: np.ndarray, click_from: float | None, where: str) -> Scale:
    """The scale of training ratings (N,). Raises: UserError if they are all equal, or on one side of click_from."""
    least, greatest = float(ratings.min()), float(ratings.max())
    check(least < greatest, f'{where}: all training ratings are {least:g}; give the column the role "excluded".')
    unit = (greatest - least) / USUAL_SPREAD
    if click_from is None:
        return Scale(least, greatest, None, 0.0, least - unit, unit)
    check(
        least < click_from <= greatest,
        f'{where}: "click_from" is {click_from:g}; it must be above {least:g} and at most {greatest:g}, the least '
        "and greatest training rating.",
    )
    margin = (click_from + float(ratings[ratings < click_from].max())) / 2
    return Scale(least, greatest, click_from, (margin - least + unit) / unit, least - unit, unit)


def fit_biases(
    user: np.ndarray, item: np.ndarray, rating: np.ndarray, num_users: int, num_items: int, sweeps: int = 10
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, user biases and item biases of rating = mean + b_user + b_item, by alternating least squares."""
    mean = float(rating.mean(dtype=np.float64))
    user_bias = np.zeros(num_users)
    user_count, item_count = np.bincount(user, minlength=num_users), np.bincount(item, minlength=num_items)
    for _ in range(sweeps):
        rest = np.bincount(item, rating - mean - user_bias[user], num_items)
        item_bias = rest / (ITEM_SHRINKAGE + item_count)
        rest = np.bincount(user, rating - mean - item_bias[item], num_users)
        user_bias = rest / (USER_SHRINKAGE + user_count)
    return mean, user_bias, item_bias


def fit_popularity(item: np.ndarray) -> np.ndarray:
    """The log of how many rows an item has, minus that of the mean (M,): of a row and as many others, the log odds."""
    counts = np.bincount(item)
    return np.log(counts + 1) - np.log(counts.mean() + 1)


@dataclass
class HistoryEncoder:
    """What is fitted on the training rows: vocabularies, and the biases that the model starts from.

    Ids of items and users: 0 unseen in training, 1 padding of a history, then the numbers in ascending order. Ids of a
    user's features: 0 unseen, then the values in order. attributes: the values of all attributes, as "name: value".
    """

    items: list[int]  # numbers
    users: list[int]
    feature_values: list[list[str]]
    attributes: list[str]
    mean: float
    item_bias: list[float]  # by id
    scale: Scale

    @classmethod
    def fit(
        cls,
        events: Columns,
        train: np.ndarray,
        of_users: Mapping[str, Cells],
        of_items: Mapping[str, Cells],
        scale: Scale,
        start_from_biases: bool,
    ) -> "HistoryEncoder":
        """of_users, of_items: cells of each attribute; start_from_biases: False leaves every bias at 0."""
        items, item = np.unique(events["item"][train], return_inverse=True)
        users, user = np.unique(events["user"][train], return_inverse=True)
        if scale.has_ratings:
            rating = in_units(events["rating"][train], scale)
            mean, _, item_bias = fit_biases(user, item, rating, len(users), len(items))
        else:
            mean, item_bias = 0.0, fit_popularity(item)
        features = [in_bins(cells, users) for cells in of_users.values()]
        named = {name: in_bins(cells, items) for name, cells in of_items.items()}
        return cls(
            items.tolist(),
            users.tolist(),
            [sorted({_only(cells[number]) for number in users}) for cells in features],
            sorted({f"{name}: {text}" for name, cells in named.items() for number in items for text in cells[number]}),
            mean,
            [0.0] * FIRST_ID + (item_bias * start_from_biases).tolist(),
            scale,
        )

    @property
    def num_items(self) -> int:
        return FIRST_ID + len(self.items)

    @property
    def num_attributes(self) -> int:
        """Number of values of all attributes together; at least 1, because torch's layers need a width."""
        return max(1, len(self.attributes))

    @property
    def user_cardinalities(self) -> list[int]:
        """Number of ids of the user itself, then of each of its features."""
        return [FIRST_ID + len(self.users), *(1 + len(values) for values in self.feature_values)]

    def attribute_shares(self, of_items: Mapping[str, Cells]) -> Tensor:
        """(M, A): 1 / number of its values of an attribute for each value of an item."""
        shares = torch.zeros(self.num_items, self.num_attributes)
        columns = {value: column for column, value in enumerate(self.attributes)}
        for name, cells in of_items.items():
            binned = in_bins(cells, np.array(self.items))
            for row, number in enumerate(self.items, FIRST_ID):
                for text in binned[number]:
                    shares[row, columns[f"{name}: {text}"]] += 1 / len(binned[number])
        return shares

    @property
    def expected(self) -> np.ndarray:
        """Expected rating, or log of the popularity, of each item (M,)."""
        return self.mean + np.array(self.item_bias)

    def residuals(self, rating: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Ratings (N,) minus the expected ratings of the items (N,); 0 if the data has no ratings."""
        if not self.scale.has_ratings:
            return np.zeros(len(item))
        return in_units(rating, self.scale) - self.expected[item]

    def encode(
        self, events: Columns, of_users: Mapping[str, Cells], start_from_biases: bool
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Name and array of each of ENCODED, for rows in time order; one at a time, because they may be large."""
        rows = np.arange(len(events["start"]))
        yield "user_ids", self._encode_users(events["user"][-1] + 1, of_users)
        item = encode_ids(events["item"], self.items)
        yield "item", item
        yield "expected", self.expected.astype(np.float32)
        residual = self.residuals(events["rating"], item)
        yield "residual", residual.astype(np.float32)
        # over earlier ratings only
        total = np.concatenate([[0.0], residual.cumsum()[:-1]])
        total -= total[events["start"]]
        user_bias = past_user_bias(total, rows - events["start"]) * start_from_biases
        yield "user_bias", user_bias.astype(np.float32)

    def _encode_users(self, count: int, of_users: Mapping[str, Cells]) -> np.ndarray:
        """Ids of each user and its features (users, 1 + C) int32."""
        columns = [encode_ids(np.arange(count), self.users)]
        for values, cells in zip(self.feature_values, of_users.values(), strict=True):
            ids = {value: number for number, value in enumerate(values, 1)}
            texts = map(_only, in_bins(cells, np.array(self.users)))
            columns.append(np.array([ids.get(text, OOV) for text in texts], np.int32))
        return np.stack(columns, 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return vars(self) | {"scale": asdict(self.scale)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "HistoryEncoder":
        return cls(**state | {"scale": Scale(**state["scale"])})


def in_units(rating: np.ndarray, scale: Scale) -> np.ndarray:
    """Ratings (N,) in the units of the model."""
    return (rating - scale.offset) / scale.unit


def in_bins(cells: Cells, train: np.ndarray) -> list[list[str]]:
    """Lists of texts; numbers are replaced by their bin among those of the training rows."""
    if not any(isinstance(cell, int | float) for cell in cells):
        return [cell or [] for cell in cells]
    values = np.array([np.nan if cell is None else cell for cell in cells])
    edges = quantile_edges(*np.unique(values[train], return_counts=True), ATTRIBUTE_BINS)
    bins = np.searchsorted(edges[1:-1], values, side="right").tolist()
    return [[] if cell is None else [f"bin {number}"] for cell, number in zip(cells, bins, strict=True)]


def _only(cell: list[str]) -> str:
    """A user's value of an attribute, "" if unknown."""
    return cell[0] if cell else ""


def past_user_bias(total: np.ndarray, past: np.ndarray) -> np.ndarray:
    """Shrunken mean residual of `past` earlier ratings, whose residuals sum to `total`."""
    return total / (USER_BIAS_SHRINKAGE + past)


def encode_ids(numbers: np.ndarray, vocabulary: list[int] | np.ndarray) -> np.ndarray:
    """Numbers (N,) -> ids (N,) int32."""
    known = np.array(vocabulary, numbers.dtype)
    position = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where(known[position] == numbers, position + FIRST_ID, OOV).astype(np.int32)
