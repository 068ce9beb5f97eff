"""Where raw files are: DATA_ROOT/<dataset>/, or the built-in sample."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import IO

from common.errors import UserError, check
from common.paths import data_root as default_data_root

SHOWN_NAMES = 8  # at most, in messages that list a folder


@dataclass(frozen=True)
class Published:
    """A published dataset. command: downloads it, perhaps with a setting at its top; sample: the folder of the built-in
    sample in its format."""

    command: str
    sample: Callable[[], Path]
    setting: str = ""


def find_dataset(dataset: str, data_root: str | None, published: Mapping[str, Published]) -> tuple[Path, bool]:
    """The folder with the raw files, and whether it is the built-in sample, used if there is no data_root/<dataset>.

    Raises: UserError for a name that is neither a folder nor that of a published dataset.
    """
    root = Path(data_root).resolve() if data_root else default_data_root()
    if (root / dataset).exists():
        return root / dataset, False
    check(
        dataset in published,
        f"there is no folder {dataset!r} in {root} ({_content(root)}). Set `dataset` to one of its folders, to a "
        f"published dataset ({', '.join(published)}), or describe your file with `python data/describe.py FILE NAME`.",
    )
    chosen = published[dataset]
    setting = f", with {chosen.setting} at its top," if chosen.setting else ""
    say_once(f"No folder {root / dataset}: using the built-in sample. `{chosen.command}`{setting} gets the real data.")
    return chosen.sample(), True


@cache
def say_once(text: str) -> None:
    """Print a line once per process, however many runs it applies to."""
    print(text, flush=True)


def find_file(folder: Path, name: str) -> Path | None:
    """Path of `name` in `folder`, plain or .gz; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def raw_file(folder: Path, name: str) -> Path:
    """Like find_file, but raises UserError if there is neither."""
    if path := find_file(folder, name):
        return path
    raise missing_file(folder, f"no {name} (nor {name}.gz)")


def missing_file(folder: Path, lack: str, published: Mapping[str, Published] | None = None) -> UserError:
    """An error that says what the folder has instead, and names the command if it downloads this dataset."""
    known = (published or {}).get(folder.name)
    how = f" Remove the folder, and `{known.command}` gets the data." if known else ""
    return UserError(f"{folder} has {lack}; {_content(folder)}.{how}")


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f"it has {', '.join(names[:SHOWN_NAMES])}{more}" if names else "it is empty"


def decompressed(file: BufferedReader) -> IO[bytes]:
    """The content of a file that may be gzipped."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file  # type: ignore[return-value]
