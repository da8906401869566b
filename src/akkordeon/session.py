"""A staged, running network, and the user's handle on it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from akkordeon.data import as_batches, is_indexable
from akkordeon.engines.base import Engine, Load
from akkordeon.errors import (
    ActorFailedError,
    GateFailedError,
    NameTakenError,
    NoSuchSentinelError,
    RecipeError,
    SentinelFailedError,
    SessionClosedError,
    WaitTimeoutError,
)
from akkordeon.evaluator import Evaluator
from akkordeon.messages import Attach, Close, Detach, Due, Forget, Probe
from akkordeon.metrics import (
    ActorFailed,
    BatchCount,
    BatchRefused,
    BestKept,
    EpochDone,
    GateLeft,
    GateStatus,
    RoundDone,
    SentinelEnded,
    SentinelStatus,
)
from akkordeon.network import Network
from akkordeon.reader import Reader
from akkordeon.sentinel import Evaluation, Sentinel, Training
from akkordeon.trainer import Trainer

__all__ = ["Attachment", "Session", "Status", "run"]

PROBE_S = 2.0
"""How long ``status`` waits for actors that are in the middle of something."""

CLOSE_S = 10.0
"""How long ``close`` waits for the gates to leave their weights."""


def run(network: Network, engine: Engine | str = "threads", *, seed: int = 0) -> Session:
    """Stage a network and start it.

    Args:
        network: the recipe; its modules are copied.
        engine: ``"threads"``, or an engine such as ``Threads(workers=1)``.
        seed: of everything random that belongs to the run: masks, torch's generator while it lasts.

    Returns:
        The session, to be used in a ``with`` block or closed by hand.

    Raises:
        RecipeError: an unknown engine, or an optimizer over foreign parameters.
    """
    return Session(network, engine_named(engine) if isinstance(engine, str) else engine, seed)


def engine_named(name: str) -> Engine:
    """The engine of that name with its defaults."""
    if name == "threads":
        from akkordeon.engines.threads import Threads

        return Threads()
    raise RecipeError(f"there is no engine {name!r}; there is 'threads'")


@dataclass(frozen=True)
class Status:
    """What ``session.status()`` found. ``loads`` has queue lengths and busy times by address."""

    gates: list[GateStatus]
    sentinels: list[SentinelStatus]
    loads: dict[str, Load]
    now_s: float


@dataclass
class Attachment:
    """A sentinel that was attached: what it reported so far, and how to wait for it.

    Attributes:
        name: as in reports.
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
    """

    def __init__(self, network: Network, engine: Engine, seed: int = 0) -> None:
        self.network = network
        self.attachments: list[Attachment] = []
        self.seed = seed
        self._engine = engine
        self._row = network.row()
        self._lock = threading.Lock()  # guards names; never held while the engine is called
        self._incarnations: dict[str, int] = {}
        self._by_address: dict[str, Attachment] = {}
        self._watchers: list[Callable[[Any], None]] = []
        self._probes = itertools.count(1)
        self._gates: dict[str, GateStatus] = {}
        self._sentinels: dict[str, SentinelStatus] = {}
        self._left: dict[str, GateLeft] = {}
        self._best: BestKept | None = None
        self._epochs_done = 0
        self._error: GateFailedError | None = None
        self._closed = False
        engine.start(self._on_report, seed)
        try:
            for spawn in network.spawns(seed):
                engine.spawn(spawn.address, spawn.make, spawn.resources)
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
        self._check_open()
        if (sentinel.in_flight or 1) > self.network.max_in_flight:
            raise RecipeError(
                f"in_flight is {sentinel.in_flight}, but the network allows {self.network.max_in_flight}; "
                "raise Network(max_in_flight=…)"
            )
        attachment = self._register(sentinel)
        reader = attachment.address.replace("sentinel/", "reader/", 1)
        try:
            self._engine.spawn(reader, _reader_of(sentinel, reader, attachment.address))
            actor: Callable[..., Any] = Trainer if isinstance(sentinel, Training) else Evaluator
            make = partial(actor, attachment.address, attachment.name, self._row, reader, sentinel)
            self._engine.spawn(attachment.address, make)
        except BaseException:
            attachment.ended = True
            raise
        self._engine.send(attachment.address, Attach())
        return attachment

    def _register(self, sentinel: Sentinel) -> Attachment:
        with self._lock:
            names = {a.name for a in self.attachments if not a.ended}
            name = sentinel.name or _free_name(sentinel.role, names)
            if name in names:
                raise NameTakenError(f"a sentinel {name!r} is at work already; give this one another name")
            number = self._incarnations[name] = self._incarnations.get(name, 0) + 1
            attachment = Attachment(name, sentinel.role, f"sentinel/{name}#{number}", sentinel, self)
            self.attachments.append(attachment)
            self._by_address[attachment.address] = attachment
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
            self._engine.send(found[-1].address, Detach(drop))

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

        working = [a for a in self.attachments if a.role != "validate"]
        self._wait(lambda: all(a.ended for a in working), left(), "the sentinels have not ended")
        validators = [a for a in self.attachments if a.role == "validate"]
        for validator in validators:
            if not validator.ended:
                self._engine.send(validator.address, Due(last=True))
        self._wait(lambda: all(a.ended for a in validators), left(), "the last validation has not ended")
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
        """Weights and buffers of one consistent cut, by gate address and name in the gate's module."""
        if self._closed or self._error is not None:
            self._engine.wait_until(lambda: len(self._left) == len(self._row), CLOSE_S)
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
            self.attachments.remove(attachment)
            if not attachment.ended:
                self._engine.send(attachment.address, Detach(drop=True))

    # ── looking on ───────────────────────────────────────────────────────────────────────────────────

    def subscribe(self, watcher: Callable[[Any], None]) -> None:
        """Have every record handed to ``watcher``, which must be quick; one at a time, by any thread."""
        self._watchers.append(watcher)

    def status(self, timeout: float = PROBE_S) -> Status:
        """How every gate and sentinel is; those too busy to answer in time as they last were."""
        number = next(self._probes)
        sentinels = [a for a in list(self.attachments) if not a.ended]
        for address in (*self._row, *(a.address for a in sentinels)):
            self._engine.send(address, Probe(number))
        gates_asked = () if self._closed or self._error else self._row

        def all_answered() -> bool:
            return all(
                address in self._gates and self._gates[address].probe == number for address in gates_asked
            ) and all(
                a.ended or (a.address in self._sentinels and self._sentinels[a.address].probe == number)
                for a in sentinels
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
        if self._closed:
            return
        self._closed = True
        self._close_actors()
        self._engine.wait_until(
            lambda: len(self._left) == len(self._row) and all(a.ended for a in self.attachments), CLOSE_S
        )
        self._engine.stop()

    def _close_actors(self) -> None:
        for attachment in list(self.attachments):
            if not attachment.ended:
                self._engine.send(attachment.address, Close())
        for address in self._row:
            if address not in self._left:
                self._engine.send(address, Close())

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise SessionClosedError("the session has ended; start another with akkordeon.run")

    def _wait(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        came = self._engine.wait_until(
            lambda: condition() or self._error is not None or self._closed, timeout
        )
        if self._error is not None:
            raise self._error
        if not came:
            raise WaitTimeoutError(f"{what} after {timeout:g} s")
        if not condition():
            raise SessionClosedError(f"{what}, and the session has ended")

    # ── what the actors report ───────────────────────────────────────────────────────────────────────

    def _on_report(self, record: Any) -> None:
        handler = self._HANDLERS.get(type(record))
        if handler is not None:
            handler(self, record)
        for watcher in self._watchers:
            watcher(record)

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
                self._engine.send(a.address, Due())

    def _round_done(self, record: RoundDone) -> None:
        attachment = self._named(record.sentinel)
        if attachment is not None:
            attachment.rounds.append(record)
        if record.stop_training:
            for a in list(self.attachments):
                if a.role == "train" and not a.ended:
                    self._engine.send(a.address, Detach())

    def _batch_refused(self, record: BatchRefused) -> None:
        attachment = self._named(record.sentinel)
        if attachment is not None and len(attachment.refusals) < 1000:
            attachment.refusals.append(record)

    def _best_kept(self, record: BestKept) -> None:
        self._best = record

    def _gate_status(self, record: GateStatus) -> None:
        self._gates[record.address] = record

    def _sentinel_status(self, record: SentinelStatus) -> None:
        self._sentinels[record.address] = record

    def _gate_left(self, record: GateLeft) -> None:
        self._left[record.address] = record

    def _sentinel_ended(self, record: SentinelEnded) -> None:
        attachment = self._by_address.pop(record.address)
        attachment.batches = record.batches
        attachment.result = record.result
        attachment.ended = True

    def _actor_failed(self, record: ActorFailed) -> None:
        """Decide what a failure means: a sentinel fails alone, a gate ends the session."""
        attachment = self._by_address.get(record.address)
        why = f"{type(record.error).__name__}: {record.error}"
        if attachment is not None:
            attachment.error = SentinelFailedError(f"{attachment.name!r} failed on {record.doing}: {why}")
            attachment.error.__cause__ = record.error
            for gate in self._row:
                self._engine.send(gate, Forget(record.address))
        elif self._error is None:
            self._error = GateFailedError(f"{record.address} failed on {record.doing}: {why}")
            self._error.__cause__ = record.error
            self._close_actors()

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        EpochDone: _epoch_done,
        RoundDone: _round_done,
        BatchRefused: _batch_refused,
        BestKept: _best_kept,
        GateStatus: _gate_status,
        SentinelStatus: _sentinel_status,
        GateLeft: _gate_left,
        SentinelEnded: _sentinel_ended,
        ActorFailed: _actor_failed,
    }


def _free_name(role: str, taken: set[str]) -> str:
    return (
        role
        if role not in taken
        else next(n for i in itertools.count(2) if (n := f"{role}-{i}") not in taken)
    )


def _reader_of(sentinel: Training | Evaluation, address: str, reads_for: str) -> Callable[[], Reader]:
    """How to make the reader of a sentinel; the source is looked at here, where errors reach the user."""
    labelled = sentinel.loss is not None
    if isinstance(sentinel, Evaluation) and not labelled:
        source = _inputs(sentinel)
    else:
        source = as_batches(sentinel.batches, sentinel.batch_size)
    open_epoch = source.epoch if hasattr(source, "epoch") else lambda _: source
    times = sentinel.epochs if isinstance(sentinel, Training) else sentinel.rounds
    return partial(
        Reader, address, reads_for, open_epoch, times, labelled=labelled, may_block=not is_indexable(source)
    )


def _inputs(sentinel: Evaluation) -> Any:
    """The batches of a predicting sentinel: slices of tensors, or an iterable as it is."""
    inputs, size = sentinel.batches, sentinel.batch_size
    if isinstance(inputs, Tensor):
        return [inputs[i : i + size] for i in range(0, max(1, len(inputs)), size)]
    if isinstance(inputs, dict):
        return [
            {name: part[i : i + size] for name, part in inputs.items()}
            for i in range(0, len(next(iter(inputs.values()))), size)
        ]
    return inputs
