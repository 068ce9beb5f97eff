"""Find a dataset's raw files, or fall back to the built-in sample."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import UserError
from common.paths import data_root as default_data_root


def find_dataset(
    dataset: str, data_root: str | None, required: Sequence[str], get_command: str, make_sample: Callable[[], Path]
) -> tuple[Path, bool]:
    """The folder with the raw files and whether it is the sample, which serves where there is no DATA_ROOT/<dataset>.

    Raises: UserError if the folder is there without one of the `required` files (plain or .gz).
    """
    folder = (Path(data_root).resolve() if data_root else default_data_root()) / dataset
    if not folder.exists():
        print(f"No folder {folder}: using the built-in sample. `{get_command}` gets the real data.", flush=True)
        return make_sample(), True
    for name in required:
        raw_file(folder, name, get_command)
    return folder, False


def raw_file(folder: Path, name: str, get_command: str) -> Path:
    """Path of `name` in `folder`, plain or as .gz; UserError if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise UserError(f"{folder} has no {name} (nor {name}.gz); `{get_command}` gets it.")
