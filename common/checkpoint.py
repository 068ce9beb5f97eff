"""Checkpoints of large tables without a second copy in memory, complete or not there at all."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from common.errors import UserError


class MappedCheckpointIO(CheckpointIO):
    """Writes straight to a file beside the final name and renames it; reads by mapping the file.

    (Lightning's own serialises into a buffer first and reads the whole file: twice the memory of the table.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".tmp")
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # a machine that dies after the rename must not find an empty file
        os.replace(beside, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors mapped from the file; no code in it is run.

    Raises: UserError if it is not there, cut, or no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}.") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(
            f"{path} is no readable checkpoint: it is cut, or holds other things than tensors and plain values."
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is no checkpoint of this repo: it holds no state_dict.")
    return content
