"""Where data is read and where results are written. Environment variables override the defaults."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """Folder with one folder per raw dataset: $DATA_ROOT, or data/raw in the repo."""
    return Path(os.environ.get("DATA_ROOT", REPO / "data" / "raw")).resolve()


def output_root() -> Path:
    """Folder of everything the scripts write (runs/ and data/cache/): $OUTPUT_ROOT, or the repo."""
    return Path(os.environ.get("OUTPUT_ROOT", REPO)).resolve()
