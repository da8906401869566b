"""A gate: a module, its optimizer and its staleness rule, working on one message at a time.

Forward keeps what the backward will need (the *stash*) and passes the output on. Backward sends the
gradient of the input to the gate before and only then updates, so that both work at the same time.
Whatever can be refused is refused before the first effect and leaves the gate as it was.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.actor import Actor, Effect, Report, Send, Stop
from akkordeon.derivative import gradients
from akkordeon.door import Door
from akkordeon.errors import RecipeError
from akkordeon.learner import Learner, OptimizerFactory
from akkordeon.messages import (
    Backward,
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
    Forward,
    Probe,
    Refused,
    Release,
    Watch,
)
from akkordeon.metrics import GateLeft, GateStatus
from akkordeon.nn import Seeded
from akkordeon.payload import Payload, all_finite, form, map_tensors, memory, same_form, signature, tensors
from akkordeon.staleness import Rule, Stash
from akkordeon.weights import Buffers, Snapshot, Weights

__all__ = ["Gate", "GateActor", "Place"]

TOMBSTONES_MAX = 4096


@dataclass(frozen=True)
class Gate:
    """The recipe of a gate.

    Args:
        module: called as ``module(payload)`` with a tensor, or a tuple or dict of tensors.
        optimizer: from parameters to a ``torch.optim.Optimizer``, or to (optimizer, scheduler). None
            for a gate without parameters, or one whose parameters stay as they are.
        staleness: the rule for stale gradients.
        clip_norm: largest norm of this gate's gradient; larger ones are scaled down to it.
        name: for reports; the position if not given.
        device: where the module and its work live, as in ``"cuda:0"``.
        resources: what a host must offer, for engines that place gates on hosts.

    Raises:
        RecipeError: the module is no ``nn.Module``, or a number is out of range.
    """

    module: nn.Module
    optimizer: OptimizerFactory | None = None
    staleness: Rule = field(default_factory=Stash)
    clip_norm: float | None = None
    name: str | None = None
    device: str | torch.device | None = None
    resources: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not isinstance(self.module, nn.Module):
            raise RecipeError(f"a gate holds an nn.Module, got {type(self.module).__name__}")
        if self.optimizer is not None and not callable(self.optimizer):
            raise RecipeError(
                "a gate's optimizer is a function from parameters to an optimizer, as in "
                f"lambda params: torch.optim.SGD(params, lr=0.1); got {type(self.optimizer).__name__}"
            )
        if not isinstance(self.staleness, Rule):
            raise RecipeError(f"a gate's staleness is a rule such as Stash(), got {self.staleness!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise RecipeError(f"clip_norm is above 0, got {self.clip_norm}")


@dataclass(frozen=True)
class Place:
    """Where a gate stands: what its actor needs to know of the row around it."""

    address: str
    index: int
    previous: str | None = None
    next: str | None = None
    seed: int = 0
    max_staleness: int | None = None
    max_in_flight: int = 256


@dataclass(slots=True)
class _Stashed:
    """What a gate keeps of a batch in flight."""

    x: Payload
    y: Payload
    weights: Snapshot
    version: int


@dataclass(slots=True)
class _Pin:
    """What a gate keeps for a cut."""

    weights: Snapshot
    buffers: tuple[Tensor, ...]


class GateActor(Actor):
    """A gate at work. The recipe's module is copied: a recipe can be run many times.

    Args:
        gate: the recipe.
        place: its place in the row.

    Raises:
        ForeignParameterError: the optimizer holds parameters that are not this gate's.
    """

    def __init__(self, gate: Gate, place: Place) -> None:
        self.address = place.address
        self.place = place
        self.label = gate.name or place.address
        self.module = copy.deepcopy(gate.module).train()
        if gate.device is not None:
            self.module.to(gate.device)
        self.device = None if gate.device is None else torch.device(gate.device)
        self.weights = Weights(self.module, keep=gate.staleness.keeps_weights)
        self.buffers = Buffers(self.module)
        self._learner = Learner(self.weights, gate.optimizer, gate.staleness, gate.clip_norm, self.label)
        self._seeded = [m for m in self.module.modules() if isinstance(m, Seeded)]
        self._door = Door(needs_gradient=place.previous is not None)
        self.version = 0
        self.stash: dict[Batch, _Stashed] = {}
        self.pins: dict[CutId, _Pin] = {}
        self.staleness_seen: Counter[int] = Counter()
        self.refusals: Counter[Fault] = Counter()
        self._accepted: set[str] = set()
        self._last_shape: torch.Size | None = None
        self._forgotten: OrderedDict[Forget, None] = OrderedDict()
        self._watchers: dict[str, int] = {}
        self._handlers: dict[type, Callable[[Any], Iterator[Effect]]] = {
            Forward: self._forward,
            Backward: self._backward,
            Forget: self._forget,
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
        return self._handlers[type(message)](message)

    # ── training ─────────────────────────────────────────────────────────────────────────────────────

    def _forward(self, message: Forward) -> Iterator[Effect]:
        batch = message.batch
        if self._is_forgotten(batch):
            return
        if batch in self.stash:
            yield self._refuse(batch, Fault.UNKNOWN, "a batch of this number is in flight already")
            return
        if len(self.stash) >= self.place.max_in_flight:
            yield self._refuse(
                batch, Fault.TOO_MANY, f"{len(self.stash)} batches are in flight here, the network's most"
            )
            return
        for i, module in enumerate(self._seeded):
            module.reseed((self.place.seed, self.address, *batch, i))
        self.buffers.renew()
        try:
            x, y = self._run(message.payload)
        except Exception as error:
            self.buffers.roll_back()
            yield self._refuse_form(batch, message.payload, error)
            return
        if not all_finite(tensors(y)):
            self.buffers.roll_back()
            yield self._refuse(batch, Fault.NOT_FINITE, "its output is not finite")
            return
        self.stash[batch] = _Stashed(x, y, self.weights.now, self.version)
        yield Send(self.place.next or batch.sentinel, Forward(batch, map_tensors(Tensor.detach, y)))

    def _run(self, payload: Payload) -> tuple[Payload, Payload]:
        """The leaf inputs and the outputs, with the graph between them."""
        with torch.enable_grad():
            x, given = self._door.open(self._here(payload))
            y = self.module(given)
        self._door.close(given)
        if not isinstance(y, Tensor):
            y = map_tensors(lambda tensor: tensor, y)  # a list becomes a tuple; anything else is refused
        if type(payload) is not Tensor or payload.shape != self._last_shape:
            self._accepted.add(form(payload))
            self._last_shape = payload.shape if isinstance(payload, Tensor) else None
        return x, y

    def _here(self, payload: Payload) -> Payload:
        if self.device is None:
            return payload
        return map_tensors(lambda tensor: tensor.to(self.device), payload)

    def _backward(self, message: Backward) -> Iterator[Effect]:
        batch, gradient = message.batch, message.payload
        stashed = self.stash.get(batch)
        if stashed is None:
            if not self._is_forgotten(batch):
                yield self._refuse(batch, Fault.UNKNOWN, "no such batch is in flight here")
            return
        if gradient is not None:
            gradient = self._here(gradient)
        if not same_form(gradient, stashed.y):
            got, expected = signature(gradient), signature(stashed.y)  # type: ignore[arg-type]  # None fits
            yield self._refuse(batch, Fault.FORM, f"its gradient is {got}, expected {expected}")
            return
        staleness = self.version - stashed.version
        limit = self.place.max_staleness
        if limit is not None and staleness > limit:
            yield self._refuse(batch, Fault.TOO_STALE, f"it is {staleness} updates old, at most {limit}")
            return
        to_previous, of_weights = self._gradients(stashed, gradient)
        if not all_finite((*tensors(to_previous), *of_weights)):
            yield self._refuse(batch, Fault.NOT_FINITE, "its gradient is not finite")
            return
        del self.stash[batch]
        passed = (*message.staleness, staleness)
        yield Send(self.place.previous or batch.sentinel, Backward(batch, to_previous, passed))
        self._learner.learn(of_weights, stashed.weights, staleness)
        self.version += 1
        self.staleness_seen[staleness] += 1
        for watcher, every in self._watchers.items():
            if self.version % every == 0:
                yield Send(watcher, Due())

    def _gradients(
        self, stashed: _Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        """Gradients by the input, in the input's form, and by the weights; None where there is none."""
        inputs = [x for x in tensors(stashed.x) if x.requires_grad]
        weights = [stashed.weights[i] for i in self.weights.trainable]
        outputs, seeds = _differentiable(stashed.y, gradient)
        found = gradients(outputs, inputs + weights, seeds)
        to_previous: Payload | None = None
        if inputs:
            by_input = iter(found)
            to_previous = map_tensors(lambda x: next(by_input) if x.requires_grad else None, stashed.x)
        sent = {memory(tensor) for tensor in (*tensors(to_previous), *seeds)}
        own = _own(found[len(inputs) :], weights, sent)
        if len(own) == len(stashed.weights):
            return to_previous, own
        by_place = dict(zip(self.weights.trainable, own, strict=True))
        return to_previous, [by_place.get(i) for i in range(len(stashed.weights))]

    # ── refusing and forgetting ──────────────────────────────────────────────────────────────────────

    def _refuse(self, batch: Batch, fault: Fault, reason: str) -> Effect:
        self.refusals[fault] += 1
        return Send(batch.sentinel, Refused(batch, self.label, fault, reason))

    def _refuse_form(self, batch: Batch, payload: Payload, error: Exception) -> Effect:
        """Refuse a payload of a form that never worked; raise where it is the module that failed."""
        if form(payload) in self._accepted:
            raise error
        known = " and ".join(sorted(self._accepted)[:3])
        accepts = f"; it has worked on {known}" if known else ""
        why = f"{type(error).__name__}: {str(error).strip()}"
        return self._refuse(
            batch, Fault.FORM, f"its module cannot work on {signature(payload)} ({why}){accepts}"
        )

    def _forget(self, message: Forget) -> Iterator[Effect]:
        if message.number is not None:
            if self.stash.pop(Batch(message.sentinel, message.number), None) is None:
                self._bury(message)
            return
        self._bury(message)
        for batch in [batch for batch in self.stash if batch.sentinel == message.sentinel]:
            del self.stash[batch]
        for cut in [cut for cut in self.pins if cut.asker == message.sentinel]:
            del self.pins[cut]
        self._watchers.pop(message.sentinel, None)
        yield from ()

    def _bury(self, message: Forget) -> None:
        """Remember what to drop when it arrives; the oldest tombstone goes when there are too many."""
        self._forgotten[message] = None
        if len(self._forgotten) > TOMBSTONES_MAX:
            self._forgotten.popitem(last=False)

    def _is_forgotten(self, batch: Batch) -> bool:
        return bool(self._forgotten) and (
            Forget(batch.sentinel) in self._forgotten
            or Forget(batch.sentinel, batch.number) in self._forgotten
        )

    # ── evaluation ───────────────────────────────────────────────────────────────────────────────────

    def _cut(self, message: Cut) -> Iterator[Effect]:
        cut = message.cut
        if Forget(cut.asker) not in self._forgotten:
            self.pins[cut] = _Pin(self.weights.pin(), self.buffers.now)
        yield Send(self.place.previous or cut.asker, Cut(cut, (*message.versions, self.version)))

    def _evaluate(self, message: Evaluate) -> Iterator[Effect]:
        pin = self.pins.get(message.cut)
        if pin is None:  # released while this was on its way
            return
        try:
            y = self._run_pinned(pin, message.payload)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip()}"
            reason = f"its module cannot evaluate {signature(message.payload)} ({why})"
            yield self._refuse(message.batch, Fault.FORM, reason)
            return
        to = self.place.next or message.batch.sentinel
        yield Send(to, Evaluate(message.batch, y, message.cut))

    def _run_pinned(self, pin: _Pin, payload: Payload) -> Payload:
        training = self.buffers.now
        self.weights.install(pin.weights)
        self.buffers.install(pin.buffers)
        self.module.eval()
        try:
            with torch.no_grad():
                given = self._door.protect(self._here(payload))
                return map_tensors(Tensor.detach, self.module(given))
        finally:
            self.module.train()
            self.buffers.install(training)
            self.weights.install(self.weights.now)

    def _export(self, message: Export) -> Iterator[Effect]:
        pin = self.pins.get(message.cut)
        if pin is not None:
            state = self._state(pin.weights, pin.buffers)
            yield Send(message.cut.asker, Exported(message.cut, self.address, state))

    def _release(self, message: Release) -> Iterator[Effect]:
        self.pins.pop(message.cut, None)
        yield from ()

    def _state(self, weights: Snapshot, buffers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        named = itertools.chain(
            zip(self.weights.names, weights, strict=True), zip(self.buffers.names, buffers, strict=True)
        )
        return {name: tensor.detach().clone() for name, tensor in named}

    # ── control ──────────────────────────────────────────────────────────────────────────────────────

    def _watch(self, message: Watch) -> Iterator[Effect]:
        if message.every_updates:
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
                index=self.place.index,
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
        state = self._state(self.weights.now, self.buffers.now)
        yield Report(GateLeft(self.address, self.place.index, self.version, state))


def _differentiable(y: Payload, gradient: Payload | None) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that depend on anything and have a gradient, and those gradients."""
    if gradient is None:
        return [], []
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(y, Tensor):
        return ([y], [gradient]) if y.requires_grad else ([], [])  # type: ignore[list-item]  # forms agree
    if isinstance(y, dict):
        pairs = [(y[name], part) for name, part in gradient.items()]  # type: ignore[union-attr]
    else:
        pairs = zip(y, gradient, strict=True)
    chosen = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
    return [out for out, _ in chosen], [grad for _, grad in chosen]


def _own(gradients: Iterable[Tensor | None], like: Iterable[Tensor], taken: set[int]) -> list[Tensor | None]:
    """The gradients in memory of their own and laid out like the weights, free to be worked on in place.

    For ``x + p`` the gradient of the parameter *is* the message to the gate before; for ``p + q`` it is
    one tensor twice. ``taken`` has the memory that is not ours, and grows.
    """
    own: list[Tensor | None] = []
    for gradient, weight in zip(gradients, like, strict=True):
        if gradient is not None and not gradient.is_sparse:
            if memory(gradient) in taken or gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight, requires_grad=False).copy_(gradient)
            taken.add(memory(gradient))
        own.append(gradient)
    return own
