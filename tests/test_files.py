"""Full disks and dead writers: the old state stays, nothing half-written is left, the message says what is missing."""

import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import Timeout

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.data.cache import build_once, cache_root
from common.errors import UserError
from common.files import as_user_error, atomic_write, write_json
from common.training.run_folder import keep_unchanged

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def test_a_checkpoint_on_a_full_disk(tmp_path):
    """A file size limit of the system interrupts writing, where torch raises its own error."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    MappedCheckpointIO().save_checkpoint({"state_dict": {"x": torch.ones(3)}}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        message = rf"cannot write {path}: File too large. Free some space, or set .* OUTPUT_ROOT"
        with pytest.raises(UserError, match=message):
            MappedCheckpointIO().save_checkpoint({"state_dict": {"x": torch.ones(7 * 2**17)}}, path)  # 3.5 MiB
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path)["state_dict"]["x"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    with atomic_write(path, "w") as file:
        file.write("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write(str(1 / 0))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_several_writers_of_one_file_do_not_mix(tmp_path):
    """Several writers write many different lines at the same time; the file is complete and from one of them."""
    path, lines, barrier = tmp_path / "out.csv", 20_000, threading.Barrier(6)

    def write(name: str) -> None:
        with atomic_write(path, "w") as file:
            barrier.wait()
            for _ in range(lines):
                file.write(f"{name}\n")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, "abcdef"))
    written = path.read_text().splitlines()
    assert len(written) == lines and len(set(written)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"auc": math.nan, "rows": [1, math.inf, {"a": -math.inf}], "b": 0.5})
    assert (tmp_path / "x.json").read_text().count("null") == 3
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)["b"] == 0.5


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * 5 * 2**20)
    return path


@pytest.mark.skipif(not FULL.exists(), reason=f"needs {FULL}")
@pytest.mark.parametrize("write", [lambda file: file.write(b"x" * 10**6), torch.ones(10**6).numpy().tofile])
def test_a_cache_on_a_full_disk(source, write):
    def build(folder: Path) -> None:
        (folder / "ids.npy").symlink_to(FULL)
        with open(folder / "ids.npy", "wb") as file:
            write(file)

    message = r"cannot write .*ids.npy: .*OUTPUT_ROOT"
    with pytest.raises(UserError, match=message):
        build_once("full", [source], {}, build, code=())
    assert {path.name for path in cache_root().glob("full-*/*")} == {"lock"}


def test_what_a_killed_builder_left_is_removed_and_a_live_one_is_waited_for(source):
    started, goes_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        started.set()
        assert goes_on.wait(60)
        (folder / "x").touch()

    entry = build_once("left", [source], {}, lambda folder: (folder / "x").touch(), code=())
    dead = entry.with_name("dead-0.partial")
    dead.mkdir()
    with ThreadPoolExecutor(2) as pool:
        live = pool.submit(build_once, "left", [source], {"other": 1}, slow, code=())
        assert started.wait(60) and not dead.exists()
        other = pool.submit(build_once, "left", [source], {}, slow, code=())
        assert not other.done()
        goes_on.set()
        assert other.result() == entry and live.result() != entry and list(live.result().iterdir())


def test_reasons_of_the_system_are_told(tmp_path):
    """Only what cannot be written is blamed on the disk."""
    pipe = BrokenPipeError(32, "Broken pipe")
    for error in (Timeout("run.lock"), pipe, ConnectionRefusedError(111, "refused"), OSError(28, "full")):
        message = str(as_user_error(error, tmp_path))
        assert "cannot write" not in message and str(error.strerror or error) in message
    error = OSError("250 requested and 0 written")
    error.filename = str(tmp_path / "ids.npy")
    assert "ids.npy: 250 requested and 0 written." in str(as_user_error(error, tmp_path))


@pytest.mark.parametrize("damaged", [b"", b'{"seed": 1', b"\0" * 100, b"[1]", b"\xff\xfe"])
def test_damaged_files_of_a_run_are_one_message(tmp_path, damaged):
    for name in ("settings.json", "data.json"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} is damaged .*remove {tmp_path} to start again"):
            keep_unchanged(tmp_path / name, {"seed": 1}, "settings")


def test_a_raw_file_that_is_removed_while_it_is_read(source):
    def build(folder: Path) -> None:
        source.unlink()
        source.stat()

    for _ in range(2):
        with pytest.raises(UserError, match=f"cannot read {source}: No such file"):
            build_once("removed", [source], {}, build, code=())


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no manifest"])
def test_a_damaged_cache_is_built_again(source, capsys, damage):
    entry = build_once("damaged", [source], {}, lambda folder: (folder / "ids.npy").write_bytes(bytes(1000)), code=())
    path = entry / "ids.npy"
    before = path.stat()
    if damage == "flipped":
        path.write_bytes(bytes(500) + b"\1" + bytes(499))
    elif damage == "cut":
        os.truncate(path, 900)
    else:
        (path if damage == "gone" else entry / "manifest.json").unlink()
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = build_once("damaged", [source], {}, lambda folder: (folder / "ids.npy").write_bytes(b"new"), code=())
    assert again == entry and path.read_bytes() == b"new" and "is damaged; rebuilding it" in capsys.readouterr().out
