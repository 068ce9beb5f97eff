"""Second files: what is known of each user and item, read whole and looked up by id."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import check
from data.reader import Reader, data_files, source_of
from data.schema import Column, Dataset, Description

Attributes = Mapping[str, pa.RecordBatch]  # by the role of their key, "user" or "item"; the key is the first column


def read_attributes(dataset: Dataset) -> dict[str, pa.RecordBatch]:
    """The attributes of users and items. Raises: UserError for an id that comes twice."""
    found: dict[str, pa.RecordBatch] = {}
    for role, form in dataset.description.attributes.items():
        key, reader, batches = str(form.only(role)), Reader(form), []
        seen: set[str] = set()
        for source in map(source_of, data_files(dataset.path(form.file))):
            row = 0
            for batch in reader.batches(source):
                for text in batch.column(key).to_pylist():
                    if text in seen:
                        raise reader.error(source, row, key, text, "an id that no earlier line has")
                    seen.add(text)
                    row += 1
                batches.append(batch.select([key, *(name for name in batch.schema.names if name != key)]))
        found[role] = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    return found


def joined_columns(description: Description) -> dict[str, Column]:
    """The columns of the second files that are inputs: those of users, then those of items."""
    joined: dict[str, Column] = {}
    for role, form in description.attributes.items():
        for name in form.of_role("categorical", "dense"):
            check(
                name not in description.columns and name not in joined,
                f"{role}_attributes: the column name {name!r} is also in another file. Rename it, or exclude it.",
            )
            joined[name] = form.columns[name]
    return joined


def join(description: Description, attributes: Attributes, batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns of a batch and, unless it has them itself, those of the second files; a row without is missing."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    for role, form in description.attributes.items():
        key, table = description.only(role), attributes[role]
        place = pc.index_in(columns[key], value_set=table.column(0))
        for name in form.of_role("categorical", "dense"):
            if name not in columns:
                columns[name] = _filled(table.column(name).take(place))
    return columns


def _filled(array: pa.Array) -> pa.Array:
    """Texts and lists of texts are never null."""
    if pa.types.is_list(array.type):
        return pc.coalesce(array, pa.scalar([], array.type))
    return array.fill_null("") if pa.types.is_string(array.type) else array
