"""Inputs and outputs of the scoring scripts: files, plain or .gz, standard input and output, pipes and devices."""

import csv
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from common.data.raw_files import Stream, decompressed, gzip_errors
from common.errors import UserError, check
from common.files import atomic_write


def name_of(raw: str | Path) -> str:
    return "standard input" if str(raw) == "-" else str(raw)


@contextmanager
def open_input(raw: str | Path) -> Iterator[tuple[Stream, IO[bytes]]]:
    """The decompressed stream, and the underlying file, whose position shows the progress."""
    is_stdin = str(raw) == "-"
    check(not is_stdin or sys.stdin is not None, "cannot read standard input: it is closed.")
    with reading(raw), open(sys.stdin.fileno() if is_stdin else raw, "rb", closefd=not is_stdin) as file:
        yield decompressed(file), file


@contextmanager
def reading(raw: str | Path) -> Iterator[None]:
    """Report an OSError of the block, which writes nothing, as an error of reading `raw`."""
    try:
        with gzip_errors(name_of(raw)):
            yield
    except OSError as error:
        raise UserError(f"cannot read {name_of(raw)}: {error.strerror or error}.") from error


@contextmanager
def open_output(path: str | Path | None, inputs: dict[str | Path, os.stat_result]) -> Iterator[IO[str]]:
    """Standard output, a device or pipe, or a file that appears when it is complete; never one of the inputs."""
    try:
        if path is None:
            check(sys.stdout is not None, "cannot write standard output: it is closed.")
            yield sys.stdout
            sys.stdout.flush()
        elif os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w") as file:
                yield file
        else:
            for name, stat in inputs.items():
                same = os.path.exists(path) and os.path.samestat(os.stat(path), stat)
                check(not same, f"{path} is {name}, which would be overwritten; give the output another name.")
            with atomic_write(os.path.realpath(path), "w") as file:  # a link is kept, and its target written
                yield file
    except OSError as error:
        if path is None:  # otherwise Python would write again at exit, and report the error again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"cannot write {path or 'standard output'}: {error.strerror or error}.") from error


def csv_rows(columns: list[list[str]]) -> list[str]:
    """Columns of texts as lines of CSV, without line ends."""
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\0").writerows(zip(*columns, strict=True))
    return lines.getvalue().split("\0")[:-1]
