"""Where data is read and where results are written. The environment variables win over the defaults."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """Folder with one folder per raw dataset: $DATA_ROOT, else data/raw of the repo."""
    return Path(os.environ.get("DATA_ROOT", REPO / "data" / "raw")).resolve()


def output_root() -> Path:
    """Everything the scripts write lies below it (runs/ and data/cache/): $OUTPUT_ROOT, else the repo."""
    return Path(os.environ.get("OUTPUT_ROOT", REPO)).resolve()
