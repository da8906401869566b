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
    knows_range: bool = True
    breaks_after: list[int] = field(default_factory=list)  # bytes of each answer to come, then whole answers
    silent: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # (file, Range)

    def answer(self, name: str, asked: str | None) -> tuple[int, bytes]:
        content = self.files[name]
        if self.status != 200:
            return self.status, b""
        if not asked or not self.knows_range:
            return 200, content
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        return (206, content[start:]) if start < len(content) else (416, b"")


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
        asked = self.headers["Range"]
        mirror.requests.append((name, asked))
        if mirror.silent:
            self.server.ends.wait()
            return
        status, body = mirror.answer(name, asked)
        self.send_response(status)
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
    monkeypatch.setitem(module._COLLECTIONS, "tiny", module._Collection(("http://127.0.0.1:9/",), md5))
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
    expected = [("big.gz", None), ("small.gz", None)]
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
    assert mirror.requests == [("small.gz", None)]


def test_a_mirror_with_corrupt_content_is_skipped(tmp_path: Path, serve: Serve) -> None:
    corrupt, good = serve(files=FILES | {"big.gz": b"x" + BIG[1:]}), serve()
    download("tiny", tmp_path, mirrors=[corrupt.url, good.url])
    check_complete(tmp_path)
    assert corrupt.requests == [("big.gz", None), ("small.gz", None)]
    assert good.requests == [("big.gz", None)]


def range_start(asked: str | None) -> int:
    assert asked is not None
    return int(asked.removeprefix("bytes=").removesuffix("-"))


def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(breaks_after=[100_000, 50_000])
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    (_, first), (_, second), (_, third), _ = mirror.requests
    assert first is None
    lost_at_most = module._CHUNK_BYTES
    assert 100_000 - lost_at_most < range_start(second) <= 100_000
    assert 50_000 - lost_at_most < range_start(third) - range_start(second) <= 50_000


def test_another_mirror_takes_up_what_the_first_one_broke_off(tmp_path: Path, serve: Serve) -> None:
    first, second = serve(breaks_after=[100_000, 0]), serve()
    download("tiny", tmp_path, mirrors=[first.url, second.url])
    check_complete(tmp_path)
    assert range_start(second.requests[0][1]) > 80_000


def test_a_later_call_takes_up_what_an_earlier_one_left(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "big.gz.part").write_bytes(BIG[:150_000])
    mirror = serve()
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests[0] == ("big.gz", "bytes=150000-")


def test_a_failed_call_keeps_the_part_for_the_next_one(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(breaks_after=[100_000, 0])
    with pytest.raises(DataError, match=r"broke off after \d+ of 200000 bytes"):
        download("tiny", tmp_path, mirrors=[mirror.url])
    part = (tmp_path / "big.gz.part").read_bytes()
    assert part
    assert part == BIG[: len(part)]
    assert [path.name for path in tmp_path.iterdir()] == ["big.gz.part"]


def test_tries_at_one_mirror_are_bounded_even_if_each_brings_a_little(tmp_path: Path, serve: Serve) -> None:
    mirror = serve(breaks_after=[20_000] * 100)
    with pytest.raises(DataError, match="broke off"):
        download("tiny", tmp_path, mirrors=[mirror.url])
    assert len(mirror.requests) == module._TRIES_MAX


def test_a_part_that_is_whole_already_is_only_renamed(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "big.gz.part").write_bytes(BIG)
    mirror = serve()
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests[:-1] == [("big.gz", "bytes=200000-")]


@pytest.mark.parametrize("wrong", [b"y" * 1000, b"y" * 200_000, b"y" * 300_000])
def test_a_part_that_proves_wrong_is_thrown_away_and_the_file_fetched_whole(
    tmp_path: Path, serve: Serve, wrong: bytes
) -> None:
    (tmp_path / "big.gz.part").write_bytes(wrong)
    mirror = serve()
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests[:-1] == [("big.gz", f"bytes={len(wrong)}-"), ("big.gz", None)]


def test_a_server_that_does_not_know_range_sends_the_whole_file(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "big.gz.part").write_bytes(BIG[:1000])
    mirror = serve(knows_range=False)
    download("tiny", tmp_path, mirrors=[mirror.url])
    check_complete(tmp_path)
    assert mirror.requests[:-1] == [("big.gz", "bytes=1000-")]


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
    collection = module._COLLECTIONS[name]
    assert sorted(collection.md5) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in collection.md5.values())
    assert len(collection.mirrors) >= 2
