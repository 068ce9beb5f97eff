"""MovieLens: raw ratings -> time-ordered arrays -> a user's past ratings before each target -> batches.

`python data/movie_rating_seq.py` downloads the raw files, builds the cache and prints what it found.
B: batch, L: length of the history, C: features of a user.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from common.errors import check, run_script
from common.metrics import click_metrics, rating_metrics
from common.settings import check_settings
from data.cache import cached
from data.download import ensure_dataset
from data.loader import BatchLoader, EpochOrder
from data.locate import find_dataset, raw_file
from data.movie_encoding import (
    CLICK_RATING,
    CONSTANTS,
    FIRST_ID,
    ORDERED,
    SPLIT_METHODS,
    MovieEncoder,
    Windows,
    in_time_order,
    split_rows,
    time_order,
)
from data.movie_formats import Release, read_movies, read_ratings, read_users, recognise
from data.sample_movies import movie_sample

DATASET = "ml-1m"  # folder below DATA_ROOT; the release is recognised from its files
SPLIT = "leave_last"  # "leave_last", "time" (a cut through all users), or "random" (leaks; as in published figures)
START_FROM_BIASES = True  # whether predictions and histories start from movie biases and the user's past mean

GET_COMMAND = "python data/movie_rating_seq.py"


class MovieRatingDataModule(pl.LightningDataModule):
    """Batches of Windows for the three splits: movie, history, deviation, distance, user, numbers, target.

    split, target, history, history_ratings, biases: as the constants of bst/train.py. An example sees what its user
    rated before it in the order of time (ties: order of the file), also ratings of an earlier split: a test rating sees
    the validation rating. Only "time" hides from training what other users rate later than a test rating.
    """

    def __init__(
        self,
        dataset: str = DATASET,
        data_root: str | None = None,
        split: str = SPLIT,
        target: str = "rating",
        history: int = 40,
        history_ratings: bool = True,
        biases: bool = START_FROM_BIASES,
        batch_size: int = 2048,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        check(split in SPLIT_METHODS, f"SPLIT is {split!r}; it must be one of {', '.join(map(repr, SPLIT_METHODS))}.")
        check(target in ("rating", "click"), f'TARGET is {target!r}; it must be "rating" or "click".')
        check_settings({"history": history, "batch_size": batch_size})
        self.dataset, self.data_root, self.target = dataset, data_root, target
        self.history, self.history_ratings = history, history_ratings
        self.settings = {"split": split, "biases": biases}
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.encoder: MovieEncoder | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first where there is none."""
        if self.encoder is not None:
            return
        self.raw, self.is_sample = find_dataset(self.dataset, self.data_root, GET_COMMAND, movie_sample)
        self.release = recognise(self.raw, GET_COMMAND)
        files = [raw_file(self.raw, name, GET_COMMAND) for name in self.release.files]
        self.ordered = cached("movies-ordered", files, {}, lambda target: write_ordered(files, self.release, target))
        self.folder = cached(
            "movies",
            files,
            self.settings | CONSTANTS | {"ordered": self.ordered.name},
            lambda target: write_encoded(files, self.release, self.ordered, self.settings, target),
        )
        self.movies = read_movies(files[1], self.release)
        self.users = read_users(files[2], self.release) if self.release.users_file else {}
        self.summary = json.loads((self.ordered / "summary.json").read_text())
        self.encoder = MovieEncoder.from_state(json.loads((self.folder / "encoder.json").read_text()))
        self.rows = {
            name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in ("train", "val", "test")
        }

    @property
    def protocol(self) -> str:
        split = self.settings["split"]
        return "random split (LEAKS: users' later ratings are in training)" if split == "random" else f"{split} split"

    @property
    def scale(self) -> tuple[float, float]:
        """Least and greatest rating."""
        return self.release.scale

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
        order = time_order(read_ratings(raw_file(self.raw, self.release.ratings_file, GET_COMMAND), self.release))
        expected, click_probability = torch.from_numpy(np.load(self.raw / "truth.npy")[order[rows]]).T
        if self.target == "click":
            return click_metrics(click_probability, self.targets("test"))
        return rating_metrics(expected, self.targets("test"))

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.seed, self.batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", None, 4 * self.batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", None, 4 * self.batch_size)

    def examples(self) -> Windows:
        return Windows(self.ordered, self.folder, self.history, self.target == "click", self.history_ratings)

    def state_dict(self) -> dict:
        """Travels in every checkpoint, so that new rows can be scored with it alone."""
        return {
            "encoder": self.encoder.state_dict(),
            "release": self.release.ratings_file,
            "history": self.history,
            "history_ratings": self.history_ratings,
            "biases": self.settings["biases"],
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

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        return BatchLoader(self.examples(), EpochOrder(self.rows[split], seed), batch_size, self.num_workers)


def write_ordered(files: list[Path], release: Release, target: Path) -> None:
    """All ratings in time order, as .npy columns, without those of movies or users that the other files do not know."""
    print(f"Preparing {files[0].parent} ...", flush=True)
    ratings = read_ratings(files[0], release)
    known = np.isin(ratings["movie"], list(read_movies(files[1], release)))
    dropped = {"ratings of unknown movies": int((~known).sum())}
    if release.users_file:
        of_user = np.isin(ratings["user"], list(read_users(files[2], release)))
        dropped["ratings of unknown users"] = int((~of_user).sum())
        known &= of_user
    if not known.all():
        print(f"Left out: {', '.join(f'{count:,} {what}' for what, count in dropped.items() if count)}.", flush=True)
        ratings = {name: column[known] for name, column in ratings.items()}
    check(
        known.any(), f"{files[0]} has no rating of a movie of {files[1].name} by a known user; the files do not match."
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
    encoder = MovieEncoder.fit(ordered, rows["train"], movies, users, settings["biases"])
    for name, column in encoder.encode(ordered, users, settings["biases"]):
        np.save(target / f"{name}.npy", column)
    (target / "encoder.json").write_text(json.dumps(encoder.state_dict()))


def main() -> None:
    """Download the raw files where there is no folder, build the cache and print what was found."""
    ensure_dataset(DATASET)
    data = MovieRatingDataModule()
    data.setup()
    ratings = np.load(data.ordered / "rating.npy", mmap_mode="r")
    table = {name: {"rows": len(rows), "mean rating": float(ratings[rows].mean())} for name, rows in data.rows.items()}
    print(pd.DataFrame(table).T.astype({"rows": int}).to_string(float_format="{:.4f}".format))
    lengths = np.bincount(np.load(data.ordered / "user_row.npy"))
    print(
        f"{len(lengths):,} users with {lengths.min():,} to {lengths.max():,} ratings "
        f"(median {np.median(lengths):,.0f}), {len(data.encoder.movie_ids):,} movies in training, "
        f"{len(data.encoder.genres)} genres"
    )
    print(f"Left out: {data.summary['dropped']}; cache: {data.folder}")


if __name__ == "__main__":
    run_script(main)
