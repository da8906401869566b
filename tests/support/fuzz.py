"""Messages that nobody who means well would send, and some that anybody would, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch

from akkordeon.core import checkpoint_messages, messages, shard_messages
from akkordeon.core.errors import ProtocolError
from akkordeon.core.messages import Batch, Close, CutId, Detach, EpochEnd, Fault, Item, Message, SourceFailed
from akkordeon.core.plain_state import Applied
from akkordeon.core.recovery import messages as recovery_messages
from akkordeon.core.recovery.messages import Restarted

OF_THE_SESSION = (Close, Detach, Restarted, EpochEnd, SourceFailed, Item, recovery_messages.Rewound)
"""What a session or a reader may tell, and end or feed an actor with."""


def _kinds() -> list[type[Message]]:
    modules = (messages, checkpoint_messages, shard_messages, recovery_messages)
    kinds = {getattr(module, name) for module in modules for name in module.__all__}
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Message)]
    return sorted(
        (kind for kind in found if kind is not Message and kind not in OF_THE_SESSION),
        key=lambda kind: kind.__name__,
    )


KINDS = _kinds()


class NoMessage:
    """Something that no actor knows."""


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else [torch.ones(1)]


class Fuzz:
    """An endless stream of messages to one actor.

    Args:
        seed: the same one gives the same messages.
        shape: of payloads that fit.
        senders: addresses that messages name.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], senders: tuple[str, ...]) -> None:
        self._random = random.Random(seed)
        self._shape = shape
        self._senders = senders

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self._random.random() < 0.05:
                yield self._random.choice([NoMessage(), None, "Forward", 7, Message()])
            kind = self._random.choice(KINDS)
            try:
                yield kind(**{field.name: self._field(field.name) for field in fields(kind)})
            except (ProtocolError, TypeError, RuntimeError):  # it cannot be made
                continue

    def _field(self, name: str) -> Any:
        if self._random.random() < 0.15:
            return self._wrong()
        return getattr(self, f"_{name}", self._wrong)()

    def _wrong(self) -> Any:
        wrong = [
            None, True, -1, 2**70, 0.5, float("nan"), "", b"x", [], (), {}, object(), {1: 2}, [object()],
            nested(50), torch.ones(2), ("a", 1), Batch("a", -1), Batch("a", "b"), Batch(None, 2**80),
        ]  # fmt: skip
        return self._random.choice(wrong)

    def _sender(self) -> str:
        return self._random.choice(self._senders)

    _asker = _by = _sentinel = _watcher = _shard = _gate = _sender

    def _number(self) -> int:
        return self._random.choice([0, 1, 2, 3, 4, 1000, 2**62])

    _version = _every_updates = _epoch = _number

    def _batch(self) -> Batch:
        return Batch(self._sender(), self._number())

    def _cut(self) -> CutId:
        return CutId(self._sender(), self._number())

    def _payload(self) -> Any:
        own, good = self._random, torch.randn(self._shape)
        odd = [
            good.double(), good.flatten(), good[:0], good.to(torch.complex64), good.int(), good.to_sparse(),
            torch.full(self._shape, float("nan")), torch.full(self._shape, float("inf")),
            torch.full(self._shape, 3e38), torch.ones(1).expand(2**40), good.to("meta"), (good, good),
            {"x": good}, [good, None], torch.randn(3, 1, 7), torch.tensor(1.0), nested(3), nested(50), "x", 3,
        ]  # fmt: skip
        return good if own.random() < 0.3 else own.choice([*odd, (good,), (odd[0],), (good.int(), None)])

    _x = _payload

    def _staleness(self) -> tuple[int, ...]:
        return (0,) * self._random.randrange(4)

    _versions = _staleness

    def _steps(self) -> int:
        return self._random.choice([0, 1, 2, 2**62])

    _count = _push_every = _steps

    def _fault(self) -> Any:
        return self._random.choice([*Fault, 99])

    def _reason(self) -> str:
        return self._random.choice(["why not", ""])

    def _whole(self) -> bool:
        return self._random.random() < 0.5

    _hold = _fetch = _is_first = _last = _drop = _whole

    def _applied(self) -> Any:
        return self._random.choice([{}, {"a": Applied(3)}, None, Applied(1, frozenset([0]))])

    def _value(self) -> float:
        return self._random.choice([0.0, 1.0, float("nan"), float("inf")])

    def _batches(self) -> tuple[Batch, ...]:
        return (self._batch(),)

    def _scales(self) -> Any:
        return self._random.choice([None, (), (1.0,), (1.0, 2.0), (float("nan"),)])

    def _buffers(self) -> Any:
        return self._random.choice([{}, {"mean": torch.ones(2)}, {1: 2}, None])

    def _error(self) -> Any:
        return self._random.choice([None, ValueError("no")])

    def _in_a_row(self) -> int:
        return 1
