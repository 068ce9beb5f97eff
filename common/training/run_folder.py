"""The folder of a run: locked by one process, resumed only with equal settings, finished once it has results.json."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pytorch_lightning.utilities.exceptions import SIGTERMException

from common.errors import Terminated, UserError, check
from common.files import as_user_error, as_user_errors, read_json, write_json
from common.paths import output_root
from common.process_group import broadcast, is_peer_failure, is_rank_zero, remove_rendezvous

BEST_CHECKPOINT, LAST_CHECKPOINT = Path("checkpoints", "best.ckpt"), Path("checkpoints", "last.ckpt")  # in the folder
# settings that may change on resume; they affect at most the dropout masks
NOT_COMPARED = ("resume", "logger", "num_workers", "devices", "num_nodes", "strategy", "shard_table")


@contextmanager
def claim_run_folder(script: str, settings: dict, folder: str | Path | None = None) -> Iterator[Path]:
    """The folder of this run, locked until the block ends: `folder`, $RUN_FOLDER or runs/<script>/version_N.

    With settings["resume"], version_N is the newest unfinished run that no process has locked. Rank zero locks and
    prints; the other ranks receive the path. A run that fails before its first validation leaves no folder."""
    before, home = os.environ.get("RUN_FOLDER", ""), output_root() / "runs" / script
    chosen = folder or before
    held, lock = Path(chosen or home), None
    try:
        with nullcontext() if is_rank_zero() else redirect_stdout(io.StringIO()):
            if is_rank_zero():
                held, lock = (held, lock_of(held)) if chosen else find_or_create_run(home, settings["resume"])
                check(lock is not None, f"another process is using {held}.")
                kept = {name: value for name, value in settings.items() if name not in NOT_COMPARED}
                keep_unchanged(held / "settings.json", kept, "settings")
            held = Path(broadcast(str(held) if is_rank_zero() or chosen else ""))
            check(held != Path(), "set the environment variable RUN_FOLDER, the same for all processes.")
            os.environ["RUN_FOLDER"] = str(held)  # for the ranks that Lightning starts with this script
            yield held
    except OSError as error:
        raise as_user_error(error, held) from error
    except RuntimeError as error:
        # a Ray cluster restarts all workers, and needs the original error to do so
        if settings.get("strategy") == "ray" or not is_peer_failure(error):
            raise
        remove_rendezvous()
        message = "another process of this run died; resume=True continues from the last checkpoint."
        raise UserError(message) from error
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning turns the former into the latter
        how = "there was no checkpoint yet to continue from"
        if chosen:
            how = f"the same command continues in {held}"
        elif (held / LAST_CHECKPOINT).exists() and not (held / "results.json").exists():
            how = f"resume=True continues from {held / LAST_CHECKPOINT}"
        raise (Terminated if isinstance(error, SIGTERMException) else KeyboardInterrupt)(how) from error
    finally:
        os.environ["RUN_FOLDER"] = before
        if lock:
            if not chosen and is_empty(held):
                shutil.rmtree(held, ignore_errors=True)
            lock.release()


def find_or_create_run(home: Path, resume: bool) -> tuple[Path, FileLock | None]:
    """With `resume` the newest unfinished run that no process holds; otherwise a new folder. Locked; prints which.

    Folders of runs that were killed before they had anything to continue from are removed."""
    with FileLock(home.with_suffix(".lock")):
        for folder in newest_first(home):
            if (folder / "results.json").exists() or not (lock := lock_of(folder)):
                continue
            if resume and (folder / LAST_CHECKPOINT).exists():
                print(f"Continuing {folder}", flush=True)
                return folder, lock
            if is_empty(folder):
                shutil.rmtree(folder)
            lock.release()
        if resume:
            print("No unfinished run to resume: starting a new one.", flush=True)
        folder = new_version_folder(home)
        return folder, lock_of(folder)


def is_empty(folder: Path) -> bool:
    """Whether a run has nothing yet that is worth keeping."""
    return not any((folder / name).exists() for name in ("metrics.csv", LAST_CHECKPOINT))


def lock_of(folder: Path) -> FileLock | None:
    """The lock of a folder, which is created if need be; None if another process holds it."""
    try:
        return FileLock(folder / "run.lock").acquire(timeout=0).lock
    except Timeout:
        return None


def newest_first(home: Path) -> list[Path]:
    """The folders home/version_N."""
    folders = [path for path in home.glob("version_*") if path.name[8:].isdecimal()]
    return sorted(folders, key=lambda path: int(path.name[8:]), reverse=True)


def new_version_folder(home: Path) -> Path:
    """Create home/version_N for the next N."""
    number = max((int(folder.name[8:]) for folder in newest_first(home)), default=-1) + 1
    with as_user_errors(home):
        try:
            (home / f"version_{number}").mkdir(parents=True)
        except FileExistsError:  # another process took the number
            return new_version_folder(home)
        return home / f"version_{number}"


def continued_folder(home: Path, identity: dict[str, Any], is_complete: Callable[[Path], bool]) -> Path:
    """The newest incomplete home/version_N whose settings.json equals `identity`; a new folder if there is none. Prints
    which ones are damaged."""
    identity = json.loads(json.dumps(identity))  # as in the file, where tuples are lists
    for folder in newest_first(home):
        kept = folder / "settings.json"
        try:
            if not kept.exists() or (read_json(kept) == identity and not is_complete(folder)):
                return folder
        except UserError as error:
            print(f"Not continuing {folder}: {error}", flush=True)
    return new_version_folder(home)


def keep_unchanged(path: Path, content: dict, what: str) -> None:
    """Write `content` to `path`. Raises: UserError if an earlier run has left something else there."""
    content = json.loads(json.dumps(content))
    if path.exists():
        earlier = read_json(path)
        if changed := {name: earlier.get(name) for name in content if earlier.get(name) != content[name]}:
            advice = "Set them back to continue it, or start a new run (resume=False, or another folder)."
            raise UserError(f"the run in {path.parent} had other {what}: {changed}. {advice}")
    write_json(path, content)
