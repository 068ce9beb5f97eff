"""The rows of a table: read once into one Arrow file, from which arrays are written for any settings.

N: rows, K: tasks.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from data.reader import Reader, Source, data_files, source_of
from data.schema import Column, ColumnSplit, Dataset, Description, Label, Rating
from data.table.encoder import MISSING, OOV, Field, TableEncoder, fit_column, to_tensor
from data.table.splits import split_rows
from data.values import BadValue, canonical

ROWS, PARTS, ATTRIBUTES = "rows.arrow", "parts.json", "attributes.pt"  # of the cache
SHOWN_LABELS = 8
SPLIT = "\0split"  # a name that no column of a file can have
MANY_ROWS = 1 << 23  # from here on columns are processed one at a time: each takes several arrays of N elements


def inputs_of(description: Description) -> dict[str, Column]:
    """The input columns of a table in order, those of second files last."""
    own = {name: description.columns[name] for name in description.of_role("dense", "categorical", "user", "item")}
    return own | joined_columns(description)


class TableReader(Reader):
    """Reads files into batches with the columns of second files joined in, and a column `LABEL + task` per task."""

    def __init__(self, description: Description, attributes: Attributes, tasks: Sequence[str], scoring: bool = False):
        super().__init__(description, scoring)
        self.description, self.attributes = description, attributes
        self.tasks = {task: description.tasks[task] for task in tasks}

    def _checked(self, source: Source, batch: pa.RecordBatch, before: int) -> pa.RecordBatch:
        batch = super()._checked(source, batch, before)
        columns = join(self.description, self.attributes, batch)
        for task, name in self.tasks.items():
            try:
                columns[label_name(task)] = self._label(name, columns.get(name), len(batch))
            except BadValue as bad:
                row = bad.row or 0
                raise self.error(source, before + row, name, columns[name][row].as_py(), bad.expected) from bad
        split = getattr(self.description.split, "column", None)
        if split is not None and not self.scoring:
            columns[SPLIT] = self._split(source, split, columns[split], before)
        return pa.RecordBatch.from_pydict(columns)

    def _label(self, name: str, array: pa.Array | None, rows: int) -> pa.Array:
        """1, 0 or nan (unknown) for each row (N,) float32."""
        if array is None:
            return pa.repeat(pa.scalar(np.nan, pa.float32()), rows)
        encoded = array.dictionary_encode()
        column, texts = self.description.columns[name], encoded.dictionary.to_pylist()
        values = np.array([label_of(text, column, self.description.missing_texts) for text in texts] + [np.nan])
        if None in values:
            expected = _expected(column) + ("" if self.form.header else " (the file must have no header line)")
            raise BadValue(encoded.indices.to_pylist().index(values.tolist().index(None)), expected)
        places = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
        return pa.array(values.astype(np.float32)[places])

    def _split(self, source: Source, name: str, array: pa.Array, before: int) -> pa.Array:
        """The index of each row's split in SPLITS."""
        split = self.description.split
        assert isinstance(split, ColumnSplit)
        known = [(text, i) for i, part in enumerate(SPLITS) for text in getattr(split, part)]
        place = pc.index_in(array, value_set=pa.array([text for text, _ in known]))
        if place.null_count:
            row = int(np.argmax(place.is_null().to_numpy(zero_copy_only=False)))
            texts = ", ".join(repr(text) for text, _ in known)
            raise self.error(source, before + row, name, array[row].as_py(), f'one of the values in "split": {texts}')
        return pa.array([i for _, i in known], pa.int8()).take(place)


def label_name(task: str) -> str:
    return f"\0label {task}"


def label_of(value: Any, column: Column, missing: Sequence[str]) -> float | None:
    """1, 0, nan if unknown, or None for a text that is no label."""
    if value is None or (isinstance(value, str) and value in missing):
        return np.nan
    assert isinstance(column, Label | Rating)
    if isinstance(column, Rating) and column.click_from is not None:
        return float(value >= column.click_from)
    text = _same(value if isinstance(value, str) else repr(value))
    if text in map(_same, column.positive or ()):
        return 1.0
    if isinstance(column, Rating):
        return 0.0 if text in map(_same, column.negative or ()) else np.nan  # other ratings are left out
    return 0.0 if column.negative is None or text in map(_same, column.negative) else None


def _same(text: str) -> str:
    """Equal for equal labels: "1.0" and "1", "True" and "true"."""
    return canonical(text).casefold()


def _expected(column: Column) -> str:
    assert isinstance(column, Label | Rating)
    known = sorted({*(column.positive or ()), *(column.negative or ())})
    shown = " or ".join(map(repr, known[:SHOWN_LABELS])) + (" or another" if len(known) > SHOWN_LABELS else "")
    return f"{shown}, or nothing if it is unknown"


def write_rows(table: Dataset, description: Description, target: Path) -> None:
    """Read the files of a table into one Arrow file. description: that of the table, without what is not used."""
    attributes = read_attributes(table)
    reader = TableReader(description, attributes, list(description.tasks))
    files = {part: data_files(path) for part, path in table.files.items()}
    parts = dict.fromkeys(files, 0)
    sizes = sum(path.stat().st_size for paths in files.values() for path in paths)
    writer = None
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="Reading") as bar:
        for part, paths in files.items():
            for path in paths:
                for batch in reader.batches(source_of(path), bar.update):
                    writer = writer or pa.ipc.new_file(str(target / ROWS), batch.schema)
                    writer.write_batch(batch)
                    parts[part] += len(batch)
                    rows = sum(parts.values())
                    bar.set_postfix_str(f"{rows / bar.format_dict['elapsed']:,.0f} rows/s", refresh=False)
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
    labels = np.stack([rows.numbers(label_name(task)) for task in tasks], 1)
    times = rows.numbers(time) if time else None
    codes = rows.numbers(SPLIT) if SPLIT in rows.names else None
    splits = split_rows(description, rows.parts, labels, times, codes, settings["split"], name)
    for part, chosen in splits.items():
        np.save(target / f"rows_{part}.npy", chosen)
    train = splits["train"]
    for task, label in zip(tasks, labels[train].T, strict=True):
        known = label[~np.isnan(label)]
        check(len(known) > 0, f"{name}: no training row has a label for {task}.")
    each = map if len(rows) > MANY_ROWS else ordered_map
    columns = inputs_of(description)

    def fit(name: str) -> Any:
        return fit_column(name, columns[name], rows.column(name), train, settings, description.missing_texts)

    fitted = tqdm(each(fit, columns), "Fitting", len(columns), unit="column")
    encoder = TableEncoder.of(fitted)
    write_tensors(target / "encoder.pt", {"encoder": encoder.state_dict(), "attributes": rows.attributes})

    looked_up = {str(i): field for i, field in enumerate(encoder.fields) if field.looks_up}

    def look_up(item: tuple[str, Field]) -> None:  # whole columns, because each call builds a hash table
        positions = item[1].positions(rows.column(item[1].name))
        (target / item[0]).write_bytes(positions.to_numpy().data)

    for _ in tqdm(each(look_up, looked_up.items()), "Looking up", len(looked_up), unit="column"):
        pass
    width = max([1, *(encoder.width({f.name: rows.column(f.name)}) for f in encoder.fields if f.pooling)])
    first = encoder.first_columns(width)
    held_out = np.ones(len(rows), bool)
    held_out[train] = False
    unseen, values, done = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64), 0
    positions = {field.name: open(target / i, "rb") for i, field in looked_up.items()}
    with (
        _npy(target / "dense.npy", np.float32, (len(rows), encoder.num_dense)) as dense_file,
        _npy(target / "ids.npy", np.int32, (len(rows), encoder.num_ids(width))) as ids_file,
        tqdm(total=len(rows), desc="Encoding", unit="row", unit_scale=True) as bar,
    ):

        def placed() -> Iterator[dict[str, pa.Array]]:
            for batch in rows.batches():
                found = {n: batch.column(n) for n in columns if n not in positions}
                yield found | {n: pa.array(np.fromfile(f, np.int32, len(batch))) for n, f in positions.items()}

        for dense, ids in ordered_map(lambda batch: encoder.encode(batch, width), placed()):
            dense_file.write(dense.data)
            ids_file.write(ids.data)
            shown = ids[held_out[done : done + len(ids)]][:, first]  # the first value of each cell
            unseen += (shown == OOV).sum(0)
            values += (shown != MISSING).sum(0)
            done += len(ids)
            bar.update(len(ids))
    for i, opened in zip(looked_up, positions.values(), strict=True):
        opened.close()
        (target / i).unlink()
    with _npy(target / "label.npy", np.float32, labels.shape) as file:
        file.write(labels.data)
    for weight in description.of_role("weight"):
        weights = rows.numbers(weight)
        mean = weights[train].mean()
        check(mean > 0, f"{name}: all training rows have weight 0.")
        np.save(target / "weight.npy", (weights / mean).astype(np.float32))  # mean 1, so the learning rate still fits
    if group := description.group or description.only("user"):
        codes = rows.column(group).dictionary_encode()
        np.save(target / "groups.npy", np.concatenate([c.indices.to_numpy() for c in codes.chunks]))
    summary = {
        "positive": {task: float(np.nanmean(labels[train, i])) for i, task in enumerate(tasks)},
        "held_out": {
            f.name: [int(unseen[i]), int(values[i])] for i, f in enumerate(encoder.fields) if f.kind == "text"
        },
        "unlabelled": int(len(rows) - sum(map(len, splits.values()))),
    }
    (target / "summary.json").write_text(json.dumps(summary))


def _npy(path: Path, dtype: type, shape: tuple[int, ...]) -> IO[bytes]:
    """An open .npy file with its header; whole rows are then written in order, which is faster than into a map."""
    file = open(path, "wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
