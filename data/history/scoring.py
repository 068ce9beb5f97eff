"""Inputs of rows to score; a user's history comes from the checkpoint or from the preceding rows of the file.

A row that is in the checkpoint is predicted from what its user did before it. Any other is predicted from all that the
user did up to its time; without a time, from everything, as of the user's last row. If a user had an item several
times, the time tells which row is meant; without one it is the earliest.
N: rows, B: rows of a batch, Q: candidate items of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from common.data.data_module import SPLITS
from common.errors import check
from data.history.dataset import FIRST_ID, OOV, PADDING, TIME_GAP_BUCKETS, USER_BIAS_SHRINKAGE, Histories, View
from data.history.encoder import HistoryEncoder, encode_ids
from data.history.events import KEYS, ratings_of
from data.reader import Reader, Source
from data.schema import Description, Key, Plain
from data.scoring import RowScorer
from data.values import canonical

PART_ROWS = 8192  # encoded at a time
UNTIL = {"validation": SPLITS.index("val"), "test": SPLITS.index("test")}


def pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two columns (N,) as complex numbers, which NumPy orders by the first, then the second."""
    return np.stack([first, second], 1).astype(float).view(complex)[:, 0]


class RowIndex:
    """Finds rows by user, item and time. user, item, time (N,): of rows in the order of users and time; numbers."""

    def __init__(self, user: np.ndarray, item: np.ndarray, time: np.ndarray):
        self.num_items, self.by_time = int(item.max()) + 1, pairs(user, time)
        both = user * self.num_items + item
        self.order = np.argsort(both, kind="stable")
        self.by_item = pairs(both, time)[self.order]

    def find(self, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The first row with each user, item and, unless it is nan, time; -1 if there is none."""
        any_time = np.isnan(time)
        key = pairs(user * self.num_items + item, np.where(any_time, -np.inf, time))
        place = np.searchsorted(self.by_item, key).clip(max=len(self.order) - 1)
        row = self.by_item[place]
        found = (item >= 0) & (row.real == key.real) & (any_time | (row.imag == key.imag))
        return np.where(found, self.order[place], -1)

    def end(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Where the rows of each user end that are not later than a time, or all if it is nan."""
        return np.searchsorted(self.by_time, pairs(user, np.where(np.isnan(time), np.inf, time)), "right")


class HistoryScorer(RowScorer):
    """state: HistoryDataModule.state_dict() in a checkpoint. names: of the columns of users and items; columns: of the
    predictions.

    history_from_file: whether the history of a user who is not in the checkpoint consists of the preceding rows of the
    file (the rated ones, if the data has ratings), which is then read as a whole.
    """

    history_from_file = False
    histories: Histories

    def __init__(self, state: dict[str, Any]):
        self.encoder, self.start_from_biases = HistoryEncoder.from_state(state["encoder"]), state["start_from_biases"]
        form = Description.model_validate(state["description"])
        self.names = str(form.only("user")), str(form.only("item"))
        super().__init__(form, self.names)
        self.target: str = state["target"]
        self.columns = ({"click": "probability", "rating": "rating", "item": "score"}[self.target],)
        even_chance = self.encoder.scale.even_chance if self.target == "click" else 0.0
        self.view = View(state["history_length"], state["history_ratings"], even_chance)
        self.texts: list[list[str]] = [state["ids"][key] for key in KEYS]
        self.users, self.items = ({text: i for i, text in enumerate(texts)} for texts in self.texts)
        self.item_ids = encode_ids(np.arange(len(self.items)), self.encoder.items)
        events = {name: column.numpy() for name, column in state["events"].items()}
        self.num_users, self.user_ids, self.part = len(self.users), events["user_ids"], events["part"]
        count = len(self.part)
        self.events = {name: events[name] for name in ("item", "rating", "time")}
        self.events["user"] = np.repeat(np.arange(self.num_users), np.diff(events["start"], append=count))
        self._set_histories(self.events)
        self.from_file: dict[str, set[int]] = defaultdict(set)  # ids of the items of each user of a file

    @cached_property
    def index(self) -> RowIndex:
        """Of the rows in the checkpoint."""
        return RowIndex(self.events["user"], self.events["item"], self.events["time"])

    def batches(
        self, source: Source, moved: Callable[[int], object] | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor, list[list[str]]]]:
        """The model's inputs, the target (B, 1), nan if unknown, and the kept columns, in the order of the file.

        moved: called with the number of bytes read, as they are read. Raises: UserError naming the first line that does
        not have the format of the training data.
        """
        for batch in self._read(source, moved):
            texts = self.kept_texts(source, batch)
            item, *place = self._places(batch)
            target = torch.from_numpy(ratings_of(self.form, batch).copy()).unsqueeze(1)
            if self.target == "click":
                target = self.encoder.scale.clicks(target)
            elif self.target == "item":
                target.fill_(torch.nan)
            for start in range(0, len(batch), PART_ROWS):
                part = slice(start, start + PART_ROWS)
                inputs = self._inputs(item[part, None], *(column[part] for column in place))
                for name, ids in zip(self.names, (inputs[4], inputs[0]), strict=True):
                    self.counts[name] += int((ids[:, 0] == OOV).sum()), len(ids)
                yield inputs, target[part], [column[part] for column in texts]

    def users_of(self, source: Source) -> Iterator[tuple[str, str | None]]:
        """The users of a file, each with the item of its row if there is a column of items.

        With history_from_file the rows are what users did, in the format of `batches`; the items are then None.
        """
        if self.history_from_file:
            for batch in self._read(source):
                ids = self._places(batch)[0].tolist()
                for user, item in zip(batch.column(self.names[0]).to_pylist(), ids, strict=True):
                    self.from_file[user].add(item)
                    yield user, None
            return
        name = self.names[1]
        key, form = self.form.columns[name], self.form.with_columns({name: Plain(role="excluded")})
        for batch in Reader(form, scoring=True, columns=self.names).batches(source):
            users = batch.column(self.names[0]).to_pylist()
            items = batch.column(name).to_pylist() if name in batch.schema.names else [None] * len(users)
            if isinstance(key, Key) and key.type == "number":
                items = [canonical(text) if text else text for text in items]
            yield from zip(users, items, strict=True)

    def user_inputs(self, user: str, until: str | None = None) -> tuple[np.ndarray, list[Tensor]]:
        """Ids (Q,) of the items of the training rows that the user did not have, and the inputs of one row with them.

        until: "validation" or "test": as of the user's first row of that split; None: as of its last row.
        """
        rows, held_out = self._rows_of(user), self._held_out(user, until) if until else []
        end = held_out[0] if held_out else rows.stop
        had = [*self.histories.item[rows.start : end].tolist(), *self.from_file.get(user, ())]
        ids = np.setdiff1d(np.arange(FIRST_ID, self.encoder.num_items, dtype=np.int32), had)
        now = self.histories.time[[end if held_out else end - 1]].numpy()
        return ids, self._inputs(ids[None], np.array([self._number(user)]), np.array([end]), now)

    def next_items(self, user: str, until: str) -> list[str]:
        """The items of a user's rows of that split."""
        return [self.texts[1][number] for number in self.events["item"][self._held_out(user, until)]]

    def has(self, user: str, item: str) -> bool:
        """Whether a user had an item already."""
        return self.items.get(item) in self.events["item"][self._rows_of(user)].tolist()

    def item_id(self, text: str) -> int:
        """The id of an item, 0 if it is new to the model."""
        return int(self.item_ids[self.items[text]]) if text in self.items else OOV

    def item_text(self, number: int) -> str:
        """The item with an id of the model."""
        return self.texts[1][self.encoder.item_number(number)]

    def values_of(self, name: str) -> dict[str, int]:
        """The users or items that have embeddings, and their ids."""
        key = self.names.index(name)
        numbers = (self.encoder.users, self.encoder.items)[key]
        return {self.texts[key][number]: i for i, number in enumerate(numbers, FIRST_ID)}

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of random rows with one candidate each."""
        users = rng.integers(self.num_users, size=rows)
        items = rng.integers(FIRST_ID, self.encoder.num_items, (rows, 1), np.int32)
        end = self.histories.first.numpy()[users + 1]
        return self._inputs(items, users, end, self.events["time"][end - 1])

    def metadata(self) -> dict[str, Any]:
        """What another program needs to encode a raw row (docs/onnx.md); what users did stays in the checkpoint."""
        scale = self.encoder.scale
        return {
            "outputs": list(self.columns),
            "users": {text: self.user_ids[number].tolist() for text, number in self.users.items()},
            "new_user": self.histories.user_ids[-1].tolist(),
            "items": self.values_of(self.names[1]),
            "ids": {"unseen": OOV, "padding": PADDING},
            "history_length": self.view.history_length,
            "rating_offset": scale.units[0],
            "rating_unit": scale.units[1],
            "uses_ratings": scale.has_ratings and self.view.use_ratings,
            "expected": self.histories.expected.tolist(),  # by id of an item
            "bias_weight": float(self.start_from_biases),
            "bias_shrinkage": USER_BIAS_SHRINKAGE,
            "even_chance": self.view.even_chance,
            "last_time_gap": TIME_GAP_BUCKETS - 1,
        }

    def _number(self, user: str) -> int:
        return self.users.get(user, len(self.histories.user_ids) - 1)

    def _rows_of(self, user: str) -> slice:
        """The rows of a user in self.histories and, if the checkpoint has the user, in self.events."""
        number = self._number(user)
        return slice(*self.histories.first[number : number + 2].tolist())

    def _held_out(self, user: str, until: str) -> list[int]:
        """The rows of a user in that split."""
        rows = self._rows_of(user)
        return (rows.start + np.flatnonzero(self.part[rows] == UNTIL[until])).tolist()

    def _read(self, source: Source, moved: Callable[[int], object] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of a file, with history_from_file in one batch."""
        batches = Reader(self.form, scoring=True).batches(source, moved)
        if not self.history_from_file:
            return batches
        whole = pa.Table.from_batches(batches).combine_chunks().to_batches()
        check(len(whole) <= 1, f"{source.name}: with history_from_file, a column may have 2 GB; split it by users.")
        return iter(whole)

    def _places(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of each row (N,) the id of its item, its user, where the user's past ends in self.histories, and the time."""
        texts = batch.column(self.names[0]).to_pylist()
        user = np.array([self.users.get(text, self.num_users) for text in texts]).clip(max=self.num_users)
        item = np.array([self.items.get(text, -1) for text in batch.column(self.names[1]).to_pylist()])
        name, time = self.form.only("time"), np.full(len(batch), np.nan)
        if name in batch.schema.names:
            time = np.trunc(batch.column(name).to_numpy(zero_copy_only=False))
        row, position, times = self.index.find(user, item, time), self.index.end(user, time), self.events["time"]
        now = np.where(np.isnan(time), times[position - 1], np.nan_to_num(time))
        position, now = np.where(row < 0, position, row), np.where(row < 0, now, times[row]).astype(np.int64)
        if self.history_from_file:
            rows = {"user": user, "item": item, "rating": ratings_of(self.form, batch), "time": time}
            user, position, now = self._with_file(texts, rows, position, now)
        return np.where(item < 0, np.int32(OOV), self.item_ids[item]), user, position, now

    def _with_file(
        self, texts: list[str], rows: dict[str, np.ndarray], position: np.ndarray, now: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add the users (N,) of a file who are not in the checkpoint, and their rows, in its order; user, position and
        time of all rows."""
        new = np.flatnonzero(rows["user"] == self.num_users)
        number, names = pd.factorize(np.array(texts, object)[new])
        new = new[np.argsort(number, kind="stable")]
        rows["user"][new] = self.num_users + np.sort(number)
        self.users |= {name: self.num_users + i for i, name in enumerate(names)}
        time = pd.Series(rows["time"][new]).groupby(rows["user"][new]).ffill().fillna(0).to_numpy()
        known = ~np.isnan(rows["rating"][new]) | (not self.encoder.scale.has_ratings)
        position[new], now[new] = len(self.part) + np.append(0, known.cumsum())[:-1], time
        rows["time"][new] = time
        added = {name: np.append(old, rows[name][new][known]) for name, old in self.events.items()}
        self._set_histories(added)
        return rows["user"], position, now

    def _set_histories(self, events: Mapping[str, np.ndarray]) -> None:
        """events: user, item, rating and time (N,), by user."""
        users = len(self.users) + 1  # the last, with no rows, stands for all that are new
        new = np.full((users - self.num_users, self.user_ids.shape[1]), OOV, np.int32)
        arrays = self.encoder.encode(events["item"], events["rating"], self.start_from_biases) | {
            "time": events["time"].astype(np.int64),
            "first": np.searchsorted(events["user"], np.arange(users + 1)),
            "user_ids": np.concatenate([self.user_ids, new]),
        }
        self.histories = Histories(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _inputs(self, items: np.ndarray, user: np.ndarray, position: np.ndarray, now: np.ndarray) -> list[Tensor]:
        return self.view.inputs(self.histories, *map(torch.from_numpy, (items, user, position, now)))
