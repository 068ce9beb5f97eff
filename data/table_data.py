"""Your own table: `python data/table_data.py FILE [NAME]` guesses the roles of its columns.

With NAME it writes DATA_ROOT/NAME/columns.json, which holds the path of FILE: correct it by hand, then set
`dataset="NAME"` in deepfm/train.py, dlrm/train.py or multitask/train.py. FILE is CSV, TSV or Parquet, plain or .gz,
or a folder of such files.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import torch

from common.data.cache import build_once
from common.data.data_module import SPLIT_SEED, SPLITS, RecommendationDataModule
from common.data.loader import MemmapDataset
from common.data.raw_files import Source, find_dataset
from common.errors import check, run_script
from data.table_columns import Columns, write_columns
from data.table_description import COLUMNS_FILE, Description, read_description, show_guess
from data.table_encoder import TableEncoder, nearly_unseen
from data.table_reader import data_files
from data.table_rows import write_encoded
from data.table_schema import Schema

ARRAYS = ["dense", "ids", "label"]  # of the cache, in the order of a batch
CODE = [
    f"data.table_{name}"
    for name in ("schema", "reader", "text", "values", "categories", "columns", "encoder", "fit", "rows", "data")
]


class TableDataset(MemmapDataset):
    """Batches with the labels of some tasks: (B, K), or (B,) if `one_label`; if `weighted`, with row weights (B,)."""

    def __init__(self, folder: Path, tasks: list[int], one_label: bool, weighted: bool):
        super().__init__(folder, [*ARRAYS, "weight"] if weighted else ARRAYS)
        self.tasks, self.one_label = tasks, one_label

    def __getitem__(self, rows: torch.Tensor) -> tuple[Any, ...]:
        dense, ids, label, *weight = super().__getitem__(rows)
        target = self.chosen(label)
        return dense, ids, (target, *weight) if weight else target

    def targets(self, rows: torch.Tensor) -> torch.Tensor:
        return self.chosen(self.arrays[ARRAYS.index("label")].index_select(0, rows))

    def chosen(self, label: torch.Tensor) -> torch.Tensor:
        return label[:, self.tasks[0]] if self.one_label else label[:, self.tasks]


class TableDataModule(RecommendationDataModule):
    """Batches (dense (B, I) float32, ids (B, F) int32, label float32) of a table described by columns.json or in code.

    The path of a row: table_reader and table_text parse the file, table_values checks the values and table_columns
    stores them. table_rows splits the rows and writes them as table_encoder encodes them, which table_fit has fitted on
    training rows. common/data/loader.py makes the batches.

    A subclass sets `source`, `one_label`, `weighted` and `settings` (split, dense_transform, min_count, num_bins), and
    implements make_sample(), official() and choose_tasks(). A column with several values in a cell has several columns
    of ids (`slots`). weighted: training batches have row weights, of mean 1, beside the label. label_inputs:
    labels that are not among the tasks are inputs.
    """

    source: Source
    one_label: bool  # whether the labels of a batch have the shape (B,), not (B, K)
    weighted: bool
    label_inputs = False
    settings: dict[str, Any]
    tasks: list[str]
    rows: dict[str, np.ndarray]
    encoder: TableEncoder  # set by setup()

    def make_sample(self) -> Path:
        """The folder with the built-in sample's raw files."""
        raise NotImplementedError

    def official(self, folder: Path) -> Description:
        """The published dataset whose raw files are in `folder`. Raises: UserError if there are none."""
        raise NotImplementedError

    def choose_tasks(self) -> list[str]:
        """The tasks to train. Raises: UserError for one that the table does not have."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Open the cache; build it first if there is none."""
        if hasattr(self, "encoder"):
            return
        self.table_folder, self.is_sample = find_dataset(self.dataset, self.data_root, self.source, self.make_sample)
        own = self.table_folder / COLUMNS_FILE
        table = read_description(own) if own.exists() else self.official(self.table_folder)
        files = {part: data_files(path) for part, path in table.files.items()}
        sources = [path for paths in files.values() for path in paths]
        where = str(own if own.exists() else sources[0])
        self.schema = table.schema if self.weighted else without_weights(table.schema)
        weights = len(self.schema.of_role("weight"))
        check(
            weights == self.weighted,
            f'{where}: weighted=True needs one column with the role "weight"; found {weights}.',
        )
        self.tasks = self.choose_tasks()
        if self.label_inputs:
            self.schema = other_labels_as_inputs(self.schema, self.tasks)
        parts = {part: len(paths) for part, paths in files.items()}
        settings = {"split": "time" if self.schema.of_role("time") else "random"} | self.settings
        # later starts verify only this entry, the encoded rows, and not the columns they were made from
        self.folder = build_once(
            table.name,
            sources,
            settings | {"schema": self.schema.to_dict(), "parts": parts},
            lambda target: write_encoded(parse(table.name, self.schema, files), settings, where, target),
            code=CODE,
        )
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.encoder = TableEncoder.from_state(torch.load(self.folder / "encoder.pt", weights_only=True))
        self.rows = {name: np.load(self.folder / f"rows_{name}.npy", mmap_mode="c") for name in SPLITS}
        self.protocol = _protocol(self.schema, files, settings["split"])
        self._warn(where)

    def _warn(self, where: str) -> None:
        """Warn about columns whose held-out values are nearly all unseen in training."""
        if names := nearly_unseen(self.summary["held_out"]):
            print(
                f"{where}: more than nine in ten validation and test values of {', '.join(map(repr, names))} are "
                'unseen or rare in training. Give such a column the role "excluded", or lower min_count.',
                flush=True,
            )

    @property
    def num_dense(self) -> int:
        return self.encoder.num_dense

    @property
    def cardinalities(self) -> list[int]:
        return self.encoder.cardinalities

    @property
    def slots(self) -> list[int]:
        """Number of columns of ids of each field: 1, or more if a cell may hold several values (-1 for no value)."""
        return self.encoder.slots

    @property
    def pooling(self) -> list[str | None]:
        """How the vectors of a field's values are combined: "sum" or "mean"; None if a cell holds one value."""
        return [field.pooling for field in self.encoder.fields]

    @property
    def bin_edges(self) -> list[list[float]]:
        return self.encoder.bin_edges

    @property
    def base_logits(self) -> list[float]:
        """Logit of each task's positive rate in the training rows, from which a model's output should start."""
        least = 1 / (len(self.rows["train"]) + 2)  # the logit would be infinite if all rows were of one class
        rates = np.array([self.summary["positive"][task] for task in self.tasks]).clip(least, 1 - least)
        return (np.log(rates) - np.log1p(-rates)).tolist()

    def examples(self, weighted: bool = False) -> TableDataset:
        names = list(self.schema.tasks)
        return TableDataset(self.folder, [names.index(task) for task in self.tasks], self.one_label, weighted)

    def training_examples(self) -> TableDataset:
        return self.examples(self.weighted)

    def groups(self, split: str) -> np.ndarray | None:
        if not self.schema.group:
            return None
        return np.load(self.folder / "groups.npy", mmap_mode="r")[self.rows[split]]

    def best_prediction(self) -> torch.Tensor:
        probability = np.load(self.table_folder / "true_probability.npy")  # (N, K), of the sample
        return self.examples().chosen(torch.from_numpy(probability[self.rows["test"]]))

    def state_dict(self) -> dict[str, Any]:
        """Saved in every checkpoint, so that it suffices to score new rows."""
        outputs = ["probability"] if self.one_label else self.tasks
        return self.encoder.state_dict() | {"tasks": self.tasks, "outputs": outputs}

    def known_rows(self, state: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return self.encoder.known_rows(TableEncoder.from_state(state))


def without_weights(schema: Schema) -> Schema:
    columns = [replace(column, role="excluded") if column.role == "weight" else column for column in schema.columns]
    return replace(schema, columns=tuple(columns))


def other_labels_as_inputs(schema: Schema, tasks: Sequence[str]) -> Schema:
    """The schema with only these tasks; the columns of other labels become categories."""
    kept = {name: schema.tasks[name] for name in tasks}
    others = set(schema.label_columns) - {task.column for task in kept.values()}
    columns = [replace(column, role="categorical") if column.name in others else column for column in schema.columns]
    return replace(schema, columns=tuple(columns), tasks=kept)


def parse(name: str, schema: Schema, files: dict[str, list[Path]]) -> Columns:
    """The columns of the files; parsed now unless they are in the cache."""
    columns = [
        replace(column, transform=None, pooling=None, hash_size=None, min_count=None) for column in schema.columns
    ]
    # the key leaves out what does not affect parsing
    read = replace(schema, columns=tuple(columns), split=schema.split if schema.split_column else None, group=None)
    folder = build_once(
        f"{name}-columns",
        [path for paths in files.values() for path in paths],
        {"schema": read.to_dict(), "parts": {part: len(paths) for part, paths in files.items()}},
        lambda target: write_columns(files, read, target),
        code=CODE,
    )
    return Columns(folder, schema)


def summarize(table: Description) -> tuple[str, np.ndarray]:
    """Row counts and positive rates of each file as text, and all labels (N, K)."""
    schema = without_weights(table.schema)  # the default in training, whose cache is shared
    columns = parse(table.name, schema, {part: data_files(path) for part, path in table.files.items()})
    labels, lines = columns.labels(), []
    ends = np.cumsum(list(columns.parts.values()))
    for path, rows in zip(table.files.values(), np.split(labels, ends[:-1]), strict=True):
        shares = ", ".join(f"{task} {share:.4f}" for task, share in zip(table.schema.tasks, rows.mean(0), strict=True))
        lines.append(f"{path}: {len(rows):,} rows; share of positive labels: {shares}")
    return "\n".join(lines), labels


def _protocol(schema: Schema, files: dict[str, list[Path]], split: str) -> str:
    if "val" in files:
        return "split by given files"
    if "test" in files:
        return f"published files, test rows split 1:1 (seed {SPLIT_SEED})"
    if schema.split_column:
        return f"split by column {schema.split_column!r}"
    by = schema.split["by"] if schema.split else split
    return f"random 8:1:1 split (seed {SPLIT_SEED})" if by == "random" else "time split"


def main(file: str, name: str | None = None) -> None:
    """Print a guess of the columns' roles; with a name, write columns.json."""
    from data.table_guess import guess_table

    show_guess(*guess_table(Path(file)), f"python data/table_data.py {file}", name)


if __name__ == "__main__":
    run_script(main, "FILE [NAME]")
