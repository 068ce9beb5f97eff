"""A table on disk, in two steps: columns as they are in the file, then rows as a model takes them.

Memory holds a few blocks of rows, or a few arrays of one column and the vocabularies. N: rows, K: tasks.
"""

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from common.data.parallel import ordered_map
from common.errors import check
from common.files import write_tensors
from data.table_encoder import MISSING, OOV, TableEncoder
from data.table_keys import long_keys
from data.table_reader import Rows, read_files
from data.table_schema import SPLITS, Schema
from data.table_splits import check_split, file_split, random_split, time_split
from data.table_values import Cells, Values, input_values, read_labels, read_texts, read_times

ENCODE_ROWS = 1 << 18  # rows encoded at a time
MANY_ROWS = 1 << 23  # from here on vocabularies are fitted one after the other: each takes three arrays of N
NEARLY_ALL = 0.9  # share of a column's values outside of the vocabulary that is worth a warning


@dataclass(frozen=True)
class _Block:
    """Rows ready to be written. long: distinct texts of more than 8 bytes, by column."""

    values: Values
    long: dict[str, pa.Array]
    labels: np.ndarray
    times: np.ndarray | None
    splits: np.ndarray | None


def write_columns(files: dict[str, list[Path]], schema: Schema, target: Path) -> None:
    """Write each column of the files to a binary file. files: {"all": ...}, or those of each split."""
    counts = {}
    sizes = sum(path.stat().st_size for paths in files.values() for path in paths)
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="Reading") as bar:
        for part, paths in files.items():
            counts[part] = 0
            for block in read_files(paths, schema, partial(_prepared, schema), bar.update):
                _append(block, schema, target)
                counts[part] += len(block.labels)
                bar.set_postfix_str(f"{sum(counts.values()) / bar.format_dict['elapsed']:,.0f} rows/s", refresh=False)
    (target / "rows.json").write_text(json.dumps(counts))


def _prepared(schema: Schema, rows: Rows) -> _Block:
    values, texts = input_values(rows, schema)
    long = {}
    for name, array in texts.items():
        array = array.filter(pc.greater(pc.binary_length(array), 8)).unique()
        if len(array):
            long[name] = array
    time = schema.of_role("time")
    return _Block(
        values,
        long,
        read_labels(rows, schema, list(schema.tasks)),
        read_times(rows, time[0]) if time else None,
        _read_splits(rows, schema, schema.split) if schema.split and schema.split_column else None,
    )


def _read_splits(rows: Rows, schema: Schema, split: dict[str, Any]) -> np.ndarray:
    """(N,) uint8: which of SPLITS each row belongs to."""
    name = split["column"]
    encoded = read_texts(rows, schema[name], schema)[0].dictionary_encode()
    code = {text: i for i, part in enumerate(SPLITS) for text in split[part]}
    codes = np.array([code.get(text, len(SPLITS)) for text in encoded.dictionary.to_pylist()] + [len(SPLITS)], np.uint8)
    found = codes[encoded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)]
    if (found == len(SPLITS)).any():
        row = int((found == len(SPLITS)).argmax())
        raise rows.error(row, name, f'one of the texts in "split": {", ".join(map(repr, code))}')
    return found


def _append(block: _Block, schema: Schema, target: Path) -> None:
    # opened for each block: a table may have more columns than a process may have open files
    for name, numbers in block.values.numbers.items():
        _add(target / f"{schema.names.index(name)}.numbers", numbers)
    for name, keys in block.values.keys.items():
        path = target / f"{schema.names.index(name)}.keys"
        if isinstance(keys, Cells):
            _add(path.with_suffix(".counts"), keys.counts)
            keys = keys.keys
        _add(path, keys)
    for name, texts in block.long.items():
        path = target / f"{schema.names.index(name)}.long"
        texts = [text.encode() for text in texts.to_pylist()]
        _add(path.with_suffix(".long_keys"), long_keys([text.decode() for text in texts]))
        _add(path.with_suffix(".long_lengths"), np.array([len(text) for text in texts], np.int32))
        _add(path.with_suffix(".long_texts"), np.frombuffer(b"".join(texts), np.uint8))
    for name, array in (("labels", block.labels), ("times", block.times), ("splits", block.splits)):
        if array is not None:
            _add(target / name, array)


def _add(path: Path, array: np.ndarray) -> None:
    with open(path, "ab") as file:
        array.tofile(file)


class Columns:
    """What write_columns wrote; arrays are read where they are needed, one column at a time."""

    def __init__(self, folder: Path, schema: Schema):
        self.folder, self.schema = folder, schema
        self.parts: dict[str, int] = json.loads((folder / "rows.json").read_text())
        self._starts = cache(self._read_starts)

    def __len__(self) -> int:
        return sum(self.parts.values())

    @property
    def labels(self) -> np.ndarray:
        """(N, K) float32."""
        return np.memmap(self.folder / "labels", np.float32, "r").reshape(len(self), -1)

    def split_rows(self, split: str, name: str) -> dict[str, np.ndarray]:
        """Row numbers of each split. split: "time" or "random", where the schema has none of its own."""
        own = self.schema.split or {"by": split}
        count = len(self)
        if "all" not in self.parts:
            rows = file_split(self.parts)
        elif "column" in own:
            codes = np.fromfile(self.folder / "splits", np.uint8)
            rows = {part: np.flatnonzero(codes == i).astype(np.int32) for i, part in enumerate(SPLITS)}
        else:
            check(count >= 10, f"{name}: found {count} rows; a split needs at least 10.")
            if own["by"] == "time":
                rows = time_split(self._time_order())
            else:
                label = self.labels[:, 0].astype(np.uint8)
                most = int(np.bincount(label).max())
                check(most >= 10, f"{name}: found at most {most} rows of a label; a random split needs 10 of one.")
                rows = random_split(label)
        check_split(rows, name)
        return rows

    def _time_order(self) -> np.ndarray:
        """Rows in order of time, equal times in order of the file, which is the order without a column of time."""
        if not (self.folder / "times").exists():
            return np.arange(len(self), dtype=np.int32)
        return np.argsort(np.fromfile(self.folder / "times"), kind="stable").astype(np.int32)

    def column(self, name: str, rows: slice | np.ndarray) -> Values:
        """One input column. rows: a slice with start and stop, or ascending or other row numbers."""
        if self.schema[name].role == "dense":
            return Values({name: self._array(name, "numbers", np.float64, rows)}, {})
        if not self._path(name, "counts").exists():
            return Values({}, {name: self._array(name, "keys", np.uint64, rows)})
        starts = self._starts(name)
        if isinstance(rows, slice):
            counts = np.diff(starts[rows.start : rows.stop + 1]).astype(np.int32)
            keys = self._array(name, "keys", np.uint64, slice(starts[rows.start], starts[rows.start] + counts.sum()))
        else:
            counts = np.diff(starts)[rows].astype(np.int32)
            first = np.repeat(starts[:-1][rows] - np.cumsum(counts) + counts, counts)
            keys = self._array(name, "keys", np.uint64, first + np.arange(len(first)))
        return Values({}, {name: Cells(keys, counts)})

    def values(self, rows: slice) -> Values:
        numbers: dict[str, np.ndarray] = {}
        keys: dict[str, np.ndarray | Cells] = {}
        for column in self.schema.inputs:
            part = self.column(column.name, rows)
            numbers |= part.numbers
            keys |= part.keys
        return Values(numbers, keys)

    def long_texts(self, name: str, keys: np.ndarray) -> dict[int, str]:
        """The texts of long keys."""
        there, first = np.unique(np.fromfile(self._path(name, "long_keys"), np.uint64), return_index=True)
        ends = np.fromfile(self._path(name, "long_lengths"), np.int32).cumsum(dtype=np.int64)
        content = np.memmap(self._path(name, "long_texts"), np.uint8, "r")
        index = first[np.searchsorted(there, keys)]
        starts = np.concatenate([[0], ends])[index]
        texts = (bytes(content[a:b]).decode() for a, b in zip(starts.tolist(), ends[index].tolist(), strict=True))
        return dict(zip(keys.tolist(), texts, strict=True))

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{self.schema.names.index(name)}.{kind}"

    def _array(self, name: str, kind: str, dtype: type, rows: slice | np.ndarray) -> np.ndarray:
        path = self._path(name, kind)
        if isinstance(rows, slice):  # read, not mapped: mapped pages count as memory of the process
            return np.fromfile(path, dtype, rows.stop - rows.start, offset=rows.start * np.dtype(dtype).itemsize)
        return np.array(np.memmap(path, dtype, "r")[rows]) if path.stat().st_size else np.empty(0, dtype)

    def _read_starts(self, name: str) -> np.ndarray:
        """Where the values of each cell start, and the end."""
        return np.concatenate([[0], np.fromfile(self._path(name, "counts"), np.int32).cumsum(dtype=np.int64)])


def write_encoded(columns: Columns, settings: dict[str, Any], name: str, target: Path) -> None:
    """Fit the encoder on the training rows, encode all rows block by block.

    settings: split, dense_transform, min_count, num_bins. name: of the table, for messages.
    """
    schema, count, labels = columns.schema, len(columns), columns.labels
    splits = columns.split_rows(settings["split"], name)
    for part, rows in splits.items():
        np.save(target / f"rows_{part}.npy", rows)
    numbers = splits["train"]
    train: np.ndarray | slice = numbers
    if len(numbers) == numbers[-1] + 1 - numbers[0] and (np.diff(numbers) == 1).all():
        train = slice(int(numbers[0]), int(numbers[-1]) + 1)  # a piece of a file instead of a copy of single rows
    with tqdm(total=len(schema.inputs), desc="Fitting", unit="column") as bar:

        def train_column(column: str) -> Values:
            bar.update()
            return columns.column(column, train)

        each = map if count > MANY_ROWS else ordered_map
        encoder = TableEncoder.fit(schema, settings, train_column, columns.long_texts, each)
    write_tensors(target / "encoder.pt", encoder.state_dict())

    held_out = np.ones(count, bool)
    held_out[train] = False
    oov, missing, held_out_oov, held_out_known = np.zeros((4, len(encoder.fields)), np.int64)
    with (
        _npy_writer(target / "dense.npy", np.float32, (count, encoder.num_dense)) as dense_file,
        _npy_writer(target / "ids.npy", np.int32, (count, sum(encoder.slots))) as ids_file,
        tqdm(total=count, desc="Encoding", unit="row", unit_scale=True) as bar,
    ):
        starts = range(0, count, ENCODE_ROWS)
        pieces = [slice(start, min(start + ENCODE_ROWS, count)) for start in starts]
        for piece, (dense, ids) in zip(
            pieces, ordered_map(lambda piece: encoder.encode(columns.values(piece)), pieces), strict=True
        ):
            dense.tofile(dense_file)
            ids.tofile(ids_file)
            first = ids[:, encoder.starts]  # of several values
            is_oov, is_missing = first == OOV, first == MISSING
            oov += is_oov.sum(0)
            missing += is_missing.sum(0)
            held_out_oov += is_oov[held_out[piece]].sum(0)
            held_out_known += (~is_missing)[held_out[piece]].sum(0)
            bar.update(len(ids))
    with _npy_writer(target / "label.npy", np.float32, labels.shape) as file:
        labels.tofile(file)
    if schema.group:
        keys = columns.column(schema.group, slice(0, count)).keys[schema.group]
        assert not isinstance(keys, Cells)  # columns.json may name no such column
        np.save(target / "groups.npy", np.unique(keys, return_inverse=True)[1].astype(np.int32))
    summary = {
        "rows": {part: len(rows) for part, rows in splits.items()},
        "positive": {
            task: {part: float(labels[rows, i].mean()) for part, rows in splits.items()}
            for i, task in enumerate(schema.tasks)
        },
        "fields": {
            field.name: {
                "ids": field.cardinality,
                "unseen_or_rare": oov[i] / count,
                "missing": missing[i] / count,
                "held_out_unseen": int(held_out_oov[i]),
                "held_out_values": int(held_out_known[i]),
            }
            for i, field in enumerate(encoder.fields)
        },
        "dense": {column.name: column.transform for column in encoder.dense},
    }
    (target / "summary.json").write_text(json.dumps(summary))


def nearly_unseen(fields: dict[str, tuple[int, int]]) -> list[str]:
    """Columns with nearly all values out of vocabulary. fields: (out-of-vocabulary count, value count) by column."""
    return [name for name, (unseen, values) in fields.items() if values and unseen / values > NEARLY_ALL]


def _npy_writer(path: Path, dtype: type, shape: tuple[int, ...]) -> BinaryIO:
    """An open .npy file whose rows are still to be written."""
    file = open(path, "wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
