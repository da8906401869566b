"""From recipes to actors at work: the network's are made, sentinels are named, made, and told to begin."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from akkordeon.core.addresses import free_name, reader_of
from akkordeon.core.checkpoint_messages import GoOn, Joined
from akkordeon.core.errors import DataError, SessionError
from akkordeon.core.messages import Attach, Close, Due, Message
from akkordeon.core.plain_state import PlainState
from akkordeon.core.reports import CheckpointTaken
from akkordeon.core.streams.messages import Kept
from akkordeon.data.fingerprint import difference, fingerprint
from akkordeon.engines.base import Engine
from akkordeon.pipeline.gate import Gate
from akkordeon.sentinels.factory import make_actors, require_recipes
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.sentinels.roles import STREAM
from akkordeon.session.attachment import Attachment, ParentSession
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.recovery.absence import start_of
from akkordeon.session.recovery.checkpoint import Checkpoint, checkpoint_of
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.session.registry import Registry
from akkordeon.session.streams.live_row import shadow_of
from akkordeon.session.surgery.pauses import Pauses
from akkordeon.session.topology import RowTopology

__all__ = ["Launcher", "say_what_is_cut_short"]


NAMED_MAX = 5
"""Sentinels named in a warning; of more it is said how many."""


class Launcher:
    """Has the actors of a network made, and sentinels join it.

    Args:
        engine: makes their actors.
        topology: says whom they talk to.
        registry: gives them names.
        pauses: has them begin.
        recorder: hears who joins.
        seed: of the session.
        resume: what sentinels go on from, where the run is taken up from a checkpoint.
    """

    def __init__(
        self,
        engine: Engine,
        topology: RowTopology,
        registry: Registry,
        pauses: Pauses,
        recorder: Recorder | None,
        seed: int,
        resume: Checkpoint | None,
    ) -> None:
        self._engine = engine
        self._topology = topology
        self._registry = registry
        self._pauses = pauses
        self._recorder = recorder
        self._seed = seed
        self._stages = None if resume is None else resume.stages_for(topology.network)
        self._starts = {} if resume is None else dict(resume.sentinels)
        self._random = None if resume is None else resume.session["random"]
        self._keeps = resume is not None  # it has had checkpoints, or has somebody who takes them
        self._started: set[str] = set()  # addresses
        self._taken_up: set[str] = set()  # names

    def stage(self, on_report: Callable[[Any], None], recovery: GateRecovery) -> None:
        """Start the engine, and have it make the actors of the network.

        Args:
            on_report: hears of everything.
            recovery: brings gates back.
        """
        engine, recorder = self._engine, self._recorder
        of_another, engine.recorder = engine.recorder, recorder
        try:
            engine.check_row(self._topology.row)
            engine.start(on_report, self._seed)
        except BaseException:  # the engine may carry another session
            engine.recorder = of_another
            if recorder is not None:
                recorder.close()
            raise
        try:
            spawns = self._topology.spawns(self._seed, self._stages)
            engine.spawn_all(recovery.keep(spawns, self._stages))
        except BaseException:
            engine.stop()
            raise

    def launch(self, sentinels: Sequence[Training | Evaluation], session: ParentSession) -> list[Attachment]:
        """Have sentinels begin at one moment, all or none of them.

        Raises:
            AkkordeonError: one is none, or cannot join.
        """
        require_recipes("attach", sentinels)
        placed: list[Attachment] = []
        try:
            for sentinel in sentinels:
                placed.append(self._place(sentinel, session))
        except BaseException:
            for attachment in placed:
                self._withdraw(attachment)
            raise
        _say_if_nothing_learns(self._topology.network.gates, sentinels)
        self._record(placed)
        self._keeps |= any(a.role.keeps for a in placed)
        kept = [(a.address, Kept()) for a in placed if a.role == STREAM and self._keeps]
        attach = [(a.address, Attach()) for a in placed]
        self._pauses.begin(placed, [*self._to_keepers(placed), *kept, *attach])
        started = [a.address for a in placed if a.address in self._started]
        if not started:
            return placed
        random, self._random = self._random, None
        if not any(a.role.keeps and a.address in self._started for a in placed):
            if random is not None:
                torch.set_rng_state(random)
            self._pauses.begin((), [(address, GoOn()) for address in started])
        return placed

    def checkpoint(self, taken: CheckpointTaken, epochs_done: int) -> Checkpoint:
        """What was kept, with what the session knows; those that have not joined yet keep their places.

        Args:
            taken: of the gates, and of sentinels at work.
            epochs_done: of all sentinels together.
        """
        return checkpoint_of(taken, self._registry, epochs_done, self._seed, self._starts)

    def restart(self, attachment: Attachment) -> None:
        """Have a sentinel that has failed go on where it was.

        Raises:
            AkkordeonError: it cannot.
        """
        if self._recorder is not None:
            raise SessionError(f"{attachment.name!r} cannot be restarted: the run is recorded")
        self._topology.row_for(attachment.recipe)
        start = start_of(attachment, attachment._state)
        self._registry.restore(attachment)
        left = attachment.error, attachment._state, attachment._comes_back, attachment._batches
        attachment._begin_again(start)
        try:
            self.relaunch({attachment: start})
        except BaseException:
            attachment.error, attachment._state, attachment._comes_back, batches = left
            self._registry.mark_ended(attachment, batches)
            raise

    def relaunch(self, starts: Mapping[Attachment, PlainState | None]) -> None:
        """Have sentinels at work, whose actors are no more, go on from there in actors made anew."""
        for attachment, start in starts.items():
            recipe = attachment.recipe
            assert isinstance(recipe, Training | Evaluation), "a session attaches nothing else"
            self._make(recipe, attachment, start)
        begin = [(attachment.address, Attach()) for attachment in starts]
        go_on = [(attachment.address, GoOn()) for attachment, start in starts.items() if start is not None]
        last = [(attachment.address, Due(last=True)) for attachment in starts if attachment._last_round_due]
        self._pauses.begin([*starts], [*self._to_keepers([*starts]), *begin, *go_on, *last])

    def _make(
        self, sentinel: Training | Evaluation, attachment: Attachment, start: PlainState | None
    ) -> None:
        """Have the actors of a sentinel made, the reader first."""
        saves = self._engine.may_lose and self._recorder is None  # in a record nobody goes on
        what = attachment.address, attachment.name, attachment.row, self._seed, start, saves
        how = shadow_of(self._topology.network, self._seed), self._topology.schedule
        for spawn in make_actors(sentinel, *what, *how):
            self._engine.spawn(spawn, beside=self._topology.place_beside(sentinel))

    def _to_keepers(self, placed: Sequence[Attachment]) -> Iterator[tuple[str, Message]]:
        """Tell those that take checkpoints of whom they are to ask; those that come, of all."""
        for keeper in self._registry.keepers():
            known = placed if keeper not in placed else self._registry.at_work()
            for attachment in known:
                if attachment.role.has_place:
                    yield keeper.address, Joined(attachment.address)

    def _place(self, sentinel: Training | Evaluation, session: ParentSession) -> Attachment:
        """Have the actors of a sentinel made; they do nothing before they are told."""
        read, number, data = self._registry.epochs_read, None, fingerprint(sentinel.batches)
        name, start = self._start_of(sentinel, data)
        if start is None:
            sentinel = read.going_on(sentinel, self._seed)
        else:
            number = int(start["address"].rpartition("#")[2])
            following = read.taken_up(sentinel.batches, start["before"], self._seed)
            sentinel = replace(sentinel, name=name, batches=following)
        if isinstance(sentinel, Evaluation) and sentinel.role.keeps:
            sentinel = replace(sentinel, at_rest=self._engine.is_repeatable)
            if start is not None:  # who comes later finds the generator where it is
                start = {**start, "random": self._random}
        attachment = self._registry.register(sentinel, self._topology.row_for(sentinel), session, number)
        if start is not None:
            self._started.add(attachment.address)
            attachment._go_on_from(start)
        attachment._data, attachment._epochs_before = data, read.before(sentinel.batches)
        try:
            self._make(sentinel, attachment, start)
        except BaseException:
            self._withdraw(attachment)
            raise
        return attachment

    def _start_of(self, sentinel: Training | Evaluation, data: PlainState) -> tuple[str, PlainState | None]:
        """What it goes on from, and under which name; the next of that name begins anew.

        One without a name has the one that it was given in the run before, where others were given theirs
        in the same order.
        """
        taken = self._taken_up.union(a.name for a in self._registry.at_work())
        name = sentinel.name or free_name(str(sentinel.role), taken)
        start = self._starts.get(name)
        if start is None or start["role"] != sentinel.role:
            return name, None
        _refuse_other_data(name, start["data"], data)
        del self._starts[name]
        self._taken_up.add(name)
        return name, start

    def _record(self, placed: Sequence[Attachment]) -> None:
        """Only now: of those that come with one that is refused, a record says nothing."""
        if self._recorder is not None:
            for attachment in placed:
                before = self._registry.epochs_read.before(attachment.recipe.batches)
                self._recorder.attached(attachment.address, attachment.name, attachment.recipe, before)

    def _withdraw(self, attachment: Attachment) -> None:
        """As if it had never been placed."""
        self._registry.withdraw(attachment)
        for address in (attachment.address, reader_of(attachment.address)):
            if self._recorder is not None:
                self._recorder.withdrawn(address)
            self._engine.send(address, Close())


def _refuse_other_data(name: str, kept: PlainState, here: PlainState) -> None:
    """A place in data says nothing of others.

    Raises:
        DataError: they are others, with what differs.
    """
    differs = difference(kept, here)
    if differs is not None:
        raise DataError(
            f"the checkpoint has a place in other data than {name!r} has now: {differs}; give it the data "
            "of the checkpoint, or another name, under which it begins anew"
        )


def _say_if_nothing_learns(gates: Sequence[Gate], sentinels: Sequence[Training | Evaluation]) -> None:
    """A forgotten optimizer would pass for training that gets nowhere."""
    trains = any(isinstance(sentinel, Training) for sentinel in sentinels)
    if trains and all(gate.optimizer is None for gate in gates):
        logging.getLogger(__name__).warning(
            "no gate has an optimizer, so training changes no weights; Gate(module, optimizer) has one"
        )


def say_what_is_cut_short(at_work: Sequence[Attachment]) -> None:
    """Leaving a session's block ends everything; who did not mean that should know."""
    cut_short = [a for a in at_work if a.role.trains and not a._told_to_end]
    if cut_short:
        named = [f"{a.name!r} after {a._done_in_words}" for a in cut_short[:NAMED_MAX]]
        named += [f"and {len(cut_short) - NAMED_MAX} more"] if len(cut_short) > NAMED_MAX else []
        logging.getLogger(__name__).warning(
            "the session ends before its training does (%s); session.wait() waits for the end",
            ", ".join(named),
        )
