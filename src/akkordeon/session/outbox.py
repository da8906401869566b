"""What a session sends to actors: noted before it leaves, as an answer may come at once."""

from __future__ import annotations

from collections.abc import Sequence

from akkordeon.core.messages import Close, Detach, Message
from akkordeon.engines.base import Engine
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.registry import Registry

__all__ = ["Outbox"]


class Outbox:
    """Sends the messages of a session.

    Args:
        engine: carries them.
        registry: whose sentinels are told to end.
        recorder: hears of each.
    """

    def __init__(self, engine: Engine, registry: Registry, recorder: Recorder | None) -> None:
        self._engine = engine
        self._registry = registry
        self._recorder = recorder

    def send(self, to: str, message: Message) -> None:
        """Carry a message to an actor."""
        self._note(to, message)
        self._engine.send(to, message)

    def send_all(self, messages: Sequence[tuple[str, Message]]) -> None:
        """Send messages before anybody handles one of them."""
        for to, message in messages:
            self._note(to, message)
        self._engine.send_all(messages)

    def _note(self, to: str, message: Message) -> None:
        if self._recorder is not None:
            self._recorder.outside(to, message)
        if isinstance(message, Detach | Close):
            attachment = self._registry.by_address.get(to)
            if attachment is not None:
                attachment._told_to_end = True
