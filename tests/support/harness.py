"""What tests share: small networks and data, actors driven by hand, and a scheduler that shuffles."""

from __future__ import annotations

import copy
import random
from collections import defaultdict, deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.actor import Actor, After, Report, Send, Stop
from akkordeon.core.errors import AkkordeonError
from akkordeon.core.messages import Backward, Batch, Cut, Forward
from akkordeon.core.reports import ActorFailed
from akkordeon.engines.mailbox import Mailbox
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position

SIZE = 8
"""Samples in a batch."""

WAIT_S = 30.0
"""Longer than anything here takes; a test that waits so long has failed."""


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def batches_of(n: int, features: int = 6, classes: int = 4, size: int = SIZE):
    return [(torch.randn(size, features), torch.randint(classes, (size,))) for _ in range(n)]


def numbered(n: int) -> tuple[Tensor, Tensor]:
    """Sample i is the row (i, i), its label is 10 i."""
    y = torch.arange(n)
    return torch.stack([y, y], 1).float(), 10 * y


def labels_of(batches) -> list[int]:
    """All labels of a source, in the order in which it gives them."""
    return [label for _, y in batches for label in y.tolist()]


def small_network(**kwargs) -> ak.Network:
    """6 features to 4 classes in three gates."""
    parts = [nn.Sequential(nn.Linear(6, 9), nn.ReLU()), nn.Sequential(nn.Linear(9, 7), nn.Tanh())]
    return ak.Network([ak.Gate(part, sgd) for part in (*parts, nn.Linear(7, 4))], **kwargs)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same_bits(one, other) -> bool:
    """Whether two modules, or two dicts of tensors, agree in every bit."""
    one, other = (x.state_dict() if isinstance(x, nn.Module) else x for x in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def breaking(y: Tensor, error: BaseException) -> Tensor:
    """The tensor; whoever asks for a gradient through it gets the error."""

    def fail(_: Tensor) -> None:
        raise error

    y = y.view_as(y)
    y.register_hook(fail)
    return y


# ── actors driven by hand ────────────────────────────────────────────────────────────────────────────


def do(actor: Actor, *messages, now_s: float = 0.0) -> list:
    """Everything that an actor answers to some messages."""
    return [effect for message in messages for effect in actor.receive(message, now_s)]


def sends(effects: list, kind: type | None = None) -> list:
    """The messages in some effects, maybe of one type only."""
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    return messages if kind is None else [m for m in messages if isinstance(m, kind)]


def reports(effects: list, kind: type | None = None) -> list:
    records = [effect.record for effect in effects if isinstance(effect, Report)]
    return records if kind is None else [r for r in records if isinstance(r, kind)]


def stops(effects: list) -> bool:
    return any(isinstance(effect, Stop) for effect in effects)


def gate_alone(module: nn.Module, optimizer=sgd, position: dict | None = None, **recipe) -> GateActor:
    """The middle gate of a row that is not there."""
    where = {"address": "gate/1", "index": 1, "previous": "gate/0", "next": "gate/2"} | (position or {})
    return GateActor(ak.Gate(module, optimizer, **recipe), Position(**where))


def forward(number: int, x, sentinel: str = "s") -> Forward:
    return Forward(Batch(sentinel, number), x)


def backward(number: int, gradient, sentinel: str = "s") -> Backward:
    return Backward(Batch(sentinel, number), gradient)


# ── a scheduler that shuffles ────────────────────────────────────────────────────────────────────────


class Shuffled:
    """Runs actors in a random order: what is certain is the order of messages between two of them.

    Between any two effects of an actor the others may go on, as they may on threads.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._links: dict[tuple[str, str], deque] = defaultdict(deque)
        self._mailboxes: dict[str, Mailbox] = {}
        self._at_work: dict[str, Iterator] = {}
        self.actors: dict[str, Actor] = {}
        self.records: list = []
        self.applied: dict[str, list[Batch]] = defaultdict(list)  # by gate, what it has learned from
        self.cuts: dict[object, list[frozenset[Batch]]] = defaultdict(list)  # what each gate had then

    def add(self, *actors: Actor) -> None:
        for actor in actors:
            self.actors[actor.address] = actor
            self._mailboxes[actor.address] = Mailbox()

    def send(self, to: str, message, sender: str = "user") -> None:
        self._links[sender, to].append(message)

    def step(self) -> bool:
        """One random thing that can happen; False when nothing can."""
        can = [(self._arrive, link) for link, queue in self._links.items() if queue]
        can += [(self._go_on, address) for address in self._at_work]
        can += [(self._begin, a) for a, box in self._mailboxes.items() if box and a not in self._at_work]
        if not can:
            return False
        act, what = self._random.choice(can)
        act(what)
        return True

    def _arrive(self, link: tuple[str, str]) -> None:
        message = self._links[link].popleft()
        if link[1] in self._mailboxes:
            self._mailboxes[link[1]].put(message)

    def _begin(self, address: str) -> None:
        message = self._mailboxes[address].take()
        self._at_work[address] = self.actors[address].receive(message, 0.0)

    def _go_on(self, address: str) -> None:
        try:
            effect = next(self._at_work[address], None)
        except AkkordeonError as error:
            self.records.append(ActorFailed(address, "a message", error))
            self._at_work[address] = iter([*self.actors[address].last_words(), Stop()])
            return
        if effect is None:
            del self._at_work[address]
        elif isinstance(effect, Send):
            if address.startswith("gate/"):
                self._note(address, effect.message)
            self.send(effect.to, effect.message, address)
        elif isinstance(effect, After):
            self.send(address, effect.message, "clock " + address)
        elif isinstance(effect, Report):
            self.records.append(effect.record)
        else:
            for of_actor in (self.actors, self._mailboxes, self._at_work):
                del of_actor[address]

    def _note(self, gate: str, message) -> None:
        if isinstance(message, Backward):
            self.applied[gate].append(message.batch)
        elif isinstance(message, Cut):
            self.cuts[message.cut].append(frozenset(self.applied[gate]))

    def run(self) -> None:
        while self.step():
            pass
