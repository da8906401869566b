"""A Redis server of one's own, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVER = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(
    SERVER is None, reason="redis-server is not installed (Debian: redis-server)"
)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The url of a server that keeps nothing, at a socket in a folder, as long as this lasts."""
    socket = folder / "redis.sock"
    words = [str(SERVER), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("ready to accept" in line.lower() for line in server.stdout)
            yield f"unix://{socket}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that the tests of a module share."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A client of that server, which has nothing yet."""
    from redis import Redis

    with Redis.from_url(url, protocol=2, decode_responses=True) as client:
        client.flushall()
        yield client
