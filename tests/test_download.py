"""Downloads from a local server that drops connections, lies, redirects, is slow and fails."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from urllib3.util import Retry

from common.data import download as module
from common.data.download import Archive, download, ensure_dataset
from common.errors import UserError
from common.paths import REPO
from data.census_income import ARCHIVES as CENSUS
from data.criteo_data import ARCHIVES as CRITEO
from data.movie_rating_seq import ARCHIVES as MOVIES
from tests.script_process import run_process
from tests.test_unpack import make_zip

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """behaviours: what answers a path; requests: (path, Range header or None) of those received."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.behaviours = [], {}
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        pass  # the client is gone, as some tests want

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        assert self.headers["Accept-Encoding"] == "identity"  # the range counts bytes of the file
        self.server.requests.append((name, self.headers["Range"]))
        self.server.behaviours[name](self)

    def log_message(self, *arguments) -> None:
        pass

    def send(self, content: bytes = CONTENT, cut: int | None = None, ranges: bool = True) -> None:
        """The content from the requested byte on; cut: bytes after which the connection breaks."""
        start = int(self.headers["Range"][6:-1]) if ranges and self.headers["Range"] else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][:cut])

    def status(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def redirect(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url)
        self.end_headers()

    def stalled(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:1_500_000])
        time.sleep(2)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "RETRY", Retry(2, backoff_factor=0, status_forcelist=(503,)))
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def archive(*urls: str, **changes) -> Archive:
    known = {"size": len(CONTENT), "checksum": "md5:" + hashlib.md5(CONTENT).hexdigest()}
    return Archive(urls, "file.zip", {}, **(known | changes))


def in_turn(*behaviours):
    """Each request gets the next behaviour; the last one is repeated."""
    left = list(behaviours)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


@pytest.mark.parametrize(
    ("behaviour", "number_of_requests"),
    [
        (Handler.send, 1),
        (lambda handler: handler.send(cut=1_200_000), 3),
        (in_turn(lambda handler: handler.send(cut=1_500_000), lambda handler: handler.send(ranges=False)), 2),
        (in_turn(lambda handler: handler.status(503), lambda handler: handler.status(503), Handler.send), 3),
    ],
    ids=["good", "cut", "cut, no ranges", "503"],
)
def test_gets_the_file(tmp_path, server, behaviour, number_of_requests):
    server.behaviours["file"] = behaviour
    path = download(archive(server.url("file")), tmp_path)
    assert path == tmp_path / "file.zip" and path.read_bytes() == CONTENT
    assert len(server.requests) == number_of_requests
    assert [path.name for path in tmp_path.iterdir()] == ["file.zip"]
    assert download(archive(server.url("file")), tmp_path) == path
    assert len(server.requests) == number_of_requests


def test_goes_on_where_it_broke_also_behind_a_redirect(tmp_path, server):
    server.behaviours["old"] = lambda handler: handler.redirect(server.url("file"))
    server.behaviours["file"] = lambda handler: handler.send(cut=1 << 20)
    download(archive(server.url("old")), tmp_path)
    ranges = [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]
    assert server.requests == [(name, asked) for asked in ranges for name in ("old", "file")]


def test_goes_on_in_another_process(tmp_path, server):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:2_000_000])
    server.behaviours["file"] = Handler.send
    assert download(archive(server.url("file")), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("file", "bytes=2000000-")]
    (tmp_path / "file.zip").rename(tmp_path / "file.zip.part")  # complete, but killed before it was renamed
    assert download(archive(server.url("file")), tmp_path).read_bytes() == CONTENT and len(server.requests) == 1
    (tmp_path / "file.zip").rename(tmp_path / "file.zip.part")  # without a size, nobody knows that it is complete
    assert download(archive(server.url("file"), size=None), tmp_path).read_bytes() == CONTENT
    assert server.requests[1:] == [("file", None)]


def test_a_wrong_page_does_not_replace_what_there_is(tmp_path, server):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:2_000_000])
    server.behaviours["file"] = lambda handler: handler.send(b"<html>", ranges=False)
    with pytest.raises(UserError, match="offers 6 bytes"):
        download(archive(server.url("file")), tmp_path)
    assert (tmp_path / "file.zip.part").read_bytes() == CONTENT[:2_000_000]


def test_a_stalled_connection_is_given_up(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", (1, 0.3))
    server.behaviours["file"] = in_turn(Handler.stalled, Handler.send)
    assert download(archive(server.url("file")), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2 and server.requests[1][1] is not None


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (lambda handler: handler.status(404), "404 "),
        (lambda handler: handler.status(503), "503 error responses"),
        (lambda handler: handler.send(cut=0), "Connection broken"),
        (lambda handler: handler.send(CONTENT[::-1]), "has checksum"),
        (lambda handler: handler.send(CONTENT[:-1]), "offers 2,999,999 bytes, expected 3,000,000"),
        (lambda handler: handler.send(b"<html>"), "offers 6 bytes, expected 3,000,000"),
        (lambda handler: handler.redirect("/file"), "30 redirects"),
    ],
    ids=["404", "503", "nothing", "wrong bytes", "short", "a page", "redirects without end"],
)
def test_mirrors_in_order_and_what_is_said_when_none_works(tmp_path, server, behaviour, reason):
    server.behaviours |= {"file": behaviour, "mirror": Handler.send}
    official, mirror = server.url("file"), server.url("mirror")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert download(archive(official, mirror), tmp_path / "a").read_bytes() == CONTENT
    assert server.requests[0][0] == "file" and server.requests[-1] == ("mirror", None)
    with pytest.raises(UserError) as raised:
        download(archive(official), tmp_path / "b")
    message = str(raised.value)
    assert reason in message and f"get {official}" in message and f"save it as {tmp_path}/b/file.zip" in message
    assert not (tmp_path / "b" / "file.zip").exists()


def test_a_wrong_file_put_by_hand_is_refused(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"file.zip: it has 6 bytes, expected 3,000,000. Remove the file"):
        download(archive("http://127.0.0.1:1/"), tmp_path)


def test_ensure_dataset(tmp_path, server, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    packed = make_zip(tmp_path / "a.zip", {"x/rows.txt": b"rows"}).read_bytes()
    server.behaviours["a.zip"] = lambda handler: handler.send(packed)
    archives = {"mine": Archive((server.url("a.zip"),), "a.zip", {"rows.txt": None})}
    for _ in range(2):
        ensure_dataset("mine", archives)
    assert (tmp_path / "raw" / "mine" / "rows.txt").read_bytes() == b"rows" and len(server.requests) == 1
    with pytest.raises(UserError, match="only mine can be downloaded"):
        ensure_dataset("yours", archives)


def test_official_addresses_are_https_and_have_checksums():
    for known in (CRITEO | CENSUS | MOVIES).values():
        assert all(url.startswith("https://") for url in known.urls)
        assert known.checksum or all(known.files.values())


def test_a_script_without_a_network(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""import runpy, sys
sys.path.insert(0, {str(REPO)!r})
import common.data.download
common.data.download.RETRY = 0
runpy.run_path({str(REPO / "data" / "movie_rating_seq.py")!r}, run_name="__main__")""")
    done = run_process(script, folder=tmp_path, DATA_ROOT=tmp_path, HTTPS_PROXY="http://127.0.0.1:1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cannot download ml-1m.zip") and "https://files.grouplens.org" in last
