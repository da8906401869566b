"""A staged, running network, and the user's handle on it."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from akkordeon.core.addresses import reader_of
from akkordeon.core.checks import require_seconds
from akkordeon.core.errors import (
    GateFailedError,
    NoSuchSentinelError,
    RecipeError,
    SessionClosedError,
    SessionError,
    WaitTimeoutError,
    again,
)
from akkordeon.core.messages import Attach, Close, Detach, Due, Message, Probe
from akkordeon.core.reports import BestKept, GateStatus, SentinelStatus
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.base import Engine, Load
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.factory import make_actors
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.sentinels.roles import EXPORT
from akkordeon.session.attachment import Attachment
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.registry import Registry
from akkordeon.session.subscription import Subscription
from akkordeon.session.supervisor import Supervisor
from akkordeon.session.topology import topology_of

__all__ = ["Session", "Status"]

PROBE_S = 2.0
"""How long ``status`` waits for actors that are in the middle of something."""

CLOSE_S = 10.0
"""How long ``close`` waits for the gates to leave their weights."""

DRAIN_S = 2.0
"""How long the end of a wait waits for watchers to see what was reported."""


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
        self, network: Network | Downpour, engine: Engine, seed: int = 0, recorder: Recorder | None = None
    ) -> None:
        self.network = network
        self.seed = seed
        self._engine = engine
        self._topology = topology_of(network)
        self._row = self._topology.row
        self._lock = threading.Lock()  # never held while the engine is called
        self._subscriptions: list[Subscription] = []
        self._inline: list[Callable[[Any], None]] = []
        self._probes = itertools.count(1)
        self._closed = False
        self._closed_by: int | None = None  # a thread's identity
        self._has_ended = threading.Event()
        self._at_close: list[Callable[[], None]] = []
        self._registry = Registry(network.max_in_flight)
        self._supervisor = Supervisor(
            self._row,
            self._registry,
            send=self._send,
            close_actors=self._close_actors,
            other_failed=self._other_failed,
        )
        self._recorder = recorder
        of_another, engine.recorder = engine.recorder, recorder
        try:
            engine.start(self._on_report, seed)
        except BaseException:  # the engine may carry another session
            engine.recorder = of_another
            if recorder is not None:
                recorder.close()
            raise
        try:
            engine.spawn_all(self._topology.spawns(seed))
        except BaseException:
            engine.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._say_what_is_cut_short()
        self.close()
        if self._closed_by != threading.get_ident():  # as in a loss, whose sentinel ends when that returns
            self._has_ended.wait()
            self._engine.wait_until(self._all_ended, CLOSE_S)

    def __repr__(self) -> str:
        at_work = sum(not a.ended for a in self.attachments)
        how = (
            "ended"
            if self._closed
            else "failed"
            if self._error is not None
            else f"{at_work} sentinels at work"
        )
        return f"<{type(self).__name__} of {len(self.network.gates)} gates: {how}>"

    def _say_what_is_cut_short(self) -> None:
        """Leaving the block ends everything; who did not mean that should know."""
        cut_short = [a for a in self.attachments if a.role.trains and not (a.ended or a._told_to_end)]
        if cut_short and not self._closed:
            logging.getLogger(__name__).warning(
                "the session ends before its training does (%s); session.wait() waits for the end",
                ", ".join(f"{a.name!r} after {a._done_in_words}" for a in cut_short),
            )

    def _say_if_nothing_learns(self, sentinels: Sequence[Training | Evaluation]) -> None:
        """A forgotten optimizer would pass for training that gets nowhere."""
        trains = any(isinstance(sentinel, Training) for sentinel in sentinels)
        if trains and all(gate.optimizer is None for gate in self.network.gates):
            logging.getLogger(__name__).warning(
                "no gate has an optimizer, so training changes no weights; Gate(module, optimizer) has one"
            )

    @property
    def attachments(self) -> list[Attachment]:
        """The sentinels attached so far, of every name the latest."""
        return self._registry.attachments

    @property
    def record_failure(self) -> str | None:
        """Why the record of this run breaks off, in a sentence; None where it does not, or there is none."""
        return None if self._recorder is None else self._recorder.failure

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
        return self._attach([sentinel])[0]

    def attach_all(self, sentinels: Sequence[Training | Evaluation]) -> Sequence[Attachment]:
        """Have several sentinels join at one moment, all or none of them.

        On one worker a run of several trainers can be repeated to the bit only so: of those attached one
        after the other the first is at work already, and how far it comes differs from run to run.

        Raises:
            AkkordeonError: as :meth:`attach`.
        """
        return self._attach(sentinels)

    def _attach(self, sentinels: Sequence[Training | Evaluation]) -> list[Attachment]:
        for sentinel in sentinels:
            if not isinstance(sentinel, Training | Evaluation):
                got = type(sentinel).__name__
                raise RecipeError(f"attach takes a sentinel, as Sentinel.train(…), got {got}")
        self._check_open()
        placed: list[Attachment] = []
        try:
            for sentinel in sentinels:
                placed.append(self._place(self._registry.going_on(sentinel, self.seed)))
        except BaseException:
            for attachment in placed:
                self._withdraw(attachment)
            raise
        self._say_if_nothing_learns(sentinels)
        addresses = [attachment.address for attachment in placed]
        self._send_all([(address, Attach()) for address in addresses])
        if self._closed or self._error is not None:  # too late to have been closed with the others
            self._send_all([(address, Close()) for address in addresses])
            self._check_open()
        return placed

    def _place(self, sentinel: Training | Evaluation, number: int | None = None) -> Attachment:
        """Have the actors of a sentinel made; they do nothing before they are told."""
        attachment = self._registry.register(sentinel, self._topology.row_for(sentinel), self, number)
        try:
            actors = make_actors(sentinel, attachment.address, attachment.name, attachment.row, self.seed)
            for address, make in actors.items():
                self._engine.spawn(address, make, beside=self._topology.place_beside(sentinel))
        except BaseException:
            self._withdraw(attachment)
            raise
        if self._recorder is not None:
            before = self._registry.epochs_before(sentinel.batches)
            self._recorder.attached(attachment.address, attachment.name, sentinel, before)
        return attachment

    def _withdraw(self, attachment: Attachment) -> None:
        """As if it had never been placed."""
        self._registry.mark_ended(attachment)
        self._registry.remove(attachment)
        for address in (attachment.address, reader_of(attachment.address)):
            if self._recorder is not None:
                self._recorder.withdrawn(address)
            self._engine.send(address, Close())

    def detach(self, name: str, drop: bool = False) -> None:
        """Have a sentinel send nothing new and end; returns at once.

        Args:
            name: of the sentinel; one that has ended is left alone.
            drop: forget its batches in flight, which then count as lost, instead of waiting for them.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
        """
        found = self._named(name)
        if not found.ended:
            self._send(found.address, Detach(drop))

    def _named(self, name: str) -> Attachment:
        """The latest sentinel of that name."""
        found = self._registry.named(name)
        if found is None:
            known = ", ".join(sorted({repr(a.name) for a in self.attachments})) or "none"
            raise NoSuchSentinelError(f"no sentinel {name!r} here; attached were: {known}")
        return found

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all training, testing and predicting has ended; then validators make a last round.

        Args:
            timeout: seconds for all of it; None waits as long as it takes.

        Raises:
            ActorFailedError: a failure that nobody was told of yet, after the other sentinels have ended.
            WaitTimeoutError: not everything has ended by then; it goes on.
        """
        require_seconds("a timeout", timeout, optional=True)
        deadline_s = None if timeout is None else self._engine.now_s() + timeout

        def left() -> float | None:
            return None if deadline_s is None else max(0.0, deadline_s - self._engine.now_s())

        def all_ended() -> bool:
            return all(a.ended for a in self.attachments if not a.role.repeats)

        self._wait(all_ended, left(), "the sentinels have not ended", timeout)
        validators = [a for a in self.attachments if a.role.repeats]
        for validator in validators:
            if not validator.ended:
                self._send(validator.address, Due(last=True))
        what = "the last validation has not ended"
        self._wait(lambda: all(a.ended for a in validators), left(), what, timeout)
        for attachment in self.attachments:
            if not attachment._error_is_known:
                attachment._raise_error()

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

    def states(self, timeout: float | None = None, *, partial: bool = False) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of one consistent cut, by gate address and name in the gate's module.

        After the session has ended, or a gate has failed: those that every gate had last.

        Args:
            timeout: seconds; None waits as long as it takes, and for those of a session that has ended 10 s.
            partial: do without gates that are lost, or still at work though the session has ended.

        Raises:
            GateFailedError: a gate is lost with its weights.
            WaitTimeoutError: they did not come in time.
        """
        if self._closed or self._error is not None:
            states = self._states_left(CLOSE_S if timeout is None else timeout, partial)
        else:
            states = self._result(Evaluation(kind=EXPORT, batches=(), loss=None), timeout)
        return self._topology.by_gate(states)

    def _states_left(self, patience_s: float, partial: bool) -> dict[str, dict[str, Tensor]]:
        """What the gates left behind when they ended."""
        others = "session.states(partial=True) gives the weights of the other gates"
        if not self._engine.wait_until(self._all_left, patience_s) and not partial:
            late = ", ".join(self._supervisor.missing())
            raise WaitTimeoutError(
                f"{late} had not left its weights after {patience_s:g} s and may still be at work: "
                f"ask again later; {others}"
            )
        if self._supervisor.lost and self._error is not None and not partial:
            raise GateFailedError(f"{self._error}; {others}") from self._error.__cause__
        left = self._supervisor.left
        return {address: left[address].state for address in self._row if address in left}

    def best_states(self, name: str | None = None) -> dict[str, dict[str, Tensor]] | None:
        """The weights of the best round of a validator with ``Best``, as :meth:`states` has them.

        Args:
            name: of the validator; needed where several keep their best.

        Returns:
            None if it has kept none yet.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
            SessionError: several keep their best, and none was named.
        """
        return self._states_of(self._best(name))

    def best_module(self, name: str | None = None) -> nn.Sequential | None:
        """The network with the weights of the best round; see :meth:`best_states`."""
        return self._module_of(self._best(name))

    def _best(self, name: str | None) -> BestKept | None:
        if name is not None:
            return self._named(name).best
        keepers = [a for a in self.attachments if a.best is not None]
        if len(keepers) > 1:
            names = ", ".join(repr(a.name) for a in keepers)
            raise SessionError(f"{names} keep their best, each its own; say whose: session.best_module(NAME)")
        return keepers[0].best if keepers else None

    def _states_of(self, kept: BestKept | None) -> dict[str, dict[str, Tensor]] | None:
        return None if kept is None else self._topology.by_gate(kept.states)

    def _module_of(self, kept: BestKept | None) -> nn.Sequential | None:
        states = self._states_of(kept)
        return None if states is None else self.network.module(states)

    def _result(self, recipe: Evaluation, timeout: float | None) -> Any:
        attachment = self.attach(recipe)
        try:
            return attachment.wait(timeout).result
        finally:
            self._registry.remove(attachment)
            if not attachment.ended:
                self._send(attachment.address, Detach(drop=True))

    # ── looking on ───────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, watcher: Callable[[Any], None], *, inline: bool = False) -> Subscription | None:
        """Have every record from now on handed to a watcher, one at a time, on a thread of its own.

        When a wait has ended well, the watcher has seen all that was reported before, if it is not too slow.
        One that raises is unsubscribed, with a logged error.

        Args:
            watcher: called with a record of :mod:`akkordeon.core.reports`.
            inline: have whoever reports call it, in the middle of its work: for what must know the moment,
                as in a simulation. It holds up everybody and must not wait for anything.

        Returns:
            What counts the records that were too many for it; None if it is called inline.
        """
        if inline:
            self._inline.append(watcher)
            return None
        subscription = Subscription(watcher)
        self._subscriptions.append(subscription)
        return subscription

    def _drain(self) -> None:
        """Let the watchers see what was reported, within bounds."""
        deadline_s = time.monotonic() + DRAIN_S
        for subscription in list(self._subscriptions):
            subscription.drain(max(0.0, deadline_s - time.monotonic()))

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

        self._have_answered(all_answered, timeout)
        return Status(
            gates=[heard.gates[address] for address in self._row if address in heard.gates],
            sentinels=[heard.sentinels[a.address] for a in sentinels if a.address in heard.sentinels],
            loads=self._engine.loads(),
            now_s=self._engine.now_s(),
        )

    def _ask(self, attachment: Attachment) -> None:
        if self._closed:
            return
        number = next(self._probes)
        self._send(attachment.address, Probe(number))
        answered = self._supervisor.answered
        self._have_answered(
            lambda: attachment.ended or answered.get(attachment.address, 0) >= number, PROBE_S
        )

    def _have_answered(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait for answers, unless this is a thread that they would have to come from."""
        try:
            self._engine.check_may_wait()
        except SessionError:
            return
        self._engine.wait_until(condition, timeout)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────

    def at_close(self, do: Callable[[], None]) -> None:
        """Have something done first thing when the session is closed."""
        self._at_close.append(do)

    def close(self) -> None:
        """End everything now; batches in flight are lost. Doing it twice does nothing.

        Raises:
            SessionError: it is called from within an actor that the others wait for.
        """
        self._engine.check_may_wait()
        with self._lock:
            if self._closed:
                return
            self._closed, self._closed_by = True, threading.get_ident()
        try:
            for do in self._at_close:
                do()
            self._close_actors()
            self._engine.wait_until(lambda: self._all_left() and self._all_ended(), CLOSE_S)
        finally:
            self._engine.stop()
            self._drain()
            for subscription in self._subscriptions:
                subscription.end()
            if self._recorder is not None:
                self._recorder.close()
            self._has_ended.set()

    def _all_ended(self) -> bool:
        return all(a.ended for a in self.attachments)

    def _all_left(self) -> bool:
        return not self._supervisor.missing()

    def _close_actors(self) -> None:
        for replica in self._topology.replicas:
            for gate in self._topology.replica_row(replica):
                self._send(gate, Close())
        for attachment in list(self.attachments):
            if not attachment.ended:
                self._send(attachment.address, Close())
        for address in self._supervisor.missing():
            self._send(address, Close())

    def _check_open(self) -> None:
        if self._error is not None:
            raise again(self._error)
        if self._closed:
            raise SessionClosedError("the session has ended; start another with akkordeon.run")

    def _wait(
        self,
        condition: Callable[[], bool],
        timeout: float | None,
        what: str,
        of: float | None = None,
        drain: bool = True,
    ) -> None:
        """Wait for a condition.

        Args:
            condition: looked at after every report.
            timeout: seconds.
            what: has not come, if it does not.
            of: the time the user allowed, where this is not all of it.
            drain: have the watchers seen what led to it.
        """
        came = self._engine.wait_until(
            lambda: condition() or self._error is not None or self._closed, timeout
        )
        if came and drain:
            self._drain()
        if self._error is not None:
            raise again(self._error)
        if not came:
            raise WaitTimeoutError(f"{what} after {timeout if of is None else of:g} s")
        if not condition():
            raise SessionClosedError(f"{what}, and the session has ended")

    def _send(self, to: str, message: Message) -> None:
        self._note(to, message)
        self._engine.send(to, message)

    def _send_all(self, messages: Sequence[tuple[str, Message]]) -> None:
        """Send messages before anybody handles one of them."""
        for to, message in messages:
            self._note(to, message)
        self._engine.send_all(messages)

    def _note(self, to: str, message: Message) -> None:
        """Before a message leaves, note what will be asked about it."""
        if self._recorder is not None:
            self._recorder.outside(to, message)
        if isinstance(message, Detach | Close):
            attachment = self._registry.living.get(to)
            if attachment is not None:
                attachment._told_to_end = True

    # ── what the actors report ───────────────────────────────────────────────────────────────────────

    def _on_report(self, record: Any) -> None:
        self._supervisor.hear(record)
        for subscription in list(self._subscriptions):
            subscription.put(record)
        for watcher in list(self._inline):
            try:
                watcher(record)
            except (Exception, SystemExit):  # it must not harm the actor that reported
                self._inline.remove(watcher)
                logging.getLogger(__name__).exception("a watcher of the session raised and was unsubscribed")

    # ── replicas, where there are any ────────────────────────────────────────────────────────────────

    def _other_failed(self, address: str, why: str, error: BaseException | None) -> None:
        """An actor is gone that no cut needs: a gate of a replica, which is out with its sentinels."""
        replica = self._topology.replica_of(address)
        if replica is None:
            return
        for trainer in self._trainers_of(replica):
            trainer.error = GateFailedError(f"{address} {why}")
            trainer.error.__cause__ = error
            self._send(trainer.address, Close())
        self._retire(replica, in_peace=False)

    def _trainers_of(self, replica: int) -> list[Attachment]:
        row = self._topology.replica_row(replica)
        return [a for a in self.attachments if a.row == row and not a.ended]

    def _retire(self, replica: int, in_peace: bool) -> None:
        """Have the gates of a replica leave; ``in_peace``: nothing of it is on its way to the shards."""
        for to, message in self._topology.removed(replica, in_peace):
            self._send(to, message)
        self._engine.retire(self._topology.replica_row(replica))
