"""Prepared data on disk: built once by one process, complete or not there at all, found again by later runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from common.paths import output_root

CACHE_FORMAT = 2  # raise it when what a builder writes changes its meaning
MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Folder that holds every cache; it may be deleted at any time when nothing runs."""
    return output_root() / "data" / "cache"


def cached(name: str, sources: Sequence[Path], settings: dict, build: Callable[[Path], None]) -> Path:
    """Folder with what `build(folder)` wrote for these source files and settings; built now if it is not there yet.

    Entries of an older state of the sources (size or modification time) are removed, damaged ones are built again.
    A build goes to a folder of its own that is renamed when complete, under a lock that dies with its process.

    Raises: UserError where the disk is full or read-only, and whatever `build` raises.
    """
    state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sources]
    home = cache_root() / f"{name}-{_digest([str(path) for path in sources])}"
    entry = home / f"{_digest([CACHE_FORMAT, state])}-{_digest(settings)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(home / f"{entry.name}.lock", name):
            if not _is_intact(entry):
                _remove_outdated(home, entry, name)
                _build(entry, build)
    except OSError as error:
        raise _disk_error(error, home) from error
    return entry


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    partial = entry.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        (partial / MANIFEST).write_text(json.dumps(_files(partial)))
        os.replace(partial, entry)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of each file but the manifest."""
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _is_intact(entry: Path) -> bool:
    if not entry.exists():
        return False
    try:
        if json.loads((entry / MANIFEST).read_text()) == _files(entry):
            return True
    except (OSError, ValueError):
        pass
    print(f"The cache {entry} is damaged; it is built again.")
    shutil.rmtree(entry)
    return False


def _remove_outdated(home: Path, entry: Path, name: str) -> None:
    """Remove the entries of other states of the sources; a build of another process in `home` keeps its folder."""
    state = entry.name.split("-")[0]
    outdated = [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(state)]
    if any(path.suffix != ".partial" for path in outdated):
        print(f"The raw files of {name} (or the format) have changed since the cache was built; it is built again.")
    for path in outdated:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _one_at_a_time(path: Path, name: str) -> Iterator[None]:
    """Hold a lock; says so when another process has it. The lock of a dead process is free."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that prepares {name} ...", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _disk_error(error: OSError, folder: Path) -> UserError:
    free = shutil.disk_usage(folder if folder.exists() else folder.anchor).free / 2**20
    if error.filename and not Path(error.filename).is_relative_to(folder):
        return UserError(f"cannot read {error.filename}: {error.strerror}.")
    return UserError(
        f"cannot write the data cache {folder}: {error.strerror or error} ({free:,.0f} MiB free). "
        "Make room, or set the environment variable OUTPUT_ROOT to a folder that can be written."
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
