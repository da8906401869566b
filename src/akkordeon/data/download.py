"""Fetches data sets: several mirrors, known checksums, and no file under its name before it is whole.

pooch decides what is right: it compares checksums before and after, and keeps a file or deletes it. The
largest file has 26 MB, so a download that broke off begins anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from akkordeon.core.errors import DataError

__all__ = ["COLLECTIONS", "download"]

_TIMEOUT_S = (10.0, 30.0)  # to connect, and between two pieces of an answer
_TRIES_MAX = 3  # at one mirror for one file, where the connection breaks


@dataclass(frozen=True)
class _Collection:
    """Files of one data set: where they are served, and their checksums by name."""

    mirrors: tuple[str, ...]
    md5: dict[str, str]


COLLECTIONS = {
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
    if name not in COLLECTIONS:
        raise DataError(f"there is no data set {name!r} to download; choose {' or '.join(COLLECTIONS)}")
    collection = COLLECTIONS[name]
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

    reason = "not tried"
    for _ in range(_TRIES_MAX):
        try:
            pooch.retrieve(url, f"md5:{md5}", path.name, path.parent, downloader=_Downloader(progress))
            return None
        except _BrokenOffError as error:
            reason = str(error)
        except (OSError, ValueError) as error:
            return _reason(error)  # the same mirror would only say the same again
    return reason


class _BrokenOffError(OSError):
    """The connection broke in the middle of a file."""


@dataclass(frozen=True)
class _Downloader:
    """Gives pooch the bytes of a file as the server has them, which its own downloader may unpack."""

    progress: bool

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Writes ``output_file``; whether it is right, pooch finds out.

        Raises:
            OSError: the server refuses, is silent, or broke off (those of requests are OSErrors, too).
        """
        import requests
        import urllib3  # comes with requests, whose own stream would unpack what the server calls packed
        from rich.console import Console
        from rich.progress import wrap_file

        # The file as it is, please: some servers would pack it, or call a .gz file packed.
        headers = {"Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            total, label = int(response.headers.get("Content-Length", 0)), url.rpartition("/")[2]
            shown = wrap_file(
                response.raw,
                total,
                description=label,
                console=Console(stderr=True),
                disable=not self.progress,
            )
            Path(output_file).unlink()  # it may be read by its owner alone, as temporary files are
            with shown as content, Path(output_file).open("wb") as file:
                try:
                    shutil.copyfileobj(content, file)
                except urllib3.exceptions.HTTPError as error:
                    raise _BrokenOffError(f"broke off after {file.tell()} of {total} bytes") from error


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
