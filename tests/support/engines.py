"""The engines that pass the same suite, and small actors to try them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import pytest

import akkordeon as ak
from akkordeon.core.actor import Actor, Effect, Spawn
from akkordeon.core.messages import Kind, Message
from akkordeon.engines import ENGINES as TABLE
from akkordeon.engines import engine_named
from akkordeon.engines.base import Engine

ENGINES: dict[str, Callable[[], Engine]] = {
    "threads, 1 worker": lambda: ak.Threads(1),
    "threads, 2 workers": lambda: ak.Threads(2),
    **{name: partial(engine_named, name) for name in TABLE if name not in ("threads", "ray")},
}
"""Those of this process; they can record. An engine that is added to the table is among them."""

ALL_ENGINES: dict[str, Callable[[], Engine]] = ENGINES | {"ray": lambda: warm_engine()}

WITHOUT_RAY = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)

NAMES = [pytest.param(name, marks=[WITHOUT_RAY] if name == "ray" else []) for name in ALL_ENGINES]


def each_on_engines(*values: Any) -> list[Any]:
    """An engine's name and one of the values, for all of them; those on Ray are slow."""
    return [
        pytest.param(
            *name.values,
            value,
            id=f"{name.values[0]}-{value}",
            marks=[*name.marks, *([pytest.mark.slow] if "ray" in name.values else [])],
        )
        for value in values
        for name in NAMES
    ]


OWN_THREADS = {"threads, 2 workers", "ray"}
"""Those where an actor that blocks holds up nobody else."""

OWN_MEMORY = {"ray"}
"""Those whose actors share no memory with the test: what they find out, they report."""


def warm_engine() -> Engine:
    from tests.support.warm import WarmRay

    return WarmRay()


@dataclass(frozen=True, slots=True)
class Note(Message):
    """Something to say, of the backward class as most messages are."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    text: Any


@dataclass(frozen=True, slots=True)
class ControlNote(Message):
    kind: ClassVar[Kind] = Kind.CONTROL
    text: Any


@dataclass(frozen=True, slots=True)
class ForwardNote(Message):
    kind: ClassVar[Kind] = Kind.FORWARD
    text: Any


@dataclass(frozen=True, slots=True)
class EvaluationNote(Message):
    kind: ClassVar[Kind] = Kind.EVALUATION
    text: Any


class Scripted(Actor):
    """Does what a function from (message, now_s) to effects says."""

    def __init__(
        self,
        address: str,
        script: Callable[[Any, float], Iterator[Effect]],
        last_words: Callable[[], Iterator[Effect]] = lambda: iter(()),
        may_block: bool = False,
    ) -> None:
        self.address = address
        self.may_block = may_block
        self._script = script
        self._last_words = last_words

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        return self._script(message, now_s)

    def last_words(self) -> Iterator[Effect]:
        return self._last_words()


class Stage:
    """An engine at work and what was reported to it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.records: list[Any] = []
        engine.start(self.records.append, seed=0)

    def actor(self, address: str, script: Any, **options: Any) -> None:
        """Put an actor on the stage."""
        self.engine.spawn(Spawn(address, lambda: Scripted(address, script, **options)))

    def wait_for(self, count: int, of: type = object, timeout_s: float = 20.0) -> list[Any]:
        """The first records of a type, once there are so many."""

        def found() -> list[Any]:
            return [record for record in self.records if isinstance(record, of)]

        assert self.engine.wait_until(lambda: len(found()) >= count, timeout_s), self.records
        return found()
