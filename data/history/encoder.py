"""The splits of rows in the order of time, and what is fitted on the training rows: vocabularies and biases.

N: rows, M: item ids, A: values of the items' attributes, C: feature columns of a user.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import check
from data.history.dataset import FIRST_ID, OOV, Scale
from data.history.events import KEYS, Cells
from data.schema import Dataset
from data.table.numbers import quantile_edges

SPLIT_METHODS = ("leave_last", "time", "random")
SHARES = (0.8, 0.1)  # of training and validation rows, for "time" and "random"
LEAST_TIMESTAMP = 100_000_000  # seconds since 1970; smaller times are ranks
ATTRIBUTE_BINS = 16  # per numeric attribute, each with about equally many users or items of the training rows
USUAL_SPREAD = 4.0  # between the least and the greatest rating of MovieLens, for which BST's settings were chosen
USER_SHRINKAGE, ITEM_SHRINKAGE = 15.0, 10.0  # ratings with residual 0 added to each bias (Surprise's defaults)

Columns = Mapping[str, np.ndarray]  # what write_events wrote


def split_rows(events: Columns, split: str) -> dict[str, np.ndarray]:
    """Row numbers of train, val and test.

    "leave_last": each user's last row is a test row, the one before it a validation row; users with fewer than 3 rows
    have training rows only. "time": the same cut-off times for all users. "random" leaks: a training row may be later
    than a test row of the same user.
    """
    count = len(events["user"])
    if split == "leave_last":
        first = events["first"]
        last = first[1:][np.diff(first) >= 3] - 1
        part: np.ndarray = np.zeros(count, np.int8)
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
        part = np.searchsorted(np.cumsum(SHARES), np.random.default_rng(SPLIT_SEED).random(count), "right")
    return {name: np.flatnonzero(part == i) for i, name in enumerate(SPLITS)}


def fit_scale(ratings: np.ndarray, click_from: float | None, where: str) -> Scale:
    """The scale of training ratings (N,). Raises: UserError if they are all equal, or on one side of click_from."""
    least, greatest = float(ratings.min()), float(ratings.max())
    check(least < greatest, f'{where}: all training ratings are {least:g}; give the column the role "excluded".')
    unit = (greatest - least) / USUAL_SPREAD
    units = least - unit, unit
    if click_from is None:
        return Scale((least, greatest), units, None)
    check(
        least < click_from <= greatest,
        f'{where}: "click_from" is {click_from:g}; it must be above {least:g} and at most {greatest:g}, the least '
        "and greatest training rating.",
    )
    margin = (click_from + float(ratings[ratings < click_from].max())) / 2
    return Scale((least, greatest), units, click_from, (margin - least + unit) / unit)


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

    @property
    def num_items(self) -> int:
        return FIRST_ID + len(self.items)

    def item_number(self, item: int) -> int:
        """Of the item with an id."""
        return self.items[item - FIRST_ID]

    @property
    def num_attributes(self) -> int:
        """Number of values of all attributes together; at least 1, because torch's layers need a width."""
        return max(1, len(self.attributes))

    @property
    def user_cardinalities(self) -> list[int]:
        """Number of ids of the user itself, then of each of its features."""
        return [FIRST_ID + len(self.users), *(1 + len(values) for values in self.feature_values)]

    @property
    def expected(self) -> np.ndarray:
        """Expected rating, or log of the popularity, of each item (M,)."""
        return self.mean + np.array(self.item_bias)

    def encode(self, item: np.ndarray, rating: np.ndarray, start_from_biases: bool) -> dict[str, np.ndarray]:
        """Some of the arrays of Histories, from all rows' numbers of items and ratings (N,)."""
        ids, has_ratings = encode_ids(item, self.items), self.scale.has_ratings
        residual = self.scale.in_units(rating) - self.expected[ids] if has_ratings else np.zeros(len(item))
        total = np.concatenate([[0.0], residual.cumsum()]) * start_from_biases
        expected = self.expected.astype(np.float32)
        return {"item": ids, "residual": residual.astype(np.float32), "total": total, "expected": expected}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return vars(self) | {"scale": asdict(self.scale)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "HistoryEncoder":
        return cls(**state | {"scale": Scale(**state["scale"])})


def write_encoded(
    table: Dataset, folder: Path, known: Mapping[str, Any], settings: Mapping[str, Any], target: Path
) -> None:
    """Split the rows, fit the encoder on the training rows, and write it, the rows of each split, and all rows encoded.

    folder, known: what write_events wrote, and of users and items. settings: split, has_ratings, start_from_biases
    (False leaves every bias at 0).
    """
    events = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*KEYS, "rating", "time", "first")}
    rows, where, start_from_biases = split_rows(events, settings["split"]), table.where, settings["start_from_biases"]
    empty = [name for name, part in rows.items() if not len(part)]
    check(not empty, f"{where}: the split {settings['split']!r} leaves no rows for {', '.join(empty)}.")
    train, scale, form = rows["train"], Scale(has_ratings=False), table.description
    if settings["has_ratings"]:
        name = str(form.only("rating", "label"))
        click_from = getattr(form.columns[name], "click_from", 1.0)
        scale = fit_scale(events["rating"][train], click_from, f"{where}, column {name!r}")
    items, item = np.unique(events["item"][train], return_inverse=True)
    users, user = np.unique(events["user"][train], return_inverse=True)
    if scale.has_ratings:
        mean, _, item_bias = fit_biases(user, item, scale.in_units(events["rating"][train]), len(users), len(items))
    else:  # the log of the popularity, minus that of the mean: of a row and as many others, the log odds
        counts = np.bincount(item)
        mean, item_bias = 0.0, np.log(counts + 1) - np.log(counts.mean() + 1)
    features, user_ids = encode_users(known["user"]["attributes"], users, int(events["user"][-1]) + 1)
    attributes, shares = encode_attributes(known["item"]["attributes"], items)
    biases = [0.0] * FIRST_ID + (item_bias * start_from_biases).tolist()
    encoder = HistoryEncoder(items.tolist(), users.tolist(), features, attributes, mean, biases, scale)
    arrays = encoder.encode(events["item"], events["rating"], start_from_biases)
    arrays |= {"user_ids": user_ids, "attribute_shares": shares}
    for name, array in (arrays | {f"rows_{name}": part for name, part in rows.items()}).items():
        np.save(target / f"{name}.npy", array)
    (target / "encoder.json").write_text(json.dumps(encoder.state_dict()))


def encode_users(of_users: Mapping[str, Cells], train: np.ndarray, count: int) -> tuple[list[list[str]], np.ndarray]:
    """The values of each attribute of the training users, and ids of all users and their values (users, 1 + C)."""
    values, columns = [], [encode_ids(np.arange(count), train)]
    for cells in of_users.values():
        texts = [cell[0] if cell else "" for cell in in_bins(cells, train)]
        values.append(sorted({texts[number] for number in train}))
        ids = {text: number for number, text in enumerate(values[-1], 1)}
        columns.append(np.array([ids.get(text, OOV) for text in texts], np.int32))
    return values, np.stack(columns, 1)


def encode_attributes(of_items: Mapping[str, Cells], train: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The values of all attributes of the training items, as "name: value", and the share of each of an item's values:
    1 / number of its values of that attribute (M, A)."""
    found = [
        (row, f"{name}: {text}", 1 / len(cells[number]))
        for name, cells in ((name, in_bins(cells, train)) for name, cells in of_items.items())
        for row, number in enumerate(train, FIRST_ID)
        for text in cells[number]
    ]
    values = sorted({value for _, value, _ in found})
    columns = {value: column for column, value in enumerate(values)}
    shares = np.zeros((FIRST_ID + len(train), max(1, len(values))), np.float32)
    for row, value, share in found:
        shares[row, columns[value]] += share
    return values, shares


def in_bins(cells: Cells, train: np.ndarray) -> list[list[str]]:
    """Lists of texts; numbers are replaced by their bin among those of the training rows."""
    if not any(isinstance(cell, int | float) for cell in cells):
        return [cell or [] for cell in cells]
    values = np.array([np.nan if cell is None else cell for cell in cells])
    edges = quantile_edges(*np.unique(values[train], return_counts=True), ATTRIBUTE_BINS)
    bins = np.searchsorted(edges[1:-1], values, side="right").tolist()
    return [[] if cell is None else [f"bin {number}"] for cell, number in zip(cells, bins, strict=True)]


def encode_ids(numbers: np.ndarray, vocabulary: list[int] | np.ndarray) -> np.ndarray:
    """Numbers (N,) -> ids (N,) int32."""
    known = np.array(vocabulary, numbers.dtype)
    position = np.searchsorted(known, numbers).clip(max=len(known) - 1)
    return np.where(known[position] == numbers, position + FIRST_ID, OOV).astype(np.int32)
