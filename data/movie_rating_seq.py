"""MovieLens: columns of its releases and archives; HistoryDataModule also reads your own interactions.

`python data/movie_rating_seq.py` downloads the raw files of DATASET, reads them and prints a summary.
M: item ids, A: values of the items' attributes.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pyarrow.compute as pc
import torch

from common.data.cache import build_once
from common.data.data_module import SPLIT_SEED, SPLITS, RecommendationDataModule
from common.data.download import Archive, ensure_dataset
from common.data.loader import BatchLoader, EpochSampler
from common.data.raw_files import Published, find_dataset, find_file, missing_file, raw_file, say_once
from common.errors import check, run_script
from common.settings import check_settings
from data.history.dataset import (
    FIRST_ID,
    Candidates,
    HistoryDataset,
    Negatives,
    SampledItems,
    Scale,
    all_items,
    own_item,
)
from data.history.encoder import SPLIT_METHODS, HistoryEncoder, fit_scale, in_units, split_rows
from data.history.events import KEYS, write_events
from data.reader import Reader, data_files, read_files, source_of
from data.samples.movies import movie_sample
from data.schema import (
    COLUMNS_FILE,
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
    read_description,
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
    name: Published(
        "python data/movie_rating_seq.py" + (f"`, with DATASET = {name!r} at its top, `" if name != DATASET else ""),
        movie_sample,
    )
    for name in ARCHIVES
}
AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # the first age of each group, as in 1M
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
LIKED, DISLIKED = ("3.5", "4", "4.5", "5"), ("0.5", "1", "1.5", "2", "2.5")  # as clicks; ratings of 3 are left out
CLICK_FROM = 4.0  # for BST, whose histories need every rating

# the modules that compute the arrays
CODE = [f"data.{name}" for name in ("schema", "text", "values", "reader", "attributes", "history.events")]
ENCODED_CODE = [*CODE, "data.history.encoder", "data.history.dataset", __name__]
RANKED_COLUMNS = ["rank", *(f"item {place}" for place in range(1, 11))]  # of a prediction: see common/model/ranking.py
BATCH_PAIRS = 1 << 14  # of held-out rows and items, scored at a time: more would not fit into the processor's cache
RANKED_PAIRS = {"val": 8 << 20, "test": 64 << 20}  # scored in all, at most: a core scores about 300,000 a second


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


class HistoryDataModule(RecommendationDataModule):
    """Batches of HistoryDataset for the three splits: items, history, residual, time_gap, user_ids, dense, target.

    The arguments are the DATA settings of bst/train.py. The history of an example is what its user did before it in the
    order of time (ties: in file order), including rows of an earlier split: a test row's history includes the
    validation row. Only split "time" keeps rows of other users that are later than a test row out of training.
    """

    rows: dict[str, np.ndarray]
    encoder: HistoryEncoder  # set by setup()

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
        self.negatives, self.negatives_power = negatives, negatives_power
        self.target, self.history_length, self.history_ratings = target, history_length, history_ratings
        check_settings({"target": target, "history_length": history_length})
        check_settings({"negatives": negatives, "negatives_power": negatives_power})
        check(split in SPLIT_METHODS, f"split is {split!r}; it must be one of {', '.join(map(repr, SPLIT_METHODS))}.")
        self.settings: dict[str, Any] = {"split": split, "start_from_biases": start_from_biases}

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first if there is none."""
        if hasattr(self, "encoder"):
            return
        self.raw_folder, self.is_sample = find_dataset(self.dataset, self.data_root, PUBLISHED)
        own = self.raw_folder / COLUMNS_FILE
        table = read_description(own) if own.exists() else described(self.raw_folder, clicks=False)
        if table is None:
            raise missing_file(self.raw_folder, f"none of ratings.dat, u.data, ratings.csv and {COLUMNS_FILE}")
        self.table, form = table, table.description
        check_interactions(table)
        self.target = self._resolved_target()
        files = data_files(table.files["all"])
        key = {"columns": form.model_dump(mode="json"), "parts": len(files)}
        files += [file for second in form.attributes.values() for file in data_files(table.path(str(second.file)))]
        write = partial(write_events, table, not own.exists())
        self.events = build_once(f"{table.name}-events", files, key, write, code=CODE)
        self.known = {name: json.loads((self.events / f"{name}s.json").read_text()) for name in KEYS}
        for note in filter(None, (self.known[name]["note"] for name in KEYS)):
            say_once(note)
        self.settings["has_ratings"] = self.target != "item"
        settings = self.settings | {"events": self.events.name}
        self.folder = build_once(table.name, files, settings, self._write_encoded, code=ENCODED_CODE)
        self.encoder = HistoryEncoder.from_state(json.loads((self.folder / "encoder.json").read_text()))
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}
        leaks = " (LEAKS: users' later rows are in training)" if self.settings["split"] == "random" else ""
        self.protocol = f"{self.settings['split']} split{leaks}"
        if self.target == "item":
            items = len(self.encoder.items)
            self.protocol += f", every row a positive, ranked among all {items:,} items of the training rows"
            self.training_offset = -math.log(self.negatives)  # one positive among them
            self.tasks = RANKED_COLUMNS
            for name, pairs in RANKED_PAIRS.items():
                self.rows[name] = _some(self.rows[name], max(1, pairs // items))

    def _resolved_target(self) -> str:
        form = self.table.description
        rating, label = form.only("rating"), form.only("label")
        if self.target == "auto":
            return "rating" if rating else "click" if label else "item"
        check(
            self.target == "item" or bool(rating or label),
            f'target is {self.target!r}, but {self.dataset!r} has no ratings. Set target="item".',
        )
        check(
            self.target != "click" or bool(label) or getattr(form.columns[str(rating)], "click_from", None) is not None,
            'target is "click", but columns.json does not say which ratings are clicks: add "click_from", the least '
            "rating that is a click, to the column of ratings.",
        )
        return self.target

    def _write_encoded(self, target: Path) -> None:
        """Write the rows of the splits, the encoder fitted on the training rows, and all rows encoded by it."""
        events = {
            name: np.load(self.events / f"{name}.npy", mmap_mode="r") for name in (*KEYS, "rating", "time", "start")
        }
        rows = split_rows(events, self.settings["split"])
        check(
            all(map(len, rows.values())),
            f"{self.table.where}: the split {self.settings['split']!r} leaves no rows for "
            f"{', '.join(name for name, part in rows.items() if not len(part))}; more rows are needed.",
        )
        train, biases = rows["train"], self.settings["start_from_biases"]
        of_users, of_items = (self.known[key]["attributes"] for key in KEYS)
        scale = self._scale(events["rating"][train])
        encoder = HistoryEncoder.fit(events, train, of_users, of_items, scale, biases)
        for name, column in encoder.encode(events, of_users, biases):
            np.save(target / f"{name}.npy", column)
        for name, part in rows.items():
            np.save(target / f"rows_{name}.npy", part)
        (target / "encoder.json").write_text(json.dumps(encoder.state_dict()))

    def _scale(self, ratings: np.ndarray) -> Scale:
        if self.target == "item":
            return Scale(0.0, 1.0, 1.0, 0.0, has_ratings=False)
        form = self.table.description
        name = str(form.only("rating") or form.only("label"))
        click_from = getattr(form.columns[name], "click_from", 1.0)
        return fit_scale(ratings, click_from, f"{self.table.where}, column {name!r}")

    def attribute_shares(self) -> torch.Tensor:
        """(M, A): 1 / number of its values of an attribute (genres, say) for each value of an item."""
        return self.encoder.attribute_shares(self.known["item"]["attributes"])

    def user_item_target(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User number, item id, and rating in the units of the model (or click) of all rows."""
        user, item = np.load(self.events / "user.npy"), np.load(self.folder / "item.npy", mmap_mode="r")
        target = self.examples().targets(torch.arange(len(item))).numpy()
        return user, item, target if self.target == "click" else in_units(target, self.encoder.scale)

    def past_rows(self, split: str) -> np.ndarray:
        """How many rows the user of each row has before it (N,)."""
        return self.rows[split] - np.load(self.events / "start.npy", mmap_mode="r")[self.rows[split]]

    def title(self, item: int) -> str:
        """Title of the item with this id."""
        return self.known["item"]["titles"][self.encoder.items[item - FIRST_ID]] if item >= FIRST_ID else "(new item)"

    def best_prediction(self) -> torch.Tensor | None:
        if self.target == "item":
            return None
        truth = np.load(self.raw_folder / "truth.npy")[self.rows["test"]]  # expected rating, chance of a click
        return torch.from_numpy(truth[:, int(self.target == "click")])

    def groups(self, split: str) -> np.ndarray | None:
        if self.target != "item":
            return None
        return np.load(self.events / "user.npy", mmap_mode="r")[self.rows[split]]

    def examples(self, candidates: Candidates = own_item) -> HistoryDataset:
        return HistoryDataset(
            self.events,
            self.folder,
            self.encoder.scale,
            history_length=self.history_length,
            click=self.target == "click",
            use_ratings=self.history_ratings,
            candidates=candidates,
        )

    def training_examples(self) -> HistoryDataset:
        if self.target != "item":
            return self.examples()
        user, item = np.load(self.events / "user.npy"), np.load(self.folder / "item.npy")
        count = np.bincount(item[self.rows["train"]], minlength=self.encoder.num_items)
        negatives = Negatives(user, item, count, self.negatives_power, self.known["user"]["ids"])
        return self.examples(SampledItems(negatives, self.negatives, self.seed))

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        if self.target != "item" or split == "train":
            return super()._loader(split, seed, batch_size)
        rows = max(8, BATCH_PAIRS // len(self.encoder.items))
        return BatchLoader(self.examples(all_items), EpochSampler(self.rows[split], None), rows, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Saved in every checkpoint, so that it suffices to score new rows."""
        events = {name: np.load(self.events / f"{name}.npy", mmap_mode="c") for name in ("item", "rating", "time")}
        start = np.load(self.events / "start.npy", mmap_mode="r")
        part = np.zeros(len(start), np.int8)  # of SPLITS
        for name in SPLITS:
            part[np.load(self.folder / f"rows_{name}.npy", mmap_mode="r")] = SPLITS.index(name)
        events |= {"part": part, "start": np.flatnonzero(start == np.arange(len(start)))}
        events |= {"user_ids": np.load(self.folder / "user_ids.npy")}
        return {
            "encoder": self.encoder.state_dict(),
            "description": self.table.description.model_dump(mode="json"),
            "history_length": self.history_length,
            "history_ratings": self.history_ratings,
            "start_from_biases": self.settings["start_from_biases"],
            "target": self.target,
            "ids": {key: self.known[key]["ids"] for key in KEYS},
            "events": {name: torch.from_numpy(column) for name, column in events.items()},
        }


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, always the same ones."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(SPLIT_SEED).choice(rows, most, replace=False))


def check_interactions(table: Dataset) -> None:
    """UserError unless the description is of interactions that BST can use."""
    form = table.description
    check(
        form.only("user") is not None,
        f'{table.where}: no column has the role "user" or "item"; bst/train.py trains on interactions: describe yours '
        "with `python data/describe.py FILE NAME`.",
    )
    check(
        form.files is None and form.split is None,
        f'{table.where}: bst/train.py takes one "file" and splits it by itself; leave out "files" and "split".',
    )
    targets = form.of_role("rating", "label")
    check(
        len(targets) <= 1,
        f"{table.where}: {', '.join(map(repr, targets))} are ratings or labels, but BST takes one. Give the others the "
        'role "excluded".',
    )


def main() -> None:
    """Download the raw files if there is no folder, and print a summary."""
    ensure_dataset(DATASET, ARCHIVES)
    folder, _ = find_dataset(DATASET, None, PUBLISHED)
    table = described(folder, clicks=False)
    if table is None:
        raise missing_file(folder, "none of ratings.dat, u.data and ratings.csv")
    users: Counter[str] = Counter()
    movies: set[str] = set()
    rows, total = 0, 0.0
    key, item, rating, _ = table.description.columns
    for batch in read_files(data_files(table.files["all"]), Reader(table.description)):
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
