"""A staged, running network, and the user's handle on it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from akkordeon.attaching import actors_of
from akkordeon.attachment import Attachment
from akkordeon.engines.base import Engine, Load
from akkordeon.errors import (
    GateFailedError,
    NoSuchSentinelError,
    RecipeError,
    SessionClosedError,
    WaitTimeoutError,
)
from akkordeon.messages import Attach, Close, Detach, Due, Message, Probe
from akkordeon.metrics import GateStatus, SentinelStatus
from akkordeon.network import Recipe
from akkordeon.record import Recorder
from akkordeon.roster import Roster
from akkordeon.sentinel import Evaluation, Sentinel, Training
from akkordeon.supervisor import Supervisor

__all__ = ["Session", "Status"]

PROBE_S = 2.0
"""How long ``status`` waits for actors that are in the middle of something."""

CLOSE_S = 10.0
"""How long ``close`` waits for the gates to leave their weights."""


@dataclass(frozen=True)
class Status:
    """What ``session.status()`` found. ``loads`` has queue lengths and busy times by address."""

    gates: list[GateStatus]
    sentinels: list[SentinelStatus]
    loads: dict[str, Load]
    now_s: float


class Session:
    """A running network. Every method may be called from any thread.

    Args:
        network: the recipe.
        engine: not started yet.
        seed: see :func:`akkordeon.run`.
        recorder: hears of everything.
    """

    def __init__(
        self, network: Recipe, engine: Engine, seed: int = 0, recorder: Recorder | None = None
    ) -> None:
        self.network = network
        self.seed = seed
        self._engine = engine
        self._row = network.row()
        self._lock = threading.Lock()  # never held while the engine is called
        self._watchers: list[Callable[[Any], None]] = []
        self._probes = itertools.count(1)
        self._closed = False
        self._roster = Roster(network.max_in_flight)
        self._supervisor = Supervisor(
            self._row,
            self._roster,
            send=self._send,
            close_actors=self._close_actors,
            other_failed=self._other_failed,
        )
        self._recorder = recorder
        if recorder is not None:
            engine.recorder = recorder
        engine.start(self._on_report, seed)
        try:
            engine.spawn_all((s.address, s.make, s.resources) for s in network.spawns(seed))
        except BaseException:
            engine.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def attachments(self) -> list[Attachment]:
        """The sentinels attached so far, of every name the latest."""
        return self._roster.attachments

    @property
    def _error(self) -> GateFailedError | None:
        return self._supervisor.error

    # ── sentinels ────────────────────────────────────────────────────────────────────────────────────

    def attach(self, sentinel: Training | Evaluation) -> Attachment:
        """Have a sentinel join the network, now.

        Raises:
            NameTakenError: a sentinel of that name is at work.
            RecipeError: it wants more batches in flight than the network allows.
            SessionClosedError: the session has ended.
            GateFailedError: a gate has failed.
        """
        if not isinstance(sentinel, Training | Evaluation):
            raise RecipeError(f"attach takes a sentinel, as Sentinel.train(…), got {type(sentinel).__name__}")
        self._check_open()
        attachment = self._roster.register(sentinel, self.network.row_of(sentinel), self)
        try:
            actors = actors_of(sentinel, attachment.address, attachment.name, attachment.row, self.seed)
            if self._recorder is not None:
                self._recorder.attached(attachment.address, attachment.name, sentinel)
            for address, make in actors.items():
                self._engine.spawn(address, make, beside=self._beside(attachment))
        except BaseException:
            self._roster.bury(attachment)
            self._roster.strike(attachment)
            raise
        self._send(attachment.address, Attach())
        if self._closed or self._error is not None:  # too late to have been closed with the others
            self._send(attachment.address, Close())
            self._check_open()
        return attachment

    def detach(self, name: str, drop: bool = False) -> None:
        """Have a sentinel send nothing new and end; returns at once.

        Args:
            name: of the sentinel; one that has ended is left alone.
            drop: forget its batches in flight, which then count as lost, instead of waiting for them.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
        """
        found = [a for a in self.attachments if a.name == name]
        if not found:
            known = ", ".join(sorted({repr(a.name) for a in self.attachments})) or "none"
            raise NoSuchSentinelError(f"no sentinel {name!r} here; attached were: {known}")
        if not found[-1].ended:
            self._send(found[-1].address, Detach(drop))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all training, testing and predicting has ended; then validators make a last round.

        Args:
            timeout: seconds for all of it; None waits as long as it takes.

        Raises:
            ActorFailedError: the first failure, after the other sentinels have ended.
            WaitTimeoutError: not everything has ended by then; it goes on.
        """
        deadline_s = None if timeout is None else self._engine.now_s() + timeout

        def left() -> float | None:
            return None if deadline_s is None else max(0.0, deadline_s - self._engine.now_s())

        def all_ended() -> bool:
            return all(a.ended for a in self.attachments if a.role != "validate")

        self._wait(all_ended, left(), "the sentinels have not ended", timeout)
        validators = [a for a in self.attachments if a.role == "validate"]
        for validator in validators:
            if not validator.ended:
                self._send(validator.address, Due(last=True))
        what = "the last validation has not ended"
        self._wait(lambda: all(a.ended for a in validators), left(), what, timeout)
        for attachment in self.attachments:
            if attachment.error is not None:
                raise attachment.error

    # ── results ──────────────────────────────────────────────────────────────────────────────────────

    def predict(self, inputs: Any, timeout: float | None = None, batch_size: int = 1024) -> Any:
        """The network's outputs for some inputs, on one consistent cut, while training goes on.

        Args:
            inputs: (N, …) tensor, or a tuple or dict of such, or a list of batches.
            timeout: seconds; None waits as long as it takes.
            batch_size: for tensors.

        Returns:
            The outputs for all inputs in their order, in the form the network gives them.

        Raises:
            ActorFailedError: the network cannot work on these inputs; the reason is in it.
            WaitTimeoutError: they did not come in time.
        """
        recipe = Sentinel.predict(inputs, batch_size=batch_size)
        return self._result(recipe, timeout)

    def module(self, timeout: float | None = None) -> nn.Sequential:
        """A plain copy of the network with the weights of one consistent cut.

        After the session has ended: with the weights it ended with.

        Raises:
            WaitTimeoutError: the weights did not come in time.
        """
        return self.network.module(self.states(timeout))

    def states(self, timeout: float | None = None) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of one consistent cut, by gate address and name in the gate's module.

        After the session has ended, or a gate has failed: those that every gate had last.

        Raises:
            WaitTimeoutError: they did not come in time.
        """
        if self._closed or self._error is not None:
            patience_s = CLOSE_S if timeout is None else timeout
            if not self._engine.wait_until(self._all_left, patience_s):
                late = ", ".join(self._supervisor.missing())
                raise WaitTimeoutError(f"{late} had not left its weights after {patience_s:g} s")
            if self._supervisor.lost and self._error is not None:
                raise self._error
            return {address: self._supervisor.left[address].state for address in self._row}
        states: dict[str, dict[str, Tensor]] = self._result(
            Evaluation(kind="export", batches=(), loss=None), timeout
        )
        return states

    def best_states(self) -> dict[str, dict[str, Tensor]] | None:
        """The weights kept by ``Best``, as :meth:`states` has them; None if none were."""
        best = self._supervisor.best
        return None if best is None else best.states

    def best_module(self) -> nn.Sequential | None:
        """The network with the weights kept by ``Best``; None if none were."""
        best = self._supervisor.best
        return None if best is None else self.network.module(best.states)

    def _result(self, recipe: Evaluation, timeout: float | None) -> Any:
        attachment = self.attach(recipe)
        try:
            return attachment.wait(timeout).result
        finally:
            self._roster.strike(attachment)
            if not attachment.ended:
                self._send(attachment.address, Detach(drop=True))

    # ── looking on ───────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, watcher: Callable[[Any], None]) -> None:
        """Have every record handed to ``watcher``, which must be quick; one at a time, by any thread."""
        self._watchers.append(watcher)

    def status(self, timeout: float = PROBE_S) -> Status:
        """How every gate and sentinel is; those too busy to answer in time as they last were."""
        number = next(self._probes)
        sentinels = [a for a in list(self.attachments) if not a.ended]
        for address in (*self._row, *(a.address for a in sentinels)):
            self._send(address, Probe(number))
        gates_asked = () if self._closed or self._error else self._row
        heard = self._supervisor

        def all_answered() -> bool:
            return all(heard.answered.get(address, 0) >= number for address in gates_asked) and all(
                a.ended or heard.answered.get(a.address, 0) >= number for a in sentinels
            )

        self._engine.wait_until(all_answered, timeout)
        return Status(
            gates=[heard.gates[address] for address in self._row if address in heard.gates],
            sentinels=[heard.sentinels[a.address] for a in sentinels if a.address in heard.sentinels],
            loads=self._engine.loads(),
            now_s=self._engine.now_s(),
        )

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """End everything now; batches in flight are lost. Doing it twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._close_actors()
            self._engine.wait_until(
                lambda: self._all_left() and all(a.ended for a in self.attachments), CLOSE_S
            )
        finally:
            self._engine.stop()
            if self._recorder is not None:
                self._recorder.close()

    def _all_left(self) -> bool:
        return not self._supervisor.missing()

    def _close_actors(self) -> None:
        for attachment in list(self.attachments):
            if not attachment.ended:
                self._send(attachment.address, Close())
        for address in self._supervisor.missing():
            self._send(address, Close())

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise SessionClosedError("the session has ended; start another with akkordeon.run")

    def _wait(
        self, condition: Callable[[], bool], timeout: float | None, what: str, of: float | None = None
    ) -> None:
        """Wait for a condition; ``of`` is the time the user allowed, where this is not all of it."""
        came = self._engine.wait_until(
            lambda: condition() or self._error is not None or self._closed, timeout
        )
        if self._error is not None:
            raise self._error
        if not came:
            raise WaitTimeoutError(f"{what} after {timeout if of is None else of:g} s")
        if not condition():
            raise SessionClosedError(f"{what}, and the session has ended")

    def _send(self, to: str, message: Message) -> None:
        if self._recorder is not None:
            self._recorder.outside(to, message)
        self._engine.send(to, message)

    # ── what the actors report ───────────────────────────────────────────────────────────────────────

    def _on_report(self, record: Any) -> None:
        self._supervisor.hear(record)
        for watcher in list(self._watchers):
            try:
                watcher(record)
            except Exception:  # it must not harm the actor that reported
                self._watchers.remove(watcher)
                logging.getLogger(__name__).exception("a watcher of the session raised and was unsubscribed")

    def _beside(self, attachment: Attachment) -> str | None:
        """The actor whose place a sentinel shares; None leaves it with the process that attaches it."""
        return None

    def _other_failed(self, address: str, why: str, error: BaseException | None) -> None:
        """An actor is gone that no cut needs; a session whose recipe has such actors says what that means."""
