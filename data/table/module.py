"""A table as batches: raw files -> rows.arrow -> encoded arrays, both in the cache -> batches of plain tensors.

The path of a row: data/reader.py reads and checks it, data/table/rows.py stores it and says to which split it belongs,
data/table/encoder.py encodes it, and common/data/loader.py puts it into a batch. N: rows, K: tasks.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from common.data.cache import build_once
from common.data.loader import MemmapDataset
from common.errors import check
from common.settings import check_settings
from data.described import DescribedDataModule
from data.reader import sources_of
from data.schema import Categorical, Dataset, Description, Plain
from data.table.encoder import TableEncoder, nearly_unseen
from data.table.numbers import PIECEWISE
from data.table.rows import StoredRows, write_encoded, write_rows

ARRAYS = ["dense", "ids", "label"]  # of the cache, in the order of a batch
CODE = [f"data.{name}" for name in ("schema", "text", "values", "reader", "attributes")]
CODE += [f"data.table.{name}" for name in ("splits", "encoder", "numbers", "rows")]


class TableDataset(MemmapDataset):
    """Batches with some columns of the labels: (B, K), or (B,) if it is one; if `weighted`, with row weights (B,)."""

    def __init__(self, folder: Path, columns: int | list[int], weighted: bool = False):
        super().__init__(folder, [*ARRAYS, "weight"] if weighted else ARRAYS)
        self.columns = columns

    def __getitem__(self, rows: Tensor) -> tuple[Any, ...]:
        dense, ids, label, *weight = super().__getitem__(rows)
        target = label[:, self.columns]
        return dense, ids, (target, *weight) if weight else target

    def targets(self, rows: Tensor) -> Tensor:
        return self.arrays[ARRAYS.index("label")].index_select(0, rows)[:, self.columns]


class TableDataModule(DescribedDataModule):
    """Batches (dense (B, I) float32, ids (B, S) int32, label float32) of a described table.

    tasks: names of the labels, of shape (B, K) and nan if unknown; None: the only label, of shape (B,). split, of
    tables without a split of their own: "time" (the first 6/7 of the rows for training, the rest halved into validation
    and test), "random" (stratified tenths, as in BARS x4) or "official" (all rows of the test file); None: "time" if
    there is a time, else "random". dense_transform, of dense columns that specify none: see data/table/numbers.py.
    min_count: training rows that a value needs to get an id. num_bins: bins per dense column, with "piecewise".
    weighted: training batches have row weights, of mean 1, beside the label. negative_rate: share of training rows
    without a click that is kept. label_inputs: labels that are not among the tasks are inputs. loading: see
    RecommendationDataModule.
    """

    encoder: TableEncoder  # set by setup()

    def __init__(
        self,
        *,
        split: str | None,
        tasks: Sequence[str] | None = None,
        dense_transform: str = PIECEWISE,
        min_count: int,
        num_bins: int = 0,
        weighted: bool,
        negative_rate: float = 1.0,
        label_inputs: bool = False,
        **loading: Any,
    ):
        super().__init__(**loading)
        of_task = {"dense_transform": dense_transform} if tasks is None else {"tasks": tasks}  # MMoE encodes numbers
        check_settings({"min_count": min_count, "weighted": weighted, "negative_rate": negative_rate} | of_task)
        check_settings({"label_inputs": label_inputs})
        check(split in ("time", "random", "official", None), f"split is {split!r}, not 'time', 'random' or 'official'.")
        self.split, self.chosen_tasks, self.label_inputs = split, tasks, label_inputs
        self.weighted, self.negative_rate = weighted, negative_rate
        self.settings = {"dense_transform": dense_transform, "min_count": min_count, "num_bins": num_bins}

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first if there is none."""
        if hasattr(self, "encoder"):
            return
        self.find_table()
        self.tasks, where = self._tasks(), self.table.where
        self.description = self._used()
        split = self.split or ("time" if self.description.only("time") else "random")
        check(
            split != "official" or "test" in self.table.files,
            f"split is 'official', but {where} has no test file; set split to 'time' or 'random'.",
        )
        settings = self.settings | {"split": split}
        # later starts verify only this entry, and not the rows that it was made from
        self.folder = build_once(
            self.table.name,
            sources_of(self.table),
            settings | {"description": self.description.model_dump(mode="json")},
            lambda target: write_encoded(
                stored_rows(self.table, self.description), self.table, self.description, settings, target
            ),
            code=CODE,
        )
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.state = torch.load(self.folder / "encoder.pt", weights_only=True)
        self.encoder = encoder = TableEncoder.from_state(self.state["encoder"])
        # what models are built from
        self.num_dense, self.cardinalities, self.pooling = encoder.num_dense, encoder.cardinalities, encoder.pooling
        self.of_numbers = [field.kind != "text" for field in encoder.fields]  # whether it has categories of numbers
        self.bin_edges = [number.edges for number in encoder.numbers if number.edges is not None]
        self.open_rows()
        self.protocol = self.summary["protocol"]
        if names := nearly_unseen(self.summary["held_out"]):
            print(
                f"{where}: more than nine in ten validation and test values of {', '.join(map(repr, names))} are "
                'unseen or rare in training. Give such a column the role "excluded", or lower min_count.',
                flush=True,
            )
        if unlabelled := self.summary["unlabelled"] + self._drop_unlabelled():
            print(f"{where}: {unlabelled:,} rows have no label; they are left out.", flush=True)
        self._keep_negatives()

    def _tasks(self) -> list[str]:
        """The tasks to train. Raises: UserError for one that the table does not have."""
        known, where = list(self.table.description.tasks), self.table.where
        if self.chosen_tasks is None:
            found = f"{where}: found {len(known)} labels ({', '.join(known)}), but DeepFM and DLRM take one."
            check(len(known) > 0, f'{found} Give a column the role "label", or the rating a "click_from".')
            exclude = 'Give the others the role "excluded" in columns.json, or use multitask/train.py.'
            check(len(known) == 1, f"{found} {exclude}")
            return known
        tasks = list(self.chosen_tasks)
        check(
            len(tasks) > 0 and set(tasks) <= set(known) and len(set(tasks)) == len(tasks),
            f"tasks is {tasks}; it must list one or more of {', '.join(known)}, each once.",
        )
        return tasks

    def _used(self) -> Description:
        """The description without what this run does not read."""
        description = self.table.description
        if self.label_inputs:
            others = description.tasks.keys() - set(self.tasks)
            description = description.with_columns({description.tasks[task]: Categorical() for task in others})
        weights = description.of_role("weight")
        check(
            len(weights) == 1 or not self.weighted,
            f'{self.table.where}: weighted=True needs one column with the role "weight"; found {len(weights)}.',
        )
        return description if self.weighted else without_weights(description)

    def _drop_unlabelled(self) -> int:
        """Leave out rows of which no task to train is known, and count them."""
        before = sum(map(len, self.rows.values()))
        for part, rows in self.rows.items() if len(self.summary["positive"]) > len(self.tasks) else ():
            known = ~self.targets(part).isnan().view(len(rows), -1).all(1).numpy()
            check(bool(known.any()), f"{self.table.where}: no row of the {part} split has a label for {self.tasks}.")
            self.rows[part] = rows[known]
        return before - sum(map(len, self.rows.values()))

    def _keep_negatives(self) -> None:
        """Keep only a share of the training rows without a click, chosen by the seed."""
        if self.negative_rate < 1:
            clicks = self.targets("train").numpy() == 1
            kept = clicks | (np.random.default_rng(self.seed).random(len(clicks)) < self.negative_rate)
            self.rows["train"] = self.rows["train"][kept]
            # the odds of a click in the kept rows are 1 / negative_rate times those in all rows (He et al. 2014,
            # section 6.3): with this offset in training, the logits without it are right for all rows
            self.training_offset = -math.log(self.negative_rate)

    @property
    def base_logits(self) -> list[float]:
        """Logit of each task's positive rate in the training rows, from which a model's output should start."""
        least = 1 / (len(self.rows["train"]) + 2)  # the logit would be infinite if all rows were of one class
        rates = np.array([self.summary["positive"][task] for task in self.tasks]).clip(least, 1 - least)
        return (np.log(rates) - np.log1p(-rates)).tolist()

    @property
    def _label_columns(self) -> int | list[int]:
        columns = [list(self.summary["positive"]).index(task) for task in self.tasks]
        return columns[0] if self.chosen_tasks is None else columns

    def examples(self, weighted: bool = False) -> TableDataset:
        return TableDataset(self.folder, self._label_columns, weighted)

    def training_examples(self) -> TableDataset:
        return self.examples(self.weighted)

    def groups(self, split: str) -> np.ndarray | None:
        path = self.folder / "groups.npy"
        return np.load(path, mmap_mode="r")[self.rows[split]] if path.exists() else None

    def kept(self, split: str) -> dict[str, list[str]]:
        """The texts of the columns with the role "kept" in a split's rows."""
        names = self.description.of_role("kept")
        if not names:
            return {}
        table, rows = stored_rows(self.table, self.description).table, pa.array(np.array(self.rows[split]))
        return {name: table[name].take(rows).to_pylist() for name in names}

    def best_prediction(self) -> Tensor:
        probability = np.load(self.table.folder / "true_probability.npy")  # (N, K), of the sample
        return torch.from_numpy(probability[self.rows["test"]])[:, self._label_columns]

    def state_dict(self) -> dict[str, Any]:
        """Saved in every checkpoint, so that it suffices to score new rows."""
        outputs = ["probability"] if self.chosen_tasks is None else self.tasks
        return self.state | {"tasks": self.tasks, "outputs": outputs}

    def known_rows(self, state: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return self.encoder.known_rows(TableEncoder.from_state(state["encoder"]))


def without_weights(description: Description) -> Description:
    return description.with_columns({name: Plain(role="excluded") for name in description.of_role("weight")})


def stored_rows(table: Dataset, description: Description) -> StoredRows:
    """The rows, read now unless they are in the cache. description: the table's, without what is not used."""
    of_encoding = {"transform", "pooling", "hash_size", "min_count"}  # do not decide how a row is read
    content = description.model_dump(mode="json", exclude={"group": True, "columns": {"__all__": of_encoding}})
    folder = build_once(
        f"{table.name}-rows",
        sources_of(table),
        {"description": content},
        lambda target: write_rows(table, description, target),
        code=CODE,
    )
    return StoredRows(folder)


def summary(table: Dataset) -> str:
    """Row counts and positive rates of each file."""
    rows = stored_rows(table, without_weights(table.description))
    tasks, ends = list(table.description.tasks), np.cumsum(list(rows.parts.values()))
    return "\n".join(
        f"{path}: {len(part):,} rows; share of positive labels: "
        + ", ".join(f"{task} {rate:.4f}" for task, rate in zip(tasks, np.nanmean(part, 0), strict=True))
        for path, part in zip(table.files.values(), np.split(rows.labels(tasks), ends[:-1]), strict=True)
    )
