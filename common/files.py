"""Files that are complete or not there at all, what to tell a user where one cannot be written, and tables."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.utils._pytree import tree_leaves

from common.errors import UserError

MIB = 2**20


@contextmanager
def whole_file(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """A file open beside `path` that takes its name when the block ends, and is removed where it fails.

    Raises: OSError with the name of the file.
    """
    path = Path(path)
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with open(beside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a machine that dies after the rename must not find an empty file
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) in ("None", str(beside)):
            error.filename = str(path)
        raise


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))


def write_json(path: Path, content: dict | list) -> None:
    with whole_file(path, "w") as file:
        json.dump(content, file, indent=2)


def write_tensors(path: str | Path, content: dict[str, Any]) -> None:
    """What torch.load reads. Raises: UserError that says how much room is missing."""
    try:
        with whole_file(path) as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's own, raised while it closes a file that could not be written
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    except OSError as error:
        tensors = sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor))
        raise write_error(error, Path(path).parent, tensors) from error


def write_error(error: OSError, folder: Path, needed: float = 0, variable: str = "OUTPUT_ROOT") -> UserError:
    """What to tell a user after an error in work that writes to `folder`.

    needed: bytes, about; variable: of the environment, which moves the folder.
    """
    if isinstance(error, TimeoutError | BrokenPipeError):  # a lock that another process holds; `| head`
        return UserError(f"{error}.")
    if error.filename and not _on_one_path(Path(error.filename), folder):
        return UserError(f"cannot read {error.filename}: {error.strerror}.")
    there = next(path for path in [folder, *folder.parents] if path.exists())
    name = error.filename or max(filter(Path.is_file, folder.glob("*")), key=_modified, default=folder)
    free = shutil.disk_usage(there).free
    missing = f", about {math.ceil((needed - free) / MIB):,} MiB more are needed" if needed > free else ""
    return UserError(
        f"cannot write {name}: {error.strerror or error} ({free / MIB:,.1f} MiB are free{missing}). "
        f"Make room, or set the environment variable {variable} to a folder that can be written."
    )


def _on_one_path(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns
