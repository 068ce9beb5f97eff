"""Atomic writes, and clear errors for files that cannot be written."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from common.errors import UserError, check, one_line


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """A new file beside `path` that is renamed to it when the block ends, and removed if the block fails. Several
    processes may write the same path at once: the file of the last one stays. Raises: OSError with the path."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, mode.replace("w", "x")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash after the rename could leave an empty file
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) in ("None", str(beside)):
            error.filename = str(path)
        raise


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Non-finite numbers, which JSON lacks, become null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    with atomic_write(path, "w") as file:
        json.dump(finite, file, indent=2)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file of ours. Raises: UserError if it is damaged."""
    anew = f"Restore it, or remove {path.parent} to start again."
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}). {anew}") from error
    check(isinstance(content, dict), f"{path} is damaged (not a dict). {anew}")
    return content


def write_tensors(path: str | Path, content: dict[str, Any]) -> None:
    """Write a file for torch.load. Raises: UserError if that fails."""
    with as_user_errors(Path(path).parent), atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch raises it while closing a file that could not be written
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


@contextmanager
def as_user_errors(folder: Path, variable: str = "OUTPUT_ROOT") -> Iterator[None]:
    """An OSError in the block, which writes to `folder`, becomes a UserError; variable: what moves the folder."""
    try:
        yield
    except OSError as error:
        raise as_user_error(error, folder, variable) from error


def as_user_error(error: OSError, folder: Path, variable: str = "OUTPUT_ROOT") -> UserError:
    """What to tell the user after an error in code that writes to `folder`: path, reason, and what to do."""
    reason = error.strerror or (error.args[0] if error.args else error)  # NumPy's errors have no number, only a text
    if not error.filename:
        return UserError(f"{reason}: standard output, a connection, or a file in {folder}.")
    path = Path(error.filename)
    if not (path.is_relative_to(folder) or folder.is_relative_to(path)):
        return UserError(f"cannot read {path}: {reason}.")
    advice = f"Free some space, or set the environment variable {variable} to a writable folder."
    return UserError(f"cannot write {path}: {reason}. {advice}")
