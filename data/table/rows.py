"""The rows of a table: read once into one Arrow file, from which arrays are written for any settings.

N: rows, K: tasks.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.types import is_dictionary, is_list
from tqdm import tqdm

from common.data.parallel import THREADS, ordered_map
from common.errors import check
from common.files import write_tensors
from data.attributes import Attributes, join, joined_columns, read_attributes
from data.reader import Reader, data_files, source_of
from data.schema import Column, ColumnSplit, Dataset, Description, Label, Rating
from data.table.encoder import Field, TableEncoder, Values, count_unseen, fit_column, to_tensor
from data.table.numbers import Number
from data.table.splits import split_rows
from data.values import BadValue, canonical

ROWS, PARTS = "rows.arrow", "parts.json"  # of the cache
SHOWN_LABELS = 8
MANY_VALUES = 1 << 22  # in the dictionaries of all batches: such a column takes much memory, and is encoded alone
BLOCK_ROWS = 1 << 14


def inputs_of(description: Description) -> dict[str, Column]:
    """The input columns of a table in order, those of second files last."""
    own = {name: description.columns[name] for name in description.of_role("dense", "categorical", "user", "item")}
    return own | joined_columns(description)


class TableReader(Reader):
    """Reads files into batches with the columns of second files joined in, and a column `label_name(task)` per task."""

    def __init__(self, description: Description, attributes: Attributes, tasks: Sequence[str], scoring: bool = False):
        super().__init__(description, scoring)
        self.description, self.attributes, self.encoded = description, attributes, not scoring
        self.tasks = {task: description.tasks[task] for task in tasks}

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        batch = super()._checked(batch)
        columns = join(self.description, self.attributes, batch)
        for task, name in self.tasks.items():
            array = columns.get(name, pa.nulls(len(batch), pa.string()))  # a file to score may lack its labels
            try:
                columns[label_name(task)] = self._label(name, array)
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
    reader = TableReader(description, read_attributes(table), list(description.tasks))
    files = [(part, file) for part, path in table.files.items() for file in data_files(path)]
    parts, schema, writer = dict.fromkeys(table.files, 0), None, None
    with tqdm(total=sum(file.stat().st_size for _, file in files), unit="B", unit_scale=True, desc="Reading") as bar:
        for part, file in files:
            for batch in reader.batches(source_of(file), bar.update):
                schema = schema or batch.schema
                writer = writer or pa.ipc.new_stream(str(target / ROWS), schema)
                writer.write_batch(batch.cast(schema))  # of texts, some batches may be dictionaries
                parts[part] += len(batch)
                speed = sum(parts.values()) / bar.format_dict["elapsed"]
                bar.set_postfix_str(f"{speed:,.0f} rows/s", refresh=False)
    assert writer is not None  # a file without rows is an error
    writer.close()
    (target / PARTS).write_text(json.dumps(parts))


class StoredRows:
    """What write_rows wrote, mapped."""

    def __init__(self, folder: Path):
        self.parts: dict[str, int] = json.loads((folder / PARTS).read_text())  # rows of each file
        # IpcReadOptions(included_fields=...) would copy the whole file
        self.table = pa.ipc.open_stream(pa.memory_map(str(folder / ROWS))).read_all()

    def labels(self, tasks: Sequence[str]) -> np.ndarray:
        """1, 0 or nan if unknown (N, K) float32."""
        return np.stack([self.table[label_name(task)].to_numpy() for task in tasks], 1)


def write_encoded(
    rows: StoredRows, table: Dataset, description: Description, settings: Mapping[str, Any], target: Path
) -> None:
    """Split the rows, and write them as arrays, encoded by what is fitted on the training rows.

    settings: split, dense_transform, min_count, num_bins.
    """
    summary, is_train = _write_targets(rows, table, description, settings["split"], target)
    encoder, summary["held_out"] = _write_inputs(rows, description, settings, is_train, target)
    state = {"encoder": encoder.state_dict(), "description": description.model_dump(mode="json")}
    state["attributes"] = {role: to_tensor(batch) for role, batch in read_attributes(table).items()}
    write_tensors(target / "encoder.pt", state)
    (target / "summary.json").write_text(json.dumps(summary))


def _write_targets(
    rows: StoredRows, table: Dataset, description: Description, split: str, target: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """Write the rows of each split, labels, weights and groups. Returns a summary, and whether each row is for training
    (N,)."""
    tasks, time, own, where = list(description.tasks), description.only("time"), description.split, table.where
    labels = rows.labels(tasks)
    np.save(target / "label.npy", labels)
    times = rows.table[time].to_numpy() if time else None
    texts = rows.table[own.column] if isinstance(own, ColumnSplit) else None
    splits, protocol = split_rows(description, rows.parts, labels, times, texts, split, where)
    for part, chosen in splits.items():
        np.save(target / f"rows_{part}.npy", chosen)
    is_train, positive = np.zeros(len(labels), bool), {}
    is_train[splits["train"]] = True
    for task, label in zip(tasks, labels[splits["train"]].T, strict=True):
        check(not np.isnan(label).all(), f"{where}: no training row has a label for {task}.")
        positive[task] = float(np.nanmean(label))
    for weight in description.of_role("weight"):
        weights = rows.table[weight].to_numpy()
        mean = weights[splits["train"]].mean()
        check(mean > 0, f"{where}: all training rows have weight 0.")
        np.save(target / "weight.npy", (weights / mean).astype(np.float32))  # mean 1, so the learning rate still fits
    if group := description.group or description.only("user"):
        np.save(target / "groups.npy", Values.of(rows.table[group]).places.astype(np.int32))
    unlabelled = len(labels) - sum(map(len, splits.values()))
    return {"positive": positive, "protocol": protocol, "unlabelled": unlabelled}, is_train


def _write_inputs(
    rows: StoredRows, description: Description, settings: Mapping[str, Any], is_train: np.ndarray, target: Path
) -> tuple[TableEncoder, dict[str, list[int]]]:
    """Fit and encode column by column, of which memory holds one per thread, then put them together row by row.

    Returns the encoder and, of each field of texts, what is unseen in the held-out rows, as count_unseen says.
    """
    columns, large = inputs_of(description), Lock()
    lists = [rows.table[name] for name in columns if is_list(rows.table[name].type)]
    width = max([1, *(pc.max(pc.list_value_length(column)).as_py() for column in lists)])
    with TemporaryDirectory(dir=target) as folder:

        def encode(item: tuple[int, str]) -> tuple[Number | None, Field | None, list[int]]:
            i, name = item
            column, unseen = rows.table[name], [0, 0]
            with large if _dictionary_size(column) > MANY_VALUES else nullcontext():
                values = Values.of(column)
                number, field, known = fit_column(
                    name, columns[name], values, is_train, settings, description.missing_texts
                )
                if number:
                    np.save(f"{folder}/dense{i:06}.npy", number.encode(values.numbers)[values.places])
                if number and number.has_flag:
                    np.save(f"{folder}/flag{i:06}.npy", np.isnan(values.numbers)[values.places])
                if field:
                    cells = field.encode(values, width, known)
                    np.save(f"{folder}/ids{i:06}.npy", np.ascontiguousarray(cells.T))
                    unseen = count_unseen(cells[~is_train])
            pa.default_memory_pool().release_unused()
            return number, field, unseen

        with ThreadPoolExecutor(THREADS) as pool:  # not ordered_map, which would wait for the largest column
            fitted = list(tqdm(pool.map(encode, enumerate(columns)), "Encoding", len(columns), unit="column"))
        dense, flags, ids = (sorted(Path(folder).glob(f"{kind}*")) for kind in ("dense", "flag", "ids"))
        arrays = (dense + flags, np.float32, target / "dense.npy"), (ids, np.int32, target / "ids.npy")
        list(ordered_map(lambda array: _join(*array, len(is_train)), arrays))
    encoder = TableEncoder([n for n, _, _ in fitted if n], [f for _, f, _ in fitted if f])
    return encoder, {field.name: unseen for _, field, unseen in fitted if field and field.kind == "text"}


def _dictionary_size(column: pa.ChunkedArray) -> int:
    """Number of values in the dictionaries of all batches."""
    return sum(len(chunk.dictionary) for chunk in column.chunks) if is_dictionary(column.type) else 0


def _join(paths: Sequence[Path], dtype: type, target: Path, count: int) -> None:
    """Files of columns (N,) or (W, N) become one .npy file of rows (N, S).

    Whole rows are written in order, which is faster than columns into a map.
    """
    columns = [np.load(path, mmap_mode="r").reshape(-1, count) for path in paths]
    columns.append(np.empty((0, count), dtype))
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, sum(map(len, columns)))}
    with open(target, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, BLOCK_ROWS):
            block = np.concatenate([column[:, start : start + BLOCK_ROWS] for column in columns])
            file.write(np.ascontiguousarray(block.T, dtype).data)
