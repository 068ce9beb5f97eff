"""Outputs of the scoring scripts: files, plain or .gz, standard output, pipes and devices."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from common.errors import UserError, check
from common.files import atomic_write

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def check_suffix(path: str | Path | None) -> None:
    """Raise UserError unless a table can be written there."""
    if path is not None and not _is_special(path):
        is_known = os.path.realpath(path).endswith(SUFFIXES)
        check(is_known, f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}.")


@contextmanager
def open_table(path: str | Path | None, inputs: Sequence[str | Path]) -> Iterator[Callable[[pd.DataFrame], None]]:
    """What writes blocks of rows: as CSV to standard output (None), a device or pipe; otherwise, as its suffix says, to
    a file that appears when it is complete. Raises: UserError for one of the inputs."""
    how: dict[str, Any] = {"header": True}
    target = ""  # of a file; a link is kept, and its target written
    writer: pa.parquet.ParquetWriter | None = None

    def write(rows: pd.DataFrame) -> None:
        nonlocal writer
        if target.endswith(".parquet"):
            table = pa.Table.from_pandas(rows, preserve_index=False)
            writer = writer or stack.enter_context(pa.parquet.ParquetWriter(file, table.schema))
            writer.write_table(table)
        else:
            rows.to_csv(file, index=False, float_format="%.9g", lineterminator="\n", **how)
            how["header"] = False  # in the next block

    try:
        with ExitStack() as stack:
            if path is None:
                check(sys.stdout is not None, "cannot write standard output: it is closed.")
                file: IO = sys.stdout
                stack.callback(file.flush)
            elif _is_special(path):
                file = stack.enter_context(open(path, "w"))
            else:
                check_suffix(path)
                for name in inputs if os.path.exists(path) else ():
                    stat = os.fstat(0) if str(name) == "-" else os.stat(name)
                    same = os.path.samestat(os.stat(path), stat)
                    check(not same, f"{path} is also read, and would be overwritten; give the output another name.")
                file = stack.enter_context(atomic_write(target := os.path.realpath(path)))
                how |= {"mode": "wb", "compression": "gzip" if target.endswith(".gz") else None}
            yield write
    except OSError as error:
        if path is None:  # otherwise Python would write again at exit, and report the error again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"cannot write {path or 'standard output'}: {error.strerror or error}.") from error


def _is_special(path: str | Path) -> bool:
    """Whether it is a device or pipe."""
    return os.path.exists(path) and not os.path.isfile(path)
