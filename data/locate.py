"""Find a dataset's raw files, or fall back to the built-in sample."""

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.paths import data_root as default_data_root


def find_dataset(
    dataset: str, data_root: str | None, get_command: str, make_sample: Callable[[], Path]
) -> tuple[Path, bool]:
    """The folder with the raw files, and whether it is the sample: there is no DATA_ROOT/<dataset> then."""
    folder = (Path(data_root).resolve() if data_root else default_data_root()) / dataset
    if not folder.exists():
        print(
            f"No folder {folder}: using the built-in sample. "
            f"`{get_command}`, with DATASET = {dataset!r} in it, gets the real data.",
            flush=True,
        )
        return make_sample(), True
    return folder, False


def raw_file(folder: Path, name: str, get_command: str) -> Path:
    """Path of `name` in `folder`, plain or as .gz; UserError if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UserError(f"{folder} has no {name} (nor {name}.gz); `{get_command}` gets it.")
