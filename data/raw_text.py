"""Lines and numbers of raw text files, for the formats that are read line by line."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

CONTROL_BYTES = bytes({*range(32), 127} - set(b"\t\n"))
WHOLE_NUMBER = re.compile("[0-9]{1,9}")


@contextmanager
def whole_gzip(name: str | Path) -> Iterator[None]:
    """Raise UserError where the .gz file that is read in the block is cut or damaged."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: the compressed file is cut or damaged ({error}); get it again.") from error


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
