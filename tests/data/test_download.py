"""Downloads, against a server of our own on 127.0.0.1: akkordeon.data.download."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from akkordeon.core.errors import DataError
from akkordeon.data.download import download

module = sys.modules[download.__module__]  # the package may export a function of the module's name
BIG = random.Random(0).randbytes(200_000)
SMALL = b"labels"
FILES = {"big.gz": BIG, "small.gz": SMALL}


@dataclass
class Mirror:
    """What one folder of the server does; it writes down the requests it gets."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    status: int = 200
    breaks_after: list[int] = field(default_factory=list)  # bytes of each answer to come, then whole answers
    silent: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """Serves mirror m at http://127.0.0.1:PORT/m/."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mirrors: list[Mirror] = []
        self.ends = threading.Event()

    def add(self, mirror: Mirror) -> Mirror:
        mirror.url = f"http://127.0.0.1:{self.server_port}/{len(self.mirrors)}/"
        self.mirrors.append(mirror)
        return mirror


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        _, number, name = self.path.split("/")
        mirror = self.server.mirrors[int(number)]
        mirror.requests.append(name)
        if mirror.silent:
            self.server.ends.wait()
            return
        body = mirror.files[name] if mirror.status == 200 else b""
        self.send_response(mirror.status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in mirror.headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: mirror.breaks_after.pop(0)] if mirror.breaks_after else body)
        # HTTP/1.0: the connection is closed now, in the middle of the file where it was cut.

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the method we replace
        """Nothing on the terminal."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Mirror]]:
    """Adds a mirror to the server; ``download("tiny", ...)`` is known for the time of the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setitem(module.COLLECTIONS, "tiny", module._Collection(("http://127.0.0.1:9/",), md5))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield lambda **settings: server.add(Mirror(**settings))
    server.ends.set()
    server.shutdown()
    server.server_close()
    thread.join()


Serve = Callable[..., Mirror]


def check_complete(folder: Path) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_all_files_come_from_the_first_mirror_that_works(tmp_path: Path, serve: Serve) -> None:
    first, second, third = serve(status=404), serve(), serve()
    paths = download("tiny", tmp_path / "new" / "folder", mirrors=[first.url, second.url, third.url])
    assert paths == [tmp_path / "new" / "folder" / name for name in FILES]
    check_complete(tmp_path / "new" / "folder")
    expected = ["big.gz", "small.gz"]
    assert (first.requests, second.requests, third.requests) == (expected, expected, [])


def test_a_second_call_fetches_nothing(tmp_path: Path, serve: Serve) -> None:
    mirror = serve()
    for _ in range(2):
        download("tiny", tmp_path, mirrors=[mirror.url])
    assert len(mirror.requests) == 2


def test_only_the_file_that_is_missing_or_wrong_is_fetched_again(tmp_path: Path, serve: Serve) -> None:
    mirror = serve()
    (tmp_path / "big.gz").write_bytes(BIG)
    (tmp_path / "small.gz").write_bytes(b"spoiled")
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests == ["small.gz"]


def test_a_mirror_with_corrupt_content_is_skipped(tmp_path: Path, serve: Serve) -> None:
    corrupt, good = serve(files=FILES | {"big.gz": b"x" + BIG[1:]}), serve()
    download("tiny", tmp_path, mirrors=[corrupt.url, good.url])
    check_complete(tmp_path)
    assert corrupt.requests == ["big.gz", "small.gz"]
    assert good.requests == ["big.gz"]


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(breaks_after=[100_000, 50_000])
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests == ["big.gz", "big.gz", "big.gz", "small.gz"]


def test_another_mirror_is_asked_where_the_first_one_breaks_off_every_time(
    tmp_path: Path, serve: Serve
) -> None:
    first, second = serve(breaks_after=[100_000] * module._TRIES_MAX), serve()
    download("tiny", tmp_path, mirrors=[first.url, second.url])
    check_complete(tmp_path)
    assert second.requests == ["big.gz"]


def test_a_failed_call_says_where_it_broke_off_and_leaves_no_half_file(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(breaks_after=[100_000] * 100)
    with pytest.raises(DataError, match=r"broke off after \d+ of 200000 bytes"):
        download("tiny", tmp_path, mirrors=[mirror.url])
    assert list(tmp_path.iterdir()) == []
    assert len(mirror.requests) == module._TRIES_MAX


def test_a_wrong_file_that_was_there_stays_until_a_right_one_has_come(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "big.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match="HTTP 404"):
        download("tiny", tmp_path, mirrors=[serve(status=404).url])
    assert (tmp_path / "big.gz").read_bytes() == b"mine"


def test_a_file_may_be_read_by_whoever_may_read_other_new_files(tmp_path: Path, serve: Serve) -> None:
    """A temporary file is its owner's alone, and a data folder is often shared."""
    (tmp_path / "other").write_bytes(b"")
    (path, _) = download("tiny", tmp_path / "data", mirrors=[serve().url])
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_gz_file_that_the_server_calls_an_encoding_is_kept_packed(tmp_path: Path, serve: Serve) -> None:
    download("tiny", tmp_path, mirrors=[serve(headers={"Content-Encoding": "gzip"}).url])
    check_complete(tmp_path)


def test_a_silent_mirror_is_given_up_in_bounded_time(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", (5.0, 0.1))
    silent = serve(silent=True)
    with pytest.raises(DataError, match="no answer in time"):
        download("tiny", tmp_path, mirrors=[silent.url])
    assert len(silent.requests) == 1


def test_when_all_mirrors_fail_one_sentence_lists_them_with_their_reasons(
    tmp_path: Path, serve: Serve
) -> None:
    missing, corrupt = serve(status=404), serve(files={"big.gz": b"corrupt"})
    with pytest.raises(DataError) as caught:
        download("tiny", tmp_path, mirrors=[missing.url, corrupt.url, "http://127.0.0.1:9/", "no-address/"])
    told = str(caught.value)
    assert f"{missing.url} (HTTP 404), {corrupt.url} (wrong checksum), http://127.0.0.1:9/ (no conn" in told
    assert "no-address/ (Invalid URL" in told
    assert "big.gz" in told
    assert str(tmp_path) in told
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_may_be_named_without_its_last_slash_and_alone(tmp_path: Path, serve: Serve) -> None:
    download("tiny", tmp_path, mirrors=serve().url.rstrip("/"))
    check_complete(tmp_path)


@pytest.mark.usefixtures("serve")
def test_without_mirrors_of_the_callers_the_known_ones_are_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/ \(no connection"):
        download("tiny", tmp_path)


def test_a_bar_is_drawn_on_stderr_if_asked_for(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    download("tiny", tmp_path, mirrors=[serve().url], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "200.0/200.0 kB" in err
    check_complete(tmp_path)


def test_what_cannot_be_downloaded_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'cifar'.*mnist or fashion-mnist"):
        download("cifar", tmp_path)
    with pytest.raises(DataError, match="no mirror to download mnist from"):
        download("mnist", tmp_path, mirrors=[])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file cannot be made: File exists"):
        download("mnist", tmp_path / "file")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_known_collections_have_four_files_with_checksums_and_several_mirrors(name: str) -> None:
    collection = module.COLLECTIONS[name]
    assert sorted(collection.md5) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in collection.md5.values())
    assert len(collection.mirrors) >= 2
