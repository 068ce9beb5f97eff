"""A MovieLens release in the form that HistoryDataModule takes."""

from pathlib import Path
from typing import Any

import numpy as np

from common.data.raw_files import Source, raw_file
from common.errors import check
from data.history.dataset import Scale
from data.movie_encoder import Attributes, Users
from data.movie_raw import detect_release, read_movies, read_ratings, read_users

CLICK_FROM, EVEN_CHANCE = 4.0, 3.5


class MovieLens:
    """What HistoryDataModule needs to know about a MovieLens release."""

    name, has_ratings = "movies", True

    def __init__(self, folder: Path, source: Source):
        self.release = detect_release(folder, source)
        self.files = [raw_file(folder, name, source) for name in self.release.files]
        self.key: dict[str, Any] = {}

    def read(self, target: Path) -> dict[str, np.ndarray]:
        """All ratings in file order, without those of movies or users that are missing from the other files."""
        print(f"Preparing {self.files[0].parent} ...", flush=True)
        ratings = read_ratings(self.files[0], self.release)
        known = np.isin(ratings["movie"], list(read_movies(self.files[1], self.release)))
        dropped = {"ratings of unknown movies": int((~known).sum())}
        if self.release.users_file:
            known_user = np.isin(ratings["user"], list(read_users(self.files[2], self.release)))
            dropped["ratings of unknown users"] = int((~known_user).sum())
            known &= known_user
        if not known.all():
            left_out = ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count)
            print(f"Left out: {left_out}.", flush=True)
            ratings = {name: column[known] for name, column in ratings.items()}
        check(
            bool(known.any()),
            f"{self.files[0]} has no rating by a known user of a movie in {self.files[1].name}; the files do not "
            "match.",
        )
        return ratings

    def open(self, ordered: Path) -> None:
        """Read the files of movies and users."""
        self.titles = read_movies(self.files[1], self.release)
        self._users = read_users(self.files[2], self.release) if self.release.users_file else {}

    def movies(self, train: np.ndarray) -> Attributes:
        """Genres of each movie."""
        return {number: [genres] for number, (_, genres) in self.titles.items()}

    def users(self, train: np.ndarray) -> Users:
        """Gender, age group and occupation of each user."""
        return self._users

    def scale(self, ratings: np.ndarray) -> Scale:
        return Scale(*self.release.rating_range, CLICK_FROM, EVEN_CHANCE)

    def title(self, number: int) -> str:
        return self.titles[number][0]

    def state_dict(self) -> dict[str, Any]:
        """What is needed to read new rows."""
        return {"release": self.release.ratings_file}
