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
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def make_tar(files: dict[str, bytes | str], link: bytes = tarfile.SYMTYPE) -> bytes:
    """A .tar.gz; a str is the target of a link, or stands for another type, such as a device."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = link, content
                packed.addfile(member)
            else:
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


EVIL = {"../evil": b"x", "/tmp/evil_absolute": b"x", "a/../../../evil": b"x"}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar in zip"])
def test_only_the_files_asked_for_are_unpacked(tmp_path, kind):
    files = EVIL | {"deep/in/rows.txt": b"rows", "deep/in/other.txt": b"other", "../../names.txt": b"names"}
    path = tmp_path / "archives" / "a"
    path.parent.mkdir()
    if kind == "zip":
        make_zip(path, files)
    elif kind == "tar":
        path.write_bytes(make_tar(files))
    else:
        make_zip(path, {"inner.tar.gz": make_tar(files), "readme": b"r"})
    target = tmp_path / "data" / "set"
    unpack(path, {"rows.txt": "md5:" + hashlib.md5(b"rows").hexdigest(), "names.txt": None}, target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"rows.txt": b"rows", "names.txt": b"names"}
    assert {p.name for p in tmp_path.rglob("*")} == {"archives", "a", "data", "set", "rows.txt", "names.txt"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_tar({"rows.txt": "/etc/passwd"}), "has no rows.txt"),
        (make_tar({"rows.txt": "/etc/passwd"}, tarfile.LNKTYPE), "has no rows.txt"),
        (make_tar({"rows.txt": ""}, tarfile.CHRTYPE), "has no rows.txt"),
        (make_tar({"rows.txt": ""}, tarfile.FIFOTYPE), "has no rows.txt"),
        (make_tar({"rows.txt": b"rows"}), "rows.txt: it has checksum .* expected md5:0"),
        (make_tar({"rows.txt": RANDOM})[:-1_000_000], "is damaged"),
        (b"<html>", "is damaged"),
        (b"", "is damaged|has no rows.txt"),
    ],
    ids=["link", "hard link", "device", "pipe", "wrong bytes", "cut", "no archive", "empty"],
)
def test_bad_archives_leave_nothing(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=message):
        unpack(tmp_path / "a", {"rows.txt": "md5:0"}, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", ["member", "tar.xz", "tar.bz2"])
def test_damage_within_any_compression_is_one_message(tmp_path, method, kind):
    path, content = tmp_path / "a.zip", {"rows.txt": RANDOM[:200_000]}
    if kind != "member":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{kind.removeprefix('tar.')}") as packed:
            member = tarfile.TarInfo("rows.txt")
            member.size = len(content["rows.txt"])
            packed.addfile(member, io.BytesIO(content["rows.txt"]))
        packed = bytearray(buffer.getvalue())
        packed[100_000:100_100] = bytes(100)
        content = {"a.tar.gz": bytes(packed)}
        method = zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    if kind == "member":
        whole = bytearray(path.read_bytes())
        whole[60:160] = bytes(100)
        path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a.zip: the archive is damaged .*Remove it to download it again"):
        unpack(path, {"rows.txt": None}, tmp_path / "folder")
