"""Reads a record back, line by line, and refuses one that no run has written."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from akkordeon.core.checks import require_path
from akkordeon.core.errors import RecordError
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.session.records.digest import fingerprint
from akkordeon.session.records.file_format import FORMAT, LINE_BYTES_MAX, LineDigest, is_line, versions

__all__ = ["Record"]

CHUNK_BYTES = 2**20


class Record:
    """A record, read back.

    Args:
        path: of the file.

    Attributes:
        header: what was run, and on what.
        lines: in an order in which they could have happened.
        whole: whether the run came to its end, and with it the record.

    Raises:
        RecordError: there is no such file, it is no record, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        require_path("a record", path, error=RecordError)
        self.path = path
        self.whole = False
        found = _lines_of(path)
        digest = LineDigest()
        self.header = self._header(digest.add(next(found, b"")))
        lines: dict[int, list[Any]] = {}
        for number, line in enumerate(found, 2):
            if self.whole:  # something follows the trailer
                raise self._damaged(number - 1)
            if not line.endswith(b"\n"):  # nor was it finished
                break
            content = self._parsed(line, number)
            if isinstance(content, dict):
                if content != {"lines": len(lines), "digest": str(digest)}:
                    raise RecordError(f"{path} is damaged: its lines are not those that the run wrote")
                self.whole = True
            elif not is_line(content) or content[0] in lines:
                raise self._damaged(number)
            else:
                lines[content[0]] = content
                digest.add(line)
        self.lines: list[list[Any]] = [lines[serial] for serial in sorted(lines)]

    def _header(self, line: bytes) -> dict[str, Any]:
        header = self._parsed(line, 1) if line.endswith(b"\n") else None
        if not isinstance(header, dict) or "format" not in header:
            raise RecordError(f"{self.path} is not a record, or not even its first line is whole")
        if header["format"] != FORMAT:
            raise RecordError(f"{self.path} is a record of format {header['format']!r}, expected {FORMAT}")
        if type(header.get("seed")) is not int:
            raise RecordError(f"{self.path} is damaged: its seed is {header.get('seed')!r}")
        return header

    def _parsed(self, line: bytes, number: int) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> RecordError:
        return RecordError(f"{self.path} is damaged: line {number} is none that a run writes")

    def require_whole(self) -> None:
        """Refuse a record that breaks off.

        Raises:
            RecordError: it does; how to replay it nevertheless.
        """
        if not self.whole:
            raise RecordError(
                f"{self.path} breaks off after {len(self.lines)} lines: its run was killed, or it is "
                "not a whole one any more; with partial=True, or --partial, it is replayed as far as it goes"
            )

    def differences(self, network: Network | Downpour) -> list[str]:
        """What is not as it was when the record was made."""
        now = {**versions(), "network": fingerprint(network)}
        names = {"network": "the network's modules, weights or rules"}
        return [
            f"{names.get(what, what)} ({self.header.get(what)} then, {is_now} now)"
            for what, is_now in now.items()
            if self.header.get(what) != is_now
        ]


def _lines_of(path: str | Path) -> Iterator[bytes]:
    """The lines of a gzipped file with their ends, one after the other; the last may lack it.

    Raises:
        RecordError: it cannot be read or unpacked, or a line is longer than any of a record.
    """
    begun: list[bytes] = []
    size = 0
    for text in _unzipped(path):
        for part in text.splitlines(keepends=True):
            begun.append(part)
            size += len(part)
            if size > LINE_BYTES_MAX:
                raise RecordError(f"{path} is damaged: it has a line of more than {LINE_BYTES_MAX:,} bytes")
            if part.endswith(b"\n"):
                yield b"".join(begun)
                begun, size = [], 0
    if size:
        yield b"".join(begun)


def _unzipped(path: str | Path) -> Iterator[bytes]:
    """A gzipped file in pieces of a bounded size; of one that was cut off, what there is."""
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)
    try:
        with Path(path).open("rb") as file:
            while packed := unzip.unconsumed_tail or file.read(CHUNK_BYTES):
                if unzip.eof:
                    raise RecordError(f"{path} is damaged: something follows its end")
                yield unzip.decompress(packed, CHUNK_BYTES)
                if unzip.unused_data:
                    raise RecordError(f"{path} is damaged: something follows its end")
            yield unzip.flush()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
    except zlib.error as error:
        raise RecordError(f"{path} is not a record, or it is damaged ({error})") from error
