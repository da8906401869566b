"""Small worlds in which anything may happen in any order, and what must hold in all of them.

hypothesis draws a :class:`World`: a network, its sentinels, how long every message is under way and
every piece of work takes, who is detached, who crashes, what is cut off, and when. The simulator runs
it, a :class:`Witness` looks on, and :func:`violations` says what did not hold.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Send, Stop
from akkordeon.core.errors import ActorFailedError, GateFailedError, NameTakenError, WaitTimeoutError
from akkordeon.core.messages import Backward, Cut, Forget, Forward, Kind, Refused
from akkordeon.engines import interpreter
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash, Freeze, Partition
from akkordeon.engines.simulator.links import Link
from akkordeon.sentinels.training.trainer import Trainer

TURN = 8
"""Evaluation gets at least every so many-th turn."""

TICK_S = 0.01
"""All times in a world are whole ticks."""

BOREDOM_S = 100.0
"""Virtual seconds after which a world of some hundred messages, each under way some ticks, hangs."""


@dataclass(frozen=True)
class Trains:
    batches: int
    in_flight: int
    after: int = 0
    poisoned: int | None = None  # a batch that cannot be learned from, because of its
    poison: str = "loss"
    leaves: int | None = None  # detached so many ticks later
    drops: bool = False
    comes_again: int | None = None  # attached again, under its name, so many ticks after it left


@dataclass(frozen=True)
class World:
    """Everything that one run depends on."""

    gates: int
    trainers: tuple[Trains, ...]
    validators: tuple[int, ...] = ()  # every so many updates
    leaving: tuple[tuple[int, bool], ...] = ()  # the first validator detached then, dropping or not
    predictions: tuple[int, ...] = ()  # after so many ticks
    delays: tuple[int, ...] = ()  # of messages, in turn; then 1
    costs: tuple[int, ...] = ()  # of work, in turn; then 1
    max_staleness: int | None = None
    faults: tuple[Any, ...] = ()


@dataclass
class InTurn:
    """Draws the numbers it was given, in turn, and 1 from then on."""

    numbers: tuple[int, ...]
    _rest: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self._rest = itertools.chain(self.numbers, itertools.repeat(1.0))

    def draw(self, rng: Random) -> float:
        return next(self._rest) * TICK_S


BEGINS, LEAVES, PREDICTS, STOPS = range(4)

SMALL = st.lists(st.integers(0, 9), max_size=40).map(tuple)

TRAINS = st.builds(
    Trains,
    batches=st.integers(1, 12),
    in_flight=st.integers(1, 5),
    after=st.integers(0, 40),
    poisoned=st.none() | st.integers(0, 5),
    poison=st.sampled_from(["loss", "input", "shape", "size"]),
    leaves=st.none() | st.integers(0, 60),
    drops=st.booleans(),
    comes_again=st.none() | st.integers(0, 30),
)

WHO = st.sampled_from(["gate/0", "gate/1", "sentinel/t0*", "sentinel/t1*", "sentinel/v0*", "reader/t0*"])
WHEN = st.integers(0, 120)
FAULTS = st.one_of(
    st.builds(lambda who, at: Crash(who=who, at_s=at * TICK_S), WHO, WHEN),
    st.builds(
        lambda who, at, s: Freeze(who=who, at_s=at * TICK_S, for_s=s * TICK_S), WHO, WHEN, st.integers(1, 50)
    ),
    st.builds(
        lambda one, other, at, s: Partition(
            one=one, other=other, at_s=at * TICK_S, heal_after_s=s * TICK_S, patience_s=60 * TICK_S
        ),
        st.sampled_from(["gate/0", "sentinel/*"]), st.sampled_from(["gate/1", "gate/*"]), WHEN,
        st.integers(1, 80),
    ),
)  # fmt: skip

WORLDS = st.builds(
    World,
    gates=st.integers(1, 4),
    trainers=st.lists(TRAINS, min_size=1, max_size=3).map(tuple),
    validators=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    leaving=st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=1).map(tuple),
    predictions=st.lists(st.integers(0, 100), max_size=2).map(tuple),
    delays=SMALL,
    costs=SMALL,
    max_staleness=st.none() | st.integers(0, 4),
    faults=st.lists(FAULTS, max_size=2).map(tuple),
)


class Witness:
    """Sees every message handled and what came of it."""

    def __init__(self, row: tuple[str, ...]) -> None:
        self.row = row
        self.violations: list[str] = []
        self.stopped: set[str] = set()
        self.launched: set[Any] = set()
        self.passed: dict[str, set[Any]] = defaultdict(set)  # by gate: batches whose gradient went on
        self.cuts: list[tuple[int, ...]] = []
        self.parted = False  # some gates learned from a batch that others did not

    def listen(self, actor: Any, message: Any, now_s: float) -> Iterator[Any]:
        address = actor.address
        if address in self.stopped:
            self.violations.append(f"{address} handled {message} after Stop")
        self.parted = self.parted or _parts(message)
        if isinstance(message, Cut) and address.startswith("sentinel/"):
            self.cuts.append(message.versions)
        for effect in actor.receive(message, now_s):
            if isinstance(effect, Stop):
                self.stopped.add(address)
            elif isinstance(effect, Send):
                self._see(address, effect.message)
            yield effect
        if isinstance(actor, Trainer) and actor.batches.in_flight != len(actor._flights):
            self.violations.append(f"{address} has {actor.batches} with {len(actor._flights)} in flight")

    def _see(self, address: str, message: Any) -> None:
        if isinstance(message, Forward) and address.startswith("sentinel/"):
            if message.batch in self.launched:
                self.violations.append(f"{message.batch} was used for two batches")
            self.launched.add(message.batch)
        if isinstance(message, Backward) and address in self.row:
            self.passed[address].add(message.batch)


def _parts(message: Any) -> bool:
    """Whether some gates may learn from a batch that others do not, from here on."""
    trains = isinstance(message, Forget) and message.sender.startswith("sentinel/t")
    return trains or isinstance(message, Refused)


def watched_mailbox(base: type, witness: Witness) -> type:
    """A mailbox that knows whether evaluation gets its turns."""

    class WatchedMailbox(base):
        __slots__ = ("passed_over", "waiting")

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.waiting = self.passed_over = 0

        def put(self, message: Any) -> None:
            self.waiting += message.kind is Kind.EVALUATION
            super().put(message)

        def take(self) -> Any:
            message = super().take()
            if message.kind is Kind.EVALUATION:
                self.waiting -= 1
                self.passed_over = 0
            elif self.waiting:
                self.passed_over += 1
                if self.passed_over >= TURN:
                    witness.violations.append(f"evaluation was passed over {self.passed_over} times")
            return message

    return WatchedMailbox


def poisoned_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(outputs, targets)
    return loss * torch.nan if int(targets[0]) == 1 else loss


def batches_of(recipe: Trains) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.ones(1, 2), torch.tensor([0])
    poison = {
        "loss": (x, torch.tensor([1])),  # see poisoned_loss
        "input": (x * torch.nan, y),
        "shape": (torch.ones(1, 3), y),
        "size": (x * 3e38, y),  # too large somewhere in the row
    }[recipe.poison]
    return [poison if i == recipe.poisoned else (x, y) for i in range(recipe.batches)]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01)


def violations(world: World) -> list[str]:
    """Run a world; what did not hold in it."""
    network = ak.Network(
        [ak.Gate(nn.Linear(2, 2), sgd) for _ in range(world.gates)], max_staleness=world.max_staleness
    )
    witness = Witness(network.row())
    engine = ak.Simulator(
        links=Link(InTurn(world.delays)),
        compute=Compute({"*": Cost(message_s=1)}, spread=InTurn(world.costs)),
        faults=world.faults,
    )
    with _patched(interpreter, "Mailbox", watched_mailbox(interpreter.Mailbox, witness)):
        session = ak.run(network, engine=engine)
        engine.recorder = witness  # a session brings its own, or none; nothing has been handled yet
        try:
            found = _live(world, session, engine)
            if session._error is None:
                found += _rest(world, session, witness)
        except GateFailedError as error:
            found = [] if _is_crash(error) else [f"a gate failed: {error}"]
        finally:
            session.close()
    return witness.violations + found + _sums(session)


def _live(world: World, session: ak.Session, engine: ak.Simulator) -> list[str]:
    """Attach and detach as the world says, until everything has ended."""
    for i, every in enumerate(world.validators):
        name = f"v{i}"
        session.attach(ak.Sentinel.validate([(torch.ones(1, 2), torch.tensor([0]))] * 2, F.cross_entropy,
                                            every_updates=every, name=name))  # fmt: skip
    for at, what, i, how in sorted(_plan(world), key=lambda step: step[:3]):
        engine.wait_until(lambda: False, max(0.0, at * TICK_S - engine.now_s()))
        if what == BEGINS:
            train = ak.Sentinel.train(batches_of(how), poisoned_loss, in_flight=how.in_flight, name=f"t{i}")
            with contextlib.suppress(NameTakenError):  # its namesake is still there
                session.attach(train)
        elif what == LEAVES:
            session.detach(f"t{i}", drop=how.drops)
        elif what == STOPS:
            session.detach("v0", drop=how)
        else:
            session.attach(ak.Sentinel.predict(torch.ones(3, 2), batch_size=1, name=f"p{i}"))
    try:
        session.wait(timeout=BOREDOM_S)
    except WaitTimeoutError as error:
        return [f"something hangs: {error}"]
    except GateFailedError:
        raise
    except ActorFailedError as error:
        hopeless = "batches were refused" in str(error)
        return [] if hopeless or _is_crash(error) else [f"a sentinel failed: {error}"]
    return []


def _plan(world: World) -> Iterator[tuple[int, int, int, Any]]:
    """(tick, what, who, how) of everything that comes from outside."""
    for i, at in enumerate(world.predictions):
        yield at, PREDICTS, i, None
    for at, drops in world.leaving if world.validators else ():
        yield at, STOPS, 0, drops
    for i, recipe in enumerate(world.trainers):
        yield recipe.after, BEGINS, i, recipe
        if recipe.leaves is not None:
            yield recipe.after + recipe.leaves, LEAVES, i, recipe
            if recipe.comes_again is not None:
                yield recipe.after + recipe.leaves + recipe.comes_again, BEGINS, i, recipe


def _is_crash(error: Exception) -> bool:
    return "is lost" in str(error)


def _rest(world: World, session: ak.Session, witness: Witness) -> list[str]:
    """What must hold of the gates once everything has ended and every message has arrived."""
    found = []
    session._engine.wait_until(lambda: session._error is not None, BOREDOM_S)
    if session._error is not None:
        return []
    for gate in session.status(timeout=BOREDOM_S).gates:
        if gate.stashed or gate.pinned:
            found.append(f"{gate.address} keeps {gate.stashed} batches and {gate.pinned} cuts at rest")
        if not gate.version == sum(gate.staleness.values()) == len(witness.passed[gate.address]):
            passed = len(witness.passed[gate.address])
            found.append(f"{gate.address} has version {gate.version} after {passed} batches")
        if world.max_staleness is not None and gate.staleness_max > world.max_staleness:
            found.append(f"{gate.address} learned from a gradient {gate.staleness_max} updates old")
        if len(world.trainers) == 1 and gate.staleness_max >= world.trainers[0].in_flight:
            found.append(f"{gate.address} saw staleness {gate.staleness_max} with one trainer")
    if not witness.parted:
        found += [f"a cut of versions {cut}" for cut in witness.cuts if len(set(cut)) > 1]
    return found


def _sums(session: ak.Session) -> list[str]:
    found = []
    for attachment in session.attachments:
        sent, trained, refused, lost = attachment.batches.as_tuple()
        if not attachment.ended:
            found.append(f"{attachment.name} has not ended with its session")
        if sent != trained + refused + lost:
            found.append(f"{attachment.name} sent {sent}, but {trained} + {refused} + {lost} came back")
        told = sum(epoch.samples for epoch in attachment.epochs)  # a batch is one sample
        if attachment.role == "train" and attachment.error is None and not lost and told != trained:
            found.append(f"{attachment.name} trained {trained} batches and told of {told}")
        whole = attachment.role == "predict" and attachment.error is None and session._error is None
        if whole and (attachment.result is None or attachment.result.shape != (3, 2)):
            found.append(f"{attachment.name} predicted {attachment.result}")
    return found


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@dataclass
class Found:
    """What exploring came to: how many worlds were run, and the first in which something did not hold."""

    worlds: int = 0
    world: World | None = None
    violations: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


def explore(worlds: int) -> Found:
    """Run so many worlds, always the same ones; stop at the first in which something does not hold."""
    found = Found()

    @settings(
        max_examples=worlds,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(WORLDS)
    def look(world: World) -> None:
        if found.world is None:
            found.worlds += 1
            found.violations = violations(world)
            if found.violations:
                found.world = world

    look()
    return found
