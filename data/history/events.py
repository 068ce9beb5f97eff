"""The rows of a file of interactions in the order of time, with numbered users and items and what is known of them.

N: rows.
"""

import json
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
from data.table.rows import label_of

KEYS = ("user", "item")
RATINGS = (0.5, 5.0)  # of a published dataset, at least and at most
MOST_UNKNOWN = 0.01  # of the rows of a published dataset: more means that a file is cut off

Cells = list[Any]  # by number: a list of texts; or a number, None if unknown


def write_events(dataset: Dataset, published: bool, target: Path) -> None:
    """Write user, item (N,) int32 (numbers), rating (N,) float32, time (N,) int64 and start (N,) int32, the user's
    first row, as .npy: by user and time, rows of equal time in file order. users.json and items.json have the rest.
    published: whether it is MovieLens, whose ratings are at most 5, and whose files have all users and movies.

    Raises: UserError naming file, line and column of what is wrong.
    """
    form = dataset.description
    paths, reader = data_files(dataset.files["all"]), Reader(form)
    numbers: dict[str, dict[str, int]] = {key: {} for key in KEYS}
    blocks: list[list[np.ndarray]] = []
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size, unit="B", unit_scale=True, desc="Reading", delay=2) as bar:
        for source in map(source_of, paths):
            for batch in reader.batches(source, bar.update):
                rating = ratings_of(form, batch)
                _check_ratings(form, reader, rating, published)
                ids = [_numbered(batch.column(str(form.only(key))), numbers[key]) for key in KEYS]
                blocks.append([*ids, rating, _times(form, batch)])
    tables = read_attributes(dataset)
    user, item, rating, time = (np.concatenate(columns) for columns in zip(*blocks, strict=True))
    for key, column in zip(KEYS, (user, item), strict=True):
        texts, rank = _in_order(list(numbers[key]))
        column[:] = rank[column]
        content: dict[str, Any] = {"ids": texts, "attributes": {}, "titles": texts, "note": ""}
        if key in tables:
            content["note"] = _note(dataset, key, tables[key], texts, column, published)
            content["attributes"], content["titles"] = _known(dataset, key, tables[key], texts)
        (target / f"{key}s.json").write_text(json.dumps(content))
    order = np.lexsort((np.arange(len(time)) if form.only("time") is None else time, user))  # stable
    user, item, rating, time = user[order], item[order], rating[order], time[order]
    first = np.flatnonzero(np.diff(user, prepend=-1))  # of each user
    start = np.repeat(first, np.diff(first, append=len(user)))
    if form.only("time") is None:
        time = np.arange(len(user)) - start
    # fractions of a second matter only for the order
    columns = {"user": user, "item": item, "rating": rating, "time": time.astype(np.int64)}
    for name, values in (columns | {"start": start.astype(np.int32)}).items():
        np.save(target / f"{name}.npy", values)


def _check_ratings(form: Format, reader: Reader, rating: np.ndarray, published: bool) -> None:
    """rating (N,): of the batch that the reader read last."""
    known = (rating >= RATINGS[0]) & (rating <= RATINGS[1]) if published else ~np.isnan(rating)
    if not known.all():
        row, name = int(known.argmin()), str(form.only("rating", "label"))
        expected = f"a rating from {RATINGS[0]} to {RATINGS[1]:g}" if published else "a value of the label in every row"
        raise reader.error(row, name, rating[row], expected)


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


def _times(form: Format, batch: pa.RecordBatch) -> np.ndarray:
    name = form.only("time")
    return batch.column(name).to_numpy() if name else np.zeros(len(batch))


def _numbered(texts: pa.Array, numbers: dict[str, int]) -> np.ndarray:
    """Numbers of the texts (N,) int32; new texts get the next numbers."""
    encoded = texts.dictionary_encode()
    known = [numbers.setdefault(text, len(numbers)) for text in encoded.dictionary.to_pylist()]
    return np.array(known, np.int32)[encoded.indices.to_numpy()]


def _in_order(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The texts sorted (numerically if all are integers), and the position of each (texts,)."""
    integers = pc.all(pc.match_substring_regex(pa.array(texts), r"^(0|-?[1-9][0-9]*)$")).as_py()
    order = sorted(range(len(texts)), key=[int(text) if integers else text for text in texts].__getitem__)
    rank = np.empty(len(texts), np.int32)
    rank[order] = np.arange(len(texts))
    return [texts[i] for i in order], rank


def _known(dataset: Dataset, key: Any, table: pa.RecordBatch, texts: list[str]) -> tuple[dict[str, Cells], list[str]]:
    """Cells of each attribute in the order of the texts, and the titles; a text without a row is its own title."""
    form = dataset.description.attributes[key]
    place = pc.index_in(pa.array(texts, pa.string()), table.column(0))
    check(
        place.null_count < len(texts),
        f"{dataset.path(str(form.file))}: column {form.only(key)!r} has none of the {len(texts):,} ids of {key}s in "
        f'{dataset.where}. If another column holds the ids, give that one the role "{key}".',
    )
    columns = {name: _cells(form, table.column(name).take(place)) for name in form.of_role("categorical", "dense")}
    kept = form.only("kept")
    titles = table.column(kept).take(place).to_pylist() if kept else texts
    return columns, [title or text for title, text in zip(titles, texts, strict=True)]


def _cells(form: Format, column: pa.ChunkedArray) -> Cells:
    cells = column.to_pylist()
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return cells
    missing = {*form.missing_texts, None}
    several = ([cell] if isinstance(cell, str | None) else cell for cell in cells)
    return [[text for text in cell if text not in missing] for cell in several]


def _note(
    dataset: Dataset, key: Any, table: pa.RecordBatch, texts: list[str], column: np.ndarray, published: bool
) -> str:
    """What to say about users or items of the rows (N,) that their own file lacks, "" if there are none."""
    lacks = ~pc.is_in(pa.array(texts, pa.string()), table.column(0)).to_numpy(zero_copy_only=False)
    rows, path = lacks[column], dataset.path(str(dataset.description.attributes[key].file))
    note = f"{lacks.sum():,} of {len(texts):,} {key}s, with {rows.sum():,} of {len(rows):,} rows, are not in {path}."
    check(
        not published or rows.mean() <= MOST_UNKNOWN,
        f"{note} The files do not match, or one is cut off: get them again.",
    )
    return note if lacks.any() else ""
