"""A described dataset and the files it is read from, for tables and histories."""

from collections.abc import Callable, Mapping
from pathlib import Path

from common.data.raw_files import Published, find_dataset
from data.reader import data_files
from data.schema import COLUMNS_FILE, Dataset, read_description


def open_dataset(
    dataset: str,
    data_root: str | None,
    published: Mapping[str, Published],
    described: Callable[[Path], Dataset],
) -> tuple[Dataset, bool]:
    """The dataset as its columns.json says, or as `described` finds it in the folder; and whether it is the sample."""
    folder, is_sample = find_dataset(dataset, data_root, published)
    own = folder / COLUMNS_FILE
    return read_description(own) if own.exists() else described(folder), is_sample


def sources_of(dataset: Dataset) -> list[Path]:
    """All files that are read: those with rows, then the second files."""
    second = [dataset.path(form.file) for form in dataset.description.attributes.values()]
    return [file for path in (*dataset.files.values(), *second) for file in data_files(path)]
