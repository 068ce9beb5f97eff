"""Reads the raw files of the MovieLens releases into arrays, checking every line.

1M: users.dat, movies.dat, ratings.dat ("::", latin-1). 100K: u.user, u.item ("|", latin-1), u.data (TAB). latest, 20M,
25M, 32M: movies.csv, ratings.csv (with header, UTF-8, half stars, no user features). N: ratings.
"""

import csv
import gzip
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.raw_files import (
    Source,
    Stream,
    bounded_lines,
    decode_line,
    find_file,
    gzip_errors,
    line_blocks,
    missing_file,
    parse_id,
    raw_file,
)
from common.errors import UserError, check
from data.movie_encoder import Users

BLOCK_BYTES = 16 << 20  # read at a time, about 700,000 lines
AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # the first age of each group, as in 1M
GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
NO_GENRES = "(no genres listed)"

Movies = dict[int, tuple[str, list[str]]]  # title and genres, by raw id


@dataclass(frozen=True)
class Release:
    """One raw format. rating_line: a regular expression for lines of digits, dots and separators only."""

    ratings_file: str
    movies_file: str
    users_file: str | None
    encoding: str
    header: bytes  # of the ratings
    movies_header: bytes
    rating_line: bytes
    expected_line: str
    rating_range: tuple[float, float]
    parse_movie: Callable[[str], tuple[int, tuple[str, list[str]]]]
    parse_user: Callable[[str], tuple[int, list[str]]] | None

    @property
    def files(self) -> list[str]:
        return [name for name in (self.ratings_file, self.movies_file, self.users_file) if name]


def _movie_1m(line: str) -> tuple[int, tuple[str, list[str]]]:
    number, title, genres = line.split("::")
    return parse_id(number), (title, _genres(genres))


def _user_1m(line: str) -> tuple[int, list[str]]:
    number, gender, age, occupation, _ = line.split("::")
    return parse_id(number), [gender, str(parse_id(age)), occupation]


def _movie_100k(line: str) -> tuple[int, tuple[str, list[str]]]:
    number, title, _, _, _, *flags = line.split("|")
    if len(flags) != len(GENRES_100K) or not set(flags) <= {"0", "1"}:
        raise ValueError
    return parse_id(number), (title, [name for name, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"])


def _user_100k(line: str) -> tuple[int, list[str]]:
    number, age, gender, occupation, _ = line.split("|")
    group = max(group for group in AGE_GROUPS if group <= max(1, parse_id(age)))
    return parse_id(number), [gender, str(group), occupation]


def _movie_csv(line: str) -> tuple[int, tuple[str, list[str]]]:
    ((number, title, genres),) = csv.reader([line], strict=True)
    return parse_id(number), (title, [] if genres == NO_GENRES else _genres(genres))


def _genres(text: str) -> list[str]:
    genres = text.split("|")
    if "" in genres:  # a truncated line
        raise ValueError
    return genres


ML_1M = Release(
    "ratings.dat", "movies.dat", "users.dat", "latin-1", b"", b"",
    rb"\d{1,9}::\d{1,9}::[1-5]::\d{1,12}", "UserID::MovieID::Rating (1 to 5)::Timestamp",
    (1, 5), _movie_1m, _user_1m,
)  # fmt: skip
ML_100K = Release(
    "u.data", "u.item", "u.user", "latin-1", b"", b"",
    rb"\d{1,9}\t\d{1,9}\t[1-5]\t\d{1,12}", "user, movie, rating (1 to 5), timestamp, separated by TAB",
    (1, 5), _movie_100k, _user_100k,
)  # fmt: skip
ML_CSV = Release(
    "ratings.csv", "movies.csv", None, "utf-8", b"userId,movieId,rating,timestamp", b"movieId,title,genres",
    rb"\d{1,9},\d{1,9},(?:0\.5|[1-4](?:\.[05])?|5(?:\.0)?),\d{1,12}", "userId,movieId,rating (0.5 to 5),timestamp",
    (0.5, 5), _movie_csv, None,
)  # fmt: skip
RELEASES = (ML_1M, ML_100K, ML_CSV)
SEPARATORS_TO_BLANKS = bytes.maketrans(b":,", b"  ")


def detect_release(folder: Path, source: Source) -> Release:
    """The release whose ratings file is in the folder. Raises: UserError if there is none, or a file is missing."""
    for release in RELEASES:
        if find_file(folder, release.ratings_file):
            for name in release.files:
                raw_file(folder, name, source)
            return release
    names = ", ".join(release.ratings_file for release in RELEASES)
    raise missing_file(folder, f"none of {names} (plain or .gz)", source)


def read_ratings(path: Path, release: Release) -> dict[str, np.ndarray]:
    """user, movie (N,) int32, rating (N,) float32, time (N,) int64, in file order.

    Raises: UserError naming the file and the first malformed line.
    """
    form = re.compile(rb"(?:%b\r?\n)*+" % release.rating_line)
    columns: dict[str, list[np.ndarray]] = {"user": [], "movie": [], "rating": [], "time": []}
    types = (np.int32, np.int32, np.float32, np.int64)
    with _opened(path) as stream:
        for line, block in line_blocks(stream, path, BLOCK_BYTES):
            if line == 1 and release.header:
                header, block = block.split(b"\n", 1)
                line = 2
                _check_header(path, header, release.header)
            if form.fullmatch(block) is None:
                raise _bad_rating(path, release, block, line)
            # checked above: every line has four numbers, all exact in float64
            values = np.fromstring(block.translate(SEPARATORS_TO_BLANKS), sep=" ").reshape(-1, 4)
            for name, dtype, column in zip(columns, types, values.T, strict=True):
                columns[name].append(column.astype(dtype))
    check(bool(columns["user"]), f"{path} is empty; expected lines {release.expected_line}.")
    ratings = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    check(len(ratings["user"]) > 0, f"{path} has no ratings; expected lines {release.expected_line}.")
    return ratings


def _bad_rating(path: Path, release: Release, block: bytes, first_line: int) -> UserError:
    one = re.compile(release.rating_line + rb"\r?")
    for line, text in enumerate(block.split(b"\n"), first_line):
        if one.fullmatch(text) is None:
            found = text[:60].decode(release.encoding, "backslashreplace")
            return UserError(
                f"{path}, line {line}: found {found!r}, expected {release.expected_line}. Correct or remove the line."
            )
    raise AssertionError("called for a block without a bad line")


def read_movies(path: Path, release: Release) -> Movies:
    """Title and genres of each movie. Raises: UserError as read_ratings does, and for a repeated id."""
    return _parse_lines(path, release, release.movies_header, release.parse_movie, "movie id, title and genres")


def read_users(path: Path, release: Release) -> Users:
    """Gender, age group and occupation of each user. Raises: UserError as read_movies does."""
    assert release.parse_user is not None  # the release has a users file
    return _parse_lines(path, release, b"", release.parse_user, "user id, gender, age, occupation and zip code")


def _parse_lines(path: Path, release: Release, header: bytes, parse: Callable[[str], tuple], expected: str) -> dict:
    rows = {}
    with _opened(path) as stream:
        for line, raw in enumerate(bounded_lines(stream, path), 1):
            raw = raw.removesuffix(b"\n")
            if line == 1 and header:
                _check_header(path, raw, header)
                continue
            try:
                number, row = parse(decode_line(raw, release.encoding))
            except (ValueError, csv.Error):
                found = raw[:60].decode(release.encoding, "backslashreplace")
                raise UserError(
                    f"{path}, line {line}: found {found!r}, expected {expected} as in this release. "
                    "Correct or remove the line."
                ) from None
            check(
                number not in rows,
                f"{path}, line {line}: found the id {number} again. Correct or remove the line.",
            )
            rows[number] = row
    check(bool(rows), f"{path} is empty; expected lines of {expected}.")
    return rows


def _check_header(path: Path, found: bytes, expected: bytes) -> None:
    shown = found[:60].decode("utf-8", "backslashreplace")
    check(
        found.removesuffix(b"\r") == expected,
        f"{path}, line 1: found {shown!r}, expected {expected.decode()!r}. Correct the file.",
    )


@contextmanager
def _opened(path: Path) -> Iterator[Stream]:
    """Open a plain or .gz file. Raises: UserError for a .gz that is truncated or damaged."""
    with gzip_errors(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        yield stream
