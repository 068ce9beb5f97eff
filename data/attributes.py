"""Second files: what is known of each user and item, read whole and looked up by id."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from common.errors import check
from data.reader import Reader
from data.schema import Column, Dataset, Description
from data.values import plain

Attributes = Mapping[str, pa.RecordBatch]  # by the role of their key, "user" or "item"; the key is the first column


def read_attributes(dataset: Dataset) -> dict[str, pa.RecordBatch]:
    """The attributes of users and items. Raises: UserError for an id that comes twice."""
    found: dict[str, pa.RecordBatch] = {}
    for role, form in dataset.description.attributes.items():
        key, path = str(form.only(role)), dataset.path(form.file)
        table = Reader(form).table(path).combine_chunks()
        counts = table.column(key).value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        check(not len(twice), f"{path}: column {key!r} has {twice[:1].to_pylist()} in several rows; keep one of them.")
        found[role] = table.select(sorted(table.column_names, key=key.__ne__)).to_batches()[0]
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
        place = pc.index_in(plain(columns[str(description.only(role))]), value_set=attributes[role].column(0))
        for name in form.of_role("categorical", "dense"):
            if name not in columns:
                array = attributes[role].column(name).take(place)
                if pa.types.is_list(array.type) or pa.types.is_string(array.type):  # are never null
                    array = pc.coalesce(array, pa.scalar([] if pa.types.is_list(array.type) else "", array.type))
                columns[name] = array
    return columns
