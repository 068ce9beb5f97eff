"""Splits a table's rows into training, validation and test rows, and writes them encoded. N: rows, K: tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.data.data_module import SPLIT_SEED, SPLITS
from common.data.parallel import ordered_map
from common.errors import check
from common.files import write_tensors
from data.table_categories import MISSING, OOV
from data.table_columns import MANY_ROWS, Columns
from data.table_fit import fit_encoder

FOLDS = 10

Splits = dict[str, np.ndarray]


def split_rows(columns: Columns, split: str, name: str) -> Splits:
    """Row numbers of each split. split: "time" or "random", used if the schema does not define the split.

    Raises: UserError naming the table if there are too few rows.
    """
    own, count = columns.schema.split or {"by": split}, len(columns)
    if "all" not in columns.parts:
        rows = file_split(columns.parts)
    elif "column" in own:
        codes = columns.of_rows("splits", np.uint8)
        rows = {part: np.flatnonzero(codes == i).astype(np.int32) for i, part in enumerate(SPLITS)}
    else:
        check(count >= 10, f"{name}: found {count} rows; a split needs at least 10.")
        if own["by"] == "time":
            times = columns.of_rows("times", np.float64)
            # equal times stay in file order, which is also the order if there is no time column
            order = np.arange(count) if times is None else np.argsort(times, kind="stable")
            rows = time_split(order.astype(np.int32))
        else:
            label = columns.labels()[:, 0].astype(np.uint8)
            most = int(np.bincount(label).max())
            check(most >= 10, f"{name}: found at most {most} rows of one class; a random split needs at least 10.")
            rows = random_split(label)
    counts = ", ".join(f"{split} {len(part):,}" for split, part in rows.items())
    check(all(len(part) for part in rows.values()), f"{name}: the split has rows {counts}; each part needs at least 1.")
    return rows


def time_split(order: np.ndarray) -> Splits:
    """The first 6/7 of the rows in `order` for training, then half of the rest for validation, half for test."""
    count = len(order)
    train = count * 6 // 7
    return dict(zip(SPLITS, np.split(order, [train, train + (count - train) // 2]), strict=True))


def random_split(label: np.ndarray) -> Splits:
    """Stratified tenths: the first for test, the second for validation, the others for training (BARS Criteo_x4).

    The folds of StratifiedKFold(10, shuffle=True, random_state=2018) in scikit-learn 0.19 (rewritten in 0.22): a KFold
    per class, all shuffled by one generator.
    """
    rng = np.random.RandomState(SPLIT_SEED)
    folds = np.empty(len(label), np.int8)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        order = np.arange(max(len(rows), FOLDS))
        rng.shuffle(order)
        for fold, part in enumerate(np.array_split(order, FOLDS)):  # the first parts have one row more
            folds[rows[part[part < len(rows)]]] = fold
    parts = [np.flatnonzero(folds > 1), np.flatnonzero(folds == 1), np.flatnonzero(folds == 0)]
    return {name: part.astype(np.int32) for name, part in zip(SPLITS, parts, strict=True)}


def file_split(counts: dict[str, int]) -> Splits:
    """Rows of predefined files, read in the order train, val, test; without a "val" file, test rows are split 1:1."""
    if "val" in counts:
        ends = np.cumsum([counts[name] for name in SPLITS])
        return dict(zip(SPLITS, np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1]), strict=True))
    train, test = counts["train"], counts["test"]
    halves = np.array_split(np.random.default_rng(SPLIT_SEED).permutation(test), 2)
    return {"train": np.arange(train, dtype=np.int32), "val": train + halves[0], "test": train + halves[1]}


def write_encoded(columns: Columns, settings: dict[str, Any], name: str, target: Path) -> None:
    """Fit the encoder on the training rows, and encode all rows block by block.

    settings: split, dense_transform, min_count, num_bins. name: of the table, for messages.
    """
    schema, count, labels = columns.schema, len(columns), columns.labels()
    splits = split_rows(columns, settings["split"], name)
    for part, rows in splits.items():
        np.save(target / f"rows_{part}.npy", rows)
    train = np.zeros(count, bool)
    train[splits["train"]] = True
    with tqdm(total=len(schema.inputs), desc="Fitting", unit="column") as bar:
        each = map if count > MANY_ROWS else ordered_map
        encoder = fit_encoder(settings, columns, train, each)
        bar.update(len(schema.inputs))
    write_tensors(target / "encoder.pt", encoder.state_dict())

    unseen, values = np.zeros((2, len(encoder.fields)), np.int64)  # of validation and test rows
    with (
        _npy_writer(target / "dense.npy", np.float32, (count, encoder.num_dense)) as dense_file,
        _npy_writer(target / "ids.npy", np.int32, (count, sum(encoder.slots))) as ids_file,
        tqdm(total=count, desc="Encoding", unit="row", unit_scale=True) as bar,
    ):
        ids_of = {field.name: field.ids(columns.keys(field.name)) for field in encoder.fields if field.source == "text"}
        encoded = ordered_map(
            lambda block: encoder.encode(columns.values(block), lambda field, keys: ids_of[field.name][keys]),
            columns.blocks,
        )
        for block, (dense, ids) in zip(columns.blocks, encoded, strict=True):
            dense_file.write(dense)
            ids_file.write(ids)
            held_out = ids[~train[columns.rows(block)]][:, encoder.starts]  # the first value of each cell
            unseen += (held_out == OOV).sum(0)
            values += (held_out != MISSING).sum(0)
            bar.update(len(ids))
    with _npy_writer(target / "label.npy", np.float32, labels.shape) as file:
        file.write(labels)
    weights = columns.of_rows("weights", np.float64)
    if weights is not None:
        mean = weights[train].mean()
        check(mean > 0, f"{name}: all training rows have weight 0.")
        np.save(target / "weight.npy", (weights / mean).astype(np.float32))  # mean 1, so the learning rate still fits
    if schema.group:
        np.save(target / "groups.npy", columns.key_numbers(schema.group))
    summary = {
        "positive": {task: float(labels[splits["train"], i].mean()) for i, task in enumerate(schema.tasks)},
        "held_out": {field.name: [int(unseen[i]), int(values[i])] for i, field in enumerate(encoder.fields)},
    }
    (target / "summary.json").write_text(json.dumps(summary))


def _npy_writer(path: Path, dtype: type, shape: tuple[int, ...]) -> Any:
    """An open .npy file with its header; the rows are still to be written."""
    file = open(path, "wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
