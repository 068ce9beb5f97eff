"""Inputs of rows to score; a user's history comes from the checkpoint or from the preceding rows of the file.

A row that is in the checkpoint is predicted from what its user did before it. Any other is predicted from all that the
user did up to its time; without a time, from everything, as of the user's last row. If a user had an item several
times, the time tells which row is meant; without one it is the earliest.
B: rows of a batch, Q: candidate items of a row, L: length of the history.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.data.data_module import SPLITS
from data.history.dataset import FIRST_ID, OOV, PADDING, TIME_GAP_BUCKETS, dense_features, time_gap_bucket
from data.history.encoder import USER_BIAS_SHRINKAGE, HistoryEncoder, encode_ids, past_user_bias
from data.history.events import KEYS, ratings_of
from data.reader import Reader, Source, keeping, kept_texts
from data.schema import Description, Format, Key, Plain
from data.table.encoder import nearly_unseen
from data.values import canonical

PART_ROWS = 8192  # encoded at a time
UNTIL = {"validation": SPLITS.index("val"), "test": SPLITS.index("test")}


class Past(NamedTuple):
    """A user's last L rows, oldest first, the count of all and the sum of their residuals, and the time it is now."""

    item: np.ndarray | Sequence[int]  # ids
    residual: np.ndarray | Sequence[float]
    time: np.ndarray | Sequence[int]
    rows: int
    total: float
    now: int


@dataclass
class FileRows:
    """What a file says about a user: the last L rows (id, residual, time), count and sum of all, all items."""

    last: deque[tuple[int, float, int]]
    count: int = 0
    total: float = 0.0
    items: set[int] = field(default_factory=set)  # ids


class HistoryScorer:
    """state: HistoryDataModule.state_dict() in a checkpoint. names: of the columns of users and items; kept: of those
    that are copied to the output; columns: of the predictions; unseen: rows with a user or item new to the model.

    history_from_file: whether the history of a user who is not in the checkpoint consists of the preceding rows of the
    file (the rated ones, if the data has ratings).
    """

    history_from_file = False

    def __init__(self, state: dict[str, Any]):
        self.encoder = HistoryEncoder.from_state(state["encoder"])
        self.scale = self.encoder.scale
        self.form = Description.model_validate(state["description"])
        self.names = str(self.form.only("user")), str(self.form.only("item"))
        self.kept = tuple(self.form.of_role("kept"))
        self.target: str = state["target"]
        self.columns = ({"click": "probability", "rating": "rating", "item": "score"}[self.target],)
        self.unseen, self._rows = dict.fromkeys(self.names, 0), 0
        self.history_length, self.use_ratings, self.start_from_biases = (
            state["history_length"],
            state["history_ratings"],
            state["start_from_biases"],
        )
        events = {name: column.numpy() for name, column in state["events"].items()}
        self.time, self.part = events["time"], events["part"]
        self.user_ids = np.append(
            events["user_ids"], np.full_like(events["user_ids"][:1], OOV), 0
        )  # new users come last
        self.start = np.append(events["start"], len(self.time))  # (users + 1,)
        self.texts = [state["ids"][key] for key in KEYS]
        self.users = {text: number for number, text in enumerate(self.texts[0])}
        vocabulary = np.array(self.encoder.items)
        ids = encode_ids(np.arange(len(self.texts[1])), vocabulary)
        self.items = {text: (number, int(ids[number])) for number, text in enumerate(self.texts[1])}
        self.number, self.item = events["item"], ids[events["item"]]
        self.residual = self.encoder.residuals(events["rating"], self.item)
        self.total = np.concatenate([[0.0], self.residual.cumsum()])  # of the residuals before a row
        self.expected = torch.from_numpy(self.encoder.expected).float()
        self.from_file: dict[str, FileRows] = {}

    def keep(self, names: Sequence[str]) -> None:
        """Add columns to `kept`. Raises: UserError for one that the table does not have."""
        self.form = keeping(self.form, names)
        self.kept = tuple(dict.fromkeys([*self.kept, *names]))

    def batches(
        self, source: Source, moved: Callable[[int], object] | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor, list[list[str]]]]:
        """The model's inputs, the target (B, 1), nan if unknown, and the kept columns, in the order of the file.

        moved: called with the number of bytes read, as they are read. Raises: UserError naming the first line that does
        not have the format of the training data.
        """
        for batch in self._read(source, Reader(self.form, scoring=True), moved):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield *self._encode(batch), kept_texts(source, columns, self.kept)

    def users_of(self, source: Source) -> Iterator[list[tuple[str, str | None]]]:
        """The users of a file, each with the item of its row if there is a column of items.

        With history_from_file the rows are what users did, in the format of `batches`; the items are then None.
        """
        if self.history_from_file:
            for batch in self._read(source, Reader(self.form, scoring=True)):
                self._encode(batch)
                yield [(user, None) for user in batch.column(self.names[0]).to_pylist()]
            return
        key, name_of_item = self.form.columns[self.names[1]], self.names[1]
        optional = {**self.form.columns, name_of_item: Plain(role="excluded")}
        form: Format = self.form.model_copy(update={"columns": optional})
        for batch in self._read(source, Reader(form, scoring=True, columns=self.names)):
            users: list[str] = batch.column(self.names[0]).to_pylist()
            items: list[str | None] = [None] * len(users)
            if name_of_item in batch.schema.names:
                items = batch.column(name_of_item).to_pylist()
                if isinstance(key, Key) and key.type == "number":
                    items = [canonical(text) if text else text for text in items]
            yield list(zip(users, items, strict=True))

    def user_inputs(self, user: str, until: str | None = None) -> tuple[np.ndarray, list[Tensor]]:
        """Ids (Q,) of the items of the training rows that the user did not have, and the inputs of one row with them.

        until: "validation" or "test": as of the user's first row of that split; None: as of its last row.
        """
        past, had = self._past(user, None, None), set()
        if user in self.users:
            start, end = self._span(user)
            if until is not None:
                held_out = np.flatnonzero(self.part[start:end] == UNTIL[until])
                end = start + int(held_out[0]) if len(held_out) else end
                now = self.time[end] if len(held_out) else past.now
                past = self._known(start, end, now)
            had |= set(self.item[start:end].tolist())
        if user in self.from_file:
            had |= self.from_file[user].items
        ids = np.array([i for i in range(FIRST_ID, self.encoder.num_items) if i not in had], np.int32)
        return ids, self._inputs(ids[None], [user], [past])

    def next_items(self, user: str, until: str) -> list[str]:
        """The items of a user's rows of that split."""
        if user not in self.users:
            return []
        start, end = self._span(user)
        numbers = self.number[start:end][self.part[start:end] == UNTIL[until]]
        return [self.texts[1][number] for number in numbers]

    def has(self, user: str, item: str) -> bool:
        """Whether a user had an item already."""
        number = self.items.get(item, (-1, OOV))[0]
        return user in self.users and bool((self.number[slice(*self._span(user))] == number).any())

    def item_id(self, text: str) -> int:
        """The id of an item, 0 if it is new to the model."""
        return self.items.get(text, (-1, OOV))[1]

    def item_text(self, number: int) -> str:
        """The item with an id of the model."""
        return self.texts[1][self.encoder.items[number - FIRST_ID]]

    def values_of(self, name: str) -> dict[str, int]:
        """The users or items that have embeddings, and their ids."""
        key = self.names.index(name)
        numbers = (self.encoder.users, self.encoder.items)[key]
        return {self.texts[key][number]: i for i, number in enumerate(numbers, FIRST_ID)}

    def nearly_unseen(self) -> list[str]:
        """The fields of which nearly all values so far are new to the model."""
        return nearly_unseen({name: (count, self._rows) for name, count in self.unseen.items()})

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of random rows with one candidate each."""
        users = [self.texts[0][number] for number in rng.integers(len(self.users), size=rows)]
        items = rng.integers(FIRST_ID, self.encoder.num_items, (rows, 1), np.int32)
        return self._inputs(items, users, [self._past(user, None, None) for user in users])

    def metadata(self) -> dict[str, Any]:
        """What another program needs to encode a raw row (docs/onnx.md); what users did stays in the checkpoint."""
        return {
            "outputs": list(self.columns),
            "users": {text: self.user_ids[number].tolist() for text, number in self.users.items()},
            "new_user": self.user_ids[-1].tolist(),
            "items": {text: id for text, (_, id) in self.items.items() if id != OOV},
            "ids": {"unseen": OOV, "padding": PADDING},
            "history_length": self.history_length,
            "rating_offset": self.scale.offset,
            "rating_unit": self.scale.unit,
            "uses_ratings": self.scale.has_ratings and self.use_ratings,
            "expected": self.encoder.expected.tolist(),  # by id of an item
            "bias_weight": float(self.start_from_biases),
            "bias_shrinkage": USER_BIAS_SHRINKAGE,
            "even_chance": self.scale.even_chance if self.target == "click" else 0.0,
            "last_time_gap": TIME_GAP_BUCKETS - 1,
        }

    def _read(
        self, source: Source, reader: Reader, moved: Callable[[int], object] | None = None
    ) -> Iterator[pa.RecordBatch]:
        for batch in reader.batches(source, moved):
            for start in range(0, len(batch), PART_ROWS):
                yield batch.slice(start, PART_ROWS)

    def _encode(self, batch: pa.RecordBatch) -> tuple[list[Tensor], Tensor]:
        users, items = (batch.column(name).to_pylist() for name in self.names)
        rating, when = ratings_of(self.form, batch), self.form.only("time")
        unknown = pa.nulls(len(batch), pa.float64())
        times = (batch.column(when) if when in batch.schema.names else unknown).to_pylist()
        ids = np.array([[self.item_id(text)] for text in items], np.int32).reshape(-1, 1)
        residual = self.encoder.residuals(rating, ids[:, 0])
        pasts = []
        for row, (user, item, time) in enumerate(zip(users, items, times, strict=True)):
            now = None if time is None else int(time)
            pasts.append(self._past(user, item, now))
            if self.history_from_file and not np.isnan(residual[row]):
                self._remember(user, int(ids[row, 0]), float(residual[row]), now)
        inputs = self._inputs(ids, users, pasts)
        for name, column in zip(self.names, (inputs[4][:, 0], inputs[0][:, 0]), strict=True):
            self.unseen[name] += int((column == OOV).sum())
        self._rows += len(batch)
        target = torch.tensor(rating).unsqueeze(1)
        if self.target == "click":
            target = self.scale.clicks(target)
        return inputs, torch.full_like(target, torch.nan) if self.target == "item" else target

    def _span(self, user: str) -> tuple[int, int]:
        number = self.users[user]
        return int(self.start[number]), int(self.start[number + 1])

    def _known(self, start: int, position: int, now: int) -> Past:
        """The past of a user whose rows begin at `start`, before a position."""
        rows = slice(max(start, position - self.history_length), position)
        total = self.total[position] - self.total[start]
        return Past(self.item[rows], self.residual[rows], self.time[rows], position - start, total, now)

    def _past(self, user: str, item: str | None, time: int | None) -> Past:
        """What is known of a user before a row; item None: after all rows."""
        if user not in self.users:
            rows = self.from_file.get(user)
            if not rows or not rows.last:
                return Past((), (), (), 0, 0.0, 0)
            items, residuals, times = zip(*rows.last, strict=True)
            return Past(items, residuals, times, rows.count, rows.total, times[-1] if time is None else time)
        start, end = self._span(user)
        if item is not None:
            same = self.number[start:end] == self.items.get(item, (-1, OOV))[0]
            if time is not None:
                same &= self.time[start:end] == time
            first = int(same.argmax())
            if same[first]:
                return self._known(start, start + first, self.time[start + first])
        if time is None:
            return self._known(start, end, self.time[end - 1])
        return self._known(start, start + int(np.searchsorted(self.time[start:end], time, "right")), time)

    def _remember(self, user: str, item: int, residual: float, time: int | None) -> None:
        rows = self.from_file.setdefault(user, FileRows(deque(maxlen=self.history_length)))
        rows.items.add(item)
        if user not in self.users:
            last = rows.last[-1][2] if rows.last else 0
            rows.last.append((item, residual, last if time is None else time))
            rows.count, rows.total = rows.count + 1, rows.total + residual

    def _inputs(self, items: np.ndarray, users: list[str], pasts: list[Past]) -> list[Tensor]:
        """Ids of the candidates (B, Q), and users and their pasts -> the same inputs as HistoryDataset's."""
        shape = len(pasts), self.history_length
        history, residual = np.full(shape, PADDING, np.int32), np.zeros(shape, np.float32)
        gap = np.zeros(shape, np.int64)
        for row, past in enumerate(pasts):
            if length := len(past.item):
                history[row, -length:], residual[row, -length:] = past.item, past.residual
                gap[row, -length:] = past.now - np.asarray(past.time)
        count, total = np.array([past.rows for past in pasts]), np.array([past.total for past in pasts])
        bias = past_user_bias(total, count) * self.start_from_biases * self.use_ratings
        even_chance = self.scale.even_chance if self.target == "click" else 0.0
        ids, rows = torch.from_numpy(items), torch.from_numpy(history)
        return [
            ids,
            rows,
            torch.from_numpy(residual) * self.use_ratings,
            time_gap_bucket(torch.from_numpy(gap)) * (rows != PADDING),
            torch.from_numpy(self.user_ids[[self.users.get(user, -1) for user in users]]),
            dense_features(self.expected[ids], torch.from_numpy(bias).float(), torch.from_numpy(count), even_chance),
        ]
