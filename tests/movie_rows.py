"""Small files in the formats of MovieLens for tests."""

from pathlib import Path

import numpy as np

Line = tuple[int, int, int, int]  # user, movie, rating, time


def make_ratings(rng: np.random.Generator, users: int = 12, movies: int = 30, most: int = 25) -> list[Line]:
    """Unordered, many at the same time; the first users have 1, 2 and 3 ratings."""
    lines = []
    for user in range(1, users + 1):
        count = user if user <= 3 else int(rng.integers(4, most))
        seen = rng.choice(movies, count, replace=False) + 1
        times = 978_300_000 + rng.integers(0, count, count) * 50
        lines += [(user, int(m), int(rng.integers(1, 6)), int(t)) for m, t in zip(seen, times, strict=True)]
    return [lines[i] for i in rng.permutation(len(lines))]


def write_1m(folder: Path, lines: list[Line], movies: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.dat").write_text("".join("::".join(map(str, line)) + "\n" for line in lines))
    genres = ["Action", "Comedy|Drama", "Drama"]
    titles = [f"{m}::Été {m} (1990)::{genres[m % 3]}\n" for m in range(1, movies + 1)]
    (folder / "movies.dat").write_text("".join(titles), encoding="latin-1")
    users = [f"{u}::{'MF'[u % 2]}::{[18, 25][u % 2]}::{u % 5}::0\n" for u in sorted({line[0] for line in lines})]
    (folder / "users.dat").write_text("".join(users))
    return folder


def write_csv(folder: Path, lines: list[Line], movies: int = 30) -> Path:
    """The same ratings in the format of the CSV releases."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{user},{movie},{rating}.0,{time}\n" for user, movie, rating, time in lines)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    genres = ["Action", "Comedy|Drama", "(no genres listed)"]
    titles = [f'{m},"Été, {m} (1990)",{genres[m % 3]}\n' for m in range(1, movies + 1)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(titles))
    return folder
