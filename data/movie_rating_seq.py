"""MovieLens, or your own interactions: time-ordered arrays -> each target with its user's past -> batches.

`python data/movie_rating_seq.py` downloads the raw files of MovieLens and prints a summary.
M: movie ids, G: genres.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import torch

from common.data.cache import build_once
from common.data.data_module import SPLIT_SEED, SPLITS, RecommendationDataModule
from common.data.loader import BatchLoader, EpochSampler
from common.data.download import Archive, ensure_dataset
from common.data.raw_files import Source, find_dataset
from common.errors import check, run_script
from common.settings import check_settings
from data.history.dataset import (
    FIRST_ID,
    HistoryDataset,
    Negatives,
    RankedDataset,
    SampledDataset,
    Scale,
)
from data.interactions_table import Interactions
from data.movie_encoder import SPLIT_METHODS, MovieEncoder, in_time_order, in_units, split_rows, time_order
from data.movie_raw import read_ratings
from data.movie_release import MovieLens
from data.movie_sample import movie_sample
from data.table_data import CODE as TABLE_CODE
from data.table_description import COLUMNS_FILE

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
# the modules that compute the arrays; for interactions also those that read tables
CODE = [*(f"data.movie_{name}" for name in ("raw", "release", "encoder")), "data.history.dataset", __name__]
ORDERED = ["user", "movie", "rating", "time", "user_row", "start"]
BATCH_PAIRS = 1 << 14  # of held-out rows and items, scored at a time: more would not fit into the processor's cache
RANKED_PAIRS = {"val": 8 << 20, "test": 64 << 20}  # of held-out rows and items, at most; scoring a million takes about 10 s
OWN_CODE = [*CODE, *TABLE_CODE, "data.interactions_schema", "data.interactions_table"]
SOURCE = Source("python data/movie_rating_seq.py", ARCHIVES)


class HistoryDataModule(RecommendationDataModule):
    """Batches of HistoryDataset for the three splits: movie_id, history, residual, time_gap, user_ids, dense, target.

    The arguments are the DATA settings of bst/train.py. The history of an example is what its user rated before it in
    the order of time (ties: in file order), including ratings of an earlier split: a test rating's history includes
    the validation rating. Only split "time" keeps ratings of other users that are later than a test rating out of
    training.
    """

    rows: dict[str, np.ndarray]
    encoder: MovieEncoder  # set by setup()

    def __init__(
        self,
        *,
        dataset: str,
        data_root: str | None,
        split: str,
        target: str,
        negatives: int,
        negatives_power: float,
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
        check_settings({"target": target, "history_length": history_length, "negatives": negatives, "negatives_power": negatives_power})
        check(split in SPLIT_METHODS, f"split is {split!r}; it must be one of {', '.join(map(repr, SPLIT_METHODS))}.")
        self.target, self.history_length, self.history_ratings = target, history_length, history_ratings
        self.negatives, self.negatives_power = negatives, negatives_power
        self.settings = {"split": split, "start_from_biases": start_from_biases}

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first if there is none."""
        if hasattr(self, "encoder"):
            return
        self.raw_folder, self.is_sample = find_dataset(self.dataset, self.data_root, SOURCE, movie_sample)
        own = self.raw_folder / COLUMNS_FILE
        table = Interactions(own) if own.exists() else MovieLens(self.raw_folder, SOURCE)
        self.table, code = table, OWN_CODE if own.exists() else CODE
        self.target = self._resolved_target()
        self.settings |= {"has_ratings": self.target != "item"}
        self.ordered = build_once(
            f"{table.name}-ordered", table.files, table.key, partial(write_ordered, table), code=code
        )
        table.open(self.ordered)
        settings = self.settings | {"ordered": self.ordered.name}
        self.folder = build_once(
            table.name, table.files, settings, partial(write_encoded, table, self.ordered, self.settings), code=code
        )
        encoder = MovieEncoder.from_state(json.loads((self.folder / "encoder.json").read_text()))
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}
        self.encoder = encoder
        check(
            self.target != "click" or encoder.scale.click_from is not None,
            'target is "click", but columns.json does not say which ratings are clicks: add "click_from", the least '
            "rating that is a click, to the column of ratings.",
        )
        leaks = " (LEAKS: users' later ratings are in training)" if self.settings["split"] == "random" else ""
        self.protocol = f"{self.settings['split']} split{leaks}"
        if self.target == "item":
            self.training_offset = -math.log(self.negatives)  # one positive among them
            self.protocol += f", ranked among all {len(encoder.movie_ids):,} items of the training rows"
            for name, pairs in RANKED_PAIRS.items():
                self.rows[name] = self._some(self.rows[name], pairs // len(encoder.movie_ids))

    def _resolved_target(self) -> str:
        if self.target == "auto":
            return "rating" if self.table.has_ratings else "item"
        check(
            self.table.has_ratings or self.target == "item",
            f'target is {self.target!r}, but {self.dataset!r} has no ratings. Set target="item".',
        )
        return self.target

    def _some(self, rows: np.ndarray, most: int) -> np.ndarray:
        """At most so many of the rows, always the same ones."""
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(SPLIT_SEED).choice(rows, max(1, most), replace=False))

    @property
    def num_items(self) -> int:
        return self.encoder.num_movies

    @property
    def num_attributes(self) -> int:
        return self.encoder.num_genres

    @property
    def user_cardinalities(self) -> list[int]:
        return self.encoder.user_cardinalities

    def attribute_shares(self) -> torch.Tensor:
        """(M, G): 1 / number of its genres for each genre of a movie."""
        return self.encoder.genre_shares(self.table.movies(np.array(self.encoder.movie_ids)))

    @property
    def rating_range(self) -> tuple[float, float]:
        """Least and greatest rating."""
        return self.encoder.scale.least, self.encoder.scale.greatest

    @property
    def rating_units(self) -> tuple[float, float]:
        """offset and unit: the model sees (rating - offset) / unit."""
        return self.encoder.scale.offset, self.encoder.scale.unit

    def user_movie_target(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User number, movie id, and rating in the units of the model (or click) of all examples."""
        user, movie = np.load(self.ordered / "user_row.npy"), np.load(self.folder / "item.npy", mmap_mode="r")
        target = self.examples().targets(torch.arange(len(movie))).numpy()
        return user, movie, target if self.target == "click" else in_units(target, self.encoder.scale)

    def past_ratings(self, split: str) -> np.ndarray:
        """How many ratings the user of each row gave before it (N,)."""
        start = np.load(self.ordered / "start.npy", mmap_mode="r")
        return self.rows[split] - start[self.rows[split]]

    def title(self, movie: int) -> str:
        """Title of the movie with this id."""
        return self.table.title(self.encoder.movie_ids[movie - FIRST_ID]) if movie >= FIRST_ID else "(new movie)"

    def best_prediction(self) -> torch.Tensor:
        assert isinstance(self.table, MovieLens)
        order = time_order(read_ratings(self.table.files[0], self.table.release))
        truth = np.load(self.raw_folder / "truth.npy")[order[self.rows["test"]]]  # expected rating, chance of a click
        return torch.from_numpy(truth[:, int(self.target == "click")])

    def examples(self) -> HistoryDataset:
        return HistoryDataset(**self._arguments())

    def training_examples(self) -> HistoryDataset:
        if self.target != "item":
            return self.examples()
        user, item = np.load(self.ordered / "user_row.npy"), np.load(self.folder / "item.npy")
        count = np.bincount(item[self.rows["train"]], minlength=self.num_items)
        negatives = Negatives(user, item, count, self.negatives_power, self.table.ids["user"] if hasattr(self.table, "ids") else user)
        return SampledDataset(negatives=negatives, count=self.negatives, seed=self.seed, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {"ordered": self.ordered, "encoded": self.folder, "scale": self.encoder.scale, "history_length": self.history_length, "click": self.target == "click", "use_ratings": self.history_ratings}

    def groups(self, split: str) -> np.ndarray | None:
        if self.target != "item":
            return None
        return np.load(self.ordered / "user_row.npy", mmap_mode="r")[self.rows[split]]

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        if self.target != "item" or split == "train":
            return super()._loader(split, seed, batch_size)
        rows = max(BATCH_PAIRS // len(self.encoder.movie_ids), 8)
        return BatchLoader(RankedDataset(**self._arguments()), EpochSampler(self.rows[split], None), rows, self.num_workers)

    def state_dict(self) -> dict:
        """Saved in every checkpoint, so that it suffices to score new rows."""
        return {
            "encoder": self.encoder.state_dict(),
            "history_length": self.history_length,
            "history_ratings": self.history_ratings,
            "start_from_biases": self.settings["start_from_biases"],
            "target": self.target,
            "ratings": self._ratings(),
        } | self.table.state_dict()

    def _ratings(self) -> dict[str, torch.Tensor]:
        """All ratings in time order (raw ids), with each user's first row and features."""
        raw = {name: np.load(self.ordered / f"{name}.npy", mmap_mode="c") for name in ORDERED}
        first = np.flatnonzero(raw["start"] == np.arange(len(raw["start"])))
        columns = {name: raw[name] for name in ("movie", "rating", "time")}
        columns |= {"user": raw["user"][first], "start": first, "user_ids": np.load(self.folder / "user_ids.npy")}
        return {name: torch.from_numpy(column) for name, column in columns.items()}


def write_ordered(table: MovieLens | Interactions, target: Path) -> None:
    """Write all ratings in time order as .npy columns."""
    for name, column in in_time_order(table.read(target)).items():
        np.save(target / f"{name}.npy", column)


def write_encoded(table: MovieLens | Interactions, ordered_folder: Path, settings: dict, target: Path) -> None:
    """Write the rows of the splits, the encoder fitted on the training rows, and all rows encoded by it."""
    ordered = {name: np.load(ordered_folder / f"{name}.npy", mmap_mode="r") for name in ORDERED}
    rows = split_rows(ordered, settings["split"])
    check(
        all(map(len, rows.values())),
        f"{table.files[0]}: the split {settings['split']!r} leaves no rows for "
        f"{', '.join(name for name, part in rows.items() if not len(part))}; more ratings are needed.",
    )
    train = rows["train"]
    biases = settings["start_from_biases"]
    movies, users = table.movies(np.unique(ordered["movie"][train])), table.users(np.unique(ordered["user"][train]))
    scale = table.scale(ordered["rating"][train]) if settings["has_ratings"] else Scale(0.0, 1.0, 1.0, 0.0, has_ratings=False)
    encoder = MovieEncoder.fit(ordered, train, movies, users, scale, start_from_biases=biases)
    for name, column in encoder.encode(ordered, users, biases):
        np.save(target / f"{name}.npy", column)
    for name, part in rows.items():
        np.save(target / f"rows_{name}.npy", part)
    (target / "encoder.json").write_text(json.dumps(encoder.state_dict()))


def main() -> None:
    """Download the raw files if there is no folder, and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    folder, _ = find_dataset(DATASET, None, SOURCE, movie_sample)
    table = MovieLens(folder, SOURCE)
    ratings = in_time_order(read_ratings(table.files[0], table.release))
    lengths = np.bincount(ratings["user_row"])
    print(
        f"{folder}: {len(ratings['rating']):,} ratings, mean {ratings['rating'].mean(dtype=np.float64):.4f}, of "
        f"{len(np.unique(ratings['movie'])):,} movies by {len(lengths):,} users, who gave {lengths.min():,} to "
        f"{lengths.max():,} ratings (median {np.median(lengths):,.0f})"
    )


if __name__ == "__main__":
    run_script(main)
