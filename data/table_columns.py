"""A table's parsed columns on disk, independent of vocabularies, scales and splits, for which they are read again.

Rows stay in the blocks in which they were read. Memory holds a few blocks, or a few arrays of one column. N: rows, K:
tasks.

One file holds, block after block: for a dense column `numbers` (N,) float64; for a categorical one `codes` (N,) int32,
which entry of its block each row has, and, if a cell may hold several values, `counts` int32, the number of keys per
entry; also labels, times, weights and splits. For each categorical column there are further files: one with its
distinct keys, ascending, one with the entries of all blocks as positions in them, and two with the texts of long keys.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from common.data.data_module import SPLITS
from common.data.parallel import ordered_map
from data.table_categories import Categories, is_long, text_bytes, texts_of
from data.table_reader import Rows, read_files
from data.table_schema import Schema
from data.table_values import Values, input_values, read_labels, read_texts, read_times, read_weights

BLOCKS = "blocks"  # name of the one file
MANY_ROWS = 1 << 23  # from here on columns are processed one at a time: each takes several arrays of N elements


class Pieces:
    """Arrays that are written to one file block by block. index: offset and length of each piece, by name."""

    def __init__(self, path: Path, index: dict[str, list] | None = None):
        self.path, self.index = path, {} if index is None else index
        self._size = 0

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        with open(self.path, "ab") as file:
            # a single call, because each one has to wait for the reading threads
            file.write(b"".join(array.data for array in arrays.values()))
        for name, array in arrays.items():
            self.index.setdefault(name, []).append((self._size, array.size))
            self._size += array.nbytes

    def read(self, name: str, block: int, dtype: type) -> np.ndarray:
        offset, count = self.index[name][block]
        return np.fromfile(self.path, dtype, count, offset=offset)  # not mapped, because mapped pages count as memory

    def whole(self, name: str, dtype: type) -> np.ndarray:
        """The pieces of all blocks as one array."""
        ends = np.cumsum([0, *(count for _, count in self.index[name])])
        whole = np.empty(ends[-1], dtype)
        for block in range(len(ends) - 1):
            whole[ends[block] : ends[block + 1]] = self.read(name, block, dtype)
        return whole


def write_columns(files: dict[str, list[Path]], schema: Schema, target: Path) -> None:
    """Parse the files and write their columns. files: {"all": ...}, or one list per split."""
    parts, rows = dict.fromkeys(files, 0), []
    pieces, keys = Pieces(target / BLOCKS), Pieces(target / "keys")
    sizes = sum(path.stat().st_size for paths in files.values() for path in paths)
    with tqdm(total=sizes, unit="B", unit_scale=True, desc="Reading") as bar:
        for part, paths in files.items():
            for count, of_rows, of_keys in read_files(paths, schema, partial(_prepared, schema), bar.update):
                pieces.add(of_rows)
                keys.add(of_keys)
                rows.append(count)
                parts[part] += count
                bar.set_postfix_str(f"{sum(rows) / bar.format_dict['elapsed']:,.0f} rows/s", refresh=False)
    each = map if sum(rows) > MANY_ROWS else ordered_map
    categorical = [schema.names.index(column.name) for column in schema.of_role("categorical")]
    for _ in tqdm(each(partial(_number_keys, keys, target), categorical), "Sorting", len(categorical)):
        pass
    keys.path.unlink()
    lengths = {name: [count for _, count in places] for name, places in keys.index.items() if name.endswith(".keys")}
    content = {"parts": parts, "rows": rows, "pieces": pieces.index, "keys": lengths}
    (target / "blocks.json").write_text(json.dumps(content))


def _prepared(schema: Schema, rows: Rows) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Row count, arrays over rows, and arrays over keys (with the texts of long ones), by column number and kind."""
    values, texts = input_values(rows, schema)
    of_rows, of_keys = {}, {}
    for name, numbers in values.numbers.items():
        of_rows[f"{schema.names.index(name)}.numbers"] = numbers
    for name, categories in values.categories.items():
        column = schema.names.index(name)
        of_rows[f"{column}.codes"], of_keys[f"{column}.keys"] = categories.codes, categories.keys
        if categories.counts is not None:
            of_rows[f"{column}.counts"] = categories.counts
        content, starts = text_bytes(texts[name].filter(pc.greater(pc.binary_length(texts[name]), 8)))
        of_keys |= {f"{column}.texts": content, f"{column}.lengths": np.diff(starts).astype(np.int32)}
    of_rows["labels"] = read_labels(rows, schema, list(schema.tasks))
    for time in schema.of_role("time"):
        of_rows["times"] = read_times(rows, time)
    for weight in schema.of_role("weight"):
        of_rows["weights"] = read_weights(rows, weight)
    if schema.split and schema.split_column:
        of_rows["splits"] = _read_splits(rows, schema, schema.split)
    return len(rows), of_rows, of_keys


def _number_keys(pieces: Pieces, target: Path, column: int) -> None:
    """Write a column's distinct keys, the texts of the long ones, and the keys of all entries as positions."""
    keys = pieces.whole(f"{column}.keys", np.uint64)
    found = pa.array(keys).dictionary_encode()  # a hash table: faster than sorting all keys
    distinct, codes = found.dictionary.to_numpy(), found.indices.to_numpy()
    order = np.argsort(distinct)
    number = np.empty(len(distinct), np.int32)
    number[order] = np.arange(len(distinct), dtype=np.int32)
    entries, distinct = number[codes], distinct[order]
    long = np.flatnonzero(is_long(keys))  # these have a text, equal ones the same
    text = np.empty(len(distinct), np.int64)
    text[entries[long]] = np.arange(len(long))
    texts = texts_of(pieces.whole(f"{column}.texts", np.uint8), pieces.whole(f"{column}.lengths", np.int32))
    content, starts = text_bytes(texts.take(pa.array(text[is_long(distinct)])))
    arrays = {"entries": entries, "keys": distinct, "texts": content, "lengths": np.diff(starts).astype(np.int32)}
    for kind, array in arrays.items():
        (target / f"{column}.{kind}").write_bytes(array.data)


def _read_splits(rows: Rows, schema: Schema, split: dict[str, Any]) -> np.ndarray:
    """The split of each row as an index into SPLITS (N,) uint8."""
    name = split["column"]
    codes, texts, _ = read_texts(rows, schema[name], schema)
    numbers = {text: i for i, part in enumerate(SPLITS) for text in split[part]}
    found = np.array([numbers.get(text, len(SPLITS)) for text in texts.to_pylist()] + [len(SPLITS)], np.uint8)[codes]
    if (found == len(SPLITS)).any():
        row = int((found == len(SPLITS)).argmax())
        raise rows.error(row, name, f'one of the values in "split": {", ".join(map(repr, numbers))}')
    return found


class Columns:
    """Reads what write_columns wrote, one column or one block at a time."""

    def __init__(self, folder: Path, schema: Schema):
        self.folder, self.schema = folder, schema
        content = json.loads((folder / "blocks.json").read_text())
        self.parts: dict[str, int] = content["parts"]
        self.ends = np.cumsum([0, *content["rows"]])  # of blocks, in rows
        self._pieces = Pieces(folder / BLOCKS, content["pieces"])
        self._key_ends = {name: np.cumsum([0, *lengths]) for name, lengths in content["keys"].items()}

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def blocks(self) -> range:
        return range(len(self.ends) - 1)

    def rows(self, block: int) -> slice:
        return slice(int(self.ends[block]), int(self.ends[block + 1]))

    def labels(self) -> np.ndarray:
        """(N, K) float32."""
        return self._pieces.whole("labels", np.float32).reshape(len(self), -1)

    def of_rows(self, name: str, dtype: type) -> np.ndarray | None:
        """times, weights or splits (N,); None if the table has none."""
        return self._pieces.whole(name, dtype) if name in self._pieces.index else None

    def numbers(self, name: str) -> np.ndarray:
        """A dense column (N,) float64."""
        return self._pieces.whole(f"{self.schema.names.index(name)}.numbers", np.float64)

    def categories(self, name: str, block: int) -> Categories:
        """A block of a categorical column; `keys` are int32 positions in those of the column, not keys themselves."""
        column = self.schema.names.index(name)
        start, end = self._key_ends[f"{column}.keys"][block : block + 2].tolist()
        has_counts = f"{column}.counts" in self._pieces.index
        return Categories(
            self._pieces.read(f"{column}.codes", block, np.int32),
            np.fromfile(self.folder / f"{column}.entries", np.int32, end - start, offset=4 * start),
            self._pieces.read(f"{column}.counts", block, np.int32) if has_counts else None,
        )

    def keys(self, name: str) -> np.ndarray:
        """The distinct keys of a categorical column, ascending."""
        return self._file(name, "keys", np.uint64)

    def key_numbers(self, name: str) -> np.ndarray:
        """Numbers (N,) int32 of the values of a categorical column with one value per cell; equal for equal values."""
        blocks = (self.categories(name, block) for block in self.blocks)
        return np.concatenate([values.keys[values.codes] for values in blocks])

    def long_texts(self, name: str) -> pa.Array:
        """The texts of a column's long keys, as binary."""
        return texts_of(self._file(name, "texts", np.uint8), self._file(name, "lengths", np.int32))

    def _file(self, name: str, kind: str, dtype: type) -> np.ndarray:
        return np.fromfile(self.folder / f"{self.schema.names.index(name)}.{kind}", dtype)

    def values(self, block: int) -> Values:
        """The inputs of a block."""
        return Values(
            {
                column.name: self._pieces.read(f"{self.schema.names.index(column.name)}.numbers", block, np.float64)
                for column in self.schema.of_role("dense")
            },
            {column.name: self.categories(column.name, block) for column in self.schema.of_role("categorical")},
        )

    def key_counts(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """How often each key occurs in `rows` (N,) bool, and the most values in a cell (0 if cells hold one value)."""
        total, most = np.zeros(len(self.keys(name)), np.int64), 0
        for block in self.blocks:
            values, chosen = self.categories(name, block), rows[self.rows(block)]
            codes = values.codes if chosen.all() else values.codes[chosen]
            number = np.bincount(codes, minlength=len(values.keys if values.counts is None else values.counts))
            if values.counts is not None:
                most = max(most, 1, int(values.counts[codes].max(initial=0)))
                number = np.repeat(number, values.counts)
            np.add.at(total, values.keys, number)
        return total, most
