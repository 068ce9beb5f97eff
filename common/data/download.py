"""Official archives: downloaded once, resumed after a broken connection, verified, and unpacked."""

import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from common.errors import UserError, check
from common.files import as_user_errors
from common.paths import data_root

CHUNK_BYTES = 1 << 20
TIMEOUT = (10, 30)  # seconds to connect, and between two chunks
RETRY = Retry(4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), respect_retry_after_header=False)
DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class Archive:
    """A file to download. urls: the official one, then mirrors. size: bytes; if unknown, a download is not resumed.

    checksum: "md5:<hex>" or "sha256:<hex>". files: those to unpack, with checksums, or None if the archive has one."""

    urls: tuple[str, ...]
    name: str
    files: dict[str, str | None]
    size: int | None = None
    checksum: str | None = None


def ensure_dataset(dataset: str, archives: Mapping[str, Archive]) -> None:
    """Download and unpack DATA_ROOT/<dataset>, unless the folder exists."""
    folder, downloads = data_root() / dataset, data_root() / "downloads"
    with as_user_errors(data_root(), "DATA_ROOT"):
        if folder.exists():
            return
        known = ", ".join(archives)
        check(dataset in archives, f"there is no folder {folder}, and only {known} can be downloaded.")
        downloads.mkdir(parents=True, exist_ok=True)
        with FileLock(downloads / f"{dataset}.lock"):
            if not folder.exists():
                unpack(download(archives[dataset], downloads), archives[dataset].files, folder)


def download(archive: Archive, folder: Path) -> Path:
    """The verified file folder/<name>: kept if it exists, otherwise from the first URL that provides it."""
    path, failures = folder / archive.name, []
    if path.exists():
        problem = _problem(path, archive.checksum, archive.size)
        check(not problem, f"{path}: {problem}. Remove the file to download it again.")
        return path
    partial = path.with_name(f"{path.name}.part")
    for url in archive.urls:
        try:
            _fetch(url, partial, archive)
            if problem := _problem(partial, archive.checksum, archive.size):
                partial.unlink()  # wrong bytes cannot be continued
                raise requests.RequestException(problem)
            os.replace(partial, path)
            return path
        except requests.RequestException as error:
            failures.append(f"{url}: {str(error).split('(Caused by ')[-1][:200]}")
    raise UserError(
        f"cannot download {archive.name}. Run the command again to continue the download; or get {archive.urls[0]} by "
        f"other means, save it as {path} and run the command again. Tried: {'; '.join(failures)}"
    )


def _fetch(url: str, partial: Path, archive: Archive) -> None:
    """Complete `partial`; after a broken connection it goes on, as long as each request brings some bytes."""
    session, size = requests.Session(), archive.size
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRY))
    while (have := _size(partial) if size else 0) < (size or 1):
        # uncompressed, because the range counts bytes of the file
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                start = have if response.status_code == 206 else 0
                total = start + int(response.headers.get("Content-Length", 0))
                if size and total != size:  # checked now, because a wrong page would replace what there is
                    raise requests.RequestException(f"offers {total:,} bytes, expected {size:,}")
                bar = tqdm(total=total, initial=start, desc=archive.name, unit="B", unit_scale=True, unit_divisor=1024)
                with open(partial, "ab" if start else "wb") as file, bar:
                    for chunk in response.iter_content(CHUNK_BYTES):  # raises one of BROKEN if the length is less
                        bar.update(file.write(chunk))
                return
        except BROKEN:
            if not size or _size(partial) <= have:
                raise


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _problem(path: Path, checksum: str | None, size: int | None = None) -> str | None:
    """What is wrong with the complete file, if anything."""
    if not path.exists():
        return "it is not there"
    if size and _size(path) != size:
        return f"it has {_size(path):,} bytes, expected {size:,}"
    if checksum:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, checksum.partition(":")[0]).hexdigest()
        if found != checksum.partition(":")[2]:
            return f"it has checksum {found}, expected {checksum}"
    return None


def unpack(archive: Path, files: dict[str, str | None], folder: Path) -> None:
    """Unpack the members named in `files`, wherever they are in the archive, to `folder`: all of them or none."""
    partial, anew = folder.with_name(f".{folder.name}.partial"), "Remove it to download it again."
    found, everything = partial / "found", partial / "everything"
    print(f"Unpacking {archive} ...", flush=True)
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process
        found.mkdir(parents=True)
        _extract(archive, everything)
        for name, checksum in files.items():
            path = next(everything.rglob(name), everything / name)
            problem = _problem(path, checksum)
            check(not problem, f"{archive}: {name}: {problem}. {anew}")
            os.replace(path, found / name)
        os.replace(found, folder)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; bz2 and gzip raise OSError without a number
            raise
        raise UserError(f"{archive}: the archive is damaged ({error}). {anew}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"Unpacked to {folder}; {archive} is no longer needed.", flush=True)


def _extract(archive: Path, folder: Path) -> None:
    """All members, and those of a .tar.gz inside a .zip; none can escape from the folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        for inner in list(folder.rglob("*.tar.gz")):
            _extract(inner, folder)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
