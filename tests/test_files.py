"""Full disks and dead builders: the old state stays, nothing half-written is left, the message says what is missing."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock, Timeout

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import UserError
from common.files import whole_file, write_error
from data.cache import cache_root, cached

FULL = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.fixture
def one_mib_free(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))


def test_a_checkpoint_on_a_full_disk(tmp_path, one_mib_free):
    """A limit of the system on the size of files ends the writing in the middle, where torch raises its own error."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    MappedCheckpointIO().save_checkpoint({"state_dict": {"x": torch.ones(3)}}, path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(
            UserError, match=rf"cannot write {path}: .* \(1.0 MiB are free, about 3 MiB more are needed\)"
        ):
            MappedCheckpointIO().save_checkpoint({"state_dict": {"x": torch.ones(7 * 2**17)}}, path)  # 3.5 MiB
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path)["state_dict"]["x"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    with whole_file(path, "w") as file:
        file.write("old")
    with pytest.raises(ZeroDivisionError), whole_file(path, "w") as file:
        file.write(str(1 / 0))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "train.txt"
    path.write_bytes(b"x" * 5 * 2**20)
    return path


@pytest.mark.skipif(not FULL.exists(), reason=f"needs {FULL}")
@pytest.mark.parametrize("write", [lambda file: file.write(b"x" * 10**6), torch.ones(10**6).numpy().tofile])
def test_a_cache_on_a_full_disk(source, one_mib_free, write):
    def build(folder: Path) -> None:
        (folder / "ids.npy").symlink_to(FULL)
        with open(folder / "ids.npy", "wb") as file:
            write(file)

    message = r"cannot write .*ids.npy: .*\(1.0 MiB are free, about 4 MiB more are needed\).*OUTPUT_ROOT"
    with pytest.raises(UserError, match=message):
        cached("full", [source], {}, build)
    assert {path.suffix for path in cache_root().glob("full-*/*")} == {".lock"}


def test_what_a_killed_builder_left_is_removed_and_what_a_live_one_builds_is_not(source):
    def build(folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps("built"))

    entry = cached("left", [source], {}, build)
    dead, live = (entry.with_name(f"{name}-0.partial") for name in ("dead", "live"))
    dead.mkdir()
    live.mkdir()
    with FileLock(live.with_suffix(".lock")):
        assert cached("left", [source], {}, build) == entry
        assert live.exists() and not dead.exists()


@pytest.mark.parametrize("error", [Timeout("run.lock"), BrokenPipeError(32, "Broken pipe")])
def test_other_errors_of_the_system_are_not_blamed_on_the_disk(tmp_path, error):
    message = str(write_error(error, tmp_path))
    assert "cannot write" not in message and ("run.lock" in message or "Broken pipe" in message)
