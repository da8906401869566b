"""The weights of a network that runs on its own, as its registrar knows them.

It asks the gates for consistent cuts as a sentinel does, and keeps the latest that is whole::

    registrar ─ Cut ─▶ last gate ─▶ … ─▶ first gate ─ Cut ─▶ registrar
    registrar ─ Export ─▶ every gate ─ Exported ─▶ registrar

So of a gate whose process dies there are the weights of the last cut; one that raises leaves those it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from akkordeon.core.messages import Cut, CutId, Export, Exported, Message, Release
from akkordeon.core.reports import GateLeft

__all__ = ["REGISTRAR", "WEIGHTS_S", "NetworkWeights", "Snapshots"]

REGISTRAR = "registrar"
"""The registrar's address among the actors."""


WEIGHTS_S = 60.0
"""How long weights of now are waited for, before older ones must do."""

SNAPSHOT_S = 60.0
"""How often the gates are asked for their weights, if that is quick."""

SNAPSHOT_SHARE = 0.05
"""The part of the time that may go into it, if it is not."""


@dataclass(frozen=True)
class NetworkWeights:
    """Weights and buffers by gate, and the version each is of. ``late``: gates that are of an earlier cut."""

    states: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, int]
    late: Sequence[str] = ()


class Snapshots:
    """Cuts of a row of gates. Its methods may be called from any thread.

    Args:
        row: addresses of the gates, head first.
        send: carries a message to a gate.
        numbers_before: cuts up to this number may have been asked for before.
    """

    def __init__(
        self, row: Sequence[str], send: Callable[[str, Message], None], numbers_before: int = 0
    ) -> None:
        self._row = tuple(row)
        self._send = send
        self._changed = threading.Condition()
        self._number = numbers_before
        self._whole = numbers_before  # the latest cut that all gates gave their weights of
        self._given_up = False
        self._versions: dict[str, int] = {}
        self._states: dict[str, Mapping[str, Any]] = {}  # of the cut under way
        self._latest: NetworkWeights | None = None
        self._left: dict[str, GateLeft] = {}

    def rearranged(self, row: Sequence[str]) -> None:
        """The row is another: a cut under way is given up for one of the new row."""
        with self._changed:
            self._row = tuple(row)
            self._left = {gate: left for gate, left in self._left.items() if gate in row}
        self.ask()

    def ask(self) -> int:
        """Begin another cut; its number."""
        with self._changed:
            given_up, self._number = self._number, self._number + 1
            self._versions, self._states = {}, {}
            number = self._number
        self._to_all(Release(CutId(REGISTRAR, given_up)))
        self._send(self._row[-1], Cut(CutId(REGISTRAR, number), ()))
        return number

    def follow(self, versions: Callable[[], dict[str, int]], goes_on: Callable[[], bool]) -> None:
        """Have the latest weights at hand, whatever happens to the gates; for a thread of its own.

        Args:
            versions: of the gates, as they told last.
            goes_on: whether there is still something to follow.
        """
        taken: dict[str, int] | None = None
        while goes_on():
            began_s = time.monotonic()
            now = versions()
            if now != taken and self.wait_for(self.ask(), WEIGHTS_S):
                taken = now
            took_s = time.monotonic() - began_s
            time.sleep(max(SNAPSHOT_S, took_s / SNAPSHOT_SHARE))

    def give_up(self) -> None:
        """A gate will not answer any more: there will be no whole cut, and nobody waits for one."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def hear(self, message: Message) -> None:
        """Take in what the gates answer; dropped are answers to cuts given up, and of others than the row."""
        if not isinstance(message, Cut | Exported) or message.cut != (REGISTRAR, self._number):
            return
        if isinstance(message, Cut):
            if len(message.versions) != len(self._row) or self._versions:
                return
            self._versions = dict(zip(reversed(self._row), message.versions, strict=True))
            self._to_all(Export(message.cut))
        elif message.gate in self._versions and message.gate not in self._states:
            with self._changed:
                self._states[message.gate] = message.state
                if len(self._states) < len(self._row):
                    return
                self._latest = NetworkWeights(
                    {gate: self._states[gate] for gate in self._row}, self._versions
                )
                self._whole = message.cut.number
                self._changed.notify_all()
            self._to_all(Release(message.cut))

    def keep(self, left: GateLeft) -> None:
        """A gate has ended and left its weights."""
        with self._changed:
            if left.address in self._row:
                self._left[left.address] = left
            self._changed.notify_all()

    def wait_for(self, number: int, timeout_s: float) -> bool:
        """Wait until this cut or a later one is whole; False if none will be, or not in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole >= number or self._given_up, timeout_s)
            return self._whole >= number

    def wait_for_last(self, gates: Sequence[str], timeout_s: float) -> bool:
        """Wait until these gates have left their weights; whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self._left.keys() >= set(gates), timeout_s)

    def latest(self) -> NetworkWeights | None:
        """What gates left at their end, and of others those of the latest cut; None if some are not known."""
        with self._changed:
            left, latest = dict(self._left), self._latest
        states = dict(latest.states if latest else {})
        versions = dict(latest.versions if latest else {})
        states.update({gate: each.state for gate, each in left.items()})
        versions.update({gate: each.version for gate, each in left.items()})
        if states.keys() != set(self._row):
            return None
        late = [gate for gate in self._row if left and gate not in left]
        row = self._row
        in_order = {gate: states[gate] for gate in row}
        return NetworkWeights(in_order, {gate: versions[gate] for gate in row}, late)

    def _to_all(self, message: Message) -> None:
        for gate in self._row:
            self._send(gate, message)
