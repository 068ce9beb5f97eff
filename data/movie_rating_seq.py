"""MovieLens: columns of its releases and archives; HistoryDataModule also reads your own interactions.

`python data/movie_rating_seq.py` downloads the raw files of DATASET, reads them and prints a summary.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pyarrow.compute as pc

from common.data.cache import build_once
from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Published, find_dataset, find_file, missing_file, raw_file
from common.errors import run_script
from data.history.module import InteractionDataModule
from data.reader import Reader, data_files, source_of
from data.samples.movies import movie_sample
from data.schema import (
    Categorical,
    Column,
    Dataset,
    Dense,
    Description,
    Format,
    Key,
    Plain,
    Rating,
    Time,
)

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
    target = Rating(positive=LIKED, negative=DISLIKED) if clicks else Rating(click_from=CLICK_FROM)

    def columns(user: str, item: str, rating: str, time: str) -> dict[str, Column]:
        return {user: _key("user"), item: _key("item"), rating: target, time: Time()}

    def movies(item: str) -> dict[str, Column]:
        found: dict[str, Column] = {item: _key("item"), "title": Plain(role="kept")}
        if not clicks:
            return found | {"genres": Categorical(separator="|")}
        year = Categorical(source="title", pattern=r"\((?P<year>[0-9]{4})\)$")
        return found | {"genres": Categorical(), "year": year}  # all genres of a movie as one value

    if path := find_file(folder, "ratings.csv"):  # latest, 20M, 25M, 32M
        described = Description(
            file=path.name,
            columns=columns("userId", "movieId", "rating", "timestamp"),
            item_attributes=Format(
                file=raw_file(folder, "movies.csv").name, missing=("(no genres listed)",), columns=movies("movieId")
            ),
        )
        return Dataset("movies", described, folder, str(path))
    path = find_file(folder, "ratings.dat") or find_file(folder, "u.data")
    if path is None:
        return None
    separator, second = ("::", folder) if path.name.startswith("ratings") else ("\t", _converted(folder))
    features: dict[str, Column] = dict.fromkeys(("gender", "age", "occupation"), Categorical())
    zip_code: dict[str, Column] = {"zip": Categorical() if clicks else Plain(role="excluded")}
    described = Description(
        file=path.name,
        separator=separator,
        header=False,
        quoted=False,
        columns=columns("user", "movie", "rating", "time"),
        item_attributes=_plain(str(raw_file(second, "movies.dat")), "::", movies("movie")),
        user_attributes=_plain(str(raw_file(second, "users.dat")), "::", {"user": _key("user")} | features | zip_code),
    )
    return Dataset("movies", described, folder, str(path))


def _key(role: Literal["user", "item"]) -> Key:
    return Key(role=role, type="number")


def _plain(file: str, separator: str, columns: dict[str, Column]) -> Format:
    return Format(file=file, separator=separator, header=False, quoted=False, encoding="latin-1", columns=columns)


def _converted(folder: Path) -> Path:
    """A folder with the movies and users of 100K in the format of 1M."""
    movies, users = raw_file(folder, "u.item"), raw_file(folder, "u.user")
    return build_once("movies-100k", [movies, users], {}, partial(_convert, movies, users), code=[__name__])


def _convert(movies: Path, users: Path, target: Path) -> None:
    flags: dict[str, Column] = dict.fromkeys(GENRES_100K, Categorical())
    dates: dict[str, Column] = dict.fromkeys(("date", "video date", "url"), Plain(role="excluded"))
    form = _plain("-", "|", {"movie": _key("item"), "title": Plain(role="kept"), **dates, **flags})
    lines = []
    for row in _rows(movies, form):
        lines.append([row["movie"], row["title"], "|".join(genre for genre in flags if row[genre] == "1")])
    _write(target / "movies.dat", lines)
    other: dict[str, Column] = dict.fromkeys(("gender", "occupation", "zip"), Plain(role="kept"))
    form = _plain("-", "|", {"user": _key("user"), "age": Dense(type="integer"), **other})
    lines = []
    for row in _rows(users, form):
        group = max(first for first in AGE_GROUPS if first <= max(1, row["age"] or 1))
        lines.append([row["user"], row["gender"], str(group), row["occupation"], row["zip"]])
    _write(target / "users.dat", lines)


def _rows(path: Path, form: Format) -> Iterator[dict[str, Any]]:
    for batch in Reader(form).batches(source_of(path)):
        yield from batch.to_pylist()


def _write(path: Path, lines: list[list[str]]) -> None:
    path.write_text("".join("::".join(cells) + "\n" for cells in lines), encoding="latin-1")


class HistoryDataModule(InteractionDataModule):
    """MovieLens, or your own interactions."""

    published = PUBLISHED

    def described(self, folder: Path) -> Dataset:
        return _movielens(folder)


def _movielens(folder: Path) -> Dataset:
    if movies := described(folder, clicks=False):
        return movies
    raise missing_file(folder, "none of ratings.dat, u.data, ratings.csv and columns.json", PUBLISHED)


def main() -> None:
    """Download the raw files if there is no folder, and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    folder, _ = find_dataset(DATASET, None, PUBLISHED)
    table = _movielens(folder)
    users: Counter[str] = Counter()
    movies: set[str] = set()
    rows, total = 0, 0.0
    key, item, rating, _ = table.description.columns
    reader = Reader(table.description)
    for batch in (batch for path in data_files(table.files["all"]) for batch in reader.batches(source_of(path))):
        users.update(batch.column(key).to_pylist())
        movies.update(batch.column(item).unique().to_pylist())
        rows, total = rows + len(batch), total + pc.sum(batch.column(rating)).as_py()
    lengths = sorted(users.values())
    print(
        f"{folder}: {rows:,} ratings, mean {total / rows:.4f}, of {len(movies):,} movies by {len(users):,} users, who "
        f"gave {lengths[0]:,} to {lengths[-1]:,} ratings (median {median(lengths):,.0f})"
    )


if __name__ == "__main__":
    run_script(main)
