"""Unpacking: only the requested files, nothing outside the folder, nothing from bad archives."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.data.download import unpack
from common.errors import UserError

RANDOM = np.random.default_rng(0).bytes(3_000_000)


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(files: dict[str, bytes | str]) -> bytes:
    """A .tar.gz; a str is the target of a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                packed.addfile(member)
            else:
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar in zip"])
def test_only_the_files_asked_for_are_unpacked(tmp_path, kind):
    files = {"deep/in/rows.txt": b"rows", "deep/in/other.txt": b"other", "names.txt": b"names"}
    path = tmp_path / "archives" / "a"
    path.parent.mkdir()
    if kind == "tar":
        path.write_bytes(make_tar(files))
    elif kind == "zip":
        make_zip(path, files | {"../evil": b"x", "/tmp/evil_absolute": b"x"})
    else:
        make_zip(path, {"inner.tar.gz": make_tar(files), "readme": b"r"})
    target = tmp_path / "data" / "set"
    unpack(path, {"rows.txt": "md5:" + hashlib.md5(b"rows").hexdigest(), "names.txt": None}, target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"rows.txt": b"rows", "names.txt": b"names"}
    assert {p.name for p in tmp_path.rglob("*")} == {"archives", "a", "data", "set", "rows.txt", "names.txt"}


def damaged_zip(path: Path) -> bytes:
    content = bytearray(make_zip(path, {"rows.txt": RANDOM}).read_bytes())
    content[1_000:1_100] = bytes(100)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_tar({"rows.txt": "/etc/passwd"}), "is damaged"),
        (make_tar({"../rows.txt": b"rows"}), "is damaged"),
        (make_tar({"rows.txt": b"rows"}), "rows.txt: it has checksum .* expected md5:0"),
        (make_tar({"other.txt": b"rows"}), "rows.txt: it is not there"),
        (make_tar({"rows.txt": RANDOM})[:-1_000_000], "is damaged"),
        (damaged_zip, "is damaged"),
        (b"<html>", "is damaged"),
        (b"", "is damaged"),
    ],
    ids=["link", "outside", "wrong bytes", "not there", "cut", "damaged zip", "no archive", "empty"],
)
def test_bad_archives_leave_nothing(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content(tmp_path / "a") if callable(content) else content)
    with pytest.raises(UserError, match=message):
        unpack(tmp_path / "a", {"rows.txt": "md5:0"}, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
