"""The rows of a table: read once into one Arrow file, from which arrays are written for any settings.

N: rows, K: tasks.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from tqdm import tqdm

from common.data.data_module import SPLITS
from common.data.parallel import ordered_map
from common.errors import check
from common.files import write_tensors
from data.attributes import Attributes, join, joined_columns, read_attributes
from data.reader import Reader, data_files, source_of
from data.schema import Column, ColumnSplit, Dataset, Description, Label, Rating
from data.table.encoder import Field, Number, TableEncoder, fit_column, to_tensor
from data.table.splits import split_rows
from data.values import BadValue, canonical

ROWS, PARTS, ATTRIBUTES = "rows.arrow", "parts.json", "attributes.pt"  # of the cache
SHOWN_LABELS = 8
SPLIT = "\0split"  # a name that no column of a file can have
MANY_ROWS = 1 << 23  # from here on columns are fitted one at a time: each takes several arrays of N elements


def inputs_of(description: Description) -> dict[str, Column]:
    """The input columns of a table in order, those of second files last."""
    own = {name: description.columns[name] for name in description.of_role("dense", "categorical", "user", "item")}
    return own | joined_columns(description)


class TableReader(Reader):
    """Reads files into batches with the columns of second files joined in, and a column `label_name(task)` per task."""

    def __init__(self, description: Description, attributes: Attributes, tasks: Sequence[str], scoring: bool = False):
        super().__init__(description, scoring)
        self.description, self.attributes = description, attributes
        self.tasks = {task: description.tasks[task] for task in tasks}

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        batch = super()._checked(batch)
        columns = join(self.description, self.attributes, batch)
        derived = [(label_name(task), name, self._label) for task, name in self.tasks.items()]
        if isinstance(self.description.split, ColumnSplit) and not self.scoring:
            derived.append((SPLIT, self.description.split.column, self._split))
        for new, name, function in derived:
            array = columns.get(name, pa.nulls(len(batch), pa.string()))  # a file to score may lack its labels
            try:
                columns[new] = function(name, array)
            except BadValue as bad:
                raise self.error(bad.row, name, array[bad.row], bad.expected) from bad
        return pa.RecordBatch.from_pydict(columns)

    def _label(self, name: str, array: pa.Array) -> pa.Array:
        """1, 0 or nan (unknown) for each row (N,) float32."""
        column, encoded = self.description.columns[name], array.dictionary_encode("encode")
        assert isinstance(column, Label | Rating)
        values = [label_of(value, column, self.description.missing_texts) for value in encoded.dictionary.to_pylist()]
        if None in values:
            known = sorted({*(column.positive or ()), *(column.negative or ())})
            shown = " or ".join(map(repr, known[:SHOWN_LABELS])) + (" or another" if len(known) > SHOWN_LABELS else "")
            no_header = "" if self.form.header else " (the file must have no header line)"
            row = encoded.indices.to_pylist().index(values.index(None))
            raise BadValue(row, f"{shown}, or nothing if it is unknown{no_header}")
        return pa.array(np.array(values, np.float32)[encoded.indices.to_numpy()])

    def _split(self, name: str, array: pa.Array) -> pa.Array:
        """The index of each row's split in SPLITS."""
        known = {text: i for i, part in enumerate(SPLITS) for text in getattr(self.description.split, part)}
        place = pc.index_in(array, value_set=pa.array(known))
        if place.null_count:
            expected = f'one of the values in "split": {", ".join(map(repr, known))}'
            raise BadValue(pc.index(place.is_null(), True).as_py(), expected)
        return pa.array(known.values(), pa.int8()).take(place)


def label_name(task: str) -> str:
    return f"\0label {task}"


def label_of(value: Any, column: Label | Rating, missing: Sequence[str]) -> float | None:
    """1, 0, nan if unknown, or None for a text that is no label."""
    if value is None or value in missing:
        return np.nan
    if isinstance(column, Rating) and column.click_from is not None:
        return float(value >= column.click_from)
    positive, negative = (set(map(_same, texts or ())) for texts in (column.positive, column.negative))
    text = _same(value if isinstance(value, str) else repr(value))
    if text in positive or text in negative or column.negative is None:
        return float(text in positive)
    return np.nan if isinstance(column, Rating) else None  # ratings in neither list are left out


def _same(text: str) -> str:
    """Equal for equal labels: "1.0" and "1", "True" and "true"."""
    return canonical(text).strip().casefold()


def write_rows(table: Dataset, description: Description, target: Path) -> None:
    """Read the files of a table into one Arrow file. description: that of the table, without what is not used."""
    attributes = read_attributes(table)
    reader = TableReader(description, attributes, list(description.tasks))
    files = {part: data_files(path) for part, path in table.files.items()}
    parts, writer = dict.fromkeys(files, 0), None
    sizes = sum(path.stat().st_size for paths in files.values() for path in paths)
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="Reading") as bar:
        for part, path in ((part, path) for part, paths in files.items() for path in paths):
            for batch in reader.batches(source_of(path), bar.update):
                writer = writer or pa.ipc.new_file(str(target / ROWS), batch.schema)
                writer.write_batch(batch)
                parts[part] += len(batch)
                speed = sum(parts.values()) / bar.format_dict["elapsed"]
                bar.set_postfix_str(f"{speed:,.0f} rows/s", refresh=False)
    assert writer is not None  # a file without rows is an error
    writer.close()
    tables = {role: to_tensor(dict(zip(t.schema.names, t.columns, strict=True))) for role, t in attributes.items()}
    write_tensors(target / ATTRIBUTES, tables)
    (target / PARTS).write_text(json.dumps(parts))


class StoredRows:
    """What write_rows wrote. Columns are mapped anew each time, because pages of an open map count as memory."""

    def __init__(self, folder: Path):
        self.path = folder / ROWS
        self.parts: dict[str, int] = json.loads((folder / PARTS).read_text())
        self.attributes: dict[str, Tensor] = torch.load(folder / ATTRIBUTES, weights_only=True)  # see from_tensor

    def __len__(self) -> int:
        return sum(self.parts.values())

    @property
    def names(self) -> list[str]:
        return self._open().schema.names

    def column(self, name: str) -> pa.ChunkedArray:
        return self._open().read_all().column(name)

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers (N,) in its own type, null as nan."""
        return self.column(name).to_numpy()

    def labels(self, tasks: Sequence[str]) -> np.ndarray:
        """1, 0 or nan if unknown (N, K) float32."""
        return np.stack([self.numbers(label_name(task)) for task in tasks], 1)

    def batches(self) -> Iterator[pa.RecordBatch]:
        file = self._open()
        return (file.get_batch(i) for i in range(file.num_record_batches))

    def _open(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self.path)))


def write_encoded(
    rows: StoredRows, description: Description, settings: Mapping[str, Any], name: str, target: Path
) -> None:
    """Split the rows, fit the encoder on the training rows, and encode all rows batch by batch.

    settings: split, dense_transform, min_count, num_bins. name: of the table, for messages.
    """
    tasks, time = list(description.tasks), description.only("time")
    labels = rows.labels(tasks)
    times = rows.numbers(time) if time else None
    codes = rows.numbers(SPLIT) if SPLIT in rows.names else None
    splits = split_rows(description, rows.parts, labels, times, codes, settings["split"], name)
    for part, chosen in splits.items():
        np.save(target / f"rows_{part}.npy", chosen)
    train = splits["train"]
    for task, label in zip(tasks, labels[train].T, strict=True):
        check(not np.isnan(label).all(), f"{name}: no training row has a label for {task}.")
    encoder = _fitted(rows, description, settings, train)
    write_tensors(target / "encoder.pt", {"encoder": encoder.state_dict(), "attributes": rows.attributes})
    width = encoder.width({field.name: rows.column(field.name) for field in encoder.fields if field.pooling})
    held_out = np.ones(len(rows), bool)
    held_out[train] = False
    counts, done = np.zeros((2, len(encoder.fields)), np.int64), 0  # of held-out rows, as by count_unseen
    with (
        _npy(target / "dense.npy", np.float32, (len(rows), encoder.num_dense)) as dense_file,
        _npy(target / "ids.npy", np.int32, (len(rows), encoder.starts(width)[-1])) as ids_file,
        _npy(target / "label.npy", np.float32, labels.shape) as label_file,
        tqdm(total=len(rows), desc="Encoding", unit="row", unit_scale=True) as bar,
    ):
        label_file.write(labels.data)
        for _, dense, ids in encoder.stream(rows.batches(), width):
            dense_file.write(dense.data)
            ids_file.write(ids.data)
            counts += encoder.count_unseen(ids[held_out[done : done + len(ids)]])
            done += len(ids)
            bar.update(len(ids))
    for weight in description.of_role("weight"):
        weights = rows.numbers(weight)
        mean = weights[train].mean()
        check(mean > 0, f"{name}: all training rows have weight 0.")
        np.save(target / "weight.npy", (weights / mean).astype(np.float32))  # mean 1, so the learning rate still fits
    if group := description.group or description.only("user"):
        codes = rows.column(group).dictionary_encode()
        np.save(target / "groups.npy", np.concatenate([c.indices.to_numpy() for c in codes.chunks]))
    of_texts = [(field.name, counts[:, i].tolist()) for i, field in enumerate(encoder.fields) if field.kind == "text"]
    summary = {
        "positive": {task: float(np.nanmean(labels[train, i])) for i, task in enumerate(tasks)},
        "held_out": dict(of_texts),
        "unlabelled": len(rows) - sum(map(len, splits.values())),
    }
    (target / "summary.json").write_text(json.dumps(summary))


def _fitted(rows: StoredRows, description: Description, settings: Mapping[str, Any], train: np.ndarray) -> TableEncoder:
    """The encoder of the training rows."""
    columns, order = inputs_of(description), np.sort(train)
    in_order = order[-1] - order[0] == len(order) - 1  # a slice is no copy

    def fit(name: str) -> tuple[list[Number], list[Field]]:
        values = rows.column(name)
        values = values.slice(int(order[0]), len(order)) if in_order else values.take(pa.array(order))
        return fit_column(name, columns[name], values, settings, description.missing_texts)

    each = map if len(rows) > MANY_ROWS else ordered_map
    numbers, fields = zip(*tqdm(each(fit, columns), "Fitting", len(columns), unit="column"), strict=True)
    return TableEncoder(list(chain(*numbers)), list(chain(*fields)))


def _npy(path: Path, dtype: type, shape: tuple[int, ...]) -> IO[bytes]:
    """An open .npy file with its header; whole rows are then written in order, which is faster than into a map."""
    file = open(path, "wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
