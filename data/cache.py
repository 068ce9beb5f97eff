"""Prepared data on disk: built once by one process, complete or not there at all, found again by later runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import check
from common.files import write_error
from common.paths import output_root

CACHE_FORMAT = 2  # raise it when what a builder writes changes its meaning
MANIFEST = "manifest.json"
PARTIAL, LOCK = ".partial", ".lock"  # beside an entry: its build that has not ended, and the lock of it


def cache_root() -> Path:
    """Folder that holds every cache; it may be deleted at any time when nothing runs."""
    return output_root() / "data" / "cache"


def cached(
    name: str, sources: Sequence[Path], settings: dict, build: Callable[[Path], None], needed: int | None = None
) -> Path:
    """Folder with what `build(folder)` wrote for these source files and settings; built now if it is not there yet.

    Entries of an older state of the sources (size or modification time) are removed, damaged ones are built again.
    A build goes to a folder of its own that is renamed when complete, under a lock that dies with its process.
    needed: bytes of what `build` writes, about, for the message that a disk is full; if None, from the sources' sizes.

    Raises: UserError where the disk is full or read-only or a source changes meanwhile, and whatever `build` raises.
    """
    state = _state(sources)
    home = cache_root() / f"{name}-{_digest([str(path) for path in sources])}"
    entry = home / f"{_digest([CACHE_FORMAT, state])}-{_digest(settings)}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(entry.with_suffix(LOCK), name):
            _remove_partial(home, entry)
            if not _is_intact(entry):
                _remove_outdated(home, entry, name)
                _build(entry, build, sources, state)
    except OSError as error:
        raise write_error(error, home, _size_of(sources) if needed is None else needed) from error
    return entry


def _state(sources: Sequence[Path]) -> list:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sources]


def _build(entry: Path, build: Callable[[Path], None], sources: Sequence[Path], state: list) -> None:
    partial = entry.with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        check(_state(sources) == state, f"{' or '.join(map(str, sources))} changed while it was read; start again.")
        (partial / MANIFEST).write_text(json.dumps(_files(partial)))
        os.replace(partial, entry)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:  # of a full disk: it is the file written last
            error.filename = max(partial.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=partial)
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
    """Remove the entries of other states of the sources."""
    state = entry.name.split("-")[0]
    outdated = [p for p in home.iterdir() if p.is_dir() and p.suffix != PARTIAL and not p.name.startswith(state)]
    if outdated:
        print(f"The raw files of {name} (or the format) have changed since the cache was built; it is built again.")
    for path in outdated:
        shutil.rmtree(path, ignore_errors=True)


def _remove_partial(home: Path, entry: Path) -> None:
    """Remove what killed builds of other entries have left (`_build` does so for its own); a live one has its lock."""
    for partial in home.glob(f"*{PARTIAL}"):
        if partial.stem != entry.name:
            with suppress(Timeout), FileLock(partial.with_suffix(LOCK), timeout=0):
                shutil.rmtree(partial, ignore_errors=True)


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


def _size_of(sources: Sequence[Path]) -> float:
    """Bytes that prepared data takes, about: those of the raw text."""
    return sum(path.stat().st_size * (3 if path.suffix == ".gz" else 1) for path in sources)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
