"""The built-in sample in the format of MovieLens-1M, generated from planted effects; its best possible score is known.

expectation before rounding = mean + user + movie + effect of the movie rated just before: genres follow each other well
or badly, and part of its residual carries over. Only the order of a history reveals that effect.
"""

from itertools import compress
from pathlib import Path

import numpy as np
from scipy.stats import norm

from common.data.cache import build_once

USERS, MOVIES = 2_000, 400
RATINGS_PER_USER = (20, 160)  # uniform
SEED = 1997
GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi")
MEAN, NOISE = 3.5, 0.6
USER_SCALE, MOVIE_SCALE, GENRE_SCALE = 0.4, 0.5, 0.8  # standard deviations
CARRY_OVER = 0.3  # share of the last rating's difference from mean + user + movie
TITLE_WORDS = ("Café", "Last", "Night", "River", "Stone", "Winter", "Garden", "Señor", "Road", "Moon")


def movie_sample(users: int = USERS) -> Path:
    """Folder with users.dat, movies.dat, ratings.dat and truth.npy (see `_write`)."""
    return build_once("sample-movies", [], {"users": users}, lambda target: _write(target, users), code=[__name__])


def _write(target: Path, users: int) -> None:
    """Write the files. truth.npy (N, 2), by user and time: the expected rating, the chance of one of 4 or 5."""
    rng = np.random.default_rng(SEED)
    has_genre = rng.random((MOVIES, len(GENRES))) < 0.1
    has_genre[np.arange(MOVIES), rng.integers(len(GENRES), size=MOVIES)] = True
    genre_shares = has_genre / has_genre.sum(1, keepdims=True)
    follows = genre_shares @ rng.normal(0, GENRE_SCALE, (len(GENRES), len(GENRES))) @ genre_shares.T  # (last, target)
    user_effect, movie_effect = rng.normal(0, USER_SCALE, users), rng.normal(0, MOVIE_SCALE, MOVIES)
    popularity = 1 / (np.arange(MOVIES) + 20.0)

    # all users in parallel, rating by rating; shorter histories are truncated at the end
    length = RATINGS_PER_USER[1]
    counts = rng.integers(RATINGS_PER_USER[0], length + 1, users)
    movie = (np.log(popularity) + rng.gumbel(size=(users, MOVIES))).argsort(1)[:, : -length - 1 : -1]  # none twice
    base = MEAN + user_effect[:, None] + movie_effect[movie]
    rating, truth = np.empty((users, length), np.int64), np.empty((users, length, 2))
    expectation = base[:, 0]
    for i in range(length):
        if i:
            surplus = rating[:, i - 1] - base[:, i - 1]
            expectation = base[:, i] + follows[movie[:, i - 1], movie[:, i]] + CARRY_OVER * surplus
        rating[:, i] = (expectation + rng.normal(0, NOISE, users)).round().clip(1, 5)
        at_least = norm.sf([[1.5], [2.5], [3.5], [4.5]], expectation, NOISE)  # (4, users): of 2, 3, 4, 5
        truth[:, i] = np.stack([1 + at_least.sum(0), at_least[2]], 1)
    # most ratings come within a minute of the last one; as in 1M, many share a second, and some come days later
    gap = rng.choice([0, 20, 60, 86_400, 1_000_000], (users, length), p=[0.3, 0.3, 0.35, 0.04, 0.01])
    time = 956_700_000 + gap.cumsum(1)

    user, step = np.nonzero(np.arange(length) < counts[:, None])
    order = np.lexsort((step, rng.random((users, 1000))[user, time[user, step] % 1000], user))
    user, step = user[order], step[order]
    columns = user + 1, movie[user, step] + 1, rating[user, step], time[user, step]
    np.savetxt(target / "ratings.dat", np.stack(columns, 1), "%d", "::")
    in_time = np.lexsort((time[user, step], user))  # the order in which training reads them
    np.save(target / "truth.npy", truth[user, step][in_time])
    movies = []
    for number, flags in enumerate(has_genre, 1):
        title = " ".join(rng.choice(TITLE_WORDS, 3, replace=False))
        movies.append(f"{number}::{title} ({rng.integers(1950, 2000)})::{'|'.join(compress(GENRES, flags))}\n")
    (target / "movies.dat").write_text("".join(movies), encoding="latin-1")
    parts = rng.choice(["M", "F"], users), rng.choice([1, 18, 25, 35, 45, 50, 56], users), rng.integers(21, size=users)
    lines = [
        f"{number}::{sex}::{age}::{job}::00000\n" for number, (sex, age, job) in enumerate(zip(*parts, strict=True), 1)
    ]
    (target / "users.dat").write_text("".join(lines))
