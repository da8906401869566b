"""A staged, running network, and the user's handle on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from akkordeon.core.checks import require_timeout
from akkordeon.core.errors import GateFailedError, SessionClosedError, WaitTimeoutError, again
from akkordeon.core.messages import Close
from akkordeon.core.reports import BestKept, CheckpointTaken
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.base import Engine
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.sentinels.roles import EXPORT, KEEP
from akkordeon.session.attachment import Attachment
from akkordeon.session.launcher import Launcher, say_what_is_cut_short
from akkordeon.session.notebook.session_html import session_html
from akkordeon.session.outbox import Outbox
from akkordeon.session.page.watch import watch_session
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
from akkordeon.session.registry import Registry
from akkordeon.session.serving.serve import serve_session
from akkordeon.session.status import PROBE_S, Probes, Status
from akkordeon.session.subscription import Subscription, Watchers
from akkordeon.session.supervisor import Supervisor
from akkordeon.session.surgery.live_gate import LiveGate
from akkordeon.session.surgery.operations import Operations
from akkordeon.session.surgery.pauses import Pauses
from akkordeon.session.topology import RowTopology, topology_of

__all__ = ["Session"]

CLOSE_S = 10.0
"""How long ``close`` waits for the gates to leave their weights."""


class Session:
    """A running network. Every method may be called from any thread.

    Args:
        network: the recipe.
        engine: not started yet.
        seed: see :func:`akkordeon.run`.
        recorder: hears of everything.
        topology: where it is not the recipe's own.
        registry: where names are not the session's own.
        resume: what it goes on from.
    """

    def __init__(
        self,
        network: Network | Downpour,
        engine: Engine,
        seed: int = 0,
        recorder: Recorder | None = None,
        *,
        topology: RowTopology | None = None,
        registry: Registry | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        self.seed, self._engine = seed, engine
        self._topology = topology or topology_of(network)
        self._lock = threading.Lock()  # never held while the engine is called
        self._watchers, self._closed = Watchers(), False
        self._closed_by: int | None = None  # a thread's identity
        self._has_ended = threading.Event()
        self._at_close: list[Callable[[], None]] = []
        self._recorder = recorder
        self._registry = registry or Registry(network.max_in_flight)
        self._outbox = Outbox(engine, self._registry, recorder)
        self._send = self._outbox.send
        self._supervisor = Supervisor(
            self._topology, self._registry, engine, self._send, self._watchers.tell, network.recovery, resume
        )
        pauses = Pauses(self._topology, self._registry, self._outbox)
        self._launcher = Launcher(engine, self._topology, self._registry, pauses, recorder, seed, resume)
        self._probes = Probes(engine, self._outbox, self._supervisor, self._topology)
        here = engine, self._topology, pauses, self._outbox, self._supervisor.recovery, recorder
        self._operations = Operations(*here, seed, wait=self._wait, tell=self._watchers.tell)
        self._launcher.stage(self._on_report, self._supervisor.recovery)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None and not self._closed:
            say_what_is_cut_short(self._registry.at_work())
        self.close()
        if self._closed_by != threading.get_ident():  # as in a loss, whose sentinel ends when that returns
            self._has_ended.wait()
            self._engine.wait_until(self._all_ended, CLOSE_S)

    def __repr__(self) -> str:
        how = f"{len(self._registry.at_work())} sentinels at work"
        if self._closed or self._error is not None:
            how = "ended" if self._closed else "failed"
        return f"<{type(self).__name__} of {len(self.network.gates)} gates: {how}>"

    @property
    def network(self) -> Network | Downpour:
        """The recipe of what runs, as it has become."""
        return self._topology.network

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
        self._check_open()
        placed = self._launcher.launch(sentinels, self)
        self._check_open(placed)
        return placed

    def _restart(self, attachment: Attachment) -> None:
        self._check_open()
        self._launcher.restart(attachment)
        self._check_open([attachment])

    def detach(self, name: str, drop: bool = False) -> None:
        """Have a sentinel send nothing new and end; returns at once.

        Args:
            name: of the sentinel; one that has ended is left alone.
            drop: forget its batches in flight, which then count as lost, instead of waiting for them.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
        """
        self._registry.get(name).detach(drop)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all training, testing and predicting has ended; then validators make a last round.

        Args:
            timeout: seconds for all of it; None waits as long as it takes.

        Raises:
            ActorFailedError: a failure that nobody was told of yet, after the other sentinels have ended.
            WaitTimeoutError: not everything has ended by then; it goes on.
        """
        require_timeout(timeout)
        deadline_s = None if timeout is None else self._engine.now_s() + timeout

        def left() -> float | None:
            return None if deadline_s is None else max(0.0, deadline_s - self._engine.now_s())

        def all_ended() -> bool:
            return all(a.ended for a in self.attachments if not a.role.repeats)

        self._wait(all_ended, left(), "the sentinels have not ended", timeout)
        validators = [a for a in self.attachments if a.role.repeats]
        for validator in [a for a in validators if not a.ended]:
            validator._make_last_round()
        what = "the last validation has not ended"
        self._wait(lambda: all(a.ended for a in validators), left(), what, timeout)
        for attachment in [a for a in self.attachments if not a._error_is_known]:
            attachment._raise_error()

    def gate(self, name: str) -> LiveGate:
        """A gate, by its address or its name, to be changed while it is at work.

        Raises:
            RecipeError: there is none, or it is a replica's.
        """
        return self._operations.gate(name)

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
        require_timeout(timeout)
        return self._result(Sentinel.predict(inputs, batch_size=batch_size), timeout)

    def module(self, timeout: float | None = None, *, ema: bool = False) -> nn.Module:
        """A plain copy of the network with the weights, or their average, of one cut; see :meth:`states`."""
        return self._topology.module(self.states(timeout, ema=ema))

    def states(
        self, timeout: float | None = None, *, partial: bool = False, ema: bool = False
    ) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of one consistent cut, by gate address and name in the gate's module.

        After the session has ended, or a gate has failed: those that every gate had last.

        Args:
            timeout: seconds; None waits as long as it takes, and for those of a session that has ended 10 s.
            partial: do without gates that are lost, or still at work though the session has ended.
            ema: with the average of the weights, of gates that keep one.

        Raises:
            GateFailedError: a gate is lost with its weights.
            RecipeError: no gate keeps an average.
            WaitTimeoutError: they did not come in time.
        """
        require_timeout(timeout)
        if self._closed or self._error is not None:
            patience_s = CLOSE_S if timeout is None else timeout
            self._engine.wait_until(lambda: not self._supervisor.missing(), patience_s)
            states = self._supervisor.states_left(patience_s, partial=partial, ema=ema)
        else:
            states = self._result(Evaluation(role=EXPORT, batches=(), loss=None, ema=ema), timeout).states
        return self._topology.by_gate(states)

    def best_states(self, name: str | None = None) -> dict[str, dict[str, Tensor]] | None:
        """The weights of a validator's best round, as :meth:`states` has them; None if it has kept none yet.

        Args:
            name: of the validator; needed where several keep their best.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
            SessionError: several keep their best, and none was named.
        """
        return self._states_of(self._registry.best(name))

    def best_module(self, name: str | None = None) -> nn.Module | None:
        """The network with the weights of the best round; see :meth:`best_states`."""
        states = self.best_states(name)
        return None if states is None else self._topology.module(states)

    def _states_of(self, kept: BestKept | None) -> dict[str, dict[str, Tensor]] | None:
        return None if kept is None else self._topology.by_gate(kept.states)

    def _result(self, recipe: Evaluation, timeout: float | None) -> Any:
        attachment = self.attach(recipe)
        try:
            return attachment.wait(timeout).result
        finally:
            self._registry.remove(attachment)
            attachment.detach(drop=True)

    def checkpoint(self, folder: str | Path | None = None, timeout: float | None = None) -> Checkpoint:
        """All to take the run up from, of one cut, kept in a folder beside the two before; see `resume`."""
        require_timeout(timeout)
        kept = self._checkpoint_of(self._result(Evaluation(role=KEEP, batches=(), loss=None), timeout))
        if folder is not None:
            CheckpointFolder.inside(Path(folder)).write(kept)
            self._outbox.send_all(kept.news())
        return kept

    def _checkpoint_of(self, taken: CheckpointTaken) -> Checkpoint:
        return self._launcher.checkpoint(taken, self._supervisor.epochs_done)

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
        return self._watchers.add(watcher, inline=inline)

    def status(self, timeout: float = PROBE_S) -> Status:
        """How every gate and sentinel is; those too busy to answer in time as they last were."""
        require_timeout(timeout)
        return self._probes.status(self.attachments, timeout, gates_answer=not (self._closed or self._error))

    def _ask(self, attachment: Attachment) -> None:
        if not self._closed:
            self._probes.ask(attachment)

    serve = serve_session
    watch = watch_session
    _repr_html_ = session_html

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
            self._supervisor.close_actors()
            self._engine.wait_until(lambda: self._all_ended() and not self._supervisor.missing(), CLOSE_S)
        finally:
            self._engine.stop()
            self._watchers.drain()
            self._watchers.end()
            if self._recorder is not None:
                self._recorder.close()
            self._has_ended.set()

    def _all_ended(self) -> bool:
        return all(a.ended for a in self.attachments)

    def _check_open(self, begun: Sequence[Attachment] = ()) -> None:
        if self._closed or self._error is not None:  # whoever has begun was too late to be closed with others
            self._outbox.send_all([(attachment.address, Close()) for attachment in begun])
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
        """Wait for a condition, or raise that ``what`` has not come.

        ``of``: the time the user allowed, where ``timeout`` is not all of it. ``drain``: have the watchers
        seen what led to it.
        """
        require_timeout(timeout)
        came = self._engine.wait_until(
            lambda: condition() or self._error is not None or self._closed, timeout
        )
        if came and drain:
            self._watchers.drain()
        if self._error is not None:
            raise again(self._error)
        if not came:
            raise WaitTimeoutError(f"{what} after {timeout if of is None else of:g} s")
        if not condition():
            raise SessionClosedError(f"{what}, and the session has ended")

    def _on_report(self, record: Any) -> None:
        self._supervisor.hear(record)
        self._operations.hear(record)
        self._watchers.tell(self._checkpoint_of(record) if isinstance(record, CheckpointTaken) else record)
