"""A stage: a module with versions of its weights, which cuts can pin and evaluate on.

What gates and parameter shards have in common: both hold one position of the row, both answer cuts,
evaluations and questions. How the weights come to change is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Effect, Report, Send, Stop
from akkordeon.core.errors import RecipeError, explain
from akkordeon.core.messages import (
    Batch,
    Close,
    Cut,
    CutId,
    Due,
    Evaluate,
    Export,
    Exported,
    Fault,
    Forget,
    Probe,
    Release,
    Watch,
)
from akkordeon.core.numerics.autocast import Autocast, autocast_here, autocast_of
from akkordeon.core.numerics.forms import Forms, signature
from akkordeon.core.numerics.later import to_device
from akkordeon.core.payload import Payload, map_tensors
from akkordeon.core.plain_state import Applied, LearnerState, StageState
from akkordeon.core.recovery.messages import ForgetBefore, Save
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import GateLeft, GateStatus
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.core.well_formed import malformed
from akkordeon.pipeline.forward.output import OutputError, output_of
from akkordeon.pipeline.input_guard import InputGuard
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.module_state import BufferState, Statistics, as_tensors, evaluating, write
from akkordeon.pipeline.nn import Marks, Seeded
from akkordeon.pipeline.recovery.rhythm import Rhythm
from akkordeon.pipeline.refusals.actor import RefusingActor, keep
from akkordeon.pipeline.weights import Snapshot, Weights

__all__ = ["Position", "Stage", "Stashed"]

PINS_MAX, PINS_OF_ONE_MAX, WATCHERS_MAX = 1024, 16, 4096
"""Cuts that a stage keeps weights for at once, those of one who asked, and whom it tells of its updates."""


@dataclass(frozen=True)
class Position:
    """Where a gate stands: what its actor needs to know of the row around it, and of who staged it."""

    address: str
    index: int
    previous: str | None = None
    next: str | None = None
    seed: int = 0
    max_staleness: int | None = None
    max_in_flight: int = 256
    max_payload_bytes: int = 2**32
    snapshot_every: int | float | None = None
    autocast: Autocast = field(default_factory=autocast_here)
    clip_norm: float | None = None
    schedule: Schedule = ASYNC

    def within(self, row: tuple[str, ...]) -> Position:
        """The place of the same gate in another row."""
        i = row.index(self.address)
        previous, following = row[i - 1] if i else None, row[i + 1] if i + 1 < len(row) else None
        return replace(self, index=i, previous=previous, next=following)


@dataclass(slots=True)
class Stashed:
    """What a gate keeps of a batch in flight.

    ``samples``, ``norm``: as its forward said. ``marks``: the calls of its random modules. ``arrivals``:
    weights that had come to a replica by then.
    ``spent``: a gradient has gone through its graph, which there is only once.
    """

    x: Payload
    y: Payload
    weights: Snapshot
    version: int
    samples: int = 0
    norm: float = 0.0
    arrivals: int = 0
    marks: tuple[Marks, ...] = ()
    spent: bool = False


def _ready(module: nn.Module) -> nn.Module:
    """A module in training mode, but for those of its parts that were put into evaluation mode.

    As a whole in evaluation mode are models that were just loaded, which are to be trained, and frozen
    ones: these have nothing to train, and stay.
    """
    if not module.training and any(parameter.requires_grad for parameter in module.parameters()):
        module.train()
    return module


def _move(module: nn.Module, device: torch.device, label: str) -> None:
    """Move a module to a device.

    Raises:
        RecipeError: it cannot be there, as where this machine has no such device.
    """
    try:
        module.to(device)
    except Exception as error:  # PyTorch raises many kinds here, AssertionError too
        raise RecipeError(
            f"the module of {label} cannot be moved to its device '{device}': {explain(error)}"
        ) from error


@dataclass(slots=True)
class _Pin:
    """What a gate keeps for a cut."""

    weights: Snapshot
    buffers: BufferState
    learner: LearnerState | Exception | None


class Stage(RefusingActor):
    """One position of a row. The module is copied: a recipe can be run many times.

    Args:
        module: what it computes with.
        position: its place in the row.
        name: for reports; the address if None.
        device: where the module and its work live; None leaves it where it is.
        keep: give every version of the weights memory of its own; see :class:`Weights`.
        restored: what it goes on from, with the module's weights where there are none in it; None begins.
        autocast: what the module runs under; that of whoever staged the network if None.
    """

    def __init__(
        self,
        module: nn.Module,
        position: Position,
        name: str | None = None,
        device: str | torch.device | None = None,
        keep: bool = True,
        restored: StageState | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(position.address, position.max_in_flight, position.max_payload_bytes)
        self.shares_fairly = True  # the batches that wait may do so at any gate
        self.position = position
        self.label = name or position.address
        self.module = _ready(copied(module))
        if restored is not None and restored.tensors:
            write(restored.tensors, self.module)
        self.device = None if device is None else torch.device(device)
        if self.device is not None:
            _move(self.module, self.device, self.label)
            self.device = torch.empty(0, device=self.device).device  # with its number
        around = position.autocast if autocast is None else autocast_of(self.module, autocast)
        self._called: Callable[[Payload], Any] = around.around(self.module) if around else self.module
        self._seeded = [m for m in self.module.modules() if isinstance(m, Seeded)]
        self.weights = Weights(self.module, keep)
        self.buffers = Statistics(self.module)
        self.version = 0 if restored is None else restored.version
        self.stash: dict[Batch, Stashed] = {}
        self.pins: dict[CutId, _Pin] = {}
        self.staleness_seen: Counter[int] = Counter()
        self._input_guard = InputGuard(needs_gradient=position.previous is not None)
        self._evaluation_guard = InputGuard(needs_gradient=False)  # a module may work in place there alone
        self._accepted = Forms()  # of payloads that the module has worked on
        every = position.snapshot_every
        self._rhythm = None if every is None else Rhythm(every, self.version)
        self._now_s = 0.0
        self._watchers: dict[str, int] = {}
        self._handlers: dict[type, Callable[[Any], Iterator[Effect]]] = {
            Forget: self._forget,
            ForgetBefore: self._forget_before,
            Save: self._save,
            Cut: self._cut,
            Evaluate: self._evaluate,
            Export: self._export,
            Release: self._release,
            Watch: self._watch,
            Probe: self._probe,
            Close: self._close,
        }

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Handle one message; see the table of handlers."""
        self._now_s = now_s
        handler = self._handlers.get(type(message))
        if handler is None:
            return self._refuse_message(message, f"{self.label} takes no {type(message).__name__}")
        wrong = malformed(message)
        return handler(message) if wrong is None else self._refuse_message(message, wrong)

    def _here(self, payload: Payload) -> Payload:
        if self.device is None:
            return payload
        return map_tensors(partial(to_device, device=self.device), payload)

    # ── refusing and forgetting ──────────────────────────────────────────────────────────────────────

    def _cannot(self, do: str, payload: Payload, error: Exception) -> str:
        """Why the module cannot do something with a payload, and what it has worked on before."""
        if isinstance(error, OutputError):
            return f"the output of its module for {signature(payload)} cannot travel: {error}"
        known = str(self._accepted)
        accepts = f"; it has worked on {known}" if known else ""
        return f"its module cannot {do} {signature(payload)} ({explain(error)}){accepts}"

    def _fault_of(self, payload: Payload) -> Fault:
        """What it is called that the module raised on this."""
        return Fault.RAISED if payload in self._accepted else Fault.FORM

    def _forget(self, message: Forget) -> Iterator[Effect]:
        if message.number is not None:
            if self.stash.pop(Batch(message.sender, message.number), None) is None:
                self._keep_forgotten(message.sender, message.number)
            return
        self._keep_forgotten(message.sender, None)
        for batch in [batch for batch in self.stash if batch.sentinel == message.sender]:
            del self.stash[batch]
        for cut in [cut for cut in self.pins if cut.asker == message.sender]:
            del self.pins[cut]
        self._watchers.pop(message.sender, None)
        yield from ()

    def _forget_before(self, message: ForgetBefore) -> Iterator[Effect]:
        sender, number = message.sender, message.number
        keep(self._forgotten_before, sender, number)
        for batch in [batch for batch in self.stash if batch.sentinel == sender and batch.number < number]:
            del self.stash[batch]
        for cut in [cut for cut in self.pins if cut.asker == sender and cut.number < number]:
            del self.pins[cut]
        yield from ()

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────

    def _cut(self, message: Cut) -> Iterator[Effect]:
        cut = message.cut
        of_one = sum(each.asker == cut.asker for each in self.pins)
        if len(self.pins) >= PINS_MAX or of_one >= PINS_OF_ONE_MAX:
            pinned = f"{len(self.pins)} cuts are pinned, {of_one} of them for {cut.asker}"
            reason = f"{pinned}; a gate keeps {PINS_MAX}, and {PINS_OF_ONE_MAX} for one"
            yield from self._refuse_message(message, reason, Fault.TOO_MANY)
            return
        given_up = cut.number < self._forgotten_before.get(cut.asker, 0)
        if not given_up and (cut.asker, None) not in self._forgotten:
            learner = self._learner_to_pin() if message.whole else None
            self.pins[cut] = _Pin(self.weights.pin(message.averaged), self.buffers.now, learner)
        versions = (*message.versions, self.version)
        applied = message.applied
        if message.whole and self.position.next is None:
            applied = self._applied()
        passed = replace(message, versions=versions, applied=applied)
        yield Send(self.position.previous or cut.asker, passed)

    def _learner_to_pin(self) -> LearnerState | Exception | None:
        """What it learns with, or why that cannot be had, which is for whoever asked."""
        try:
            return self._learner_state()
        except Exception as error:  # the state_dict of a user's optimizer may raise anything
            return error

    def _learner_state(self) -> LearnerState | None:
        """What it learns with, in memory of its own."""
        return None

    def _applied(self) -> Mapping[str, Applied] | None:
        """Of each sentinel's batches, which it has learned from; None where nobody knows, as of a shard."""
        return None

    def _evaluate(self, message: Evaluate) -> Iterator[Effect]:
        pin = self.pins.get(message.cut)
        if pin is None:  # released while this was on its way
            return
        if self._is_too_large(message.payload):
            yield self._refuse_too_large(message.batch)
            return
        try:
            y = self._run_pinned(pin, message.batch, message.payload)
        except Exception as error:
            reason = self._cannot("evaluate", message.payload, error)
            yield self._refuse(message.batch, self._fault_of(message.payload), reason, error)
            return
        to = self.position.next or message.batch.sentinel
        yield Send(to, Evaluate(message.batch, y, message.cut))

    def _run_pinned(self, pin: _Pin, batch: Batch, payload: Payload) -> Payload:
        training = self.buffers.now
        self.buffers.install_copies(pin.buffers)  # it may write to them
        for module, key in self._keys(batch):
            module.reseed(key)
        try:
            with torch.no_grad(), self.weights.evaluated_on(pin.weights), evaluating(self.module):
                _, given = self._evaluation_guard.prepare(self._here(payload))
                y = self._called(given)
                self._evaluation_guard.verify()
                return output_of(y, Tensor.detach)
        finally:
            self.buffers.install(training)

    def _keys(self, batch: Batch) -> Iterator[tuple[Seeded, tuple[object, ...]]]:
        """What the randomness of each module begins from for a batch."""
        for i, module in enumerate(self._seeded):
            yield module, (self.position.seed, self.address, *batch, i)

    def _export(self, message: Export) -> Iterator[Effect]:
        pin = self.pins.get(message.cut)
        if pin is not None:
            whole = pin.learner is not None  # then nobody will write to it, and no version ever is
            state = self._state(pin.weights, pin.buffers, copied=not whole)
            yield Send(message.cut.asker, Exported(message.cut, self.address, state, pin.learner))

    def _release(self, message: Release) -> Iterator[Effect]:
        self.pins.pop(message.cut, None)
        yield from ()

    def _state(self, weights: Snapshot, buffers: BufferState, *, copied: bool = True) -> dict[str, Tensor]:
        state = as_tensors(self._named(weights), buffers)
        return {
            name: tensor.detach().clone() if copied else tensor.detach() for name, tensor in state.items()
        }

    def _named(self, weights: Snapshot) -> Iterator[tuple[str, Tensor]]:
        """The weights that are handed out of these, by name in the module."""
        yield from zip(self.weights.names, weights, strict=True)

    # ── snapshots ────────────────────────────────────────────────────────────────────────────────────

    def _save_if_due(self) -> Iterator[Effect]:
        """After an update: leave a snapshot with whoever would have this stage made anew."""
        if self._rhythm is not None and self._rhythm.is_due(self.version, self._now_s):
            yield from self._save(Save())

    def _save(self, message: Save) -> Iterator[Effect]:
        """Leave a snapshot, if ever one is left."""
        if self._rhythm is not None:
            tensors = self._state(self.weights.pin(), self.buffers.now, copied=False)
            state = StageState(self.version, tensors, self._learner_state(), self._applied() or {})
            yield Report(StageSaved(self.address, state))

    # ── control ──────────────────────────────────────────────────────────────────────────────────────

    def _tell_watchers(self) -> Iterator[Effect]:
        for watcher, every in self._watchers.items():
            if self.version % every == 0:
                yield Send(watcher, Due())

    def _watch(self, message: Watch) -> Iterator[Effect]:
        if message.every_updates and len(self._watchers) >= WATCHERS_MAX:
            reason = f"{WATCHERS_MAX} watch its updates, the most that a gate tells"
            yield from self._refuse_message(message, reason, Fault.TOO_MANY)
        elif message.every_updates:
            self._watchers[message.watcher] = message.every_updates
        else:
            self._watchers.pop(message.watcher, None)
        yield from ()

    def _probe(self, message: Probe) -> Iterator[Effect]:
        yield Report(
            GateStatus(
                probe=message.number,
                address=self.address,
                name=self.label,
                index=self.position.index,
                version=self.version,
                stashed=len(self.stash),
                pinned=len(self.pins),
                staleness=dict(self.staleness_seen),
                refused={fault.name.lower(): count for fault, count in self.refusals.items()},
            )
        )

    def _close(self, message: Close) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """The weights as they are, and what there was to tell."""
        yield from self._probe(Probe(0))
        buffers, averaged = self.buffers.now, None
        state = self._state(self.weights.now, buffers)
        if self.weights.average is not None:
            averaged = self._state(self.weights.pin(averaged=True), buffers)
        yield Report(GateLeft(self.address, self.position.index, self.version, state, averaged))
