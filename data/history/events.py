"""The rows of a file of interactions in the order of time, with numbered users and items and what is known of them.

N: rows.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from common.errors import check
from data.attributes import read_attributes
from data.reader import Reader, data_files, source_of
from data.schema import Dataset, Format, Label
from data.table.encoder import Values
from data.table.rows import label_of

KEYS = ("user", "item")
RATINGS = (0.5, 5.0)  # of a published dataset, at least and at most
MOST_UNKNOWN = 0.01  # of the rows of a published dataset: more means that a file is cut off

Cells = list[Any]  # by number: a list of texts; or a number, None if unknown


def write_events(dataset: Dataset, published: bool, target: Path) -> None:
    """Write user, item (N,) int32 (numbers), rating (N,) float32 and time (N,) int64, by user and time, rows of equal
    time in file order, and first (users + 1,), the first row of each user, as .npy. users.json and items.json have what
    is known of them. published: whether it is MovieLens, whose ratings are at most 5, and whose files have all users
    and movies.

    Raises: UserError naming file, line and column of what is wrong.
    """
    form = dataset.description
    paths, reader, when = data_files(dataset.files["all"]), Reader(form), form.only("time")
    reader.encoded = True
    keys: dict[str, list[pa.Array]] = {key: [] for key in KEYS}
    blocks: list[tuple[np.ndarray, np.ndarray]] = []  # ratings and times
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc="Reading", delay=2) as bar:
        for source in map(source_of, paths):
            for batch in reader.batches(source, bar.update):
                rating = ratings_of(form, batch)
                valid = (rating >= RATINGS[0]) & (rating <= RATINGS[1]) if published else ~np.isnan(rating)
                if not valid.all():
                    row, name = int(valid.argmin()), str(form.only("rating", "label"))
                    scale = f"a rating from {RATINGS[0]} to {RATINGS[1]:g}"
                    expected = scale if published else "a value of the label in every row"
                    raise reader.error(row, name, rating[row], expected)
                for key, chunks in keys.items():
                    chunks.append(batch.column(str(form.only(key))).dictionary_encode())
                blocks.append((rating, batch.column(when).to_numpy() if when else np.zeros(len(batch))))
    tables = read_attributes(dataset)
    rating, time = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    numbered = {}
    for key, chunks in keys.items():
        values = Values.of(pa.chunked_array(chunks))
        found = values.distinct.to_pylist()
        integers = all(re.fullmatch("0|-?[1-9][0-9]*", text) for text in found)
        texts = sorted(found, key=int if integers else None)
        number = {text: i for i, text in enumerate(texts)}
        numbered[key] = column = np.array([number[text] for text in found], np.int32)[values.places]
        content = {"ids": texts, "attributes": {}, "titles": texts, "note": ""}
        if key in tables:
            content |= _known(dataset, key, tables[key], texts, column, published)
        (target / f"{key}s.json").write_text(json.dumps(content))
    order = np.lexsort((time, numbered["user"]))  # stable
    user, item = numbered["user"][order], numbered["item"][order]
    first = np.searchsorted(user, np.arange(user[-1] + 2))
    # without times they are ranks; fractions of a second matter only for the order
    time = time[order].astype(np.int64) if when else np.arange(len(user)) - first[user]
    columns = {"user": user, "item": item, "rating": rating[order], "time": time, "first": first}
    for name, values in columns.items():
        np.save(target / f"{name}.npy", values)


def ratings_of(form: Format, batch: pa.RecordBatch) -> np.ndarray:
    """Ratings (N,) float32: a label is 0 or 1, without either all are 1; nan if unknown."""
    name = form.only("rating") or form.only("label")
    if name not in batch.schema.names:
        return np.full(len(batch), np.nan if name else 1.0, np.float32)
    column, cells = form.columns[str(name)], batch.column(name)
    if isinstance(column, Label):
        encoded = cells.dictionary_encode("encode")
        values = [label_of(text, column, form.missing_texts) for text in encoded.dictionary.to_pylist()]
        return np.array(values, np.float32)[encoded.indices.to_numpy()]  # None is nan too
    return cells.cast(pa.float32()).to_numpy(zero_copy_only=False)


def _known(
    dataset: Dataset, key: Any, table: pa.RecordBatch, texts: list[str], column: np.ndarray, published: bool
) -> dict[str, Any]:
    """Cells of each attribute in the order of the texts, titles (a text without a row is its own), and a note on those
    that their own file lacks. column: positions among the texts in the rows (N,)."""
    form = dataset.description.attributes[key]
    path, place = dataset.path(form.file), pc.index_in(pa.array(texts, pa.string()), table.column(0))
    lacks = place.is_null().to_numpy(zero_copy_only=False)
    rows = lacks[column]
    note = f"{lacks.sum():,} of {len(texts):,} {key}s, with {rows.sum():,} of {len(rows):,} rows, are not in {path}."
    check(
        not published or rows.mean() <= MOST_UNKNOWN,
        f"{note} The files do not match, or one is cut off: get them again.",
    )
    check(
        not lacks.all(),
        f"{path}: column {form.only(key)!r} has none of the {len(texts):,} ids of {key}s in {dataset.where}. If "
        f'another column holds the ids, give that one the role "{key}".',
    )
    columns = {name: _cells(form, table.column(name).take(place)) for name in form.of_role("categorical", "dense")}
    kept = form.only("kept")
    titles = table.column(kept).take(place).to_pylist() if kept else texts
    titles = [title or text for title, text in zip(titles, texts, strict=True)]
    return {"attributes": columns, "titles": titles, "note": note if lacks.any() else ""}


def _cells(form: Format, column: pa.Array) -> Cells:
    cells = column.to_pylist()
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return cells
    missing = {*form.missing_texts, None}
    several = ([cell] if isinstance(cell, str | None) else cell for cell in cells)
    return [[text for text in cell if text not in missing] for cell in several]
