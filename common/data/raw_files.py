"""Raw files: how they are found, and helpers for formats that are read line by line."""

import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import UserError, check
from common.paths import data_root as default_data_root

CONTROL_BYTES = bytes({*range(32), 127} - set(b"\t\n"))
WHOLE_NUMBER = re.compile("[0-9]{1,9}")
SHOWN_NAMES = 8  # at most, in messages that list a folder
LINE_BYTES = 1 << 20  # 1000 times any dataset's longest; without a limit a small .gz of zeros would exhaust memory


class Readable(Protocol):
    """Where bytes come from."""

    def read(self, count: int, /) -> bytes: ...


class Stream(Readable, Protocol):
    """A file, a pipe, or what a .gz holds."""

    def readline(self, limit: int, /) -> bytes: ...

    def seekable(self) -> bool: ...


@dataclass(frozen=True)
class Source:
    """Where raw files come from: a command, and the datasets it downloads. also: a sentence about another command."""

    command: str
    datasets: Collection[str]
    also: str = ""


@dataclass(frozen=True)
class Published:
    command: str
    sample: Callable[[], Path]


def find_dataset(
    dataset: str, data_root: str | None, source, make_sample=None
) -> tuple[Path, bool]:
    """The folder with the raw files, and whether it is the built-in sample, used if there is no data_root/<dataset>.

    Raises: UserError for a name that is neither a folder nor one of the source's datasets.
    """
    root = Path(data_root).resolve() if data_root else default_data_root()
    if (root / dataset).exists():
        return root / dataset, False
    folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    there = f"it has {_listed(folders)}" if folders else "it has no folders"
    if isinstance(source, dict):
        check(dataset in source, f"there is no folder {dataset!r} in {root} ({there}).")
        say_once(f"No folder {root / dataset}: using the built-in sample. `{source[dataset].command}` gets the real data.")
        return source[dataset].sample(), True
    known = ", ".join(source.datasets)
    check(
        dataset in source.datasets,
        f"there is no folder {dataset!r} in {root} ({there}). Set `dataset` to one of its folders; "
        f"`{source.command}` downloads {known}. {source.also}".rstrip(),
    )
    say_once(
        f"No folder {root / dataset}: using the built-in sample. `{source.command}`"
        f"{f', with DATASET = {dataset!r} at its top,' if len(source.datasets) > 1 else ''} gets the real data."
    )
    return make_sample(), True


@cache
def say_once(text: str) -> None:
    """Print a line once per process, however many runs it applies to."""
    print(text, flush=True)


def find_file(folder: Path, name: str) -> Path | None:
    """Path of `name` in `folder`, plain or .gz; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def raw_file(folder: Path, name: str, source=None) -> Path:
    """Like find_file, but raises UserError if there is neither."""
    if path := find_file(folder, name):
        return path
    raise missing_file(folder, f"no {name} (nor {name}.gz)", source)


def missing_file(folder: Path, lack: str, source=None) -> UserError:
    """An error that says what the folder has instead, and names the command if it downloads this dataset."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = f"it has {_listed(names)}" if names else "it is empty"
    how = f" Remove the folder, and `{source.command}` gets the data." if source and folder.name in source.datasets else ""
    return UserError(f"{folder} has {lack}; {found}.{how}")


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:SHOWN_NAMES], "..."] if len(names) > SHOWN_NAMES else names)


def decompressed(file: BufferedReader) -> Stream:
    """The content of a file that may be gzipped."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


@contextmanager
def gzip_errors(name: str | Path) -> Iterator[None]:
    """Raise UserError if the .gz file that the block reads is truncated or damaged."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: the compressed file is truncated or damaged ({error}); get it again.") from error


def bounded_lines(stream: Stream, name: str | Path) -> Iterator[bytes]:
    """The lines of the stream, with their line ends. Raises: UserError for a line that is too long."""
    for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), 1):
        _check_length(line, name, number)
        yield line


def line_blocks(stream: Readable, name: str | Path, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with the number of its first line.

    Raises: UserError for a line that is too long, and for a .gz that is truncated or damaged.
    """
    rest, line = b"", 1
    with gzip_errors(name):
        while read := stream.read(block_bytes):
            cut = read.rfind(b"\n") + 1
            if cut:
                block = b"".join([rest, memoryview(read)[:cut]])  # one copy
                yield line, block
                line += count_lines(block)
            rest = read[cut:] if cut else rest + read
            _check_length(rest, name, line)
    if rest:
        yield line, rest + b"\n"


def count_lines(block: bytes) -> int:
    """The number of line ends; several times as fast as bytes.count."""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))


def _check_length(line: bytes, name: str | Path, number: int) -> None:
    check(
        len(line) <= LINE_BYTES,
        f"{name}, line {number} is longer than {LINE_BYTES:,} bytes. Correct the file, or get it again.",
    )


def decode_line(line: bytes, encoding: str) -> str:
    """A line without its end (LF or CRLF). Raises: ValueError for control characters or another encoding."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(line.translate(None, CONTROL_BYTES)) < len(line):
        raise ValueError("control characters")
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are not {encoding.upper()}") from error


def parse_id(text: str) -> int:
    """A number of up to 9 digits. Raises: ValueError for anything else (`int` accepts "1_0", " 1" and other digits)."""
    if WHOLE_NUMBER.fullmatch(text) is None:
        raise ValueError
    return int(text)
