"""Criteo's raw text to arrays on disk, in two steps: columns as they are in the file, then rows as a model takes them.

N: rows, F: categorical fields. Memory holds a few blocks of rows, or a few arrays of one column and the vocabularies.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from common.errors import check
from common.files import write_tensors
from data.criteo_encoding import MISSING, UNSEEN, CriteoEncoder
from data.criteo_raw import CATEGORIES, NUMBERS, Rows, blocks, open_raw, parse
from data.parallel import ordered_map

SPLITS = ("train", "val", "test")
ENCODE_ROWS = 1 << 18  # rows encoded at a time


def write_columns(raw: Path, target: Path) -> None:
    """Parse the raw file into one binary file per column; in memory there are a few blocks at a time."""
    stream, file = open_raw(raw)
    names = ["label", *NUMBERS, *CATEGORIES, *(f"missing_{name}" for name in CATEGORIES)]
    written = 0
    with (
        ExitStack() as closing,
        tqdm(total=raw.stat().st_size, unit="B", unit_scale=True, desc=f"Reading {raw.name}") as bar,
    ):
        closing.enter_context(file)
        outputs = [closing.enter_context(open(target / f"{name}.bin", "wb")) for name in names]
        for rows in ordered_map(lambda item: parse(item[1], True, raw, item[0]), blocks(stream, raw)):
            for output, column in zip(
                outputs, [rows.label, *rows.numbers, *rows.categories, *rows.missing], strict=True
            ):
                column.tofile(output)
            written += len(rows)
            bar.set_postfix_str(f"{written / bar.format_dict['elapsed']:,.0f} rows/s", refresh=False)
            bar.update(file.tell() - bar.n)


def open_columns(folder: Path) -> Rows:
    """What write_columns wrote, memory-mapped."""

    def mapped(names: list[str], dtype: type) -> list[np.ndarray]:
        return [np.memmap(folder / f"{name}.bin", dtype, "r") for name in names]

    return Rows(
        mapped(["label"], np.uint8)[0],
        mapped(NUMBERS, np.int32),
        mapped(CATEGORIES, np.uint32),
        mapped([f"missing_{name}" for name in CATEGORIES], np.bool_),
    )


def split_rows(raw: Path, label: np.ndarray, split: str) -> dict[str, np.ndarray]:
    """Row numbers of train, val and test; UserError naming `raw` for too few rows."""
    count = len(label)
    check(count >= 10, f"{raw}: found {count} rows; a split needs at least 10.")
    if split == "time":
        train, val = count * 6 // 7, (count - count * 6 // 7) // 2
        parts = np.split(np.arange(count, dtype=np.int32), [train, train + val])
        return dict(zip(SPLITS, parts, strict=True))
    most = int(np.bincount(label).max())
    check(most >= 10, f"{raw}: found at most {most} rows of a label; a random split needs 10 of one of them.")
    folds = [test for _, test in StratifiedKFold(10, shuffle=True, random_state=2018).split(label, label)]
    return {"train": np.sort(np.concatenate(folds[2:])), "val": folds[1], "test": folds[0]}


def write_encoded(raw: Path, columns: Path, settings: dict, target: Path) -> None:
    """Fit the encoder on the training rows, encode all rows block by block."""
    label = open_columns(columns).label
    splits = split_rows(raw, label, settings["split"])
    for name, rows in splits.items():
        np.save(target / f"rows_{name}.npy", rows)
    train = splits["train"]
    if settings["split"] == "time":
        train = slice(0, len(train))  # a view instead of a copy of each column
    encoder = CriteoEncoder.fit(lambda: open_columns(columns), train, settings["numbers"], settings["min_count"])
    write_tensors(target / "encoder.pt", encoder.state_dict())

    count, unseen, missing = len(label), 0, 0
    with (
        _npy_writer(target / "numbers.npy", np.float32, (count, encoder.num_numbers)) as numbers_file,
        _npy_writer(target / "ids.npy", np.int32, (count, len(encoder.fields))) as ids_file,
        tqdm(total=count, desc="Encoding", unit="row", unit_scale=True) as bar,
    ):
        starts = range(0, count, ENCODE_ROWS)
        # mapped anew for each block: mapped pages count as memory of the process
        encode = lambda start: encoder.encode(open_columns(columns)[start : start + ENCODE_ROWS])  # noqa: E731
        for numbers, ids in ordered_map(encode, starts):
            numbers.tofile(numbers_file)
            ids.tofile(ids_file)
            unseen = unseen + (ids == UNSEEN).sum(0)
            missing = missing + (ids == MISSING).sum(0)
            bar.update(len(ids))
    np.save(target / "label.npy", label.astype(np.float32))
    summary = {
        "rows": {name: len(rows) for name, rows in splits.items()},
        "click_rate": {name: float(label[rows].mean()) for name, rows in splits.items()},
        "fields": {
            name: {"ids": size, "unseen_or_rare": unseen[i] / count, "missing": missing[i] / count}
            for i, (name, size) in enumerate(zip(encoder.fields, encoder.field_sizes, strict=True))
        },
    }
    (target / "summary.json").write_text(json.dumps(summary))


def _npy_writer(path: Path, dtype: type, shape: tuple[int, ...]) -> BinaryIO:
    """An open .npy file whose rows are still to be written."""
    file = open(path, "wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
