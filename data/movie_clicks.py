"""MovieLens-1M as a click table: ratings above 3 are clicks, ratings below 3 are not, ratings of 3 are left out.

Written to the cache as a CSV with a header: a row per rating in the order of ratings.dat, joined with the user's and
the movie's columns of users.dat and movies.dat. predict.py scores such rows, with or without the rating.
"""

from dataclasses import replace
from pathlib import Path

from common.data.cache import build_once
from common.data.raw_files import Source, raw_file
from data import movie_raw
from data.movie_raw import ML_1M, read_movies, read_ratings, read_users
from data.table_schema import Column, Schema, Task

MOVIE_CLICKS = Schema(
    columns=(
        Column("rating", "label"),
        *(Column(name, "categorical") for name in ("user", "movie", "gender", "age", "occupation", "zip")),
        Column("genres", "categorical"),  # all genres of a movie as one value
        Column("year", "categorical"),
        Column("time", "time"),
    ),
    tasks={"liked": Task("rating", ("4", "5"), ("1", "2"))},
    group="user",
)


def click_table(folder: Path, source: Source) -> Path:
    """The CSV of the release in `folder`. Raises: UserError if a file is missing or a line is malformed."""
    files = [raw_file(folder, name, source) for name in ML_1M.files]
    cached = build_once("movie-clicks", files, {}, lambda target: _write(files, target), code=(movie_raw, __name__))
    return cached / "clicks.csv"


def _write(files: list[Path], target: Path) -> None:
    import pandas as pd  # imported here because it is slow and not needed once the table is in the cache

    ratings_file, movies_file, users_file = files
    ratings = pd.DataFrame(read_ratings(ratings_file, ML_1M))
    ratings = ratings[ratings.rating != 3].astype({"rating": int})
    with_zip = replace(ML_1M, parse_user=lambda line: (int(line.split("::")[0]), line.split("::")[1:]))
    users = pd.DataFrame.from_dict(
        read_users(users_file, with_zip), "index", columns=["gender", "age", "occupation", "zip"]
    )
    movies = pd.DataFrame.from_dict(read_movies(movies_file, ML_1M), "index", columns=["title", "genres"])
    movies["genres"] = movies.genres.str.join("|")
    movies["year"] = movies.title.str.extract(r"\(([0-9]{4})\)$")
    table = ratings.join(users, "user", "inner").join(movies, "movie", "inner").sort_index()  # in file order again
    table.to_csv(target / "clicks.csv", columns=MOVIE_CLICKS.names, index=False)
