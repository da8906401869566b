"""True messages with one thing changed, from a seed: what somebody would send who means ill."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.checkpoint_messages import Joined, Parted
from akkordeon.core.errors import ProtocolError
from akkordeon.core.messages import (
    Attach,
    Batch,
    Close,
    CutId,
    Detach,
    Due,
    EpochEnd,
    Fault,
    Forget,
    Item,
    Message,
    Probe,
    Refused,
    Scored,
    SourceFailed,
    Watch,
    batch_of,
)
from akkordeon.core.plain_state import Applied
from akkordeon.core.recovery.messages import Restarted, Rewound, Save
from akkordeon.core.shard_messages import Dropped, Fetch, Left, Settle, Settled
from akkordeon.core.streams.messages import Acknowledge, Answer, Kept, Question, TakeOver

OF_THE_SESSION = (
    Answer, Attach, Close, Detach, Due, EpochEnd, Item, Joined, Parted, Question, Restarted, Rewound,
    SourceFailed,
)  # fmt: skip
"""What a session or a reader tells, and begins, feeds or ends an actor with."""

WRONG = 0.12
"""The share of fields that are changed into what they cannot be."""


class NoMessage:
    """Something that no actor knows."""


class Fuzz:
    """Messages like those of a session.

    Args:
        seed: the same one gives the same messages.
        messages: that came to one actor, in their order.
        others: that came to other actors.
        names: of actors.
    """

    def __init__(self, seed: int, messages: list[Any], others: list[Any], names: list[str]) -> None:
        self._random = random.Random(seed)
        self._messages = messages
        self._others = others
        self._names = names
        self._invented = 0

    def walk(self, count: int) -> Iterator[tuple[bool, Any]]:
        """True messages up to somewhere, and from there so many more with others between; which is which."""
        here = self._random.randrange(len(self._messages))
        for message in self._messages[:here]:
            yield True, message
        for _ in range(count):
            yield False, self._near(here)
            if self._random.random() < 0.5 and here < len(self._messages) - 1:
                yield True, self._messages[here]
                here += 1

    def _near(self, here: int) -> Any:
        """One that is due now, or was, or will be, or comes seldom; as it is, or changed."""
        dice = self._random.random()
        if dice < 0.02:
            return self._random.choice([NoMessage(), None, "Forward", 7, Message()])
        if dice < 0.12:
            message = self._random.choice(self._others)
        elif dice < 0.2:
            message = self._seldom(here)
        else:
            message = self._messages[self._close_to(here)]
        if isinstance(message, OF_THE_SESSION):
            return self._near(self._random.randrange(len(self._messages)))
        if self._random.random() < 0.2:  # replayed, or before its time
            return message
        try:
            return self._changed(message)
        except (ProtocolError, RuntimeError, TypeError):  # it cannot be made
            return message

    def _close_to(self, here: int) -> int:
        at = self._random.choice([here, here + 1, here - 1, here + self._random.randint(-30, 30)])
        return max(0, min(at, len(self._messages) - 1))

    def _seldom(self, here: int) -> Message:
        """What comes where something went wrong, about a batch of the time."""
        batch = batch_of(self._messages[self._close_to(here)]) or Batch(self._name(), here)
        name, fault = self._name(), self._random.choice(list(Fault))
        return self._random.choice(
            [
                Acknowledge(({"at": here},)),
                Kept(here),
                Refused(batch, name, fault, "why"),
                Dropped(name, (batch,), fault, "why", 1),
                Forget(*batch),
                Fetch(name),
                Left(name),
                Probe(here),
                Save(),
                Scored(0.5),
                Settle(name),
                Settled(name),
                TakeOver(name, ()),
                Watch(name, 2),
            ]
        )

    # ── one thing changed ────────────────────────────────────────────────────────────────────────────

    def _changed(self, value: Any) -> Any:
        """The same but for one thing."""
        if isinstance(value, bool):
            return not value
        if isinstance(value, Fault):
            return self._random.choice(list(Fault))
        if isinstance(value, int):
            return self._random.choice([value + 1, abs(value - 1), 0, self._random.randrange(100), 2**62])
        if isinstance(value, float):
            return self._random.choice([-value, 2 * value, float("nan"), float("inf")])
        if isinstance(value, str):
            return self._name()
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Batch | CutId | Applied):
            return self._one_of_tuple(value)
        if is_dataclass(value):
            return self._one_of_fields(value)
        if isinstance(value, tuple | list):
            return self._sequence(value)
        if isinstance(value, dict):
            return self._mapping(value)
        return self._random.choice([None, 1, ValueError("no"), (), {}])

    def _one_of_fields(self, message: Any) -> Any:
        names = [field.name for field in fields(message)]
        if not names:
            return message
        name = self._random.choice(names)
        wrong = self._random.random() < WRONG
        return replace(message, **{name: self._wrong() if wrong else self._changed(getattr(message, name))})

    def _one_of_tuple(self, value: Any) -> Any:
        name = self._random.choice(value._fields)
        return value._replace(**{name: self._changed(getattr(value, name))})

    def _sequence(self, value: Any) -> Any:
        parts = list(value)
        at = self._random.randrange(len(parts) + 1)
        if at == len(parts):
            parts += parts[:1] or [0]
        elif self._random.random() < 0.3:
            del parts[at]
        else:
            parts[at] = self._changed(parts[at])
        return type(value)(parts)

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        copy = dict(value)
        name = self._random.choice([*copy, self._name()])
        if name in copy and self._random.random() < 0.3:
            del copy[name]
        else:
            copy[name] = self._changed(copy.get(name, torch.ones(2)))
        return copy

    def _name(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(self._names)
        self._invented += 1
        return f"ghost/{self._invented}"

    def _tensor(self, good: Tensor) -> Any:
        changes = [
            lambda: good.double(), lambda: good.half(), lambda: good.to(torch.complex64), lambda: good.int(),
            lambda: good.to_sparse(), lambda: good.flatten(), lambda: good[:0], lambda: good[None],
            lambda: good.t().contiguous(), lambda: torch.randn(3, 1, 7), lambda: torch.tensor(1.0),
            lambda: torch.full_like(good, float("nan")), lambda: torch.full_like(good, float("inf")),
            lambda: torch.full_like(good, 3e38), lambda: torch.randn(good.shape), lambda: 1e3 * good,
            lambda: torch.ones(1).expand(2**40), lambda: good.to("meta"), lambda: (good, good),
            lambda: {"x": good}, lambda: [good, None],
        ]  # fmt: skip
        try:
            return self._random.choice(changes)()
        except (IndexError, RuntimeError):  # of a scalar, a matrix of three dimensions, …
            return torch.randn(2)

    def _wrong(self) -> Any:
        wrong = [
            None, True, -1, 2**70, 0.5, float("nan"), "", b"x", [], (), {}, object(), {1: 2}, [object()],
            torch.ones(2), ("a", 1), Batch("a", -1), Batch("a", "b"), Batch(None, 2**80),  # type: ignore[arg-type]
        ]  # fmt: skip
        return self._random.choice(wrong)
