"""Inputs of rows to score; a user's history comes from the checkpoint or from the preceding rows of the file.

A rating that is in the checkpoint is predicted from what its user rated before it. Any other is predicted from all that
the user rated up to its timestamp; without a timestamp, from everything, as of the user's last rating. If a user has
rated a movie several times, the timestamp tells which rating is meant; without one it is the earliest.
B: rows of a batch, L: length of the history.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.raw_files import Stream
from common.errors import check
from data.movie_encoder import MovieEncoder, encode_ids, past_user_bias
from data.movie_history import OOV, PADDING, dense_features, history_window, time_gap_bucket

NO_TIME = -1
TIME_BITS, ID_BITS = 40, 32  # enough for timestamps of 12 digits and ids of 9


@dataclass
class Past:
    """What a file says about a user: the last L rows, the count of all, the sum of their residuals, all movies."""

    last: deque[tuple[int, float, int]]  # movie, residual, time
    count: int = 0
    total: float = 0.0
    movies: set[int] = field(default_factory=set)  # raw ids


class HistoryPreprocessor:
    """state: HistoryDataModule.state_dict() in a checkpoint. unseen: rows with a user or movie new to the model.

    history_from_file: whether the history of a user who is not in the checkpoint consists of the preceding rows of the
    file (the rated ones, if the data has ratings).
    """

    history_from_file = False
    kept: tuple[str, ...] = ()
    names: tuple[str, str]  # of the columns of users and movies
    unseen: dict[str, int]  # by the same names

    def __init__(self, state: dict[str, Any]):
        self.encoder = MovieEncoder.from_state(state["encoder"])
        self.scale = self.encoder.scale
        self.history_length, self.use_ratings, self.start_from_biases = (
            state["history_length"],
            state["history_ratings"],
            state["start_from_biases"],
        )
        self.click = state["target"] == "click"
        self.columns = ("probability",) if self.click else ("rating",)
        self.from_file: dict[int, Past] = {}
        ratings = {name: column.numpy() for name, column in state["ratings"].items()}
        self.users, self.user_ids, self.time = ratings["user"], ratings["user_ids"], ratings["time"]
        self.start = np.append(ratings["start"], len(self.time))  # (users + 1,)
        self.raw_movie = ratings["movie"]
        self.movie_ids = np.array(self.encoder.movie_ids)  # the vocabulary's raw ids
        self.movie = encode_ids(ratings["movie"], self.movie_ids)
        self.residual = self.encoder.residuals(ratings["rating"], self.movie)
        residual = self.residual.astype(np.float32)
        self.expected = self.encoder.expected  # by id
        self.past = torch.from_numpy(self.movie), torch.from_numpy(residual), torch.from_numpy(self.time)
        self.total = np.concatenate([[0.0], self.residual.cumsum()])  # of the residuals before a row
        row = np.repeat(np.arange(len(self.users)), np.diff(self.start))
        self.time_key = (row << TIME_BITS) + self.time  # ascending
        movie_key = (row << ID_BITS) + ratings["movie"]
        self.by_movie = np.argsort(movie_key, kind="stable")  # ratings of one movie stay in the order of time
        self.movie_key = movie_key[self.by_movie]
        first = np.searchsorted(self.movie_key, self.movie_key)
        self.position_key = (first << ID_BITS) + self.by_movie  # ascending

    def batches(self, stream: Stream, name: str) -> Iterator[tuple[Any, ...]]:
        """The model's inputs and the target (B, 1), nan if there is no rating; in the order of the stream.

        Raises: UserError naming the first line that does not have the format of the training data.
        """
        raise NotImplementedError

    def keep(self, names: Sequence[str]) -> None:
        check(not names, "slices are for tables.")

    def nearly_unseen(self) -> list[str]:
        return []

    def users_of(self, stream: Stream, name: str) -> Iterator[list[int]]:
        """The users of a file, in blocks; with history_from_file, of rows in the format of `batches`."""
        raise NotImplementedError

    def text(self, key: int, number: int) -> str:
        """How the file writes the id of a user (key 0) or movie (key 1)."""
        raise NotImplementedError

    def encode(self, user: np.ndarray, movie: np.ndarray, rating: np.ndarray, time: np.ndarray) -> tuple[Any, ...]:
        """Rows in file order, with unknown ratings nan and times NO_TIME -> the model's inputs, target (B, 1)."""
        inputs = self.inputs(user, movie, time)
        if self.history_from_file:
            self._add_histories(inputs, user, movie, rating, time)
        ids, *_, user_ids, _ = inputs
        for key, column in zip(self.unseen, (user_ids[:, 0], ids), strict=True):
            self.unseen[key] += int((column == OOV).sum())
        target = torch.from_numpy(rating.astype(np.float32))
        if self.click:
            target = self.scale.clicks(target)
        return inputs, target.unsqueeze(1)

    def candidates(self, user: int) -> np.ndarray:
        """Raw ids of the movies in the training rows that the user is not known to have rated."""
        row = int(np.searchsorted(self.users, user))
        rated: list[int] = []
        if row < len(self.users) and self.users[row] == user:
            rated += self.raw_movie[self.start[row] : self.start[row + 1]].tolist()
        if user in self.from_file:
            rated += self.from_file[user].movies
        return np.setdiff1d(self.movie_ids, rated)

    def user_inputs(self, user: int, movie: np.ndarray) -> list[Tensor]:
        """Inputs for movies (B,) that the user has not rated, with all its ratings as the history."""
        inputs = self.inputs(np.full(len(movie), user), movie, np.full(len(movie), NO_TIME))
        if user in self.from_file and user not in self.users:
            self._fill(inputs, slice(None), self.from_file[user], NO_TIME)
        return inputs

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of random rows."""
        return self.inputs(rng.choice(self.users, rows), rng.choice(self.movie_ids, rows), np.full(rows, NO_TIME))

    def metadata(self) -> dict:
        """What another program needs to encode a raw row; the users' ratings stay in the checkpoint."""
        return self.encoder.state_dict() | {"history_length": self.history_length, "target": self.columns[0]}

    def inputs(self, user: np.ndarray, movie: np.ndarray, time: np.ndarray) -> list[Tensor]:
        """Raw ids (B,) and timestamps or NO_TIME (B,) -> the same inputs as HistoryDataset's."""
        row = np.searchsorted(self.users, user).clip(max=len(self.users) - 1)
        known = self.users[row] == user
        start = np.where(known, self.start[row], 0)
        position, now = self._positions(row, known, movie, time)
        ids = encode_ids(movie, self.movie_ids)
        user_ids = np.where(known[:, None], self.user_ids[row], OOV)
        past = position - start
        user_bias = past_user_bias(self.total[position] - self.total[start], past) * self.start_from_biases
        dense = dense_features(
            torch.from_numpy(self.expected[ids].astype(np.float32)),
            torch.from_numpy(user_bias.astype(np.float32)) * self.use_ratings,
            torch.from_numpy(past),
            self.scale.even_chance if self.click else 0.0,
        )
        window = torch.from_numpy(position), torch.from_numpy(start), torch.from_numpy(now)
        history, residual, time_gap = history_window(*self.past, *window, self.history_length)
        residual = residual * self.use_ratings
        return [torch.from_numpy(ids), history, residual, time_gap, torch.from_numpy(user_ids), dense]

    def _positions(
        self, row: np.ndarray, known: np.ndarray, movie: np.ndarray, time: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Position of each row among the ratings in time order, and its time."""
        key = (row << ID_BITS) + movie
        first = np.searchsorted(self.movie_key, key)
        since = np.where(time == NO_TIME, 0, np.searchsorted(self.time_key, (row << TIME_BITS) + time))
        position = np.searchsorted(self.position_key, (first << ID_BITS) + since).clip(max=len(self.position_key) - 1)
        own = self.by_movie[position]  # the user's first rating of the movie that is not earlier
        is_own = known & (self.movie_key[position] == key) & ((time == NO_TIME) | (self.time[own] == time))
        until = np.searchsorted(self.time_key, (row << TIME_BITS) + time, "right")
        after = np.where(time == NO_TIME, self.start[row + 1], until)
        position = np.where(is_own, own, np.where(known, after, 0))
        last = self.time[np.maximum(position - 1, 0)]
        return position, np.where(is_own, self.time[own], np.where(time == NO_TIME, last, time))

    def _add_histories(
        self, inputs: list[Tensor], user: np.ndarray, movie: np.ndarray, rating: np.ndarray, time: np.ndarray
    ) -> None:
        """Give users who are not in the checkpoint their preceding rows as history, and remember these rows."""
        is_new = ~np.isin(user, self.users)
        if self.scale.has_ratings:
            counts, residual = ~np.isnan(rating), self.encoder.residuals(rating, inputs[0].numpy())
        else:
            counts, residual = np.full(len(user), True), np.zeros(len(user))
        for row, (number, is_history) in enumerate(zip(user.tolist(), counts.tolist(), strict=True)):
            past = self.from_file.setdefault(number, Past(deque(maxlen=self.history_length)))
            if is_new[row]:
                self._fill(inputs, slice(row, row + 1), past, int(time[row]))
            if is_history:
                past.movies.add(int(movie[row]))
            if is_history and is_new[row]:
                now = int(time[row]) if time[row] != NO_TIME else past.last[-1][2] if past.last else 0
                past.last.append((int(inputs[0][row]), float(residual[row]), now))
                past.count, past.total = past.count + 1, past.total + float(residual[row])

    def _fill(self, inputs: list[Tensor], rows: slice, past: Past, time: int) -> None:
        """Write a user's history into some rows of the inputs."""
        ids, history, residual, time_gap, _, dense = inputs
        history[rows], residual[rows], time_gap[rows] = PADDING, 0.0, 0
        if past.last:
            movie, residuals, times = map(torch.tensor, zip(*past.last, strict=True))
            history[rows, -len(movie) :] = movie.int()
            residual[rows, -len(movie) :] = residuals.float() * self.use_ratings
            now = times[-1] if time == NO_TIME else time
            time_gap[rows, -len(movie) :] = time_gap_bucket(now - times)
        count = torch.full((len(ids[rows]),), past.count)
        user_bias = past_user_bias(np.array(past.total), np.array(past.count)) * self.start_from_biases
        expected = torch.from_numpy(self.expected[ids[rows].numpy()].astype(np.float32))
        even_chance = self.scale.even_chance if self.click else 0.0
        dense[rows] = dense_features(
            expected, torch.full_like(expected, float(user_bias) * self.use_ratings), count, even_chance
        )
