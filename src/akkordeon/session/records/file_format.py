"""Records of runs: which message every actor handled when, what came out of it, and what came from outside.

A record is a gzipped file of JSON lines: a header, a trailer, and between them, as they were finished::

    [serial, "attach",  address, {name, role, …}]            with dealt_to, where it has a part of the data
    [serial, "outside", address, {type, …}]                  a message of the session's
    [serial, "replica", number]                              a replica joins
    [serial, "gate",    address]                             a gate is made that is to be part of the row
    [serial, "row",     addresses]                           the row has other gates
    [serial, "handle",  address, key, now_s, digest]         ordered by when it began

The order of serials is one in which everything could have happened one after the other: a message is
taken after it was sent. Payloads are not kept; their digests are, so a replay knows where it differs.
The trailer has the number of lines and a digest of them: without it the run was killed or the file was cut.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import platform
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from akkordeon.core import checkpoint_messages, messages, shard_messages
from akkordeon.core.errors import RecordError, explain
from akkordeon.core.messages import Message
from akkordeon.core.plain_state import from_json_form, json_form
from akkordeon.core.surgery import messages as surgery_messages
from akkordeon.core.surgery.messages import Change, Resume, Rewire

__all__ = [
    "FORMAT",
    "GIVEN",
    "LINE_BYTES_MAX",
    "RHYTHM",
    "LineDigest",
    "encoded",
    "fields_of",
    "is_line",
    "message_of",
    "packed",
    "unpacked",
    "versions",
]

FORMAT = 5

GIVEN = "given"
"""The key of what stands for a setting that is not in the record, and has to be given to the replay."""

LINE_BYTES_MAX = 2**28
"""Of a line that is read: a damaged file of a few bytes could unpack to one that fills the memory."""


RHYTHM = ("every_s", "every_updates", "at_rest")
"""What a record has of the recipe of a sentinel that takes checkpoints."""


class LineDigest:
    """A digest of the lines of a record, up to the trailer."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, line: bytes) -> bytes:
        """Take a line in, and give it back."""
        self._hash.update(line)
        return line

    def __str__(self) -> str:
        return self._hash.hexdigest()


def encoded(content: Any) -> bytes:
    """A line of a record."""
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def is_line(line: Any) -> bool:
    """Whether something is a line as a recorder writes it."""
    match line:
        case [int(), "attach", str(), {"name": str(), "role": str(), **others}]:
            replicas = others.get("dealt_to", [])
            return isinstance(replicas, list) and all(type(replica) is int for replica in replicas)
        case [int(), "outside", str(), dict(what)]:
            try:
                message_of(what)
            except (TypeError, AttributeError, ValueError, LookupError):
                return False
            return True
        case [int(), "replica", int()] | [int(), "gate", str()]:
            return True
        case [int(), "row", list(row)]:
            return all(isinstance(address, str) for address in row)
        case [int(), "handle", str(), str(), int() | float(), str()]:
            return True
    return False


def fields_of(message: Message) -> dict[str, Any]:
    """A message of the session's as JSON has it."""
    what: dict[str, Any] = {"type": type(message).__name__}
    what.update({field.name: getattr(message, field.name) for field in fields(message)})
    if isinstance(message, Change):
        what["settings"] = {name: _setting(value) for name, value in message.settings.items()}
    return what


def _setting(value: Any) -> Any:
    """A setting of a gate as JSON has it; of functions and rules, that they have to be given again."""
    try:
        return json_form(value, keep=_refuse)
    except TypeError:
        return {GIVEN: type(value).__name__}


def _refuse(tensor: object) -> Any:
    raise TypeError("a setting is no tensor")


def message_of(what: Mapping[str, Any]) -> Message:
    """A message of the session's, made again from its fields."""
    given = dict(what)
    known = messages, shard_messages, checkpoint_messages, surgery_messages
    kind = {name: each for module in known for name, each in vars(module).items()}[given.pop("type")]
    if not (isinstance(kind, type) and issubclass(kind, Message)):
        raise ValueError(f"{kind!r} is no message")
    if kind in (Resume, Rewire):
        given["row"] = tuple(given["row"])
    elif kind is Change:
        given["settings"] = {name: from_json_form(form, _refuse) for name, form in given["settings"].items()}
    message: Message = kind(**given)
    return message


def packed(inputs: Any) -> str | None:
    """Inputs as text; None for those that can be read only once, or are too large for a line."""
    if not isinstance(inputs, Tensor | tuple | list | dict):
        return None
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    text = base64.b64encode(buffer.getbuffer()).decode()
    return text if len(text) < LINE_BYTES_MAX // 2 else None  # what else is in the line is short


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


def versions() -> dict[str, Any]:
    """What a run was recorded with."""
    return {
        "format": FORMAT,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
