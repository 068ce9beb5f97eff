"""Prepared data on disk: built once, atomically, and reused by later runs."""

import ast
import hashlib
import inspect
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from common.data.parallel import ordered_map
from common.errors import check
from common.files import as_user_errors
from common.paths import output_root

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # suffix of an unfinished build


def cache_root() -> Path:
    """Folder of all caches; it may be deleted whenever nothing is running."""
    return output_root() / "data" / "cache"


def build_once(
    name: str, sources: Sequence[Path], settings: dict[str, Any], build: Callable[[Path], None], *, code: Sequence[str]
) -> Path:
    """Folder with what `build(folder)` wrote for these source files and settings; built now if there is none yet.

    The key covers everything that decides what `build` writes: the sources (path, size and modification time), all
    `settings`, and the modules named in `code`, without comments and docstrings. Entries of older sources or code are
    removed. Checksums are compared each time, which takes a second per gigabyte, and damaged entries are rebuilt.
    A build writes to a temporary folder, which is renamed when complete, under a lock that a dying process releases.
    """
    text = [_meaning(inspect.getsource(sys.modules[module])) for module in code]
    parent = cache_root() / f"{name}-{_digest([str(path) for path in sources])}"
    with as_user_errors(parent):
        state = _state(sources)
        entry = parent / f"{_digest([state, text])}-{_digest(settings)}"
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent / "lock", name):
            if not _is_intact(entry):
                _clean(parent, entry, name)
                _build(entry, build, sources, state)
        return entry


@cache
def _meaning(source: str) -> str:
    """A module's code without comments, docstrings and line breaks."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _state(sources: Sequence[Path]) -> list:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sources]


def _build(entry: Path, build: Callable[[Path], None], sources: Sequence[Path], state: list) -> None:
    partial = entry.with_suffix(PARTIAL)
    partial.mkdir()
    try:
        build(partial)
        check(_state(sources) == state, f"{' or '.join(map(str, sources))} changed while being read; start again.")
        (partial / MANIFEST).write_text(json.dumps(_checksums(partial)))
        os.replace(partial, entry)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:  # a full disk: name the file written last
            error.filename = max(partial.iterdir(), key=lambda path: path.stat().st_mtime_ns, default=partial)
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of each file except the manifest."""

    def checksum(path: Path) -> list[int]:
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
            return [file.tell(), crc]

    paths = [path for path in sorted(folder.iterdir()) if path.name != MANIFEST]
    return dict(zip([path.name for path in paths], ordered_map(checksum, paths), strict=True))


def _is_intact(entry: Path) -> bool:
    with suppress(OSError, ValueError):
        if json.loads((entry / MANIFEST).read_text()) == _checksums(entry):
            return True
    if entry.exists():
        print(f"The cache {entry} is damaged; rebuilding it.")
        shutil.rmtree(entry)
    return False


def _clean(parent: Path, entry: Path, name: str) -> None:
    """Remove entries of other versions of the sources or the code, and what killed builds left behind."""
    state = entry.name.split("-")[0]
    for path in parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
    if outdated := [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(state)]:
        print(f"The raw files of {name}, or the code that reads them, have changed: rebuilding the cache.")
    for path in outdated:
        shutil.rmtree(path, ignore_errors=True)


def _locked(path: Path, name: str) -> AcquireReturnProxy:
    """A context that holds the lock, which the system releases if this process dies."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that is preparing {name} ...", flush=True)
        return lock.acquire()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
