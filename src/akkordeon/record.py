"""Records of runs: which message every actor handled when, what came out of it, and what came from outside.

A record is a gzipped file of JSON lines: a header, and then, as they were finished::

    [serial, "attach",  address, {name, role, …}]
    [serial, "outside", address, {type, …}]                  a message of the session's
    [serial, "replica", number]                              a replica joins
    [serial, "handle",  address, key, now_s, digest]         ordered by when it began

The order of serials is one in which everything could have happened one after the other: a message is
taken after it was sent. Payloads are not kept; their digests are, so a replay knows where it differs.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import itertools
import json
import platform
import threading
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from akkordeon import messages
from akkordeon.actor import Actor, Effect
from akkordeon.errors import RecordError
from akkordeon.messages import Batch, CutId, Message, explain
from akkordeon.network import Recipe
from akkordeon.sentinel import Sentinel

__all__ = ["Digest", "Record", "Recorder", "data_fingerprint", "fingerprint", "key_of"]

FORMAT = 1


class Digest:
    """A short digest of anything that can be in an effect; equal bits, equal digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, value: Any) -> None:
        """Take a value in, with its type and everything inside."""
        update = self._hash.update
        if isinstance(value, Tensor):
            dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
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


def fingerprint(network: Recipe) -> str:
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

    Args:
        path: of the file; an existing one is replaced.
        network: what is run.
        seed: of the session.
        task: whatever is needed to make network and sentinels again; kept as it is.
    """

    def __init__(
        self, path: str | Path, network: Recipe, seed: int, task: Mapping[str, Any] | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self._withdrawn: set[str] = set()
        self._file = gzip.open(path, "wt", compresslevel=3, encoding="utf-8")  # noqa: SIM115 - until close
        self._write({**_versions(), "seed": seed, "network": fingerprint(network), "task": task})

    def attached(self, address: str, name: str, recipe: Sentinel) -> None:
        """A sentinel joins."""
        what: dict[str, Any] = {"name": name, "role": recipe.role}
        if recipe.role == "predict":
            what["inputs"] = _packed(recipe.batches)
            what["batch_size"], what["in_flight"] = recipe.batch_size, recipe.in_flight
        elif recipe.role != "export":
            what["data"] = data_fingerprint(recipe.batches)
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
        if actor.address in self._withdrawn:
            yield from actor.receive(message, now_s)
            return
        serial, digest = next(self._serial), Digest()
        try:
            for effect in actor.receive(message, now_s):
                digest.add(effect)
                yield effect
        except GeneratorExit:  # after Stop nobody asks for more
            raise
        except BaseException as error:
            digest.add(error)
            raise
        finally:
            self._write([serial, "handle", actor.address, key_of(message), now_s, str(digest)])

    def _write(self, line: Any) -> None:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        with self._lock:
            if not self._file.closed:
                self._file.write(text)

    def close(self) -> None:
        """End the record; what is still handled is not in it."""
        with self._lock:
            self._file.close()


class Record:
    """A record, read back.

    Args:
        path: of the file.

    Raises:
        RecordError: there is no such file, or it is no record, or it breaks off.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                self.header: dict[str, Any] = json.loads(next(file))
                lines = [json.loads(line) for line in file]
        except (OSError, EOFError, ValueError, StopIteration) as error:
            raise RecordError(f"{path} is not a record, or not a whole one: {error}") from error
        if not isinstance(self.header, dict) or self.header.get("format") != FORMAT:
            raise RecordError(f"{path} is not a record of format {FORMAT}")
        self.lines: list[list[Any]] = sorted(lines, key=lambda line: int(line[0]))

    def differences(self, network: Recipe) -> list[str]:
        """What is not as it was when the record was made."""
        now = {**_versions(), "network": fingerprint(network)}
        names = {"network": "the network's modules, weights or rules"}
        return [
            f"{names.get(what, what)} ({self.header.get(what)} then, {is_now} now)"
            for what, is_now in now.items()
            if self.header.get(what) != is_now
        ]


def message_of(what: Mapping[str, Any]) -> Message:
    """A message of the session's, made again."""
    given = dict(what)
    made: Message = getattr(messages, given.pop("type"))(**given)
    return made


def unpacked(text: str) -> Any:
    """The inputs of a prediction."""
    return torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)


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
