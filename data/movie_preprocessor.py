"""MovieLens rows for a trained model: user, movie[, rating[, timestamp]], with the separator of the training set.

The user's history comes from the checkpoint. A rating that the checkpoint knows is predicted from what came before it;
any other from all that its user rated up to its timestamp; without one from all, at the time of the last. Of several
ratings of one movie by one user the timestamp tells which it is; where it does not, it is the earliest.
N: ratings in the checkpoint, B: rows of a batch, U: users, L: length of the history, C: features of a user.
"""

import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from common.data.raw_files import Stream, bounded_lines
from common.errors import UserError, check
from data.movie_encoder import MovieEncoder, encode_ids, past_user_bias
from data.movie_history import CLICK_RATING, OOV, dense_features, history_window
from data.movie_raw import RELEASES

CHUNK_ROWS = 8192
SEPARATORS = {"ratings.dat": "::", "u.data": "\t", "ratings.csv": ","}
LINE = rb"(\d{1,9})SEP(\d{1,9})(?:SEP([0-5](?:\.[05])?)?(?:SEP(\d{1,12}))?)?\r?\n?"
NO_TIME = -1
TIME_BITS, ID_BITS = 40, 32  # a timestamp has up to 12 digits, an id up to 9


class MoviePreprocessor:
    """state: what a checkpoint holds of MovieRatingDataModule. unseen: rows with a user or movie new to the model."""

    def __init__(self, state: dict):
        self.encoder = MovieEncoder.from_state(state["encoder"])
        (self.release,) = (release for release in RELEASES if release.ratings_file == state["release"])
        self.separator = SEPARATORS[state["release"]]
        self.line = re.compile(LINE.replace(b"SEP", self.separator.encode()))
        self.history_length, self.use_ratings, self.start_from_biases = (
            state["history_length"],
            state["history_ratings"],
            state["start_from_biases"],
        )
        self.click = state["target"] == "click"
        self.columns = ("probability",) if self.click else ("rating",)
        self.form = "user{0}movie[{0}rating[{0}timestamp]]".format(self.separator.replace("\t", "<TAB>"))
        self.unseen = {"user": 0, "movie": 0}
        ratings = {name: column.numpy() for name, column in state["ratings"].items()}
        self.users, self.user_ids, self.time = ratings["user"], ratings["user_ids"], ratings["time"]
        self.start = np.append(ratings["start"], len(self.time))  # (U + 1,)
        self.movie = encode_ids(ratings["movie"], self.encoder.movie_ids)
        self.expected = self.encoder.mean + np.array(self.encoder.movie_bias)  # by id
        self.residual = ratings["rating"] - self.expected[self.movie]
        residual = self.residual.astype(np.float32)
        self.past = torch.from_numpy(self.movie), torch.from_numpy(residual), torch.from_numpy(self.time)
        self.total = np.concatenate([[0.0], self.residual.cumsum()])  # of the residuals before a row
        row = np.repeat(np.arange(len(self.users)), np.diff(self.start))
        self.time_key = (row << TIME_BITS) + self.time  # ascending
        movie_key = (row << ID_BITS) + ratings["movie"]
        self.by_movie = np.argsort(movie_key, kind="stable")  # of one movie in the order of time
        self.movie_key = movie_key[self.by_movie]
        first = np.searchsorted(self.movie_key, self.movie_key)
        self.position_key = (first << ID_BITS) + self.by_movie  # ascending

    def batches(self, stream: Stream, name: str) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The model's inputs and the target (B, 1), nan where there is no rating; in the order of the stream.

        Raises: UserError naming the first line that is not of the form.
        """
        lines, first = enumerate(bounded_lines(stream, name), 1), True
        while part := list(islice(lines, CHUNK_ROWS)):
            if first and self.release.header and part[0][1].startswith(b"userId"):
                part = part[1:]
            first = False
            fields = [self._parse(text, f"{name}, line {line}") for line, text in part]
            user, movie, time = np.array([row[:3] for row in fields], np.int64).reshape(-1, 3).T
            rating = torch.tensor([row[3] for row in fields], dtype=torch.float32)
            target = torch.where(rating.isnan(), rating, (rating >= CLICK_RATING).float()) if self.click else rating
            inputs = self.inputs(user, movie, time)
            ids, *_, user_ids, _ = inputs
            self.unseen["user"] += int((user_ids[:, 0] == OOV).sum())
            self.unseen["movie"] += int((ids == OOV).sum())
            yield inputs, target.unsqueeze(1)
        check(not first, f"{name} is empty; expected lines {self.form}.")

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of made-up rows."""
        movies = np.array(self.encoder.movie_ids)
        return self.inputs(rng.choice(self.users, rows), rng.choice(movies, rows), np.full(rows, NO_TIME))

    def metadata(self) -> dict:
        """What another program needs to make inputs of a raw row; the users' ratings stay in the checkpoint."""
        return self.encoder.state_dict() | {"history_length": self.history_length, "target": self.columns[0]}

    def inputs(self, user: np.ndarray, movie: np.ndarray, time: np.ndarray) -> list[Tensor]:
        """Raw ids (B,) and timestamps or NO_TIME (B,) -> the inputs that HistoryDataset gives."""
        row = np.searchsorted(self.users, user).clip(max=len(self.users) - 1)
        known = self.users[row] == user
        start = np.where(known, self.start[row], 0)
        position, now = self._positions(row, known, movie, time)
        ids = encode_ids(movie, self.encoder.movie_ids)
        user_ids = np.where(known[:, None], self.user_ids[row], OOV)
        past = position - start
        user_bias = past_user_bias(self.total[position] - self.total[start], past) * self.start_from_biases
        dense = dense_features(
            torch.from_numpy(self.expected[ids].astype(np.float32)),
            torch.from_numpy(user_bias.astype(np.float32)) * self.use_ratings,
            torch.from_numpy(past),
            self.click,
        )
        window = torch.from_numpy(position), torch.from_numpy(start), torch.from_numpy(now)
        history, residual, time_gap = history_window(*self.past, *window, self.history_length)
        residual = residual * self.use_ratings
        return [torch.from_numpy(ids), history, residual, time_gap, torch.from_numpy(user_ids), dense]

    def _positions(
        self, row: np.ndarray, known: np.ndarray, movie: np.ndarray, time: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each row stands in the time order, and when."""
        key = (row << ID_BITS) + movie
        first = np.searchsorted(self.movie_key, key)
        since = np.where(time == NO_TIME, 0, np.searchsorted(self.time_key, (row << TIME_BITS) + time))
        position = np.searchsorted(self.position_key, (first << ID_BITS) + since).clip(max=len(self.position_key) - 1)
        own = self.by_movie[position]  # the user's first rating of the movie that is no earlier
        is_own = known & (self.movie_key[position] == key) & ((time == NO_TIME) | (self.time[own] == time))
        until = np.searchsorted(self.time_key, (row << TIME_BITS) + time, "right")
        after = np.where(time == NO_TIME, self.start[row + 1], until)
        position = np.where(is_own, own, np.where(known, after, 0))
        last = self.time[np.maximum(position - 1, 0)]
        return position, np.where(is_own, self.time[own], np.where(time == NO_TIME, last, time))

    def _parse(self, text: bytes, where: str) -> tuple[int, int, int, float]:
        match = self.line.fullmatch(text)
        least, greatest = self.release.rating_range
        if match is None or not least <= float(match[3] or least) <= greatest:
            found = text[:60].rstrip().decode("utf-8", "backslashreplace")
            raise UserError(f"{where}: found {found!r}, expected {self.form}. Correct or remove the line.")
        user, movie, rating, time = match.groups()
        return int(user), int(movie), int(time or NO_TIME), float(rating or "nan")
