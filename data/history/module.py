"""Interactions as batches: a described file -> rows in the order of time -> encoded arrays -> each row with its past.

data/history/events.py reads and sorts the rows, encoder.py encodes them, and dataset.py puts them into batches.
M: item ids, A: values of the items' attributes.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.cache import build_once
from common.data.data_module import SPLIT_SEED, SPLITS
from common.data.loader import BatchLoader, EpochSampler
from common.data.raw_files import say_once
from common.errors import check
from common.settings import check_settings
from data.described import DescribedDataModule
from data.history.dataset import PADDING, Candidates, HistoryDataset, Negatives, SampledItems, View, all_items, own_item
from data.history.encoder import SPLIT_METHODS, HistoryEncoder, write_encoded
from data.history.events import KEYS, write_events
from data.reader import sources_of
from data.schema import COLUMNS_FILE, Dataset

# the modules that compute the arrays
CODE = [f"data.{name}" for name in ("schema", "text", "values", "reader", "attributes", "history.events")]
CODE += ["data.table.rows", "data.table.encoder", "data.table.numbers"]
ENCODED_CODE = [*CODE, "data.history.encoder", "data.history.dataset", __name__]
RANKED_COLUMNS = ["rank", *(f"item {place}" for place in range(1, 11))]  # of a prediction: see common/model/ranking.py
BATCH_PAIRS = 1 << 14  # of held-out rows and items, scored at a time: more would not fit into the processor's cache
RANKED_PAIRS = {"val": 8 << 20, "test": 64 << 20}  # scored in all, at most: a core scores about 300,000 a second


class InteractionDataModule(DescribedDataModule):
    """Batches of HistoryDataset for the three splits: items, history, residual, time_gap, user_ids, dense, target.

    The arguments are the DATA settings of bst/train.py. The history of an example is what its user did before it in the
    order of time (ties: in file order), including rows of an earlier split: a test row's history includes the
    validation row. Only split "time" keeps rows of other users that are later than a test row out of training.
    """

    encoder: HistoryEncoder  # set by setup()

    def __init__(
        self,
        *,
        split: str,
        target: str,
        negatives: int,
        negatives_power: float,
        history_length: int,
        history_ratings: bool,
        start_from_biases: bool,
        **loading: Any,
    ):
        super().__init__(**loading)
        sampling = {"negatives": negatives, "negatives_power": negatives_power}
        check_settings({"target": target, "history_length": history_length} | sampling)
        check(split in SPLIT_METHODS, f"split is {split!r}; it must be one of {', '.join(map(repr, SPLIT_METHODS))}.")
        self.negatives, self.negatives_power = negatives, negatives_power
        self.target, self.history_length, self.history_ratings = target, history_length, history_ratings
        self.split, self.start_from_biases = split, start_from_biases

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first if there is none."""
        if hasattr(self, "encoder"):
            return
        self.find_table()
        table, form = self.table, self.table.description
        self.target = resolved_target(table, self.target)
        files, key = sources_of(table), {"columns": form.model_dump(mode="json")}
        write = partial(write_events, table, Path(table.where).name != COLUMNS_FILE)
        self.events = build_once(f"{table.name}-events", files, key, write, code=CODE)
        self.known = {name: json.loads((self.events / f"{name}s.json").read_text()) for name in KEYS}
        for note in filter(None, (self.known[name]["note"] for name in KEYS)):
            say_once(note)
        settings = {"split": self.split, "start_from_biases": self.start_from_biases}
        settings |= {"has_ratings": self.target != "item", "events": self.events.name}
        self.folder = build_once(
            f"{table.name}-histories",
            files,
            settings,
            lambda target: write_encoded(table, self.events, self.known, settings, target),
            code=ENCODED_CODE,
        )
        self.encoder = HistoryEncoder.from_state(json.loads((self.folder / "encoder.json").read_text()))
        self.open_rows()
        self.protocol = f"{self.split} split"
        if self.split == "random":
            self.protocol += " (LEAKS: users' later rows are in training)"
        if self.target == "item":
            items = len(self.encoder.items)
            self.protocol += f", every row a positive, ranked among all {items:,} items of the training rows"
            self.training_offset = -math.log(self.negatives)  # one positive among them
            self.tasks = RANKED_COLUMNS
            for name, pairs in RANKED_PAIRS.items():
                rows, most = self.rows[name], max(1, pairs // items)
                if len(rows) > most:  # always the same ones
                    self.rows[name] = np.sort(np.random.default_rng(SPLIT_SEED).choice(rows, most, replace=False))

    def event(self, name: str) -> np.ndarray:
        """An array of all rows that does not depend on the split, see write_events."""
        return np.load(self.events / f"{name}.npy", mmap_mode="c")

    def attribute_shares(self) -> torch.Tensor:
        """(M, A): 1 / number of its values of an attribute (genres, say) for each value of an item."""
        return torch.from_numpy(np.load(self.folder / "attribute_shares.npy"))

    def user_item_target(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User number, item id, and rating in the units of the model (or click) of all rows."""
        item = np.load(self.folder / "item.npy")
        target = self.examples().targets(torch.arange(len(item))).numpy()
        return self.event("user"), item, target if self.target == "click" else self.encoder.scale.in_units(target)

    def past_rows(self, split: str) -> np.ndarray:
        """How many rows the user of each row has before it (N,)."""
        rows = self.rows[split]
        return rows - self.event("first")[self.event("user")[rows]]

    def title(self, item: int) -> str:
        """Title of the item with this id."""
        return self.known["item"]["titles"][self.encoder.item_number(item)] if item > PADDING else "(new item)"

    def best_prediction(self) -> torch.Tensor | None:
        if self.target == "item":
            return None
        truth = np.load(self.table.folder / "truth.npy")[self.rows["test"]]  # expected rating, chance of a click
        return torch.from_numpy(truth[:, int(self.target == "click")])

    def groups(self, split: str) -> np.ndarray | None:
        return self.event("user")[self.rows[split]] if self.target == "item" else None

    def examples(self, candidates: Candidates = own_item) -> HistoryDataset:
        click, scale = self.target == "click", self.encoder.scale
        view = View(self.history_length, self.history_ratings, scale.even_chance if click else 0.0)
        return HistoryDataset(self.events, self.folder, scale, view, click, candidates)

    def training_examples(self) -> HistoryDataset:
        if self.target != "item":
            return self.examples()
        user, item, _ = self.user_item_target()
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
        events = {name: self.event(name) for name in ("item", "rating", "time")}
        part = np.zeros(len(events["item"]), np.int8)  # of SPLITS
        for name in SPLITS:
            part[np.load(self.folder / f"rows_{name}.npy")] = SPLITS.index(name)
        events |= {"part": part, "start": self.event("first")[:-1], "user_ids": np.load(self.folder / "user_ids.npy")}
        return {
            "encoder": self.encoder.state_dict(),
            "description": self.table.description.model_dump(mode="json"),
            "history_length": self.history_length,
            "history_ratings": self.history_ratings,
            "start_from_biases": self.start_from_biases,
            "target": self.target,
            "ids": {key: self.known[key]["ids"] for key in KEYS},
            "events": {name: torch.from_numpy(column) for name, column in events.items()},
        }


def resolved_target(table: Dataset, target: str) -> str:
    """What "auto" means for the table. Raises: UserError unless BST can predict the target from its rows."""
    form, targets = table.description, table.description.of_role("rating", "label")
    check(
        form.only("user") is not None and form.files is None and form.split is None and len(targets) <= 1,
        f'{table.where}: bst/train.py takes one "file" of interactions, which it splits by itself: a column with the '
        'role "user", one with the role "item", and at most one rating or label, without "files" and "split". '
        "`python data/describe.py FILE NAME` describes such a file.",
    )
    if target == "auto":
        return "rating" if form.only("rating") else "click" if targets else "item"
    check(
        target == "item" or bool(targets),
        f'target is {target!r}, but {table.folder.name!r} has no ratings. Set target="item".',
    )
    check(
        target != "click" or getattr(form.columns[targets[0]], "click_from", 1.0) is not None,
        'target is "click", but columns.json does not say which ratings are clicks: add "click_from", the least '
        "rating that is a click, to the column of ratings.",
    )
    return target
