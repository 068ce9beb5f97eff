"""Census-Income (KDD), or Adult: raw text -> encoded rows and the labels of all tasks -> batches.

`python data/census_income.py` downloads the raw files, builds the cache and prints what it found.
N: rows or numeric columns, C: input columns, each of them a category; K: tasks.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from common.errors import check, run_script
from common.files import write_tensors
from common.metrics import task_aucs
from common.settings import check_settings
from data.cache import cached
from data.census_format import LAYOUTS, MISSING_TEXT, Chunk, Layout, parse_number, read_file, recognise
from data.download import ensure_dataset
from data.loader import BatchLoader, EpochOrder, MappedRows
from data.locate import find_dataset, raw_file
from data.sample_census import census_sample

DATASET = "census-income-kdd"  # folder below DATA_ROOT: "census-income-kdd" or "adult"
TASKS = ("income", "never_married")  # the paper's group 1; group 2: ("education", "never_married")
MIN_COUNT = 5  # training rows that a value needs for an id of its own
NUM_BINS = 16  # of each numeric column, by quantiles
SPLIT_SEED = 2018  # of the halves of the test file; not that of the training run

GET_COMMAND = "python data/census_income.py"
ARRAYS = ["numbers", "ids", "label"]  # of the cache, in the order of a batch
UNSEEN, MISSING, FIRST_ID = 0, 1, 2
PAPER_CORRELATION = {("income", "never_married"): 0.1768, ("education", "never_married"): 0.2373}  # absolute


class CensusEncoder:
    """Vocabularies and bin edges of the training rows.

    Each input column is a category, a number too, by its text: some amounts (of capital gains, say) mean something of
    their own. Ids of a column: 0 unseen or rare, 1 missing, then its vocabulary in order of text.
    """

    def __init__(self, layout: Layout, vocabularies: list[list[str]], bin_edges: list[list[float]]):
        self.layout, self.vocabularies, self.bin_edges = layout, vocabularies, bin_edges
        self._ids = [{MISSING_TEXT: MISSING} | {text: i for i, text in enumerate(v, FIRST_ID)} for v in vocabularies]

    @classmethod
    def fit(cls, layout: Layout, counts: dict[str, Counter[str]], min_count: int, num_bins: int) -> "CensusEncoder":
        """Fit on how often each text of each input column is in the training rows."""
        vocabularies = [
            sorted(text for text, count in counts[name].items() if count >= min_count and text != MISSING_TEXT)
            for name in layout.inputs
        ]
        return cls(layout, vocabularies, [quantile_edges(counts[name], num_bins) for name in layout.number_inputs])

    @property
    def field_sizes(self) -> list[int]:
        """Number of ids of each input column, those for unseen and missing included."""
        return [FIRST_ID + len(vocabulary) for vocabulary in self.vocabularies]

    def encode(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
        """Raw rows -> (numbers as they are (rows, N) float32, nan where missing; ids (rows, C) int32)."""
        numbers = np.stack([chunk.number(name) for name in self.layout.number_inputs], 1)
        ids = [
            [known.get(text, UNSEEN) for text in chunk.columns[name]]
            for name, known in zip(self.layout.inputs, self._ids, strict=True)
        ]
        return numbers, np.array(ids, np.int32).T

    def state_dict(self) -> dict:
        """What a checkpoint carries: plain values."""
        return {"layout": self.layout.name, "vocabularies": self.vocabularies, "bin_edges": self.bin_edges}

    @classmethod
    def from_state(cls, state: dict) -> "CensusEncoder":
        return cls(LAYOUTS[state["layout"]], state["vocabularies"], state["bin_edges"])


def quantile_edges(counts: Counter[str], num_bins: int) -> list[float]:
    """Ascending edges, from the least to the greatest number, with about equally many rows in each bin.

    The least number stands apart (most of these columns are mostly 0): the bins share the rows above it.
    """
    distinct = sorted((parse_number(text), rows) for text, rows in counts.items() if text != MISSING_TEXT)
    if len(distinct) < 2:
        least = distinct[0][0] if distinct else 0.0
        return [least, least + 1]
    values, weights = np.array(distinct).T
    share = weights[1:].cumsum() / weights[1:].sum()
    upper = values[1:][np.searchsorted(share, np.linspace(0, 1, num_bins + 1)[:-1])]
    return np.unique([values[0], *upper, values[-1]]).tolist()


def write_encoded(train: Path, test: Path, layout: Layout, settings: dict, target: Path) -> None:
    """Both raw files to arrays, training rows first; the encoder is fitted on the training rows."""
    print(f"Preparing {train.parent} ...", flush=True)
    counts: dict[str, Counter[str]] = {name: Counter() for name in layout.inputs}
    for chunk in read_file(train, layout):
        for name in layout.number_inputs:
            chunk.number(name)  # an error here names the line
        for name, count in counts.items():
            count.update(chunk.columns[name])
    encoder = CensusEncoder.fit(layout, counts, **settings)
    rows, parts = [], []
    for path in (train, test):
        before = sum(rows)
        for chunk in read_file(path, layout):
            labels = np.stack([chunk.label(task) for task in layout.tasks.values()], 1)
            parts.append((*encoder.encode(chunk), labels))
        rows.append(sum(len(labels) for *_, labels in parts) - before)
    arrays = dict(zip(ARRAYS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    for name, array in arrays.items():
        np.save(target / f"{name}.npy", array)
    counted = zip(layout.inputs, (arrays["ids"] == UNSEEN)[rows[0] :].sum(0).tolist(), strict=True)
    unseen = {name: count for name, count in counted if count and name not in layout.numbers}
    (target / "summary.json").write_text(json.dumps({"rows": rows, "unseen": unseen}))
    write_tensors(target / "encoder.pt", encoder.state_dict())


class TaskRows(MappedRows):
    """MappedRows whose last array keeps the columns `tasks` only."""

    def __init__(self, folder: Path, names: Sequence[str], tasks: Sequence[int]):
        super().__init__(folder, names)
        self.tasks = list(tasks)

    def __getitem__(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, label = super().__getitem__(rows)
        return *inputs, label[:, self.tasks]


class CensusIncomeDataModule(pl.LightningDataModule):
    """Batches (numbers (B, N) float32, ids (B, C) int32, label (B, K) float32) of the paper's splits.

    The training file trains, half of the test file validates, half tests. tasks: names of Layout.tasks. min_count:
    training rows for an own id. num_bins: of each number.
    """

    protocol = f"published files, test rows split 1:1 (seed {SPLIT_SEED})"

    def __init__(
        self,
        dataset: str = DATASET,
        data_root: str | None = None,
        tasks: Sequence[str] = TASKS,
        min_count: int = MIN_COUNT,
        num_bins: int = NUM_BINS,
        batch_size: int = 2048,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__()
        check_settings({"min_count": min_count, "num_bins": num_bins, "batch_size": batch_size})
        self.dataset, self.data_root, self.tasks = dataset, data_root, list(tasks)
        self.settings = {"min_count": min_count, "num_bins": num_bins}
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.encoder: CensusEncoder | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first where there is none."""
        if self.encoder is not None:
            return
        self.raw, self.is_sample = find_dataset(self.dataset, self.data_root, GET_COMMAND, census_sample)
        layout = recognise(self.raw, GET_COMMAND)
        check(
            len(self.tasks) > 0 and set(self.tasks) <= layout.tasks.keys() and len(set(self.tasks)) == len(self.tasks),
            f"TASKS is {self.tasks}; it must hold one or more of {', '.join(layout.tasks)}, each once.",
        )
        files = [raw_file(self.raw, name, GET_COMMAND) for name in (layout.train_file, layout.test_file)]
        self.folder = cached(
            f"census-{layout.name}",
            files,
            self.settings,
            lambda target: write_encoded(*files, layout, self.settings, target),
        )
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.encoder = CensusEncoder.from_state(torch.load(self.folder / "encoder.pt", weights_only=True))
        if self.summary["unseen"]:
            print(f"Rows of the test file with a category unseen or rare in training (id 0): {self.summary['unseen']}")
        train_rows, test_rows = self.summary["rows"]
        validation, test = np.array_split(np.random.default_rng(SPLIT_SEED).permutation(test_rows), 2)
        self.rows = {"train": range(train_rows), "val": train_rows + validation, "test": train_rows + test}

    def read(self, split: str) -> list[np.ndarray]:
        """Numbers, ids and label of a split, as arrays in memory."""
        return [array.numpy() for array in self._mapped()[torch.from_numpy(np.array(self.rows[split]))]]

    def best_possible(self) -> dict[str, float]:
        """Test metrics of the sample's planted probabilities."""
        truth = np.load(self.raw / "true_probability.npy")[self.rows["test"] - len(self.rows["train"])]
        label = torch.from_numpy(self.read("test")[-1])
        return task_aucs(self.tasks, torch.from_numpy(truth[:, self._mapped().tasks]), label)

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self.seed, self.batch_size)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", None, 4 * self.batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", None, 4 * self.batch_size)

    def state_dict(self) -> dict:
        """Travels in every checkpoint, so that new rows can be scored with it alone."""
        return self.encoder.state_dict() | {"tasks": self.tasks}

    def _mapped(self) -> TaskRows:
        names = list(self.encoder.layout.tasks)
        return TaskRows(self.folder, ARRAYS, [names.index(task) for task in self.tasks])

    def _loader(self, split: str, seed: int | None, batch_size: int) -> BatchLoader:
        return BatchLoader(self._mapped(), EpochOrder(self.rows[split], seed), batch_size, self.num_workers)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Absolute Pearson correlation of two labels (N,)."""
    return abs(float(np.corrcoef(a, b)[0, 1]))


def main() -> None:
    """Download the raw files where there is no folder, build the cache and print what was found."""
    ensure_dataset(DATASET)
    data = CensusIncomeDataModule(tasks=("income", "never_married", "education"))
    data.setup()
    labels = {split: data.read(split)[-1] for split in data.rows}
    rates = pd.DataFrame({split: label.mean(0) for split, label in labels.items()}, data.tasks)
    print(f"Rows: {', '.join(f'{split} {len(label):,}' for split, label in labels.items())}")
    print(f"\nShare of positive rows\n{rates.to_string(float_format='{:.4f}'.format)}")
    both = {"train": labels["train"], "val + test": np.concatenate([labels["val"], labels["test"]])}
    print("\n|Correlation| of two tasks")
    for pair, paper in PAPER_CORRELATION.items():
        first, second = (data.tasks.index(task) for task in pair)
        shown = [f"{split} {correlation(label[:, first], label[:, second]):.4f}" for split, label in both.items()]
        print(f"{' and '.join(pair)}: {', '.join(shown)} (Census-Income KDD in the paper: {paper})")
    print(f"\n{sum(data.encoder.field_sizes):,} ids in {len(data.encoder.field_sizes)} columns; cache: {data.folder}")


if __name__ == "__main__":
    run_script(main)
