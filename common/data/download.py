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
TIMEOUT = (10, 30)  # seconds to connect, and between two chunks
PAUSES = (1, 2, 4, 8)  # seconds before each retry after an attempt without progress
MAY_PASS = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
# RuntimeError: encrypted, or an unknown compression
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """A file to download. urls: the official one, then mirrors. size: bytes. checksum: "md5:<hex>" or "sha256:<hex>".
    files: those to unpack, each with its checksum, or None if only the archive has one."""

    urls: tuple[str, ...]
    name: str
    files: dict[str, str | None]
    size: int | None = None
    checksum: str | None = None


def ensure_dataset(dataset: str, archives: Mapping[str, Archive]) -> None:
    """Download and unpack DATA_ROOT/<dataset>, unless the folder exists.

    Raises: UserError without a network, for wrong bytes, or for a dataset that is not in `archives`.
    """
    folder = data_root() / dataset
    downloads = data_root() / "downloads"
    try:
        if folder.exists():
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
        problem = _problem(path, archive.size, archive.checksum)
        check(not problem, f"{path}: {problem}. Remove the file to download it again.")
        return path
    partial = path.with_name(f"{path.name}.part")
    failures = []
    for url in archive.urls:
        try:
            _fetch(url, partial, archive)
            os.replace(partial, path)
            return path
        except requests.RequestException as error:
            failures.append(f"{url}: {str(error).split('(Caused by ')[-1][:200]}")
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
        except MAY_PASS:
            failed = 0 if _size(partial) > before else failed + 1
            if failed > len(PAUSES):
                raise
            time.sleep(PAUSES[max(failed - 1, 0)])
    if problem := _problem(partial, archive.size, archive.checksum):
        partial.unlink()  # wrong bytes cannot be continued
        raise requests.RequestException(problem)


def _request(url: str, partial: Path, archive: Archive) -> None:
    """Request what is missing from `partial`, and append it. Raises: one of MAY_PASS if it is worth another try."""
    have = _size(partial)
    if have and have == archive.size:
        return
    # uncompressed, because the range counts bytes of the file
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # range not satisfiable: the file has no further bytes
            return
        if response.status_code >= 500 or response.status_code == 429:
            raise requests.ConnectionError(f"{response.status_code} {response.reason}")
        response.raise_for_status()
        resumed = response.status_code == 206
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else archive.size
        if archive.size and total != archive.size:  # checked now, because a wrong page would replace what there is
            raise requests.RequestException(f"offers {total:,} bytes, expected {archive.size:,}")
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


def _problem(path: Path, size: int | None, checksum: str | None) -> str | None:
    """What is wrong with the complete file, if anything."""
    if size and path.stat().st_size != size:
        return f"it has {path.stat().st_size:,} bytes, expected {size:,}"
    if checksum:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, checksum.split(":")[0]).hexdigest()
        if found != checksum.split(":")[1]:
            return f"it has checksum {found}, expected {checksum}"
    return None


def unpack(archive: Path, files: dict[str, str | None], folder: Path) -> None:
    """Unpack the members named in `files`, wherever they are in the archive, to `folder`: all of them or none.

    Only names that we choose are written, so no member can escape from the folder.
    Raises: UserError if one is missing or has another checksum, or the archive is damaged.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    anew = "Remove it to download it again."
    print(f"Unpacking {archive} ...", flush=True)
    try:
        for name, stream in _members(archive):
            if name in files:
                with open(partial / name, "wb") as file:
                    shutil.copyfileobj(stream, file, CHUNK_BYTES)
                problem = _problem(partial / name, None, files[name])
                check(not problem, f"{archive}: {name}: {problem}. {anew}")
        lacking = [name for name in files if not (partial / name).exists()]
        check(not lacking, f"{archive} has no {', '.join(lacking)}. {anew}")
        os.replace(partial, folder)
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; bz2 and gzip raise OSError without a number
            raise
        raise UserError(f"{archive}: the archive is damaged ({error}). {anew}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Unpacked to {folder}; {archive} is no longer needed.", flush=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Base name and content of all regular files, including those of a tar inside a zip."""
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
