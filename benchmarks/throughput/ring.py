"""The bare engine: messages a second through a ring of actors that do nothing but pass them on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from akkordeon.core.actor import Actor, Effect, Report, Send, Spawn, Stop
from akkordeon.core.messages import Kind, Message
from akkordeon.engines.threads import Threads


@dataclass(frozen=True, slots=True)
class Token(Message):
    kind: ClassVar[Kind] = Kind.FORWARD
    hops_left: int


class Link(Actor):
    def __init__(self, address: str, following: str) -> None:
        self.address = address
        self.following = following

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        if message.hops_left:
            yield Send(self.following, Token(message.hops_left - 1))
        else:
            yield Report(self.address)
            yield Stop()


def messages_per_s(actors: int, workers: int, messages: int, tokens: int = 3) -> float:
    """How many messages a second pass, with ``tokens`` of them under way at once."""
    ended: list[str] = []
    engine = Threads(workers)
    engine.start(ended.append, seed=0)
    try:
        for i in range(actors):
            address, following = f"ring/{i}", f"ring/{(i + 1) % actors}"
            engine.spawn(Spawn(address, lambda a=address, f=following: Link(a, f)))
        began_s = time.perf_counter()
        for token in range(tokens):
            engine.send(f"ring/{token * actors // tokens}", Token(messages // tokens))
        engine.wait_until(lambda: any(isinstance(record, str) for record in ended), 120)
        return messages / (time.perf_counter() - began_s)
    finally:
        engine.stop()
