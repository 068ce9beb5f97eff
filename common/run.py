"""The folder of a run: claimed by one process, resumed by its settings, finished when results.json is there."""

import io
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path

import numpy
import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout

from common.errors import UserError, check
from common.files import write_error, write_json
from common.paths import output_root
from common.processes import deaths_told, from_first, is_first
from common.settings import check_settings

LAST = Path("checkpoints", "last.ckpt")  # of a run's folder
# settings that do not change what a run computes, but for which random numbers its dropout draws
NOT_COMPARED = ("resume", "num_workers", "devices", "num_nodes", "strategy", "shard_table")


@contextmanager
def claim_folder(script: str, settings: dict, folder: str | Path | None = None) -> Iterator[Path]:
    """The folder of this run, held until the block ends: `folder`, else $RUN_FOLDER, else runs/<script>/version_N.

    With settings["resume"] it is that of the newest unfinished run that no process holds. Of several processes that
    train together the first one holds it and prints; the others are told which it is.

    Raises: UserError if a setting is out of range, that run had other settings, or the folder cannot be written.
    """
    check_settings(settings)
    folder = folder or os.environ.get("RUN_FOLDER")
    # on a Ray cluster all start again, for which the error must be as it is
    deaths = nullcontext() if settings.get("strategy") == "ray" else deaths_told()
    if is_first():
        with deaths, _held(script, settings, folder) as held:
            before = os.environ.get("RUN_FOLDER")
            os.environ["RUN_FOLDER"] = from_first(str(held))  # for processes that Lightning starts with this script
            try:
                yield held
            finally:
                os.environ.pop("RUN_FOLDER") if before is None else os.environ.update(RUN_FOLDER=before)
    else:
        folder = from_first(folder)
        check(folder is not None, "set RUN_FOLDER, the same for all processes: the folder that the run writes to.")
        with deaths, redirect_stdout(io.StringIO()):
            yield Path(folder)


@contextmanager
def _held(script: str, settings: dict, folder: str | Path | None) -> Iterator[Path]:
    home = output_root() / "runs" / script
    chosen, lock = folder is not None, None
    try:
        if folder is None:
            folder, lock = choose_folder(home, settings["resume"])
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock or _lock(folder)
        if lock is None:
            raise UserError(f"another process is at work in {folder}.")
        check_same(folder / "settings.json", {k: v for k, v in settings.items() if k not in NOT_COMPARED}, "settings")
        (folder / "checkpoints").mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        raise write_error(error, folder or home) from error
    except (KeyboardInterrupt, SystemExit) as error:  # the latter is what Lightning makes of the former
        raise KeyboardInterrupt(_how_to_go_on(folder, chosen)) from error
    finally:
        if lock:
            lock.release()


def choose_folder(home: Path, resume: bool) -> tuple[Path, FileLock | None]:
    """The newest unfinished run, locked, or a new folder; says which."""
    folder, lock = _newest_unfinished(home) if resume else (None, None)
    if resume:
        print(f"Continuing {folder}" if folder else "No unfinished run to resume: starting a new one.", flush=True)
    return folder or new_folder(home), lock


def _how_to_go_on(folder: Path | None, chosen: bool) -> str:
    if folder and chosen:
        return f"the same command goes on in {folder}"
    if folder and _is_unfinished(folder):
        return f"RESUME = True goes on from {folder / LAST}"
    return "there is no checkpoint yet to go on from"


def _is_unfinished(folder: Path) -> bool:
    return (folder / LAST).exists() and not (folder / "results.json").exists()


def _newest_unfinished(home: Path) -> tuple[Path | None, FileLock | None]:
    for _, folder in sorted(numbered_folders(home).items(), reverse=True):
        if _is_unfinished(folder) and (lock := _lock(folder)):
            if _is_unfinished(folder):  # still, now that no other process is at work in it
                return folder, lock
            lock.release()
    return None, None


def numbered_folders(home: Path) -> dict[int, Path]:
    """The folders home/version_N by N."""
    folders = {path.name.removeprefix("version_"): path for path in home.glob("version_*")}
    return {int(number): path for number, path in folders.items() if number.isdecimal()}


def new_folder(home: Path) -> Path:
    """home/version_N of the next N, made. Raises: UserError where it cannot be."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        number = max(numbered_folders(home), default=-1) + 1
        while True:
            folder = home / f"version_{number}"
            with suppress(FileExistsError):  # another process may take the same number at the same time
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise write_error(error, home) from error


def _lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def check_same(path: Path, content: dict, what: str) -> None:
    """Keep `content` in `path`; where a run before has left it there, it must be the same: else UserError."""
    content = json.loads(json.dumps(content))
    if path.exists():
        earlier = json.loads(path.read_text())
        if changed := {name: earlier.get(name) for name in content if earlier.get(name) != content[name]}:
            raise UserError(
                f"the unfinished run in {path.parent} had other {what}: {changed}. "
                "Set them again to resume it, or start anew with RESUME = False."
            )
    write_json(path, content)


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far; nan where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "numpy": numpy.__version__,
        "processor": platform.processor() or platform.machine(),
    }
