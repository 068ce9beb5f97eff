"""Encodes rows of interactions for a trained model. If line 1 names the columns, their order may differ from training.

N: rows of a block.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from common.data.raw_files import Stream
from data.history_preprocessor import NO_TIME, HistoryPreprocessor
from data.interactions_schema import KEYS, InteractionSchema
from data.interactions_table import read_ids
from data.movie_preprocessor import MoviePreprocessor
from data.table_reader import Rows, read_stream
from data.table_values import as_texts, read_numbers, read_seconds


def preprocessor_of_histories(state: dict[str, Any]) -> HistoryPreprocessor:
    """The preprocessor for a checkpoint's HistoryDataModule state: of a MovieLens release, or of interactions."""
    return MoviePreprocessor(state) if "release" in state else InteractionsPreprocessor(state)


class InteractionsPreprocessor(HistoryPreprocessor):
    """state: what a checkpoint holds of HistoryDataModule on interactions. kept: columns copied to the output.

    Users and items are numbered; the checkpoint has the text of each number.
    """

    def __init__(self, state: dict[str, Any]):
        super().__init__(state)
        self.schema = InteractionSchema.from_dict(state["columns"])
        texts = [state["ids"][key] for key in KEYS]
        if not all(type(text) is str for part in texts for text in part):
            raise ValueError("ids that are not strings")
        if len(texts[0]) <= self.users.max() or len(texts[1]) <= self.raw_movie.max():
            raise ValueError("fewer ids than users or items")
        self.texts = texts
        self.numbers = [{text: number for number, text in enumerate(part)} for part in texts]
        self.names = (self.schema.user, self.schema.item)
        self.kept = tuple(column.name for column in self.schema.schema.of_role("kept"))
        self.unseen = dict.fromkeys(self.names, 0)

    def batches(self, stream: Stream, name: str) -> Iterator[tuple[Any, ...]]:
        for ids, rating, time, kept in read_stream(stream, name, self.schema.schema, self._read, scoring=True):
            user, item = self._numbers(ids[0], 0, self.history_from_file), self._numbers(ids[1], 1)
            yield *self.encode(user, item, rating, time), kept

    def users_of(self, stream: Stream, name: str) -> Iterator[list[int]]:
        if self.history_from_file:
            for ids, rating, time, _ in read_stream(stream, name, self.schema.schema, self._read, scoring=True):
                user = self._numbers(ids[0], 0, True)
                self.encode(user, self._numbers(ids[1], 1), rating, time)
                yield user.tolist()
            return
        columns = [column for column in self.schema.schema.columns if column.name == self.schema.user]
        if not self.schema.schema.header:
            columns = [replace(c, role="excluded") if c not in columns else c for c in self.schema.schema.columns]
        schema = replace(self.schema.schema, columns=tuple(columns), tasks={})
        for ids in read_stream(stream, name, schema, lambda rows: read_ids(rows, schema, self.schema.user), True):
            yield self._numbers(ids, 0, True).tolist()

    def text(self, key: int, number: int) -> str:
        return self.texts[key][number]

    def metadata(self) -> dict[str, Any]:
        users, items = self.texts
        content = super().metadata()
        return content | {
            "user_ids": [users[number] for number in content["user_ids"]],
            "movie_ids": [items[number] for number in content["movie_ids"]],
        }

    def _read(self, rows: Rows) -> tuple[Any, ...]:
        schema = self.schema.schema
        ids = [read_ids(rows, schema, name) for name in self.names]
        rating, seconds = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        if self.schema.rating in rows.columns:
            rating = read_numbers(rows, schema[self.schema.rating])
        if self.schema.time in rows.columns:
            seconds = read_seconds(rows, schema[self.schema.time], self.schema.unit, scoring=True)
        time = np.where(np.isnan(seconds), NO_TIME, np.nan_to_num(seconds)).astype(np.int64)
        kept = [as_texts(rows, rows.columns[name], schema[name], schema).to_pylist() for name in self.kept]
        return ids, rating, time, [[text or "" for text in column] for column in kept]

    def _numbers(self, texts: Any, key: int, keep_new: bool = False) -> np.ndarray:
        """Numbers of the texts (N,) int64. keep_new: each new text gets its own number; otherwise all share one."""
        numbers, known = self.numbers[key], self.texts[key]
        found = []
        for text in texts.dictionary.to_pylist():
            if keep_new and text not in numbers:
                numbers[text] = len(known)
                known.append(text)
            found.append(numbers.get(text, len(known)))
        return np.array(found, np.int64)[texts.indices.to_numpy()]
