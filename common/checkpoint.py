"""Checkpoints of large tables: written atomically, without a second copy in memory."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from common.errors import UserError
from common.files import write_tensors


class MappedCheckpointIO(CheckpointIO):
    """Writes straight to a file and maps it to read: Lightning's default takes twice the memory of the table."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, with memory-mapped tensors; no code in it is run. UserError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch does not verify checksums: a flipped bit would go unnoticed
                raise ValueError(f"wrong checksum of {damaged}")
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content["state_dict"], dict):
            raise TypeError("no state_dict")
        return content
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        advice = "Checkpoints are files such as runs/deepfm/version_0/checkpoints/best.ckpt."
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}. {advice}") from error
    except Exception as error:  # of many kinds
        why = "it is truncated, damaged, of another program, or has more than tensors and plain values"
        raise UserError(f"{path} is not a readable checkpoint: {why}. Use another one, or train again.") from error
