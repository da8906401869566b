"""A sentinel that keeps all that a run can be taken up from.

    Due ─▶ [Locate, hold ─▶ sentinels ─▶ Located, at rest]                       where a run is repeatable
        ─▶ Cut, whole ─▶ …row, tail to head… ─▶ Cut: the batches that are in the weights
        ─▶ Locate ─▶ sentinels ─▶ Located: where each goes on
        ─▶ Export ─▶ every gate ─▶ Exported
        ─▶ Release to every gate, GoOn to every sentinel, and a CheckpointTaken

Training goes on meanwhile. Only where a run can be repeated to the bit do its sentinels come to rest first,
for a moment: then there is nothing under way that would be lost, and a run that is taken up from here goes
the way of this one. It begins by telling everybody to go on, as this one does now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from akkordeon.core.actor import After, Effect, Report, Send, Stop
from akkordeon.core.checkpoint_messages import GoOn, Joined, Locate, Located, Parted
from akkordeon.core.messages import (
    Attach,
    Cut,
    CutId,
    Detach,
    Due,
    Export,
    Exported,
    Forget,
    Release,
    Tick,
    Watch,
)
from akkordeon.core.plain_state import Applied, PlainState, StageState
from akkordeon.core.recovery.messages import ForgetBefore, Restarted
from akkordeon.core.reports import CheckpointTaken
from akkordeon.sentinels.base import SentinelActor
from akkordeon.sentinels.recipes import Evaluation

__all__ = ["Checkpointer"]


class Checkpointer(SentinelActor[None]):
    """The actor of :meth:`Sentinel.checkpoint` and of ``session.checkpoint()``.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader, which has nothing to read.
        recipe: the sentinel.
        start: what it goes on from: the run was taken up from a checkpoint, and all wait to be told to go on.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Evaluation,
        start: PlainState | None = None,
    ) -> None:
        super().__init__(address, name, row, reader, recipe.role, in_flight=1)
        self._recipe = recipe
        self._members: dict[str, None] = {}
        self._versions: dict[str, int] = {}
        self._applied: dict[str, Applied] | None = None  # of its members' batches
        self._expected: set[str] = set()  # who is still to say where it is
        self._located: dict[str, PlainState] = {}
        self._stages: dict[str, StageState] = {}
        self._random: torch.Tensor | None = None
        self._taken_last: CheckpointTaken | None = None
        self._due: Due | None = None
        self._ending = not recipe.role.repeats
        self._starts = start is not None
        if start is not None:
            self._rounds, self._random = start["rounds"], start["random"]
            self._due = Due() if start["due"] else None
        self._handlers |= {
            Attach: self._attach,
            Joined: self._joined,
            Parted: self._parted,
            Tick: self._tick,
            Due: self._round_due,
            Located: self._sentinel_located,
            Cut: self._pinned,
            Exported: self._exported,
            Restarted: self._restarted,
            Detach: self._detach,
        }

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, message: Attach, now_s: float) -> Iterator[Effect]:
        if self._recipe.every_s is not None:
            yield After(self._recipe.every_s, Tick())
        if self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, self._recipe.every_updates))
        if self._starts:
            yield from self._begin()
        elif not self._recipe.role.repeats:
            self._due = Due()
            yield from self._next()

    def _joined(self, message: Joined, now_s: float) -> Iterator[Effect]:
        self._members[message.sentinel] = None
        yield from ()

    def _parted(self, message: Parted, now_s: float) -> Iterator[Effect]:
        self._members.pop(message.sentinel, None)
        if self._is_cutting and message.sentinel not in self._located:
            yield from self._begin_anew()  # it may have trained on after the cut: nobody knows how far
        else:
            yield from self._no_longer_expected(message.sentinel)

    @property
    def _is_cutting(self) -> bool:
        """Whether a cut was asked for, and not everybody has said yet where he is in it."""
        return self._cut is not None and bool(self._versions) == bool(self._expected)

    def _tick(self, message: Tick, now_s: float) -> Iterator[Effect]:
        if self._recipe.every_s is None:
            yield from self._refuse_message("a Tick, though its rounds do not come by the clock")
            return
        yield After(self._recipe.every_s, Tick())
        yield from self._round_due(Due(), now_s)

    def _round_due(self, message: Due, now_s: float) -> Iterator[Effect]:
        if self._cut is not None or self._rest:
            self._due = message if self._due is None or message.last else self._due
            return
        self._ending = self._ending or message.last
        yield from self._begin()

    # ── a checkpoint ─────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> Iterator[Effect]:
        self._cut = CutId(self.address, self._numbers)
        self._numbers += 1
        self._located, self._stages, self._applied, self._versions = {}, {}, None, {}
        if self._recipe.at_rest or self._starts:
            yield from self._ask({address: Locate(self.address, hold=True) for address in self._members})
        else:
            yield Send(self._row[-1], Cut(self._cut, whole=True))

    def _begin_anew(self) -> Iterator[Effect]:
        """Have no gate keep a cut, wherever it has come to; of one under way take another."""
        yield from self._to_all(ForgetBefore(self.address, self._numbers))
        if self._cut is not None:
            self._expected = set()
            yield from self._begin()

    def _ask(self, questions: dict[str, Locate]) -> Iterator[Effect]:
        self._expected = set(questions)
        for address, question in questions.items():
            yield Send(address, question)
        if not questions:
            yield from self._all_located()

    def _sentinel_located(self, message: Located, now_s: float) -> Iterator[Effect]:
        if self._versions and message.number != self._current.number:
            return  # of a cut that was given up
        if message.by in self._expected:
            self._located[message.by] = message.state
            yield from self._no_longer_expected(message.by)

    def _no_longer_expected(self, sentinel: str) -> Iterator[Effect]:
        if sentinel in self._expected:
            self._expected.discard(sentinel)
            if not self._expected:
                yield from self._all_located()

    def _all_located(self) -> Iterator[Effect]:
        if self._starts:
            yield from self._start()
        elif self._versions:
            yield from self._to_all(Export(self._current))
        else:  # they are at rest
            self._random = torch.get_rng_state()
            yield Send(self._row[-1], Cut(self._current, whole=True))

    @property
    def _current(self) -> CutId:
        assert self._cut is not None, "only called during a checkpoint"
        return self._cut

    def _pinned(self, message: Cut, now_s: float) -> Iterator[Effect]:
        if message.cut != self._cut or self._versions:
            return
        if len(message.versions) != len(self._row):
            yield from self._refuse_message(
                f"a cut that {len(message.versions)} gates have pinned, of {len(self._row)}"
            )
            return
        self._versions = dict(zip(reversed(self._row), message.versions, strict=True))
        if message.applied is not None:
            self._applied = {a: each for a, each in message.applied.items() if a in self._members}
        # Only now is it known of one that rests what fell due for it meanwhile, and who has come meanwhile.
        asked = Locate(self.address, number=message.cut.number, versions=message.versions)
        yield from self._ask({a: replace(asked, applied=self._applied_of(a)) for a in self._members})

    def _applied_of(self, sentinel: str) -> Applied | None:
        """Which of its batches are in the weights; None where nobody knows, as with shards."""
        return None if self._applied is None else self._applied.get(sentinel, Applied())

    def _exported(self, message: Exported, now_s: float) -> Iterator[Effect]:
        if message.cut != self._cut or message.gate not in self._versions:
            return
        if isinstance(message.learner, Exception):
            raise message.learner
        applied = self._applied or {} if message.gate == self._row[-1] else {}
        state = StageState(self._versions[message.gate], message.state, message.learner, applied)
        self._stages[message.gate] = state
        if len(self._stages) == len(self._row):
            yield from self._taken()

    def _taken(self) -> Iterator[Effect]:
        self._rounds += 1
        stages = {gate: self._stages[gate] for gate in self._row}
        is_due = self._due is not None
        taken = CheckpointTaken(self.name, self._rounds, stages, self._located, self._random, is_due)
        self._taken_last, self._stages, self._located = taken, {}, {}
        yield from self._let_go(self._recipe.at_rest)
        if self._recipe.role.repeats:
            self._taken_last = None
            yield Report(taken)
        yield from self._next()

    def _next(self) -> Iterator[Effect]:
        """Take the one that fell due meanwhile, or end if it is time."""
        if self._rest:
            return
        due, self._due = self._due, None
        self._ending = self._ending or (due is not None and due.last)
        if due is not None:
            yield from self._begin()
        elif self._ending:
            yield from self._end()

    def _let_go(self, was_held: bool) -> Iterator[Effect]:
        yield from self._to_all(Release(self._current))
        self._cut, self._versions = None, {}
        for address in self._members if was_held else ():
            yield Send(address, GoOn(self.address))

    def _start(self) -> Iterator[Effect]:
        """All are where they were when the checkpoint was taken: go on as it went on then."""
        self._starts = False
        if self._random is not None:
            torch.set_rng_state(self._random)
        yield from self._let_go(was_held=True)
        yield from self._next()

    def _restarted(self, message: Restarted, now_s: float) -> Iterator[Effect]:
        """A gate was made anew, which knows of no cut: watch the first again, and begin a checkpoint anew."""
        if message.gate == self._row[0] and self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, self._recipe.every_updates))
        yield from self._begin_anew()

    # ── ending and telling ───────────────────────────────────────────────────────────────────────────

    def _detach(self, message: Detach, now_s: float) -> Iterator[Effect]:
        """End; a checkpoint under way is finished first, unless it is to be dropped."""
        self._ending, self._due = True, None
        if self._cut is None or message.drop:
            yield from self._end()

    def _end(self) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """Leave no pin, no watch and nobody at rest behind."""
        if self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, 0))
        if self._cut is not None:
            yield from self._to_all(Forget(self.address))
            for address in self._members:
                yield Send(address, GoOn(self.address))
        yield from self._say_end(self._taken_last if self._recipe.role.answers else None)

    def _samples(self) -> tuple[int, int]:
        return 0, 0

    def _send(self, now_s: float) -> Iterator[Effect]:
        """Nothing is read here."""
        yield from ()

    def _state(self, asked: Locate) -> PlainState:
        return {"role": str(self._role), "rounds": self._rounds}

    def _come_to_rest(self, now_s: float) -> Iterator[Effect]:
        yield from ()

    def _begin_again(self, now_s: float) -> Iterator[Effect]:
        if self._cut is None:
            yield from self._next()
