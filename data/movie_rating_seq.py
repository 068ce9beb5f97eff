"""MovieLens: columns of its releases and archives; HistoryDataModule also reads your own interactions.

`python data/movie_rating_seq.py` downloads the raw files of DATASET, reads them and prints a summary.
"""

import sys
from bisect import bisect
from collections.abc import Iterable, Sequence
from csv import QUOTE_NONE
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd

from common.data.cache import build_once
from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Published, find_file, missing_file, raw_file
from common.errors import run_script
from common.paths import data_root
from data.history.module import InteractionDataModule
from data.reader import Reader
from data.samples.movies import movie_sample
from data.schema import Categorical, Column, Dataset, Description, Format, Key, Plain, Rating, Time

DATASET = "ml-1m"  # what this script downloads: "ml-1m" or "ml-100k"
ARCHIVES = {  # by folder below DATA_ROOT
    "ml-1m": Archive(
        urls=("https://files.grouplens.org/datasets/movielens/ml-1m.zip",),
        name="ml-1m.zip",
        files=dict.fromkeys(["ratings.dat", "movies.dat", "users.dat"]),
        size=5_917_549,
        checksum="md5:c4d9eecfca2ab87c1945afe126590906",
    ),
    "ml-100k": Archive(
        urls=("https://files.grouplens.org/datasets/movielens/ml-100k.zip",),
        name="ml-100k.zip",
        files=dict.fromkeys(["u.data", "u.item", "u.user"]),
        size=4_924_029,
        checksum="md5:0e33842e24a9c977be4e0107933c0723",
    ),
}
PUBLISHED = {
    name: Published("python data/movie_rating_seq.py", movie_sample, "" if name == DATASET else f"DATASET = {name!r}")
    for name in ARCHIVES
}
AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # the first age of each group, as in 1M
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
LIKED, DISLIKED = ("3.5", "4", "4.5", "5"), ("0.5", "1", "1.5", "2", "2.5")  # as clicks; ratings of 3 are left out
CLICK_FROM = 4.0  # for BST, whose histories need every rating


def described(folder: Path, clicks: bool) -> Dataset | None:
    """The MovieLens release in a folder, None if there is none. clicks: for DeepFM and DLRM, with ratings as clicks."""
    table = find_file(folder, "ratings.csv")  # latest, 20M, 25M, 32M
    path = table or find_file(folder, "ratings.dat") or find_file(folder, "u.data")
    if path is None:
        return None
    user, item, time = ("userId", "movieId", "timestamp") if table else ("user", "movie", "time")
    users: dict[str, Column] = {user: Key(role="user", type="number")}
    movies: dict[str, Column] = {item: Key(role="item", type="number"), "title": Plain(role="kept")}
    target = Rating(positive=LIKED, negative=DISLIKED) if clicks else Rating(click_from=CLICK_FROM)
    columns = users | {item: movies[item], "rating": target, time: Time()}
    movies["genres"] = Categorical(separator=None if clicks else "|")  # for clicks, all genres of a movie as one value
    if clicks:
        movies["year"] = Categorical(source="title", pattern=r"\((?P<year>[0-9]{4})\)$")
    if table:
        known = Format(file=raw_file(folder, "movies.csv").name, missing=("(no genres listed)",), columns=movies)
        description = Description(file=path.name, columns=columns, item_attributes=known)
        return Dataset("movies", description, folder, str(path))
    separator, second = ("::", folder) if path.name.startswith("ratings") else ("\t", _converted(folder))
    users |= dict.fromkeys(("gender", "age", "occupation"), Categorical())
    users["zip"] = Categorical() if clicks else Plain(role="excluded")
    plain: dict[str, Any] = {"header": False, "quoted": False}
    others = plain | {"separator": "::", "encoding": "latin-1"}
    description = Description(
        file=path.name,
        columns=columns,
        separator=separator,
        item_attributes=Format(file=str(raw_file(second, "movies.dat")), columns=movies, **others),
        user_attributes=Format(file=str(raw_file(second, "users.dat")), columns=users, **others),
        **plain,
    )
    return Dataset("movies", description, folder, str(path))


def _converted(folder: Path) -> Path:
    """A folder with the movies and users of 100K in the format of 1M."""
    files = [raw_file(folder, "u.item"), raw_file(folder, "u.user")]
    return build_once("movies-100k", files, {}, partial(_convert, *files), code=[__name__])


def _convert(movies: Path, users: Path, target: Path) -> None:
    def write(name: str, rows: Iterable[Sequence[str]]) -> None:
        (target / name).write_text("".join("::".join(row) + "\n" for row in rows), encoding="latin-1")

    rows = ([*row[:2], "|".join(compress(GENRES_100K, map(int, row[5:])))] for row in _rows(movies))
    write("movies.dat", rows)
    group = lambda age: str(AGE_GROUPS[bisect(AGE_GROUPS[1:], int(age))])  # noqa: E731
    write("users.dat", ([user, sex, group(age), *rest] for user, age, sex, *rest in _rows(users)))


def _rows(path: Path) -> list[list[str]]:
    table = pd.read_csv(path, sep="|", header=None, dtype=str, quoting=QUOTE_NONE, encoding="latin-1")
    return table.fillna("").to_numpy().tolist()


class HistoryDataModule(InteractionDataModule):
    """MovieLens, or your own interactions."""

    published, raw_files = PUBLISHED, "ratings.dat, u.data, ratings.csv"

    def described(self, folder: Path) -> Dataset | None:
        return described(folder, clicks=False)


def main() -> None:
    """Download the raw files if there is no folder, and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    if (table := described(data_root() / DATASET, clicks=False)) is None:
        raise missing_file(data_root() / DATASET, f"no {HistoryDataModule.raw_files}", PUBLISHED)
    users, movies, rating, _ = Reader(table.description).table(table.files["all"]).columns
    lengths = users.value_counts().field("counts").to_numpy()
    print(
        f"{table.folder}: {len(rating):,} ratings, mean {rating.to_numpy().mean():.4f}, of {len(movies.unique()):,} "
        f"movies by {len(lengths):,} users, who gave {lengths.min():,} to {lengths.max():,} ratings (median "
        f"{np.median(lengths):,.0f})"
    )


if __name__ == "__main__":
    run_script(main)
