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

# one list may appear in several places of a checkpoint: the walk stops after this many times the distinct entries
SHARING, NESTED_ENTRIES = 10, 10_000


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
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            damaged = archive.testzip()  # torch does not verify checksums: a flipped bit would go unnoticed
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if (tensors := _tensors(content)) is None:
            raise UserError(f"{path} is damaged: a list in it contains itself. Use another one, or train again.")
        # strides of 0 repeat one number to any size: copying such a tensor from a tiny file could exhaust memory
        repeated = any(tensor.untyped_storage().nbytes() < tensor.nbytes for tensor in tensors)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; {_inside(Path(path))}") from error
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise UserError(
            f"{path} is not a readable checkpoint: it is truncated, or contains more than tensors and plain values. "
            "Use another one, or train again."
        ) from error
    check(damaged is None, f"{path} is damaged: {damaged} in it has a wrong checksum. Use another one, or train again.")
    check(not repeated, f"{path} is damaged: a tensor in it is larger than its data. Use another one, or train again.")
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint of this repo: it has no state_dict.")
    return content


def _inside(folder: Path) -> str:
    """Suggests what to pass instead of a folder: the newest best checkpoint of the runs in it."""
    found = [
        path
        for pattern in ("", "checkpoints/", "*/checkpoints/", "*/*/checkpoints/")
        for path in folder.glob(f"{pattern}best.ckpt")
    ]
    if not found:
        return "pass a checkpoint file (runs/<model>/version_N/checkpoints/best.ckpt)."
    return f"pass a checkpoint in it, such as {max(found, key=lambda path: path.stat().st_mtime)}."


def _check_members(archive: zipfile.ZipFile, path: str | Path) -> None:
    """UserError unless all members are stored uncompressed and none overlap, so that reading takes bounded time."""
    members = archive.infolist()
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    room = sum(max(member.file_size, member.compress_size) for member in members) <= Path(path).stat().st_size
    check(
        stored and room,
        f"{path} is not a readable checkpoint: its parts are larger than the file. Use another one, or train again.",
    )


def _tensors(content: object) -> list[Tensor] | None:
    """All tensors in nested containers; None if a container is shared so often that printing or copying it would not
    end (in a forged file a list may contain itself)."""
    tensors, left, seen, walked, entries = [], [content], set(), 0, NESTED_ENTRIES
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, dict | list | tuple | set):
            walked += len(value)
            if id(value) not in seen:
                seen.add(id(value))
                entries += len(value)
            if walked > SHARING * entries:
                return None
            left.extend(value.values() if isinstance(value, dict) else value)
    return tensors


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
