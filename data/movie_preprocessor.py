"""Encodes MovieLens rows for a trained model: user, movie[, rating[, timestamp]], with the separator of training."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from common.data.raw_files import Stream, bounded_lines
from common.errors import UserError, check
from data.history_preprocessor import NO_TIME, HistoryPreprocessor
from data.movie_raw import RELEASES

CHUNK_ROWS = 8192
SEPARATORS = {"ratings.dat": "::", "u.data": "\t", "ratings.csv": ","}
LINE = rb"(\d{1,9})SEP(\d{1,9})(?:SEP([0-5](?:\.[05])?)?(?:SEP(\d{1,12}))?)?\r?\n?"
USER_LINE = re.compile(rb"(\d{1,9})(?:\D.*)?\r?\n?")


class MoviePreprocessor(HistoryPreprocessor):
    """state: HistoryDataModule.state_dict() for a MovieLens release."""

    names = ("user", "movie")

    def __init__(self, state: dict[str, Any]):
        super().__init__(state)
        (self.release,) = (release for release in RELEASES if release.ratings_file == state["release"])
        self.separator = SEPARATORS[state["release"]]
        self.line = re.compile(LINE.replace(b"SEP", self.separator.encode()))
        self.form = "user{0}movie[{0}rating[{0}timestamp]]".format(self.separator.replace("\t", "<TAB>"))
        self.unseen = dict.fromkeys(self.names, 0)

    def batches(self, stream: Stream, name: str) -> Iterator[tuple[Any, ...]]:
        lines, first = enumerate(bounded_lines(stream, name), 1), True
        while part := list(islice(lines, CHUNK_ROWS)):
            if first and self.release.header and part[0][1].startswith(b"userId"):
                part = part[1:]
            first = False
            fields = [self._parse(text, f"{name}, line {line}") for line, text in part]
            user, movie, time = np.array([row[:3] for row in fields], np.int64).reshape(-1, 3).T
            yield *self.encode(user, movie, np.array([row[3] for row in fields]), time), []
        check(not first, f"{name} is empty; expected lines {self.form}.")

    def users_of(self, stream: Stream, name: str) -> Iterator[list[int]]:
        lines = enumerate(bounded_lines(stream, name), 1)
        while part := list(islice(lines, CHUNK_ROWS)):
            if self.release.header and part[0][0] == 1 and part[0][1].startswith(b"userId"):
                part = part[1:]
            if self.history_from_file:
                fields = [self._parse(text, f"{name}, line {line}") for line, text in part]
                user, movie, time = np.array([row[:3] for row in fields], np.int64).reshape(-1, 3).T
                self.encode(user, movie, np.array([row[3] for row in fields]), time)
                yield user.tolist()
                continue
            matches = [USER_LINE.fullmatch(text) for _, text in part]
            if None in matches:
                line, text = part[matches.index(None)]
                found = text[:60].rstrip().decode("utf-8", "backslashreplace")
                raise UserError(f"{name}, line {line}: found {found!r}, expected a user id.")
            yield [int(match[1]) for match in matches if match]

    def text(self, key: int, number: int) -> str:
        return str(number)

    def _parse(self, text: bytes, where: str) -> tuple[int, int, int, float]:
        match = self.line.fullmatch(text)
        least, greatest = self.release.rating_range
        if match is None or not least <= float(match[3] or least) <= greatest:
            found = text[:60].rstrip().decode("utf-8", "backslashreplace")
            raise UserError(f"{where}: found {found!r}, expected {self.form}. Correct or remove the line.")
        user, movie, rating, time = match.groups()
        return int(user), int(movie), int(time or NO_TIME), float(rating or "nan")
