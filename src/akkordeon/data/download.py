"""Fetches data sets: several mirrors, known checksums, interrupted downloads go on where they stopped.

pooch decides what is right: it compares checksums before and after. Here is how a file comes: its bytes
are appended to FILE.part beside the destination, and a FILE.part that is there already is asked for from
its end on (HTTP Range). Complete, it is handed to pooch, which keeps it under its name or deletes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akkordeon.core.errors import DataError

if TYPE_CHECKING:
    import requests

__all__ = ["download"]

_TIMEOUT_S = (10.0, 30.0)  # to connect, and between two pieces of an answer
_TRIES_MAX = 4  # at one mirror for one file
_CHUNK_BYTES = 1 << 14  # what a broken connection may lose


@dataclass(frozen=True)
class _Collection:
    """Files of one data set: where they are served, and their checksums by name."""

    mirrors: tuple[str, ...]
    md5: dict[str, str]


_COLLECTIONS = {
    "mnist": _Collection(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": _Collection(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


def download(
    name: str, folder: str | Path, mirrors: Sequence[str] | None = None, progress: bool = False
) -> list[Path]:
    """Downloads the files of a data set into ``folder``; what is there and right is not fetched again.

    An interrupted download leaves FILE.part in ``folder``; the next call goes on from there.

    Args:
        name: ``mnist`` or ``fashion-mnist``.
        folder: where the files go; made if need be.
        mirrors: web addresses of folders that serve the files, tried in order for each file; the known
            ones by default.
        progress: draw a bar for each file on stderr.

    Returns:
        The paths of the files; ``akkordeon.data.datasets.mnist(folder)`` reads them.

    Raises:
        DataError: the name is unknown, ``folder`` cannot be written, or no mirror gave the right file.
    """
    if name not in _COLLECTIONS:
        raise DataError(f"there is no data set {name!r} to download; choose {' or '.join(_COLLECTIONS)}")
    collection = _COLLECTIONS[name]
    mirrors = collection.mirrors if mirrors is None else [mirrors] if isinstance(mirrors, str) else mirrors
    if not mirrors:
        raise DataError(f"there is no mirror to download {name} from (mirrors is empty); name at least one")
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return [_fetch(folder / file, md5, mirrors, progress) for file, md5 in collection.md5.items()]


def _fetch(path: Path, md5: str, mirrors: Sequence[str], progress: bool) -> Path:
    """``path``, from the first mirror that gives it right."""
    reasons = []
    for mirror in mirrors:
        reason = _fetch_from(f"{mirror.rstrip('/')}/{path.name}", path, md5, progress)
        if reason is None:
            return path
        reasons.append(f"{mirror} ({reason})")
    raise DataError(
        f"{path.name} could not be downloaded from any mirror: {', '.join(reasons)}; "
        f"try again later, or put the file into {path.parent} by hand"
    )


def _fetch_from(url: str, path: Path, md5: str, progress: bool) -> str | None:
    """Tries one mirror; returns why it failed, or None if ``path`` is there and right."""
    import pooch

    resuming = _Resuming(path, progress)
    reason = "not tried"
    for _ in range(_TRIES_MAX):
        before_bytes = resuming.part_bytes
        try:
            pooch.retrieve(url, f"md5:{md5}", path.name, path.parent, downloader=resuming)
            return None
        except (OSError, ValueError) as error:
            reason = _reason(error)
        # A part that grew can go on, one that proved wrong and went can start afresh. If nothing has
        # changed, the same mirror would only say the same again.
        if resuming.part_bytes == before_bytes:
            break
    return reason


class _Resuming:
    """A downloader for pooch that goes on from FILE.part and keeps it when the connection breaks."""

    def __init__(self, path: Path, progress: bool) -> None:
        self._part = path.with_name(path.name + ".part")
        self._progress = progress

    @property
    def part_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Makes ``output_file``; whether it is right, pooch finds out.

        Raises:
            OSError: the server refuses, is silent, or broke off (those of requests are OSErrors, too).
        """
        import requests

        start = self.part_bytes
        # The file as it is, please: some servers would pack it, or call a .gz file packed.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            # 416: there is nothing beyond what we have. The part is whole, or wrong: the checksum tells.
            if not (start and response.status_code == 416):
                response.raise_for_status()
                self._receive(response, start)
        os.replace(self._part, output_file)

    def _receive(self, response: requests.Response, start: int) -> None:
        import urllib3  # comes with requests, whose own stream would unpack what the server calls packed

        if response.status_code != 206:  # the server does not know Range and sends all of it
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        reason: Exception | None = None
        bar = _bar(self._part.stem, start, total) if self._progress else nullcontext(_draw_nothing)
        with self._part.open("ab" if start else "wb") as file, bar as advance:
            try:
                for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                    advance(file.write(chunk))
            except urllib3.exceptions.HTTPError as error:
                reason = error
        if reason or (total and self.part_bytes < total):
            raise ConnectionError(f"broke off after {self.part_bytes} of {total} bytes") from reason


def _reason(error: OSError | ValueError) -> str:
    import requests

    match error:
        case requests.HTTPError(response=requests.Response() as response):
            return f"HTTP {response.status_code}"
        case requests.Timeout():
            return "no answer in time"
        case requests.ConnectionError():
            return f"no connection: {type(error).__name__}"
        case requests.RequestException() | OSError():
            return str(error)
        case _:  # pooch's ValueError
            return "wrong checksum"


@contextmanager
def _bar(label: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Draws a progress bar on stderr; what it gives is called with the number of new bytes."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, completed=done, total=total)
        yield lambda n: bar.advance(task, n)


def _draw_nothing(n: int) -> None:
    """Stands in for the bar that nobody asked for."""
