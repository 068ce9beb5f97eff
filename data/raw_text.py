"""Lines and numbers of raw text files, for the formats that are read line by line."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError, check

CONTROL_BYTES = bytes({*range(32), 127} - set(b"\t\n"))
WHOLE_NUMBER = re.compile("[0-9]{1,9}")
LINE_BYTES = 1 << 20  # a thousand times the longest of any set; without a limit a small .gz of zeros fills the memory


@contextmanager
def whole_gzip(name: str | Path) -> Iterator[None]:
    """Raise UserError where the .gz file that is read in the block is cut or damaged."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: the compressed file is cut or damaged ({error}); get it again.") from error


def limited_lines(stream: BinaryIO, name: str | Path) -> Iterator[bytes]:
    """The lines of the stream with their ends; UserError for one that is too long."""
    for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), 1):
        _check_length(line, name, number)
        yield line


def line_blocks(stream: BinaryIO, name: str | Path, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of the stream that end with a line end, each with the number of its first line.

    Raises: UserError for a line that is too long, and for a .gz that is cut or damaged.
    """
    rest, line = b"", 1
    with whole_gzip(name):
        while read := stream.read(block_bytes):
            cut = read.rfind(b"\n") + 1
            if cut:
                block = rest + read[:cut]
                yield line, block
                line += block.count(b"\n")
            rest = read[cut:] if cut else rest + read
            _check_length(rest, name, line)
    if rest:
        yield line, rest + b"\n"


def _check_length(line: bytes, name: str | Path, number: int) -> None:
    check(
        len(line) <= LINE_BYTES,
        f"{name}, line {number} is longer than {LINE_BYTES:,} bytes. Correct the file, or get it again.",
    )


def text_of(line: bytes, encoding: str) -> str:
    """A line without its end (LF or CRLF); ValueError for what is no text: control characters, another encoding."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    if len(line.translate(None, CONTROL_BYTES)) < len(line):
        raise ValueError("control characters")
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"bytes that are not {encoding.upper()}") from error


def whole_number(text: str) -> int:
    """A number of up to 9 digits; ValueError for all else (`int` takes "1_0", " 1" and digits of other scripts)."""
    if WHOLE_NUMBER.fullmatch(text) is None:
        raise ValueError
    return int(text)
