"""Official archives: downloaded once, resumed after a broken connection, verified, and unpacked file by file."""

import hashlib
import lzma
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
from filelock import FileLock
from tqdm import tqdm

from common.errors import UserError, check
from common.files import as_user_error
from common.paths import data_root

CHUNK_BYTES = 1 << 20
LARGEST_FILE = 32 << 30  # bytes; the largest real one has 11 GB, while an archive of zeros unpacks to any size
TIMEOUT = (10, 30)  # seconds to connect, and between two chunks
PAUSES = (1, 2, 4, 8)  # seconds before each retry after an attempt without progress
MAY_PASS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class Archive:
    """A file to download. urls: the official one, then mirrors. size: bytes. checksum: "md5:<hex>" or "sha256:<hex>".
    files: those to unpack, each with its checksum, or None if only the archive has one."""

    urls: tuple[str, ...]
    name: str
    files: dict[str, str | None]
    size: int | None = None
    checksum: str | None = None


class _Unusable(Exception):
    """This URL does not provide the file; the next one may."""


def ensure_dataset(dataset: str, archives: Mapping[str, Archive]) -> None:
    """Download and unpack DATA_ROOT/<dataset>, unless the folder exists.

    Raises: UserError without a network, for wrong bytes, or for a dataset that is not in `archives`.
    """
    folder = data_root() / dataset
    downloads = data_root() / "downloads"
    try:
        if folder.exists():
            names = " nor ".join(archives[dataset].files) if dataset in archives else "files"
            check(any(folder.iterdir()), f"{folder} is empty: it has no {names}. Remove it to download the data.")
            return
        known = ", ".join(archives)
        check(dataset in archives, f"there is no folder {folder}, and only {known} can be downloaded.")
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / f"{dataset}.lock"):
            if not folder.exists():
                unpack(download(archives[dataset], downloads), archives[dataset].files, folder)
    except OSError as error:
        raise as_user_error(error, data_root(), variable="DATA_ROOT") from error


def download(archive: Archive, folder: Path) -> Path:
    """The verified file folder/<name>: kept if it exists, otherwise from the first URL that provides it."""
    path = folder / archive.name
    if path.exists():
        if problem := _problem(path, archive):
            raise UserError(f"{path}: {problem}. Remove the file to download it again.")
        return path
    partial = path.with_name(f"{path.name}.part")
    failures = []
    for url in archive.urls:
        try:
            _fetch(url, partial, archive)
            os.replace(partial, path)
            return path
        except _Unusable as error:
            failures.append(f"{url}: {error}")
    raise UserError(
        f"cannot download {archive.name}. Run the command again to continue the download; or get {archive.urls[0]} by "
        f"other means, save it as {path} and run the command again. Tried: {'; '.join(failures)}"
    )


def _fetch(url: str, partial: Path, archive: Archive) -> None:
    """Complete and verify `partial`, in as many requests as it takes."""
    failed = 0  # attempts in a row without progress
    while True:
        before = _size(partial)
        try:
            _request(url, partial, archive)
            break
        except requests.RequestException as error:
            failed = 0 if _size(partial) > before else failed + 1
            if failed > len(PAUSES) or not isinstance(error, MAY_PASS):
                raise _Unusable(str(error).split("(Caused by ")[-1][:200]) from error
            time.sleep(PAUSES[max(failed - 1, 0)])
    if problem := _problem(partial, archive):
        partial.unlink()  # wrong bytes cannot be continued
        raise _Unusable(problem)


def _request(url: str, partial: Path, archive: Archive) -> None:
    """Request what is missing from `partial`, and append it."""
    have = _size(partial)
    if have and have == archive.size:
        return
    # uncompressed, because the range counts bytes of the file
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code >= 500 or response.status_code == 429:
            raise requests.ConnectionError(f"status {response.status_code} {response.reason}")
        if response.status_code == 416:  # range not satisfiable: the file has no further bytes
            return
        if response.status_code not in (200, 206):
            raise _Unusable(f"status {response.status_code} {response.reason}")
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Unusable("continues at a byte other than the one requested")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else archive.size
        if archive.size and total != archive.size:
            raise _Unusable(f"offers {total:,} bytes, expected {archive.size:,}")
        with (
            open(partial, "ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, desc=archive.name, unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    if archive.size and _size(partial) < archive.size:
        raise requests.ConnectionError("the connection ended early")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(path: Path, archive: Archive) -> str | None:
    """What is wrong with the complete file, if anything."""
    if archive.size and path.stat().st_size != archive.size:
        return f"it has {path.stat().st_size:,} bytes, expected {archive.size:,}"
    if archive.checksum:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, archive.checksum.split(":")[0]).hexdigest()
        if found != archive.checksum.split(":")[1]:
            return f"it has checksum {found}, expected {archive.checksum}"
    return None


def unpack(archive: Path, files: dict[str, str | None], folder: Path) -> None:
    """Unpack the members named in `files`, wherever they are in the archive, to `folder`: all of them or none.

    Only names that we choose are written, so no member can escape from the folder.
    Raises: UserError if one is missing or has another checksum, or the archive is damaged.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"Unpacking {archive} ...", flush=True)
    try:
        for name, stream in _members(archive):
            if name in files:
                _write(stream, partial / name, files[name], archive)
        lacking = [name for name in files if not (partial / name).exists()]
        check(not lacking, f"{archive} has no {', '.join(lacking)}. Remove it to download it again.")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Unpacked to {folder}; {archive} is no longer needed.", flush=True)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Report errors of the block, which writes nothing, as errors of the archive or of reading it."""
    try:
        yield
    except OSError as error:
        if error.errno:
            raise UserError(f"cannot read {archive}: {error.strerror}.") from error
        raise _damaged(archive, error) from error  # bz2 and gzip raise OSError without a number
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        raise _damaged(archive, error) from error  # RuntimeError: encrypted, or an unknown compression


def _damaged(archive: Path, error: Exception) -> UserError:
    return UserError(f"{archive}: the archive is damaged ({error}). Remove it to download it again.")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Base name and content of all regular files, including those of a tar inside a zip."""
    with _reading(archive):
        if not zipfile.is_zipfile(archive):
            with open(archive, "rb") as file:
                yield from _tar_members(file)
            return
        with zipfile.ZipFile(archive) as outer:
            for member in outer.infolist():
                with outer.open(member) as stream:
                    if member.filename.endswith((".tar.gz", ".tgz")):
                        yield from _tar_members(stream)
                    elif not member.is_dir():
                        yield Path(member.filename).name, stream


def _tar_members(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            if member.isreg() and (content := tar.extractfile(member)):  # no links, no devices
                yield Path(member.name).name, content


def _write(stream: IO[bytes], path: Path, checksum: str | None, archive: Path) -> None:
    algorithm, expected = checksum.split(":") if checksum else ("md5", None)
    digest = hashlib.new(algorithm)
    with open(path, "wb") as file:
        while True:
            with _reading(archive):
                chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                break
            digest.update(chunk)
            file.write(chunk)
            check(file.tell() <= LARGEST_FILE, f"{archive}: {path.name} has more than {LARGEST_FILE:,} bytes.")
    if expected and digest.hexdigest() != expected:
        raise UserError(
            f"{archive}: {path.name} has checksum {digest.hexdigest()}, expected {expected}. "
            "Remove the archive to download it again."
        )
