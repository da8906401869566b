"""Changes of a running row: told to its gates, waited for, and written down in its recipe.

change ────▶ Change ─▶ gate ─▶ Changed ─▶ the recipe of the row, and whoever would have the gate made anew
rearrange ─▶ Pause ─▶ sentinels ─▶ AtRest ─▶ Rewire ─▶ gates ─▶ Rewired ─▶ Resume ─▶ sentinels
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import AkkordeonError, RecipeError, SessionError, again, explain
from akkordeon.core.messages import Close, Message
from akkordeon.core.surgery.messages import Change, Rewire
from akkordeon.core.surgery.reports import AtRest, Changed, Rewired, RowChanged
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.surgery.change import recipe_with
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.session.surgery.live_gate import LiveGate, Put
from akkordeon.session.topology import RowTopology

__all__ = ["Operations"]


class Wait(Protocol):
    """Waits for a condition, or raises ``what`` if it does not come. ``drain``: until watchers know, too."""

    def __call__(
        self, condition: Callable[[], bool], timeout: float | None, what: str, *, drain: bool
    ) -> None: ...


class Carrier(Protocol):
    """Makes gates, and ends them."""

    def check_may_wait(self) -> None:
        """Raise where a wait in this thread could never end."""

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """Make actors."""

    def retire(self, addresses: Iterable[str]) -> None:
        """These have been told to close."""


class Sender(Protocol):
    """Tells gates things."""

    def send(self, to: str, message: Message) -> None:
        """Carry a message to an actor."""


class Halt(Protocol):
    """Has sentinels pause."""

    def begin_pause(self) -> None:
        """Have nobody begin anything new."""

    def at_rest(self, address: str) -> None:
        """A sentinel has nothing under way."""

    def is_paused(self) -> bool:
        """Whether nothing is under way."""

    def end(self) -> None:
        """Have all go on with the row that there is now."""


class Operations:
    """Carries out what users ask of gates. Any thread may ask; reports are heard one at a time.

    Args:
        engine: carries the gates.
        topology: knows them.
        pauses: has sentinels pause.
        outbox: carries what gates are told.
        recovery: has them made anew.
        recorder: hears of new gates and rows.
        seed: of the session.
        wait: has the session wait.
        tell: has those who look on see a record.
    """

    def __init__(
        self,
        engine: Carrier,
        topology: RowTopology,
        pauses: Halt,
        outbox: Sender,
        recovery: GateRecovery,
        recorder: Recorder | None,
        seed: int,
        *,
        wait: Wait,
        tell: Callable[[Any], None],
    ) -> None:
        self._engine = engine
        self._topology = topology
        self._pauses = pauses
        self._outbox = outbox
        self._recovery = recovery
        self._recorder = recorder
        self._seed = seed
        self._wait = wait
        self._tell = tell
        self._rearranging = threading.Lock()
        self._rewired: set[str] = set()
        self._numbers = itertools.count(1)
        self._answers: dict[int, Changed | None] = {}  # to what was asked, and is waited for

    def number_from(self, number: int) -> None:
        """Ask with such numbers, where others ask the same gates."""
        self._numbers = itertools.count(number)

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

            self._wait(is_heard, timeout, f"{address} has not changed", drain=False)
            answer = self._answers[message.number]
            if answer is not None:
                return answer

    def hear(self, record: Any) -> None:
        """Take note of what gates and sentinels say of changes, whoever has told them."""
        if isinstance(record, AtRest):
            self._pauses.at_rest(record.address)
        elif isinstance(record, Rewired):
            self._rewired.add(record.address)
        elif isinstance(record, Changed):
            if record.error is None:
                self._topology.change(record.address, record.settings)
                self._tell_recovery()
            if record.number in self._answers:
                self._answers[record.number] = record

    def _tell_recovery(self) -> None:
        self._recovery.rearranged(self._topology.row)
        for spawn in self._topology.spawns(self._seed):
            self._recovery.changed(spawn)

    # ── gates that come and go ───────────────────────────────────────────────────────────────────────

    def rearrange(self, address: str, gate: Gate | None, put: Put, timeout: float | None) -> str | None:
        """Put something in the place of a gate, between two batches.

        Args:
            address: of the gate.
            gate: one that comes, if any does.
            put: what is to be in that place.
            timeout: seconds to wait until nothing is under way; None waits as long as it takes.

        Returns:
            The address of the new gate.
        """
        self._engine.check_may_wait()
        if not self._rearranging.acquire(blocking=False):
            raise SessionError("the row is being changed already; ask again when that is done")
        try:
            return self._rearrange(address, gate, put, timeout)
        finally:
            self._rearranging.release()

    def _rearrange(self, address: str, gate: Gate | None, put: Put, timeout: float | None) -> str | None:
        before = self._topology.row
        self._topology.gate_at(address)
        new = None if gate is None else self._make(gate)
        place = before.index(address)
        there = [new if each is None else each for each in put]
        row = tuple(each for each in (*before[:place], *there, *before[place + 1 :]) if each is not None)
        try:
            self._topology.check(row)
            self._pauses.begin_pause()
            self._wait(
                self._pauses.is_paused, timeout, "not all that was under way has come back", drain=False
            )
        except BaseException:
            self._pauses.end()
            self._end([] if new is None else [new])
            raise
        try:
            self._rewire(before, row)
        finally:
            self._pauses.end()
        left = [each for each in before if each not in row]
        self._end(left)
        self._tell(RowChanged(row, () if new is None else (new,), tuple(left)))
        return new

    def _make(self, gate: Gate) -> str:
        """Make a gate, to which nobody talks yet; its address."""
        spawn = self._topology.newcomer(gate, self._seed)
        self._engine.spawn_all(self._recovery.keep([spawn]))
        if self._recorder is not None:
            self._recorder.made(spawn.address)
        return spawn.address

    def _rewire(self, before: tuple[str, ...], row: tuple[str, ...]) -> None:
        """Have every gate know its place."""
        self._become(row)
        self._rewired.clear()
        to_tell = {address: Rewire(row, address == before[-1]) for address in (*row, before[-1])}
        restarts: Counter[str] | None = None
        while restarts is None or not to_tell.keys() <= self._rewired:
            restarts = Counter(self._recovery.restarts)  # one that was made anew is told again
            for address in [each for each in to_tell if each not in self._rewired]:
                self._outbox.send(address, to_tell[address])

            def is_heard(then: Counter[str] = restarts) -> bool:
                return to_tell.keys() <= self._rewired or self._recovery.restarts != then

            self._wait(is_heard, None, "not every gate knows its place", drain=False)

    def _become(self, row: tuple[str, ...]) -> None:
        """Have the recipe be of that row, and whoever would have its gates made anew know it."""
        self._topology.rearrange(row)
        if self._recorder is not None:
            self._recorder.rearranged(row)
        self._tell_recovery()

    def _end(self, gates: Sequence[str]) -> None:
        """These are not part of the row, and nobody talks to them."""
        self._recovery.drop(gates)
        for address in gates:
            self._outbox.send(address, Close())
        self._engine.retire(gates)
