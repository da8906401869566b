"""A gate at work: a module, its optimizer and its staleness rule, on one message at a time.

Forward keeps what the backward will need (the *stash*) and passes the output on. Backward sends the
gradient of the input to the gate before and only then updates, so that both work at the same time.
What is refused leaves the gate as it was. It is refused before the first effect, but for an update
that would make the weights not finite: by then the gradient has gone on, and the optimizer has it in its
momentum, which may have later updates refused too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from akkordeon.core.actor import Effect, Report, Send
from akkordeon.core.errors import explain
from akkordeon.core.messages import Backward, Batch, Fault, Forget, Forward, Scored
from akkordeon.core.numerics.autograd import accumulated, gradients, with_gradients
from akkordeon.core.numerics.forms import same_form, signature
from akkordeon.core.numerics.generator import GeneratorObserver, GeneratorUse
from akkordeon.core.payload import (
    Payload,
    all_finite,
    gradient_like,
    itself,
    map_tensors,
    memory,
    needing_gradient,
    tensors,
)
from akkordeon.core.plain_state import Applied, LearnerState, StageState
from akkordeon.core.recovery.messages import ForgetBefore, Save, SentinelLost
from akkordeon.core.recovery.reports import Learned
from akkordeon.core.shard_messages import Settle, Settled
from akkordeon.core.streams.messages import TakeOver
from akkordeon.core.surgery.messages import Change, Inherit, Rewire
from akkordeon.core.surgery.reports import Changed, Rewired
from akkordeon.pipeline.forward.compiled import compile_forward
from akkordeon.pipeline.forward.first_graph import FirstGraph
from akkordeon.pipeline.forward.output import DETACHED, output_of
from akkordeon.pipeline.forward.recomputed import Recomputed
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.gradient_forms import differentiable, own, requires_grad, same_storage
from akkordeon.pipeline.learning.ledger import Ledger
from akkordeon.pipeline.module_state import BufferState
from akkordeon.pipeline.stage import Position, Stage, Stashed
from akkordeon.pipeline.surgery.change import changed
from akkordeon.pipeline.surgery.take_over import taken_over
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Snapshot

__all__ = ["GateActor"]


@dataclass(frozen=True, slots=True)
class _LastForward:
    """The buffers around the forward of a batch, which may have to be undone."""

    batch: Batch
    before: BufferState
    left: BufferState


class GateActor(Stage):
    """A gate at work. The recipe's module is copied: a recipe can be run many times.

    Args:
        gate: the recipe.
        position: its place in the row.
        restored: what it goes on from; None begins with the recipe's weights.
        anew: it takes the place of one that is gone, to which something may still be on its way.

    Raises:
        ForeignParameterError: the optimizer holds parameters that are not this gate's.
        RecipeError: what it is to go on from is of another gate.
    """

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        keeps_weights = gate.staleness.keeps_weights
        super().__init__(
            gate.module, position, gate.name, gate.lives_on, keeps_weights, restored, gate.autocast
        )
        by_samples = gate.schedule_by == "samples"
        self._updater = Updater(
            self.weights, gate.optimizer, gate.staleness, gate.clip_norm, self.label, gate.ema, by_samples
        )
        if restored is not None and restored.learner is not None:
            self._updater.load(restored.learner)
        compile_forward(self.module, gate.compile)
        if gate.recompute:
            self._called = Recomputed(self._called, self.weights, self.buffers, self._input_guard)
        self._first_graph = FirstGraph(gate.module, self.module, self.weights, self.buffers)
        self._last_shape: torch.Size | None = None
        self._derive = gradients
        self._are_finite: Callable[[Iterable[Tensor | None]], bool] = all_finite
        self._ends_a_row = position.next is None and position.previous is not None
        self._ledger = Ledger(restored.applied if restored else {}) if position.next is None else None
        self._anew = anew
        if self._rhythm is not None:
            self._learner_state()  # raises now rather than at the first snapshot
        self._generator = GeneratorObserver()
        self._last: _LastForward | None = None
        self.generator_use = self._generator.use
        self._handlers |= {
            Forward: self._forward,
            Backward: self._backward,
            Settle: self._settle,
            Scored: self._scored,
            SentinelLost: self._sentinel_lost,
            Change: self._change,
            Rewire: self._rewire,
            Inherit: self._inherit,
            TakeOver: self._take_over,
        }

    # ── training ─────────────────────────────────────────────────────────────────────────────────────

    def _forward(self, message: Forward) -> Iterator[Effect]:
        batch = message.batch
        if self._is_forgotten(batch):
            return
        if batch in self.stash or (self._ledger is not None and batch in self._ledger):
            yield self._refuse(batch, Fault.UNKNOWN, "a batch of this number is in flight, or over, already")
            return
        if len(self.stash) >= self.position.max_in_flight:
            yield self._refuse(
                batch, Fault.TOO_MANY, f"{len(self.stash)} batches are in flight here, the network's most"
            )
            return
        if self._is_too_large(message.payload):
            yield self._refuse_too_large(batch)
            return
        self._begin(batch)
        self.weights.begin_forward()
        try:
            x, y = self._run(batch, message.payload)
            output = map_tensors(Tensor.detach, y)
            is_finite = self._are_finite(tensors(output))
            is_detached = self._ends_a_row and not requires_grad(y)
            if is_finite and not is_detached:
                self.weights.end_forward()
        except Exception as error:
            self._undo_forward()
            reason = self._cannot("work on", message.payload, error)
            yield self._refuse(batch, self._fault_of(message.payload), reason, error)
            return
        if not is_finite:
            self._undo_forward()
            came_so = not all_finite(tensors(message.payload))
            why = "its input is not finite" if came_so else "its output is not finite, though its input is"
            yield self._refuse(batch, Fault.NOT_FINITE, why)
            return
        if is_detached:
            self._undo_forward()
            yield self._refuse(batch, Fault.FORM, DETACHED)
            return
        self.stash[batch] = stashed = self._stashed(message, x, y)
        if self._seeded:
            stashed.marks = tuple(module.marks() for module in self._seeded)
        if self.buffers.before:
            self._last = _LastForward(batch, self.buffers.before, self.buffers.now)
        passed = Forward(batch, output, message.samples, message.norm, message.after)
        yield Send(self.position.next or batch.sentinel, passed)

    def _stashed(self, message: Forward, x: Payload, y: Payload) -> Stashed:
        return Stashed(x, y, self.weights.now, self.version, message.samples, message.norm)

    def _undo_forward(self) -> None:
        self.buffers.roll_back()
        self.weights.undo_forward()

    def _begin(self, batch: Batch) -> None:
        """Give the batch its masks, and the module buffers that it may write to."""
        if self._seeded:
            for module, key in self._keys(batch):
                module.reseed(key)
        self.buffers.renew()

    def _run(self, batch: Batch, payload: Payload) -> tuple[Payload, Payload]:
        """The leaf inputs and the outputs, with the graph between them."""
        try:
            x, y = with_gradients(self._through, payload)
        except RuntimeError as error:
            if self._input_guard.copies or "a leaf Variable that requires grad" not in str(error):
                raise
            self._input_guard.copy_from_now_on()
            if self._generator.use is not GeneratorUse.NONE:  # what it has drawn cannot be drawn again
                raise
            self._undo_forward()
            self.weights.begin_forward()
            self._begin(batch)
            x, y = with_gradients(self._through, payload)
        if type(payload) is not Tensor or payload.shape != self._last_shape:
            if payload not in self._accepted:
                if self._first_graph.look(y):
                    self._derive = accumulated
                self._accepted.add(payload)
            self._last_shape = payload.shape if isinstance(payload, Tensor) else None
        return x, y

    def _through(self, payload: Payload) -> tuple[Payload, Payload]:
        x, given = self._input_guard.prepare(self._here(payload))
        y = self._generator.forward(self._called, given)
        self._input_guard.verify()
        return x, y if isinstance(y, Tensor) else output_of(y, itself)

    def _backward(self, message: Backward) -> Iterator[Effect]:
        batch, gradient = message.batch, message.payload
        stashed = self.stash.get(batch)
        if stashed is None or stashed.spent:
            if not self._is_forgotten(batch):
                yield self._refuse_unknown(batch)
            return
        if gradient is not None:
            gradient = self._here(gradient)
        if not same_form(gradient, stashed.y):
            got, expected = signature(gradient), signature(stashed.y)
            yield self._refuse(batch, Fault.FORM, f"its gradient is {got}, expected {expected}")
            return
        staleness = self.version - stashed.version
        limit = self.position.max_staleness
        if limit is not None and staleness > limit:
            yield self._refuse(batch, Fault.TOO_STALE, f"it is {staleness} updates old, at most {limit}")
            return
        stashed.spent = True
        try:
            to_previous, of_weights = self._derived(batch, stashed, gradient)
            is_finite = self._are_finite((*tensors(to_previous), *of_weights))
        except Exception as error:
            if same_storage(gradient, stashed.y):
                raise
            yield self._refuse(batch, Fault.FORM, f"its gradient is of no use: {explain(error)}", error)
            return
        if not is_finite:
            self.buffers.roll_back()
            came_so = not all_finite(tensors(gradient))
            why = "the gradient of its output is not finite" if came_so else "its gradient is not finite"
            yield self._refuse(batch, Fault.NOT_FINITE, why)
            return
        del self.stash[batch]
        if self._offences:
            self._offences.pop(batch.sentinel, None)
        if self._ledger is not None:
            self._ledger.add(batch)
        if self._last is not None and self._last.batch == batch:
            self._last = None
        passed = Backward(batch, to_previous, (*message.staleness, staleness), message.squared_norm)
        yield from self._learn(passed, of_weights, stashed, staleness)

    def _refuse_unknown(self, batch: Batch) -> Effect:
        """The batch is not here; of a sentinel that has not said what to forget, it was in a gate before."""
        if self._anew and batch.sentinel not in self._forgotten_before:
            return self._refuse(batch, Fault.LOST, "it was in flight here when the gate was made anew")
        return self._refuse(batch, Fault.UNKNOWN, "no such batch waits here for a gradient")

    def _derived(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        """The gradients, on the weights and masks of the forward, as a checkpointed module runs again."""
        if self._seeded:
            for (module, key), marks in zip(self._keys(batch), stashed.marks, strict=True):
                module.replay(key, marks)
        self.buffers.renew()
        self.weights.install(stashed.weights)
        try:
            return self._gradients(stashed, gradient)
        except BaseException:
            self.buffers.roll_back()
            raise
        finally:
            self.weights.install(self.weights.now)

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        """Pass the backward on, and update the weights while the gate before is at work."""
        yield self._to_previous(passed)
        if not self._updater.update(gradients, stashed.weights, staleness):
            yield self._refuse_update(passed.batch)
            return
        self.version += 1
        self.staleness_seen[staleness] += 1
        if self._watchers:
            yield from self._tell_watchers()
        if self._rhythm is not None:
            yield from self._save_if_due()

    def _to_previous(self, passed: Backward) -> Effect:
        return Send(self.position.previous or passed.batch.sentinel, passed)

    def _refuse_update(self, batch: Batch) -> Effect:
        """The gradient has gone on to the gate before, but this gate cannot learn from the batch."""
        return self._refuse(batch, Fault.NOT_FINITE, "its update would make the weights not finite")

    def _change(self, message: Change) -> Iterator[Effect]:
        """Learn with other settings; where that cannot be, with those it had."""
        error = None
        try:
            self._updater = changed(self._updater, self.weights, self.label, message.settings)
        except Exception as raised:  # the functions of users may raise anything
            error = raised
        yield from self._save(Save())
        yield Report(Changed(self.address, message.settings, self.version, error, message.number))

    def _rewire(self, message: Rewire) -> Iterator[Effect]:
        """Take another place in the row, where nothing is under way."""
        row = message.row
        if self.address != row[-1] and (message.from_last or self._ledger is not None):
            yield Send(row[-1], Inherit(self._applied() or {}))
            self._ledger = None
        if self.address in row:
            self.position = self.position.within(row)
            self._input_guard.needs_gradient = self.position.previous is not None
            self._ends_a_row = self.position.next is None and self.position.previous is not None
            if self.position.previous is not None:
                self._watchers.clear()
        if self.address not in row or self.position.next is not None or self._ledger is not None:
            yield Report(Rewired(self.address))

    def _inherit(self, message: Inherit) -> Iterator[Effect]:
        if self._ledger is None:  # else it was told twice, as by a gate that was made anew meanwhile
            self._ledger = Ledger(message.applied)
        if self.position.next is None:
            yield Report(Rewired(self.address))

    def _take_over(self, message: TakeOver) -> Iterator[Effect]:
        """Go on from what another gate like it has learned; batches in flight stay on their weights."""
        try:
            self._updater = taken_over(message.states, self.module, self.weights, self.buffers, self._updater)
            self.version += 1
        except Exception as error:
            yield from self._refuse_message(message, explain(error))
        yield Send(self.position.previous or message.asker, TakeOver(message.asker, message.states[:-1]))
        yield from self._save(Save())

    def _scored(self, message: Scored) -> Iterator[Effect]:
        self._updater.scored(message.value)
        yield from ()

    def _forget(self, message: Forget) -> Iterator[Effect]:
        """Drop a batch, and what it left in the buffers where nothing has come after it."""
        if self._ledger is not None:
            self._ledger.forget(message.sender, message.number)
        last = self._last
        if last is not None and last.batch == (message.sender, message.number) and last.batch in self.stash:
            self._last = None
            if self.buffers.unchanged_since(last.left):
                self.buffers.install(last.before)
        return super()._forget(message)

    def _forget_before(self, message: ForgetBefore) -> Iterator[Effect]:
        if self._ledger is not None:
            self._ledger.forget_before(message.sender, message.number)
        return super()._forget_before(message)

    def _sentinel_lost(self, message: SentinelLost) -> Iterator[Effect]:
        """Take nothing more of it. All that the last gate had learned from has been here by now."""
        applied = message.applied if self._ledger is None else self._ledger.of(message.sentinel)
        yield from self._forget(Forget(message.sentinel))
        if self.position.previous is not None:
            yield Send(self.position.previous, SentinelLost(message.sentinel, applied))
        elif applied is not None:
            yield Report(Learned(message.sentinel, applied))

    def _learner_state(self) -> LearnerState:
        return self._updater.state()

    def weights_held(self) -> list[Snapshot]:
        """Versions of the weights that are held here, some of them several times."""
        pinned = (pin.weights for pin in self.pins.values())
        return [self.weights.now, *(stashed.weights for stashed in self.stash.values()), *pinned]

    def _applied(self) -> Mapping[str, Applied] | None:
        return None if self._ledger is None else self._ledger.applied()

    def _settle(self, message: Settle) -> Iterator[Effect]:
        yield Send(message.asker, Settled(self.address, message.number))

    def _gradients(
        self, stashed: Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        """Gradients by the input, in the input's form, and by the weights; None where there is none."""
        inputs = needing_gradient(stashed.x)
        weights = [stashed.weights[i] for i in self.weights.trainable]
        outputs, seeds = differentiable(stashed.y, gradient)
        found = self._generator.backward(self._derive, outputs, inputs + weights, seeds)
        self.generator_use = self._generator.use
        to_previous = gradient_like(stashed.x, inputs, found) if inputs else None
        sent = {memory(tensor) for tensor in (*tensors(to_previous), *seeds)}
        ours = own(found[len(inputs) :], weights, sent)
        return to_previous, self.weights.at_all_places(ours)
