"""Changes of a running row: told to its gates, waited for, and written down in its recipe.

change ─▶ Change ─▶ gate ─▶ Changed ─▶ the recipe of the row, and whoever would have the gate made anew
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from akkordeon.core.errors import AkkordeonError, RecipeError, again, explain
from akkordeon.core.surgery.messages import Change
from akkordeon.core.surgery.reports import Changed
from akkordeon.engines.base import Engine
from akkordeon.pipeline.surgery.change import recipe_with
from akkordeon.session.outbox import Outbox
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.session.surgery.live_gate import LiveGate
from akkordeon.session.topology import RowTopology

__all__ = ["Operations"]

Wait = Callable[[Callable[[], bool], float | None, str], None]


class Operations:
    """Carries out what users ask of gates. Any thread may ask; reports are heard one at a time.

    Args:
        engine: carries the gates.
        topology: knows them.
        outbox: carries what they are told.
        recovery: has them made anew.
        seed: of the session.
        wait: waits for a condition, so many seconds at most, or raises that it has not come.
    """

    def __init__(
        self,
        engine: Engine,
        topology: RowTopology,
        outbox: Outbox,
        recovery: GateRecovery,
        seed: int,
        wait: Wait,
    ) -> None:
        self._engine = engine
        self._topology = topology
        self._outbox = outbox
        self._recovery = recovery
        self._seed = seed
        self._wait = wait
        self._numbers = itertools.count(1)
        self._answers: dict[int, Changed | None] = {}  # to what was asked, and is waited for

    def gate(self, name: str) -> LiveGate:
        """A gate of the row, by its address or its name.

        Raises:
            RecipeError: there is none, or not one alone.
        """
        return LiveGate(self._topology.address_of(name), self)

    def change(self, address: str, settings: Mapping[str, Any], timeout: float | None) -> None:
        """Have a gate learn with other settings; see :meth:`LiveGate.set`."""
        self._engine.check_may_wait()
        recipe_with(self._topology.gate_at(address), settings)  # raises what can be known here
        number = next(self._numbers)
        self._answers[number] = None
        try:
            answer = self._answer(address, Change(settings, number), timeout)
        finally:
            del self._answers[number]
        if isinstance(answer.error, AkkordeonError):
            raise again(answer.error)
        if answer.error is not None:
            raise RecipeError(f"{address} goes on as it was: {explain(answer.error)}") from answer.error

    def _answer(self, address: str, message: Change, timeout: float | None) -> Changed:
        """Tell a gate, again where it was made anew meanwhile, and wait for its answer."""
        while True:
            restarts = self._recovery.restarts[address]
            self._outbox.send(address, message)

            def is_heard(before: int = restarts) -> bool:
                return self._answers[message.number] is not None or self._recovery.restarts[address] != before

            self._wait(is_heard, timeout, f"{address} has not changed")
            answer = self._answers[message.number]
            if answer is not None:
                return answer

    def hear(self, record: Any) -> None:
        """Take note of a gate that learns with other settings, whoever has told it."""
        if not isinstance(record, Changed):
            return
        if record.error is None:
            self._topology.change(record.address, record.settings)
            for spawn in self._topology.spawns(self._seed):
                if spawn.address == record.address:
                    self._recovery.changed(spawn)
        if record.number in self._answers:
            self._answers[record.number] = record
