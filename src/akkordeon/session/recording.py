"""Records of runs: which message every actor handled when, what came out of it, and what came from outside.

A record is a gzipped file of JSON lines: a header, a trailer, and between them, as they were finished::

    [serial, "attach",  address, {name, role, …}]
    [serial, "outside", address, {type, …}]                  a message of the session's
    [serial, "replica", number]                              a replica joins
    [serial, "handle",  address, key, now_s, digest]         ordered by when it began

The order of serials is one in which everything could have happened one after the other: a message is
taken after it was sent. Payloads are not kept; their digests are, so a replay knows where it differs.
The trailer has the number of lines and a digest of them: without it the run was killed or the file was cut.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import itertools
import json
import logging
import platform
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from akkordeon.core import messages, shard_messages
from akkordeon.core.actor import Actor, Effect
from akkordeon.core.errors import RecordError, explain
from akkordeon.core.messages import Batch, CutId, Message
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Sentinel

__all__ = ["Digest", "Record", "Recorder", "data_fingerprint", "fingerprint", "key_of"]

FORMAT = 3

FLUSH_EVERY = 100
"""Lines that a run that is killed may cost."""


class Digest:
    """A short digest of anything that can be in an effect; equal bits, equal digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, value: Any) -> None:
        """Take a value in, with its type and everything inside."""
        update = self._hash.update
        if isinstance(value, Tensor):
            dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
            dense = dense.resolve_conj().resolve_neg()  # views that NumPy does not know
            update(f"{value.dtype}{tuple(value.shape)}".encode())
            update(dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif value is None or isinstance(value, bool | int | float | str | Enum):
            update(f"{type(value).__name__}:{value!r};".encode())
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self.add(key)
                self.add(part)
        elif isinstance(value, BaseException):
            update(f"{explain(value)};".encode())
        elif isinstance(value, tuple | list):
            update(f"{type(value).__name__}[{len(value)}]".encode())
            for part in value:
                self.add(part)
        elif is_dataclass(value) and not isinstance(value, type):
            update(type(value).__name__.encode())
            for field in fields(value):
                self.add(getattr(value, field.name))
        else:
            update(type(value).__name__.encode())

    def __str__(self) -> str:
        return self._hash.hexdigest()


def key_of(message: Message) -> str:
    """What tells a message from others to the same actor: its type and its small fields."""
    parts = [type(message).__name__]
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Batch | CutId):
            parts.append(f"{value[0]}:{value[1]}")
        elif value is None or isinstance(value, bool | int | str):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)


def fingerprint(network: Network | Downpour) -> str:
    """A digest of a network's modules, weights and rules. What its optimizers are, nobody can see."""
    digest = Digest()
    for gate in network.gates:
        digest.add([str(gate.module), gate.module.state_dict(), repr(gate.staleness), gate.clip_norm])
    digest.add([network.max_staleness, network.max_in_flight])
    return str(digest)


def data_fingerprint(batches: Any) -> str | None:
    """A digest of a source of batches; None where looking would use it up."""
    digest = Digest()
    tensors = vars(batches) if is_dataclass(batches) and not isinstance(batches, type) else batches
    if not isinstance(tensors, Mapping | tuple | list | Tensor):
        return None
    digest.add(tensors)
    return str(digest)


class Recorder:
    """Writes a record while a session runs; see :class:`akkordeon.engines.base.Listener`.

    What keeps it from writing ends the record, which is logged, and harms nobody else.

    Args:
        path: of the file; an existing one is replaced.
        network: what is run.
        seed: of the session.
        task: whatever is needed to make network and sentinels again; kept as it is.

    Attributes:
        failure: why the record breaks off, in a sentence, if it does.

    Raises:
        RecordError: the file cannot be written.
    """

    def __init__(
        self, path: str | Path, network: Network | Downpour, seed: int, task: Mapping[str, Any] | None = None
    ) -> None:
        self.failure: str | None = None
        self._path = path
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self._withdrawn: set[str] = set()
        self._lines = 0
        self._digest = _LineDigest()
        self._over = False
        header = {**_versions(), "seed": seed, "network": fingerprint(network), "task": task}
        try:
            self._file = gzip.open(path, "wb", compresslevel=3)  # noqa: SIM115 - until close
            self._file.write(self._digest.add(_line(header)))
            self._file.flush()
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {error.strerror or error}") from error

    def attached(self, address: str, name: str, recipe: Sentinel, epochs_before: int = 0) -> None:
        """A sentinel joins; of its data so many epochs were read by others before."""
        what: dict[str, Any] = {"name": name, "role": recipe.role}
        try:
            if recipe.role.answers:
                what["inputs"] = _packed(recipe.batches)
                what["batch_size"], what["in_flight"] = recipe.batch_size, recipe.in_flight
            else:
                what["data"] = data_fingerprint(recipe.batches)
            if epochs_before:
                what["epochs_before"] = epochs_before
        except Exception as error:
            self._give_up(error)
        self._write([next(self._serial), "attach", address, what])

    def withdrawn(self, address: str) -> None:
        """An actor goes before it has done anything; its going is not recorded."""
        self._withdrawn.add(address)

    def joined(self, replica: int) -> None:
        """A replica joins a Downpour."""
        self._write([next(self._serial), "replica", replica])

    def outside(self, to: str, message: Message) -> None:
        """The session sends a message."""
        what = {"type": type(message).__name__}
        what.update({field.name: getattr(message, field.name) for field in fields(message)})
        self._write([next(self._serial), "outside", to, what])

    def listen(self, actor: Actor, message: Message, now_s: float) -> Iterator[Effect]:
        """An actor handles a message."""
        if self._over or actor.address in self._withdrawn:
            yield from actor.receive(message, now_s)
            return
        serial, digest = next(self._serial), Digest()
        try:
            for effect in actor.receive(message, now_s):
                self._take_in(digest, effect)
                yield effect
        except GeneratorExit:  # after Stop nobody asks for more
            raise
        except BaseException as error:
            self._take_in(digest, error)
            raise
        finally:
            self._write([serial, "handle", actor.address, key_of(message), now_s, str(digest)])

    def _take_in(self, digest: Digest, value: Any) -> None:
        try:
            digest.add(value)
        except Exception as error:  # something that travels, but has no bits to look at
            self._give_up(error)

    def _write(self, line: Any) -> None:
        try:
            text = _line(line)
            with self._lock:
                if self._over:
                    return
                self._file.write(self._digest.add(text))
                self._lines += 1
                if self._lines % FLUSH_EVERY == 0:
                    self._file.flush()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Write nothing more; the run goes on."""
        with self._lock:
            if self._over:
                return
            self._over = True
            with suppress(OSError):
                self._file.close()
        self.failure = f"the record {self._path} breaks off, and the run goes on without: {explain(error)}"
        logging.getLogger(__name__).error("%s", self.failure)

    def close(self) -> None:
        """End the record; what is still handled is not in it."""
        try:
            with self._lock:
                if self._over:
                    return
                self._file.write(_line({"lines": self._lines, "digest": str(self._digest)}))
                self._file.close()
                self._over = True
        except OSError as error:
            self._give_up(error)


class _LineDigest:
    """A digest of the lines of a record, up to the trailer."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: bytes) -> bytes:
        """Take a line in, and give it back."""
        self._hash.update(line)
        return line

    def __str__(self) -> str:
        return self._hash.hexdigest()


def _line(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────


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
        self.path = path
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
        lines = self._unzipped(data).split(b"\n")
        rest = lines.pop()  # of a line that was not finished
        header = self._parsed(lines, 0) if lines else None
        if not isinstance(header, dict) or "format" not in header:
            raise RecordError(f"{path} is not a record, or not even its first line is whole")
        if header["format"] != FORMAT:
            raise RecordError(f"{path} is a record of format {header['format']!r}, expected {FORMAT}")
        self.header: dict[str, Any] = header
        trailer = self._parsed(lines, len(lines) - 1) if len(lines) > 1 and not rest else None
        self.whole = isinstance(trailer, dict)
        if isinstance(trailer, dict):
            self._check_trailer(trailer, lines)
            lines.pop()
        if type(header.get("seed")) is not int:
            raise RecordError(f"{path} is damaged: its seed is {header.get('seed')!r}")
        found = [self._checked(lines, number) for number in range(1, len(lines))]
        self.lines: list[list[Any]] = sorted(found, key=lambda line: int(line[0]))

    def _unzipped(self, data: bytes) -> bytes:
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)
        try:
            text = unzip.decompress(data)
        except zlib.error as error:
            raise RecordError(f"{self.path} is not a record, or it is damaged ({error})") from error
        if unzip.unused_data:
            raise RecordError(f"{self.path} is damaged: something follows its end")
        return text

    def _parsed(self, lines: list[bytes], number: int) -> Any:
        try:
            return json.loads(lines[number])
        except (ValueError, RecursionError) as error:
            raise self._damaged(number) from error

    def _damaged(self, number: int) -> RecordError:
        return RecordError(f"{self.path} is damaged: line {number + 1} is none that a run writes")

    def _check_trailer(self, trailer: Mapping[str, Any], lines: list[bytes]) -> None:
        digest = _LineDigest()
        for line in lines[:-1]:
            digest.add(line + b"\n")
        if trailer != {"lines": len(lines) - 2, "digest": str(digest)}:
            raise RecordError(f"{self.path} is damaged: its lines are not those that the run wrote")

    def _checked(self, lines: list[bytes], number: int) -> list[Any]:
        line = self._parsed(lines, number)
        if not _is_line(line):
            raise self._damaged(number)
        assert isinstance(line, list)
        return line

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
        now = {**_versions(), "network": fingerprint(network)}
        names = {"network": "the network's modules, weights or rules"}
        return [
            f"{names.get(what, what)} ({self.header.get(what)} then, {is_now} now)"
            for what, is_now in now.items()
            if self.header.get(what) != is_now
        ]


def _is_line(line: Any) -> bool:
    """Whether something is a line as a recorder writes it."""
    match line:
        case [int(), "attach", str(), {"name": str(), "role": str()}]:
            return True
        case [int(), "outside", str(), dict(what)]:
            try:
                message_of(what)
            except (TypeError, AttributeError, ValueError, KeyError):
                return False
            return True
        case [int(), "replica", int()]:
            return True
        case [int(), "handle", str(), str(), int() | float(), str()]:
            return True
    return False


def message_of(what: Mapping[str, Any]) -> Message:
    """A message of the session's, made again."""
    given = dict(what)
    kind = {**vars(messages), **vars(shard_messages)}[given.pop("type")]
    if not (isinstance(kind, type) and issubclass(kind, Message)):
        raise ValueError(f"{kind!r} is no message")
    return kind(**given)


def unpacked(text: str) -> Any:
    """The inputs of a prediction.

    Raises:
        RecordError: they are damaged.
    """
    try:
        return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    except Exception as error:
        raise RecordError(
            f"the inputs of a prediction in the record are damaged: {explain(error)}"
        ) from error


def _packed(inputs: Any) -> str | None:
    """Inputs as text; None for those that can be read only once."""
    if not isinstance(inputs, Tensor | tuple | list | dict):
        return None
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def _versions() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
