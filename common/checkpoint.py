"""Checkpoints of large tables: written atomically, without a second copy in memory."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn

from common.errors import UserError, check, one_line
from common.files import write_tensors


class MappedCheckpointIO(CheckpointIO):
    """Writes straight to a temporary file and renames it; reads by memory-mapping.

    (Lightning's default serialises into a buffer first and reads the whole file: twice the memory of the table.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, checkpoint)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, with memory-mapped tensors; no code in the file is run.

    Raises: UserError if it is missing, truncated, damaged, or not the checkpoint of a LightningModule.
    """
    anew = "Use another one, or train again."
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not verify checksums: a flipped bit would go unnoticed
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except IsADirectoryError as error:
        inside = max(Path(path).rglob("best.ckpt"), key=lambda found: found.stat().st_mtime, default=None)
        advice = f"in it, such as {inside}" if inside else "file (runs/<model>/version_N/checkpoints/best.ckpt)"
        raise UserError(f"{path} is a folder; pass a checkpoint {advice}.") from error
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}.") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(
            f"{path} is not a readable checkpoint: it is truncated, or contains more than tensors and plain values. "
            f"{anew}"
        ) from error
    check(damaged is None, f"{path} is damaged: {damaged} in it has a wrong checksum. {anew}")
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint of this repo: it has no state_dict.")
    return content


def check_can_resume(content: dict[str, Any], module: LightningModule, path: str | Path | None) -> None:
    """UserError unless `content`, read from `path`, is the training state of the same model with the same sizes."""
    name, anew = type(module).__name__, "Start a new run with resume=False."
    check(content.get("model") == name, f"{path} is of {one_line(content.get('model'))}, not of {name}. {anew}")
    check("optimizer_states" in content, f"{path} has only weights, not the state of a training run. {anew}")
    try:
        check_same_sizes(content["state_dict"], module)
    except UserError as error:
        raise UserError(f"{path} does not fit the model: {error}. {anew}") from error


def check_same_sizes(weights: dict[str, Tensor], module: nn.Module) -> None:
    """UserError unless `weights` has the same names and sizes as the module's state."""
    found, expected = (
        {key: tuple(weight.shape) for key, weight in state.items()} for state in (weights, module.state_dict())
    )
    for key in sorted(found.keys() | expected.keys()):
        check(
            found.get(key) == expected.get(key),
            f"{one_line(key)} has size {found.get(key)}, expected {expected.get(key)}",
        )
