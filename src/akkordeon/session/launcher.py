"""From the recipe of a sentinel to actors at work: named, made, and told to begin."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from akkordeon.core.addresses import reader_of
from akkordeon.core.messages import Attach, Close
from akkordeon.engines.base import Engine
from akkordeon.pipeline.gate import Gate
from akkordeon.sentinels.factory import make_actors
from akkordeon.sentinels.recipes import Evaluation, Training, require_recipes
from akkordeon.session.attachment import Attachment, ParentSession
from akkordeon.session.outbox import Outbox
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.registry import Registry
from akkordeon.session.topology import RowTopology

__all__ = ["Launcher", "say_if_nothing_learns"]


class Launcher:
    """Has sentinels join a network.

    Args:
        engine: makes their actors.
        topology: says whom they talk to.
        registry: gives them names.
        outbox: carries the message with which they begin.
        recorder: hears who joins.
        seed: of the session.
    """

    def __init__(
        self,
        engine: Engine,
        topology: RowTopology,
        registry: Registry,
        outbox: Outbox,
        recorder: Recorder | None,
        seed: int,
    ) -> None:
        self._engine = engine
        self._topology = topology
        self._registry = registry
        self._outbox = outbox
        self._recorder = recorder
        self._seed = seed

    def launch(self, sentinels: Sequence[Training | Evaluation], session: ParentSession) -> list[Attachment]:
        """Have sentinels begin at one moment, all or none of them.

        Raises:
            AkkordeonError: one is none, or cannot join.
        """
        require_recipes("attach", sentinels)
        placed: list[Attachment] = []
        try:
            for sentinel in sentinels:
                placed.append(self._place(self._registry.epochs_read.going_on(sentinel, self._seed), session))
        except BaseException:
            for attachment in placed:
                self._withdraw(attachment)
            raise
        self._record(placed)
        self._outbox.send_all([(attachment.address, Attach()) for attachment in placed])
        return placed

    def _place(self, sentinel: Training | Evaluation, session: ParentSession) -> Attachment:
        """Have the actors of a sentinel made; they do nothing before they are told."""
        attachment = self._registry.register(sentinel, self._topology.row_for(sentinel), session)
        try:
            spawns = make_actors(sentinel, attachment.address, attachment.name, attachment.row, self._seed)
            for spawn in spawns:
                self._engine.spawn(spawn, beside=self._topology.place_beside(sentinel))
        except BaseException:
            self._withdraw(attachment)
            raise
        return attachment

    def _record(self, placed: Sequence[Attachment]) -> None:
        """Only now: of those that come with one that is refused, a record says nothing."""
        if self._recorder is not None:
            for attachment in placed:
                before = self._registry.epochs_read.before(attachment.recipe.batches)
                self._recorder.attached(attachment.address, attachment.name, attachment.recipe, before)

    def _withdraw(self, attachment: Attachment) -> None:
        """As if it had never been placed."""
        self._registry.withdraw(attachment)
        for address in (attachment.address, reader_of(attachment.address)):
            if self._recorder is not None:
                self._recorder.withdrawn(address)
            self._engine.send(address, Close())


def say_if_nothing_learns(gates: Sequence[Gate], sentinels: Sequence[Training | Evaluation]) -> None:
    """A forgotten optimizer would pass for training that gets nowhere."""
    trains = any(isinstance(sentinel, Training) for sentinel in sentinels)
    if trains and all(gate.optimizer is None for gate in gates):
        logging.getLogger(__name__).warning(
            "no gate has an optimizer, so training changes no weights; Gate(module, optimizer) has one"
        )
