"""A staged, running network, and the user's handle on it."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

from torch import Tensor, nn

from akkordeon.actor import Actor
from akkordeon.data import as_batches, is_indexable
from akkordeon.engines.base import Engine, Load
from akkordeon.errors import (
    ActorFailedError,
    DataError,
    GateFailedError,
    NameTakenError,
    NoSuchSentinelError,
    RecipeError,
    SentinelFailedError,
    SessionClosedError,
    WaitTimeoutError,
)
from akkordeon.evaluator import Evaluator
from akkordeon.messages import Attach, Close, Detach, Due, Forget, Message, Probe, explain
from akkordeon.metrics import (
    ActorFailed,
    ActorLost,
    BatchCount,
    BatchRefused,
    BestKept,
    EpochDone,
    GateLeft,
    GateStatus,
    RoundDone,
    SentinelEnded,
    SentinelStatus,
    ShardStatus,
)
from akkordeon.network import Network, Recipe
from akkordeon.payload import map_tensors, tensors
from akkordeon.reader import Reader
from akkordeon.record import Recorder
from akkordeon.sentinel import Evaluation, Sentinel, Training
from akkordeon.trainer import Trainer

if TYPE_CHECKING:
    from akkordeon.downpour import Downpour
    from akkordeon.replicas import DownpourSession

__all__ = ["Attachment", "Session", "Status", "run"]

PROBE_S = 2.0
"""How long ``status`` waits for actors that are in the middle of something."""

CLOSE_S = 10.0
"""How long ``close`` waits for the gates to leave their weights."""


@overload
def run(
    network: Network,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
) -> Session: ...
@overload
def run(
    network: Downpour,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
) -> DownpourSession: ...
def run(
    network: Network | Downpour,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
) -> Session:
    """Stage a network and start it.

    Args:
        network: the recipe, a Network or a Downpour; its modules are copied.
        engine: ``"threads"``, ``"simulator"`` or ``"ray"``, or an engine such as ``Threads(workers=1)``.
        seed: of everything random that belongs to the run: masks, torch's generator while it lasts.
        record: a file that will say what every actor handled and did, for :func:`akkordeon.replay`.
        task: goes into the record: whatever is needed to make the network and its sentinels again.

    Returns:
        The session, to be used in a ``with`` block or closed by hand.

    Raises:
        RecipeError: an unknown engine, or an optimizer over foreign parameters.
    """
    recorder = None if record is None else Recorder(record, network, seed, task)
    stage = engine_named(engine) if isinstance(engine, str) else engine
    if isinstance(network, Network):
        return Session(network, stage, seed, recorder)
    from akkordeon.replicas import DownpourSession  # which is a Session

    return DownpourSession(network, stage, seed, recorder)


def engine_named(name: str) -> Engine:
    """The engine of that name with its defaults."""
    if name == "threads":
        from akkordeon.engines.threads import Threads

        return Threads()
    if name == "simulator":
        from akkordeon.engines.simulator import Simulator

        return Simulator()
    if name == "ray":
        from akkordeon.engines.ray import Ray

        return Ray()
    raise RecipeError(f"there is no engine {name!r}; there are 'threads', 'simulator' and 'ray'")


@dataclass(frozen=True)
class Status:
    """What ``session.status()`` found. ``loads`` has queue lengths and busy times by address."""

    gates: list[GateStatus]
    sentinels: list[SentinelStatus]
    loads: dict[str, Load]
    now_s: float


@dataclass(eq=False)
class Attachment:
    """A sentinel that was attached: what it reported so far, and how to wait for it.

    Attributes:
        name: as in reports.
        row: whom it talks to, head first.
        role: ``train``, ``validate``, ``test`` or ``predict``.
        epochs: of a training sentinel, one record each.
        rounds: of a validation or test sentinel, one record each.
        batches: where its batches went; final once it has ended.
        error: why it failed, if it did.
    """

    name: str
    role: str
    address: str
    recipe: Sentinel
    row: tuple[str, ...]
    _session: Session
    epochs: list[EpochDone] = field(default_factory=list)
    rounds: list[RoundDone] = field(default_factory=list)
    refusals: list[BatchRefused] = field(default_factory=list)
    batches: BatchCount = field(default_factory=BatchCount)
    ended: bool = False
    error: ActorFailedError | None = None
    result: Any = None

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the sentinel has ended.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            ActorFailedError: it failed, or a gate did; the original error is its ``__cause__``.
            WaitTimeoutError: it has not ended by then; it goes on.
        """
        self._session._wait(lambda: self.ended, timeout, f"{self.name!r} has not ended")
        if self.error is not None:
            raise self.error
        return self

    def detach(self, drop: bool = False) -> None:
        """Have it send nothing new and end; see :meth:`Session.detach`."""
        self._session.detach(self.name, drop)


class Session:
    """A running network. Every method may be called from any thread.

    Args:
        network: the recipe.
        engine: not started yet.
        seed: see :func:`run`.
        recorder: hears of everything.
    """

    def __init__(
        self, network: Recipe, engine: Engine, seed: int = 0, recorder: Recorder | None = None
    ) -> None:
        self.network = network
        self.attachments: list[Attachment] = []  # replaced, never changed: threads look through it
        self.seed = seed
        self._engine = engine
        self._row = network.row()
        self._lock = threading.Lock()  # guards names; never held while the engine is called
        self._incarnations: dict[str, int] = {}
        self._by_address: dict[str, Attachment] = {}
        self._watchers: list[Callable[[Any], None]] = []
        self._probes = itertools.count(1)
        self._answered: dict[str, int] = {}  # the latest probe of each address
        self._gates: dict[str, GateStatus] = {}
        self._sentinels: dict[str, SentinelStatus] = {}
        self._left: dict[str, GateLeft] = {}
        self._lost: set[str] = set()  # gates that left nothing
        self._best: BestKept | None = None
        self._epochs_done = 0
        self._error: GateFailedError | None = None
        self._closed = False
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
        attachment = self._register(sentinel, self.network.row_of(sentinel))
        try:
            actors = actors_of(sentinel, attachment.address, attachment.name, attachment.row, self.seed)
            if self._recorder is not None:
                self._recorder.attached(attachment.address, attachment.name, sentinel)
            for address, make in actors.items():
                self._engine.spawn(address, make)
        except BaseException:
            self._bury(attachment)
            self._strike(attachment)
            raise
        self._send(attachment.address, Attach())
        if self._closed or self._error is not None:  # too late to have been closed with the others
            self._send(attachment.address, Close())
            self._check_open()
        return attachment

    def _register(self, sentinel: Sentinel, row: tuple[str, ...]) -> Attachment:
        """Give a sentinel its name; of earlier ones of that name only their users keep what they did."""
        with self._lock:
            living = [a for a in self.attachments if not a.ended]
            names = {a.name for a in living}
            name = sentinel.name or _free_name(sentinel.role, names)
            if name in names:
                raise NameTakenError(f"a sentinel {name!r} is at work already; give this one another name")
            self._check_room(name, row, [sentinel, *(a.recipe for a in living if a.row == row)])
            number = self._incarnations[name] = self._incarnations.get(name, 0) + 1
            attachment = Attachment(name, sentinel.role, f"sentinel/{name}#{number}", sentinel, row, self)
            self.attachments = [*(a for a in self.attachments if a.name != name), attachment]
            self._by_address[attachment.address] = attachment
            return attachment

    def _check_room(self, name: str, row: tuple[str, ...], recipes: list[Sentinel]) -> None:
        """Refuse a trainer whose batches the gates would refuse one by one."""
        in_flight = sum(r.in_flight or len(row) for r in recipes if isinstance(r, Training))
        if isinstance(recipes[0], Training) and in_flight > self.network.max_in_flight:
            raise RecipeError(
                f"with {name!r} up to {in_flight} batches would be in flight, but the network allows "
                f"{self.network.max_in_flight}: give it a smaller in_flight or raise Network(max_in_flight=…)"
            )

    def _strike(self, attachment: Attachment) -> None:
        """Take a sentinel off the list."""
        with self._lock:
            self.attachments = [a for a in self.attachments if a is not attachment]

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
                late = ", ".join(a for a in self._row if a not in self._left and a not in self._lost)
                raise WaitTimeoutError(f"{late} had not left its weights after {patience_s:g} s")
            if self._lost and self._error is not None:
                raise self._error
            return {address: self._left[address].state for address in self._row}
        states: dict[str, dict[str, Tensor]] = self._result(
            Evaluation(kind="export", batches=(), loss=None), timeout
        )
        return states

    def best_states(self) -> dict[str, dict[str, Tensor]] | None:
        """The weights kept by ``Best``, as :meth:`states` has them; None if none were."""
        return None if self._best is None else self._best.states

    def best_module(self) -> nn.Sequential | None:
        """The network with the weights kept by ``Best``; None if none were."""
        return None if self._best is None else self.network.module(self._best.states)

    def _result(self, recipe: Evaluation, timeout: float | None) -> Any:
        attachment = self.attach(recipe)
        try:
            return attachment.wait(timeout).result
        finally:
            self._strike(attachment)
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

        def all_answered() -> bool:
            return all(self._answered.get(address, 0) >= number for address in gates_asked) and all(
                a.ended or self._answered.get(a.address, 0) >= number for a in sentinels
            )

        self._engine.wait_until(all_answered, timeout)
        return Status(
            gates=[self._gates[address] for address in self._row if address in self._gates],
            sentinels=[self._sentinels[a.address] for a in sentinels if a.address in self._sentinels],
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
        return len(self._left) + len(self._lost) >= len(self._row)

    def _close_actors(self) -> None:
        for attachment in list(self.attachments):
            if not attachment.ended:
                self._send(attachment.address, Close())
        for address in self._row:
            if address not in self._left and address not in self._lost:
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
        handler = self._HANDLERS.get(type(record))
        if handler is not None:
            handler(self, record)
        for watcher in list(self._watchers):
            try:
                watcher(record)
            except Exception:  # it must not harm the actor that reported
                self._watchers.remove(watcher)
                logging.getLogger(__name__).exception("a watcher of the session raised and was unsubscribed")

    def _named(self, name: str) -> Attachment | None:
        return next((a for a in reversed(self.attachments) if a.name == name), None)

    def _epoch_done(self, record: EpochDone) -> None:
        attachment = self._named(record.sentinel)
        if attachment is not None:
            attachment.epochs.append(record)
        self._epochs_done += 1
        for a in list(self.attachments):
            every = getattr(a.recipe, "every_epoch", None)
            if every is not None and not a.ended and self._epochs_done % every == 0:
                self._send(a.address, Due())

    def _round_done(self, record: RoundDone) -> None:
        attachment = self._named(record.sentinel)
        if attachment is not None:
            attachment.rounds.append(record)
        if record.stop_training:
            for a in list(self.attachments):
                if a.role == "train" and not a.ended:
                    self._send(a.address, Detach())

    def _batch_refused(self, record: BatchRefused) -> None:
        attachment = self._named(record.sentinel)
        if attachment is not None and len(attachment.refusals) < 1000:
            attachment.refusals.append(record)

    def _best_kept(self, record: BestKept) -> None:
        self._best = record

    def _gate_status(self, record: GateStatus) -> None:
        self._gates[record.address] = record
        self._note_answer(record)

    def _sentinel_status(self, record: SentinelStatus) -> None:
        self._sentinels[record.address] = record
        self._note_answer(record)

    def _note_answer(self, record: GateStatus | SentinelStatus) -> None:
        """Remember the latest probe answered: threads that ask at the same time overtake each other."""
        self._answered[record.address] = max(record.probe, self._answered.get(record.address, 0))

    def _gate_left(self, record: GateLeft) -> None:
        self._left[record.address] = record

    def _sentinel_ended(self, record: SentinelEnded) -> None:
        self._sentinels.pop(record.address, None)
        self._answered.pop(record.address, None)
        attachment = self._by_address.pop(record.address, None)
        if attachment is None:
            return
        attachment.batches = record.batches
        attachment.result = record.result
        attachment.ended = True

    def _actor_failed(self, record: ActorFailed) -> None:
        """Decide what a failure means: a sentinel (or its reader) fails alone, a gate ends the session."""
        attachment = self._by_address.get(record.address.replace("reader/", "sentinel/", 1))
        doing = record.doing
        if attachment is not None:
            if attachment.error is not None:  # its last words failed too: there will be no others
                self._bury(attachment)
                return
            _, of_batch, batch = doing.removesuffix(f" of {attachment.address}").partition(" of batch ")
            what = f"batch {batch}" if of_batch else doing
            why = f"sentinel {attachment.name!r} failed on {what}: {explain(record.error)}"
            attachment.error = SentinelFailedError(why)
            attachment.error.__cause__ = record.error
            if record.address != attachment.address:
                self._send(attachment.address, Close())
            for gate in attachment.row:
                self._send(gate, Forget(attachment.address))
        elif record.address not in self._row:
            self._other_failed(record.address, f"failed on {doing}: {explain(record.error)}", record.error)
        elif self._error is None:
            self._error = GateFailedError(f"{record.address} failed on {doing}: {explain(record.error)}")
            self._error.__cause__ = record.error
            self._close_actors()

    def _actor_lost(self, record: ActorLost) -> None:
        """As a failure, but whoever is lost says nothing more."""
        attachment = self._by_address.get(record.address.replace("reader/", "sentinel/", 1))
        if attachment is not None:
            attachment.error = SentinelFailedError(f"{record.address} is lost: {record.why}")
            if record.address != attachment.address:
                self._send(attachment.address, Close())
                return
            self._bury(attachment)
            self._send(record.address.replace("sentinel/", "reader/", 1), Close())
            for gate in attachment.row:
                self._send(gate, Forget(record.address))
        elif record.address not in self._row:
            self._other_failed(record.address, f"is lost: {record.why}", None)
        else:
            self._lost.add(record.address)
            if self._error is None:
                self._error = GateFailedError(f"{record.address} is lost: {record.why}")
                self._close_actors()

    def _other_failed(self, address: str, why: str, error: BaseException | None) -> None:
        """An actor is gone that no cut needs; a session whose recipe has such actors says what that means."""

    def _bury(self, attachment: Attachment) -> None:
        """A sentinel will not report its end."""
        self._by_address.pop(attachment.address, None)
        attachment.ended = True

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        EpochDone: _epoch_done,
        RoundDone: _round_done,
        BatchRefused: _batch_refused,
        BestKept: _best_kept,
        GateStatus: _gate_status,
        ShardStatus: _gate_status,
        SentinelStatus: _sentinel_status,
        GateLeft: _gate_left,
        SentinelEnded: _sentinel_ended,
        ActorFailed: _actor_failed,
        ActorLost: _actor_lost,
    }


def _free_name(role: str, taken: set[str]) -> str:
    return (
        role
        if role not in taken
        else next(n for i in itertools.count(2) if (n := f"{role}-{i}") not in taken)
    )


def actors_of(
    sentinel: Training | Evaluation, address: str, name: str, row: tuple[str, ...], seed: int
) -> dict[str, Callable[[], Actor]]:
    """How to make the actors of a sentinel, by address: its reader and itself.

    Raises:
        DataError: there is nothing it could read.
    """
    reader = address.replace("sentinel/", "reader/", 1)
    actor: Callable[..., Actor] = Trainer if isinstance(sentinel, Training) else Evaluator
    return {
        reader: _reader_of(sentinel, reader, address, name, seed),
        address: partial(
            actor, address, name, row, reader, replace(sentinel, batches=())
        ),  # data is read once
    }


def _reader_of(
    sentinel: Training | Evaluation, address: str, reads_for: str, name: str, seed: int
) -> Callable[[], Reader]:
    """How to make the reader of a sentinel; the source is looked at here, where errors reach the user."""
    labelled = sentinel.loss is not None
    try:
        source = as_batches(sentinel.batches, sentinel.batch_size, seed) if labelled else _inputs(sentinel)
    except DataError as error:
        raise DataError(f"sentinel {name!r} has nothing to read: {error}") from error
    open_epoch = source.epoch if hasattr(source, "epoch") else lambda _: source
    times = sentinel.epochs if isinstance(sentinel, Training) else sentinel.rounds
    return partial(
        Reader,
        address,
        reads_for,
        open_epoch,
        times,
        labelled=labelled,
        may_block=not is_indexable(source),
    )


def _inputs(sentinel: Sentinel) -> Any:
    """The batches of a predicting sentinel: slices of tensors, or an iterable as it is."""
    inputs, size = sentinel.batches, sentinel.batch_size
    if not isinstance(inputs, Tensor | tuple | dict) or not len(inputs):
        return [inputs] if isinstance(inputs, Tensor) else inputs
    lengths = {len(tensor) for tensor in tensors(inputs)}
    if len(lengths) > 1:
        raise DataError(f"its inputs differ in length: {', '.join(map(str, sorted(lengths)))}")
    cuts = [slice(i, i + size) for i in range(0, max(1, *lengths), size)]
    return [map_tensors(itemgetter(cut), inputs) for cut in cuts]
