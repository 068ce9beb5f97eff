"""Your own interactions: `python data/interactions_data.py FILE [NAME] [ITEMS] [USERS]` guesses the columns' roles.

Each row of FILE says which user interacted with which item, when, and optionally with what rating. ITEMS and USERS are
files of attributes with a row per item or user; write - for none. With NAME it writes DATA_ROOT/NAME/columns.json,
which holds the paths of the files: correct it by hand, then set `dataset="NAME"` in bst/train.py. The files are CSV,
TSV or Parquet, plain or .gz, or folders of such files.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import run_script
from data.interactions_guess import guess_interactions
from data.table_description import show_guess


def main(file: str, name: str | None = None, items: str = "-", users: str = "-") -> None:
    """Print a guess of the columns' roles; with a name, write columns.json."""
    paths = [None if path == "-" else Path(path) for path in (items, users)]
    show_guess(*guess_interactions(Path(file), *paths), f"python data/interactions_data.py {file}", name)


if __name__ == "__main__":
    run_script(main, "FILE [NAME] [ITEMS] [USERS]")
