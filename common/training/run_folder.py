"""The folder of a run: locked by one process, resumed only with equal settings, finished once it has results.json."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pytorch_lightning.utilities.exceptions import SIGTERMException

from common.errors import Terminated, UserError
from common.files import as_user_error, read_json, write_json
from common.paths import output_root
from common.process_group import broadcast, is_rank_zero, peer_failures_as_user_errors

BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints", "best.ckpt"), Path("checkpoints", "last.ckpt")  # in the folder
# settings that may change on resume; they affect at most the dropout masks
NOT_COMPARED = ("resume", "logger", "num_workers", "devices", "num_nodes", "strategy", "shard_table")


@contextmanager
def claim_run_folder(script: str, settings: dict, folder: str | Path | None = None) -> Iterator[Path]:
    """The folder of this run, locked until the block ends: `folder`, $RUN_FOLDER or runs/<script>/version_N.

    With settings["resume"], version_N is the newest unfinished run that no process has locked. Rank zero locks the
    folder and prints; the other ranks receive its path. A run that fails before its first validation leaves no folder.

    Raises: UserError if that run had other settings, or the folder cannot be written.
    """
    folder = folder or os.environ.get("RUN_FOLDER")
    # a Ray cluster restarts all workers, and needs the original error to do so
    deaths = nullcontext() if settings.get("strategy") == "ray" else peer_failures_as_user_errors()
    if is_rank_zero():
        with deaths, _locked(script, settings, folder) as held:
            before = os.environ.get("RUN_FOLDER")
            os.environ["RUN_FOLDER"] = broadcast(str(held))  # for the ranks that Lightning starts with this script
            try:
                yield held
            finally:
                os.environ.pop("RUN_FOLDER") if before is None else os.environ.update(RUN_FOLDER=before)
    else:
        folder = broadcast(folder)
        if folder is None:
            raise UserError("set the environment variable RUN_FOLDER, the same for all processes, to the run's folder.")
        with deaths, redirect_stdout(io.StringIO()):
            yield Path(folder)


@contextmanager
def _locked(script: str, settings: dict, chosen: str | Path | None) -> Iterator[Path]:
    home = output_root() / "runs" / script
    folder, lock = None if chosen is None else Path(chosen), None
    try:
        if folder is None:
            folder, lock = find_or_create_run(home, settings["resume"])
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock or _lock(folder)
        if lock is None:
            raise UserError(f"another process is using {folder}.")
        keep_unchanged(
            folder / "settings.json", {k: v for k, v in settings.items() if k not in NOT_COMPARED}, "settings"
        )
        (folder / "checkpoints").mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        raise as_user_error(error, folder or home) from error
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the former into the latter
        kind = Terminated if isinstance(error, SIGTERMException) else KeyboardInterrupt
        raise kind(_how_to_go_on(folder, chosen is not None)) from error
    finally:
        if folder and chosen is None and not any((folder / name).exists() for name in ("metrics.csv", LAST_CHECKPOINT)):
            shutil.rmtree(folder, ignore_errors=True)
        if lock:
            lock.release()


def find_or_create_run(home: Path, resume: bool) -> tuple[Path, FileLock | None]:
    """With `resume` the newest unfinished run, locked; otherwise, or if there is none, a new folder. Prints which."""
    folder, lock = _newest_unfinished(home) if resume else (None, None)
    if resume:
        print(f"Continuing {folder}" if folder else "No unfinished run to resume: starting a new one.", flush=True)
    return folder or new_version_folder(home), lock


def _how_to_go_on(folder: Path | None, chosen: bool) -> str:
    if folder and chosen:
        return f"the same command continues in {folder}"
    if folder and _is_unfinished(folder):
        return f"resume=True continues from {folder / LAST_CHECKPOINT}"
    return "there was no checkpoint yet to continue from"


def _is_unfinished(folder: Path) -> bool:
    return (folder / LAST_CHECKPOINT).exists() and not (folder / "results.json").exists()


def _newest_unfinished(home: Path) -> tuple[Path | None, FileLock | None]:
    for _, folder in sorted(version_folders(home).items(), reverse=True):
        if _is_unfinished(folder) and (lock := _lock(folder)):
            if _is_unfinished(folder):  # checked again under the lock
                return folder, lock
            lock.release()
    return None, None


def version_folders(home: Path) -> dict[int, Path]:
    """The folders home/version_N, by N."""
    folders = {path.name.removeprefix("version_"): path for path in home.glob("version_*")}
    return {int(number): path for number, path in folders.items() if number.isdecimal()}


def new_version_folder(home: Path) -> Path:
    """Create home/version_N for the next N. Raises: UserError if that fails."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        number = max(version_folders(home), default=-1) + 1
        while True:
            folder = home / f"version_{number}"
            with suppress(FileExistsError):  # another process took the same number
                folder.mkdir()
                return folder
            number += 1
    except OSError as error:
        raise as_user_error(error, home) from error


def continued_folder(home: Path, identity: dict[str, Any], is_complete: Callable[[Path], bool]) -> Path:
    """The newest incomplete home/version_N whose settings.json equals `identity`; a new folder if there is none.

    Prints which ones are damaged.
    """
    identity = json.loads(json.dumps(identity))  # as in the file, where tuples are lists
    for _, folder in sorted(version_folders(home).items(), reverse=True):
        kept = folder / "settings.json"
        try:
            if kept.exists() and read_json(kept) == identity and not is_complete(folder):
                return folder
        except UserError as error:
            print(f"Not continuing {folder}: {error}", flush=True)
    return new_version_folder(home)


def _lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def keep_unchanged(path: Path, content: dict, what: str) -> None:
    """Write `content` to `path`. Raises: UserError if an earlier run has left something else there."""
    content = json.loads(json.dumps(content))
    if path.exists():
        earlier = read_json(path)
        if changed := {name: earlier.get(name) for name in content if earlier.get(name) != content[name]}:
            raise UserError(
                f"the run in {path.parent} had other {what}: {changed}. "
                "Set them back to resume it, or start a new run with resume=False."
            )
    write_json(path, content)
