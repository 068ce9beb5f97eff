"""MovieLens: raw ratings -> time-ordered arrays -> a user's past ratings before each target -> batches.

`python data/movie_rating_seq.py` downloads the raw files and prints what is in them.
M: movie ids, G: genres.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import torch

from common.data.cache import build_once
from common.data.data_module import SPLITS, RecommendationDataModule
from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Source, find_dataset, raw_file
from common.errors import check, run_script
from common.model.metrics import click_metrics, rating_metrics
from common.settings import check_settings
from data import movie_encoder, movie_history, movie_raw
from data.movie_encoder import SPLIT_METHODS, MovieEncoder, in_time_order, split_rows, time_order
from data.movie_history import CLICK_RATING, FIRST_ID, ORDERED, HistoryDataset
from data.movie_raw import Release, detect_release, read_movies, read_ratings, read_users
from data.movie_sample import movie_sample

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
CODE = (movie_raw, movie_encoder, movie_history, __name__)  # what computes the arrays
SOURCE = Source("python data/movie_rating_seq.py", ARCHIVES)


class MovieRatingDataModule(RecommendationDataModule):
    """Batches of HistoryDataset for the three splits: movie_id, history, residual, time_gap, user_ids, dense, target.

    The arguments are the DATA settings of bst/train.py. An example sees what its user rated before it in the order of
    time (ties: order of the file), also ratings of an earlier split: a test rating sees the validation rating. Only
    "time" hides from training what other users rate later than a test rating.
    """

    rows: dict[str, np.ndarray]
    encoder: MovieEncoder  # set when the cache is open

    def __init__(
        self,
        *,
        dataset: str,
        data_root: str | None,
        split: str,
        target: str,
        history_length: int,
        history_ratings: bool,
        start_from_biases: bool,
        batch_size: int,
        num_workers: int,
        seed: int,
    ):
        super().__init__(
            dataset=dataset, data_root=data_root, batch_size=batch_size, num_workers=num_workers, seed=seed
        )
        check_settings({"target": target, "history_length": history_length})
        check(split in SPLIT_METHODS, f"split is {split!r}; it must be one of {', '.join(map(repr, SPLIT_METHODS))}.")
        self.target, self.history_length, self.history_ratings = target, history_length, history_ratings
        self.settings = {"split": split, "start_from_biases": start_from_biases}

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first where there is none."""
        if hasattr(self, "encoder"):
            return
        self.raw_folder, self.is_sample = find_dataset(self.dataset, self.data_root, SOURCE, movie_sample)
        self.release = detect_release(self.raw_folder, SOURCE)
        files = [raw_file(self.raw_folder, name, SOURCE) for name in self.release.files]
        self.ordered = build_once(
            "movies-ordered",
            files,
            {},
            lambda target: write_ordered(files, self.release, target),
            code=CODE,
        )
        self.folder = build_once(
            "movies",
            files,
            self.settings | {"ordered": self.ordered.name},
            lambda target: write_encoded(files, self.release, self.ordered, self.settings, target),
            code=CODE,
        )
        self.movies = read_movies(files[1], self.release)
        self.users = read_users(files[2], self.release) if self.release.users_file else {}
        self.encoder = MovieEncoder.from_state(json.loads((self.folder / "encoder.json").read_text()))
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}

    @property
    def num_movies(self) -> int:
        return self.encoder.num_movies

    @property
    def num_genres(self) -> int:
        return len(self.encoder.genres)

    @property
    def user_cardinalities(self) -> list[int]:
        return self.encoder.user_cardinalities

    def genre_shares(self) -> torch.Tensor:
        """(M, G): 1 / number of its genres for each genre of a movie."""
        return self.encoder.genre_shares(self.movies)

    @property
    def protocol(self) -> str:
        split = self.settings["split"]
        return "random split (LEAKS: users' later ratings are in training)" if split == "random" else f"{split} split"

    @property
    def rating_range(self) -> tuple[float, float]:
        """Least and greatest rating."""
        return self.release.rating_range

    def user_movie_rating(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number of the user, id of the movie and rating of all rows, in time order."""
        columns = self.ordered / "user_row.npy", self.folder / "movie.npy", self.ordered / "rating.npy"
        return tuple(np.load(path, mmap_mode="r") for path in columns)

    def targets(self, split: str) -> torch.Tensor:
        """Targets of a split's rows (rows,) float32."""
        rating = torch.from_numpy(np.load(self.ordered / "rating.npy", mmap_mode="r")[self.rows[split]])
        return (rating >= CLICK_RATING).float() if self.target == "click" else rating

    def past_ratings(self, split: str) -> np.ndarray:
        """How many ratings the user of each row has given before it (rows,)."""
        return self.rows[split] - np.load(self.ordered / "start.npy", mmap_mode="r")[self.rows[split]]

    def title(self, movie: int) -> str:
        """Title of a movie id."""
        return self.movies[self.encoder.movie_ids[movie - FIRST_ID]][0] if movie >= FIRST_ID else "(new movie)"

    def best_possible(self) -> dict[str, float]:
        """Test metrics of the sample's planted expectations."""
        rows = self.rows["test"]
        order = time_order(read_ratings(raw_file(self.raw_folder, self.release.ratings_file, SOURCE), self.release))
        expected, click_probability = torch.from_numpy(np.load(self.raw_folder / "truth.npy")[order[rows]]).T
        if self.target == "click":
            return click_metrics(click_probability, self.targets("test"))
        return rating_metrics(expected, self.targets("test"))

    def examples(self) -> HistoryDataset:
        return HistoryDataset(
            self.ordered,
            self.folder,
            history_length=self.history_length,
            click=self.target == "click",
            use_ratings=self.history_ratings,
        )

    def state_dict(self) -> dict:
        """Travels in every checkpoint, so that new rows can be scored with it alone."""
        return {
            "encoder": self.encoder.state_dict(),
            "release": self.release.ratings_file,
            "history_length": self.history_length,
            "history_ratings": self.history_ratings,
            "start_from_biases": self.settings["start_from_biases"],
            "target": self.target,
            "ratings": self._ratings(),
        }

    def _ratings(self) -> dict[str, torch.Tensor]:
        """What every user rated, in time order (raw ids), with each user's first row and features."""
        raw = {name: np.load(self.ordered / f"{name}.npy", mmap_mode="c") for name in ORDERED}
        first = np.flatnonzero(raw["start"] == np.arange(len(raw["start"])))
        columns = {name: raw[name] for name in ("movie", "rating", "time")}
        columns |= {"user": raw["user"][first], "start": first, "user_ids": np.load(self.folder / "user_ids.npy")}
        return {name: torch.from_numpy(column) for name, column in columns.items()}


def write_ordered(files: list[Path], release: Release, target: Path) -> None:
    """All ratings in time order, as .npy columns, without those of movies or users that the other files do not know."""
    print(f"Preparing {files[0].parent} ...", flush=True)
    ratings = read_ratings(files[0], release)
    known = np.isin(ratings["movie"], list(read_movies(files[1], release)))
    dropped = {"ratings of unknown movies": int((~known).sum())}
    if release.users_file:
        known_user = np.isin(ratings["user"], list(read_users(files[2], release)))
        dropped["ratings of unknown users"] = int((~known_user).sum())
        known &= known_user
    if not known.all():
        print(f"Left out: {', '.join(f'{count:,} {what}' for what, count in dropped.items() if count)}.", flush=True)
        ratings = {name: column[known] for name, column in ratings.items()}
    check(
        bool(known.any()),
        f"{files[0]} has no rating of a movie of {files[1].name} by a known user; the files do not match.",
    )
    ordered = in_time_order(ratings)
    for name, column in ordered.items():
        np.save(target / f"{name}.npy", column)
    (target / "summary.json").write_text(json.dumps({"dropped": dropped}))


def write_encoded(files: list[Path], release: Release, ordered_folder: Path, settings: dict, target: Path) -> None:
    """Rows of the splits, the encoder fitted on the training rows, and what it makes of all rows."""
    ordered = {name: np.load(ordered_folder / f"{name}.npy", mmap_mode="r") for name in ORDERED}
    movies = read_movies(files[1], release)
    users = read_users(files[2], release) if release.users_file else {}
    rows = split_rows(ordered, settings["split"])
    check(
        all(map(len, rows.values())),
        f"{files[0]}: the split {settings['split']!r} leaves no rows for "
        f"{', '.join(name for name, part in rows.items() if not len(part))}; more ratings are needed.",
    )
    for name, part in rows.items():
        np.save(target / f"rows_{name}.npy", part)
    encoder = MovieEncoder.fit(ordered, rows["train"], movies, users, settings["start_from_biases"])
    for name, column in encoder.encode(ordered, users, settings["start_from_biases"]):
        np.save(target / f"{name}.npy", column)
    (target / "encoder.json").write_text(json.dumps(encoder.state_dict()))


def main() -> None:
    """Download the raw files where there is no folder, and print what is in them."""
    ensure_dataset(DATASET, ARCHIVES)
    folder, _ = find_dataset(DATASET, None, SOURCE, movie_sample)
    release = detect_release(folder, SOURCE)
    ratings = in_time_order(read_ratings(raw_file(folder, release.ratings_file, SOURCE), release))
    lengths = np.bincount(ratings["user_row"])
    print(
        f"{folder}: {len(ratings['rating']):,} ratings, mean {ratings['rating'].mean(dtype=np.float64):.4f}, of "
        f"{len(np.unique(ratings['movie'])):,} movies by {len(lengths):,} users, who gave {lengths.min():,} to "
        f"{lengths.max():,} ratings (median {np.median(lengths):,.0f})"
    )


if __name__ == "__main__":
    run_script(main)
