"""Replays a record: the same actors, one message after the other in the recorded order, to the same bits.

Any order in which every message is handled after it was sent, and every actor handles its own in the
recorded order, leads every actor through the same states: they share nothing. So no time passes here,
nothing waits, and one loop over the record does it. What every message leads to is compared with what it
led to then; at the first difference the replay ends and says where.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Actor, Effect, Spawn
from akkordeon.core.errors import RecipeError, ReplayError, explain
from akkordeon.core.messages import Batch, Message
from akkordeon.core.reports import EpochDone, GateLeft, RoundDone
from akkordeon.core.surgery.messages import Change
from akkordeon.data.split import skip_epochs
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.base import ProcessState
from akkordeon.engines.interpreter import Interpreter
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.factory import make_actors, require_recipes
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.sentinels.roles import KEEPERS, Role
from akkordeon.session.records.digest import Digest, data_fingerprint, key_of
from akkordeon.session.records.file_format import GIVEN, RHYTHM, message_of, unpacked
from akkordeon.session.records.record import Record
from akkordeon.session.streams.live_row import shadow_of
from akkordeon.session.topology import topology_of

__all__ = ["Replayed", "replay"]


@dataclass
class Replayed:
    """What a replay led to.

    Attributes:
        messages: how many were handled.
        states: weights and buffers with which every gate ended, by address.
        reports: the epochs and rounds reported, in order.
        whole: whether that is all there was; False where the record breaks off, and the states are those that
            the gates had there.
    """

    messages: int = 0
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    reports: list[EpochDone | RoundDone] = field(default_factory=list)
    network: Network | Downpour | None = None
    whole: bool = True

    def module(self) -> nn.Module:
        """The network with the weights it ended with."""
        assert self.network is not None
        return self.network.module(self.states)


def replay(
    record: str | Path | Record,
    network: Network | Downpour,
    sentinels: Sequence[Training | Evaluation] = (),
    *,
    given: Sequence[Any] = (),
    partial: bool = False,
) -> Replayed:
    """Run a recorded session again, message by message.

    Args:
        record: made with ``ak.run(…, record=FILE)``.
        network: the same recipe, as new.
        sentinels: recipes of the training, validating and testing sentinels with their data as new, under
            the names they had; several of one name, and those without a name, in the order they were
            attached. The last of a name stands for all that follow. What was predicted is in the record,
            if it could be read twice and was below 96 MiB.
        given: gates that came while it ran, and functions and rules that gates were set to, in that order;
            a record has only numbers and words.
        partial: take a record that breaks off, because its run was killed, as far as it goes.

    Returns:
        What it led to, bit for bit what it led to then (on one intra-op thread).

    Raises:
        RecipeError: ``network`` is no recipe, or ``sentinels`` no list of such.
        RecordError: the file is no record, or damaged, or breaks off.
        ReplayError: something is not as it was; the first message where that shows, and why it may be.
    """
    if not isinstance(network, Network | Downpour):
        raise RecipeError(f"replay takes a Network or a Downpour, got {type(network).__name__}")
    require_recipes("replay", sentinels)
    record = record if isinstance(record, Record) else Record(record)
    if not partial:
        record.require_whole()
    process = ProcessState()
    torch.set_num_threads(1)
    torch.manual_seed(record.header["seed"])
    try:
        return _Replay(record, network, sentinels, given).run()
    finally:
        process.restore()


class _Cell:
    """An actor, and the messages it will handle, by what names them in the record."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.waiting: dict[str, deque[Message]] = defaultdict(deque)


class _Recipes:
    """The recipes of the sentinels, each taken where one of its name comes."""

    def __init__(self, sentinels: Sequence[Training | Evaluation]) -> None:
        self._unnamed = [sentinel for sentinel in sentinels if sentinel.name is None]
        self._named: dict[str, deque[Training | Evaluation]] = defaultdict(deque)
        for sentinel in sentinels:
            if sentinel.name is not None:
                self._named[sentinel.name].append(sentinel)

    def take(self, name: str, role: str) -> Training | Evaluation:
        """The next recipe of that name, whose last stands for all that follow; else one without a name.

        Raises:
            ReplayError: there is none.
        """
        if name in self._named:
            of_name = self._named[name]
            return of_name.popleft() if len(of_name) > 1 else of_name[0]
        for i, recipe in enumerate(self._unnamed):
            if recipe.role == role:
                return self._unnamed.pop(i)
        raise ReplayError(f"the record has a sentinel {name!r} ({role}); give its recipe to the replay")


class _Replay(Interpreter[_Cell]):
    """A replay under way."""

    def __init__(
        self,
        record: Record,
        network: Network | Downpour,
        sentinels: Sequence[Training | Evaluation],
        given: Iterable[Any] = (),
    ) -> None:
        self.record = record
        self.given = deque(given)
        self.network = network
        seed = record.header["seed"]
        self.topology = topology_of(network)
        self.recipes = _Recipes(sentinels)
        self.dealt: dict[str, Training | Evaluation] = {}
        self.suspects = record.differences(network)
        self.cells: dict[str, _Cell] = {}
        self.recorder = self.heard = _Listener()
        self.result = Replayed(network=network, whole=record.whole)
        self._spawn(self.topology.spawns(seed))

    def _spawn(self, spawns: Iterable[Spawn]) -> None:
        self.cells.update((spawn.address, _Cell(spawn.make())) for spawn in spawns)

    def run(self) -> Replayed:
        for number, (serial, what, address, *rest) in enumerate(self.record.lines):
            if self._is_beyond_the_break(number, serial, what, address, rest):
                break
            if what == "attach":
                self._attach(address, rest[0])
            elif what == "replica":
                self._spawn(self.topology.replica_spawns(address, self.record.header["seed"]))
            elif what == "gate":
                gate = self._take_given(f"gate {address}")
                self._spawn([self.topology.newcomer(gate, self.record.header["seed"], address)])
            elif what == "row":
                self.topology.rearrange(address)
                self.result.network = self.topology.network
            elif what == "outside":
                self._put(address, self._completed(address, message_of(rest[0])))
            else:
                self._repeat(address, *rest)
        if not self.record.whole:
            for cell in list(self.cells.values()):
                self._say_last_words(cell)
        return self.result

    def _is_beyond_the_break(
        self, number: int, serial: int, what: str, address: str, rest: Sequence[Any]
    ) -> bool:
        """Whether a message came of one that was still being handled when the record broke off."""
        if self.record.whole or serial == number or what != "handle":
            return False
        return address not in self.cells or not self.cells[address].waiting[rest[0]]

    def _completed(self, gate: str, message: Message) -> Message:
        """A message with what is not in the record."""
        if not isinstance(message, Change):
            return message
        settings = {
            name: self._take_given(f"{name} of {gate}") if isinstance(each, dict) and GIVEN in each else each
            for name, each in message.settings.items()
        }
        return replace(message, settings=settings)

    def _take_given(self, what: str) -> Any:
        if not self.given:
            raise ReplayError(f"the {what} came while it ran; give it to the replay: given=[…]")
        return self.given.popleft()

    def _attach(self, address: str, what: dict[str, Any]) -> None:
        recipe = self._recipe(what)
        if what.get("data") and what["data"] != data_fingerprint(recipe.batches):
            self.suspects.append(f"the data of {what['name']!r}")
        row = self.topology.row_for(recipe)
        seed = self.record.header["seed"]
        how: dict[str, Any] = {"schedule": self.topology.schedule}
        how["make_shadow"] = shadow_of(self.topology.network, seed)
        self._spawn(make_actors(recipe, address, what["name"], row, seed, **how))

    def _recipe(self, what: dict[str, Any]) -> Training | Evaluation:
        name, role = what["name"], what["role"]
        if "keeps" in what:
            rhythm = {field: what["keeps"].get(field) for field in RHYTHM}
            return Evaluation(role=KEEPERS[role], batches=(), loss=None, **rhythm)
        if "inputs" in what:
            if what["inputs"] is None:
                raise ReplayError(
                    f"the inputs of {name!r} are not in the record: too large, or readable only once"
                )
            inputs, size, in_flight = unpacked(what["inputs"]), what["batch_size"], what["in_flight"]
            question = Role(role, answers=True)
            return Evaluation(role=question, batches=inputs, loss=None, batch_size=size, in_flight=in_flight)
        before, replicas = what.get("epochs_before", 0), tuple(what.get("dealt_to", ()))
        if not replicas:
            return self._going_on(self.recipes.take(name, role), before)
        if name not in self.dealt:
            self._deal(name.rpartition("-")[0], role, replicas, before)
        if name not in self.dealt:
            raise ReplayError(f"the record has no such part of dealt data as {name!r} is to have")
        return self.dealt.pop(name)

    def _deal(self, name: str, role: str, replicas: tuple[int, ...], before: int) -> None:
        """Deal out a trainer as the session did when it came."""
        recipe = self._going_on(self.recipes.take(name, role), before)
        parts = self.topology.deal(replace(recipe, name=name), replicas, self.record.header["seed"])
        if len(parts) == 1 and parts[0].name == name:
            raise ReplayError(
                f"{name!r} was dealt to the replicas {', '.join(map(str, replicas))}, and what is given to "
                "the replay cannot be: give it the Downpour, and a trainer that names no replica"
            )
        self.dealt.update((str(part.name), part) for part in parts)

    def _going_on(self, recipe: Training | Evaluation, epochs: int) -> Training | Evaluation:
        return replace(recipe, batches=skip_epochs(recipe.batches, epochs, self.record.header["seed"]))

    def _repeat(self, address: str, key: str, now_s: float, digest: str) -> None:
        self.result.messages += 1
        cell = self.cells.get(address)
        if cell is None or not cell.waiting[key]:
            self._differ(address, key, "then it was handled; now it never came")
        self.heard.begin()
        self._handle(cell, cell.waiting[key].popleft(), now_s)
        if str(self.heard.digest) != digest:
            failed = None if self.heard.error is None else f"it failed: {explain(self.heard.error)}"
            self._differ(address, key, failed or "it led to something else than it did then")

    def _send(self, sender: _Cell, to: str, message: Message) -> None:
        self._put(to, message)

    def _put(self, to: str, message: Message) -> None:
        if to in self.cells:
            self.cells[to].waiting[key_of(message)].append(message)

    def _after(self, cell: _Cell, seconds: float, message: Message) -> None:
        self._put(cell.actor.address, message)

    def _report(self, record: Any) -> None:
        if isinstance(record, GateLeft):
            self.result.states[record.address] = record.state
        elif isinstance(record, EpochDone | RoundDone):
            self.result.reports.append(record)

    def _remove(self, cell: _Cell) -> None:
        del self.cells[cell.actor.address]

    def _fail(self, cell: _Cell, doing: str, error: BaseException, batch: Batch | None = None) -> None:
        """It failed then, too, or its digest tells; but a ``KeyboardInterrupt`` is the user's of now."""
        if not isinstance(error, Exception | SystemExit):
            raise error

    def _differ(self, address: str, key: str, how: str) -> NoReturn:
        why = "; ".join(self.suspects) or (
            "nothing known of has changed: a module with randomness of its own (ak.nn has seeded ones), "
            "another optimizer, or other data"
        )
        raise ReplayError(
            f"message {self.result.messages} of the record, {key} at {address}: {how}. Not as it was: {why}"
        )


class _Listener:
    """Takes the digest of what each message leads to, as the recorder did."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another message."""
        self.digest = Digest()
        self.error: BaseException | None = None

    def listen(self, actor: Actor, message: Message, now_s: float) -> Iterator[Effect]:
        """An actor handles a message."""
        try:
            for effect in actor.receive(message, now_s):
                self.digest.add(effect)
                yield effect
        except (Exception, SystemExit) as error:
            self.digest.add(error)
            self.error = error
            raise
