"""Where data is read and where results are written. Environment variables override the defaults."""

import os
from pathlib import Path

from common.errors import UserError

REPO = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """Folder with one folder per raw dataset: $DATA_ROOT, or data/raw in the repo."""
    return _folder("DATA_ROOT", REPO / "data" / "raw")


def output_root() -> Path:
    """Folder of everything the scripts write (runs/ and data/cache/): $OUTPUT_ROOT, or the repo."""
    return _folder("OUTPUT_ROOT", REPO)


def _folder(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default)).resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # torch could not open a file there
        raise UserError(
            f"the locale cannot encode the folder {variable}, {str(path)!a}. Set the environment variable "
            "PYTHONUTF8=1, or use a UTF-8 locale."
        ) from error
    return path
