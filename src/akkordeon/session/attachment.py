"""What a user holds of a sentinel that was attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from torch import Tensor

from akkordeon.core.errors import ActorFailedError, SessionError, again
from akkordeon.core.messages import Detach, Due, Message
from akkordeon.core.plain_state import PlainState
from akkordeon.core.reports import BatchCount, BatchRefused, BestKept, EpochDone, RoundDone, TrainingProgress
from akkordeon.core.streams.reports import StreamReport
from akkordeon.data.sources import samples_of
from akkordeon.sentinels.recipes import Sentinel
from akkordeon.sentinels.roles import Role

__all__ = ["KEPT_MAX", "Attachment", "ParentSession"]

KEPT_MAX = 1000
"""Records of epochs, rounds and refusals kept of each sentinel."""

SentinelReport = EpochDone | RoundDone | TrainingProgress | StreamReport | BestKept | BatchRefused
"""What a sentinel reports of its work, and its attachment keeps."""


class ParentSession(Protocol):
    """What an attachment asks of its session."""

    def _wait(
        self, condition: Callable[[], bool], timeout: float | None, what: str, *, drain: bool = True
    ) -> None:
        """Wait for a condition; raise ``what`` if it does not come. ``drain``: until watchers know, too."""

    def _send(self, to: str, message: Message) -> None:
        """Carry a message to an actor."""

    def _restart(self, attachment: Attachment) -> None:
        """Have a sentinel that has failed go on."""

    def _ask(self, attachment: Attachment) -> None:
        """Have a sentinel tell how it is, if it does within a moment."""

    def _states_of(self, kept: BestKept | None) -> dict[str, dict[str, Tensor]] | None:
        """The weights that were kept, as the session's users are given them."""


@dataclass(eq=False, repr=False)
class Attachment:
    """A sentinel that was attached: what it reported so far, and how to wait for it.

    Attributes:
        name: as in reports.
        row: whom it talks to, head first.
        role: what it is for; a string, ``train``, ``stream``, ``validate``, ``test`` or ``predict``.
        recipe: the sentinel; without its batches once it has ended, if it cannot be restarted.
        epochs: of a training sentinel, one record each; the latest 1000.
        rounds: of a validation or test sentinel, one record each; likewise.
        progress: of a training sentinel, the latest report from within an epoch.
        stream: of a sentinel that learns from a stream, how well that was predicted; the latest 1000 reports.
        refusals: the first 1000.
        epochs_done: of a training sentinel, how many there were.
        rounds_done: of a validation or test sentinel, likewise.
        samples: of all epochs, or of all rounds.
        seconds: likewise.
        best: the best round's weights, if it keeps them.
        ended: whether it is at work no more, and does not come back by itself.
        error: why it failed, if it did.
    """

    name: str
    role: Role
    address: str
    recipe: Sentinel
    row: tuple[str, ...]
    _session: ParentSession
    epochs: list[EpochDone] = field(default_factory=list)
    rounds: list[RoundDone] = field(default_factory=list)
    progress: TrainingProgress | None = None
    stream: list[StreamReport] = field(default_factory=list)
    refusals: list[BatchRefused] = field(default_factory=list)
    epochs_done: int = 0
    rounds_done: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: BestKept | None = None
    ended: bool = False
    error: ActorFailedError | None = None
    result: Any = None
    _batches: BatchCount = field(default_factory=BatchCount)
    _data: PlainState = field(default_factory=dict)  # their fingerprint
    _epochs_before: int = 0  # that others had read of its data
    _state: PlainState | None = None  # what another could go on from, once it has ended
    _saved: PlainState | None = None  # likewise, as it was told last
    _has_begun: bool = False  # its actor was made, and is told of changes of the row
    _told_to_end: bool = False
    _cut_short: bool = False
    _error_is_known: bool = False
    _comes_back: bool = False  # it has failed, and goes on by itself
    _last_round_due: bool = False

    @property
    def batches(self) -> BatchCount:
        """Where its batches went. While it is at work it is asked, and has a moment to answer."""
        if not (self.ended or self._comes_back):
            self._session._ask(self)
        return self._batches

    @property
    def stopped(self) -> bool:
        """Whether it was told to end before it was done: detached, for want of better rounds, or closed."""
        return self.ended and self._told_to_end and (self._cut_short or not self.role.trains)

    @property
    def samples_wanted(self) -> int | None:
        """The samples that a training sentinel is to train; None as long as nobody knows, and for others."""
        recipe: Any = self.recipe
        if not self.role.trains or recipe.samples is not None or recipe.epochs is None:
            return recipe.samples if self.role.trains else None
        per_epoch = samples_of(recipe.batches) or (self.epochs[0].samples if self.epochs else None)
        return per_epoch * recipe.epochs if per_epoch else None

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the sentinel has ended.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            ActorFailedError: it failed, or a gate did; the original error is its ``__cause__``.
            WaitTimeoutError: it has not ended by then; it goes on.
        """
        what = f"{self.name!r} has not ended"
        self._session._wait(lambda: self.ended, timeout, what, drain=not self.role.answers)
        self._raise_error()
        return self

    def detach(self, drop: bool = False) -> None:
        """Have it send nothing new and end, if it has not; see :meth:`Session.detach`."""
        if not self.ended:
            self._session._send(self.address, Detach(drop))

    def restart(self) -> Self:
        """Have it go on where it was, if it trains or validates and has failed.

        Batches that were under way when it failed are lost; all others of its data are trained as often as
        if nothing had happened. Of one that was killed the gates know what they have learned from: all else
        is trained, what was under way too. Where it has not ended yet, as gates are being asked, this waits.

        Raises:
            SessionError: it is at work, or ended well, or has another role, or the run is recorded.
            NameTakenError: another of its name is at work.
            RecipeError: its replica is gone, or there is no room for its batches any more.
            SessionClosedError: the session has ended.
        """
        if self.error is not None and not self.ended:
            what = f"{self.name!r} has not ended"
            self._session._wait(lambda: self.ended or self.error is None, None, what)
        if not self._may_restart:
            how = "has not failed" if self.role.has_place else f"is to {self.role}: attach it again"
            raise SessionError(
                f"only what trains or validates and has failed is restarted; {self.name!r} {how}"
            )
        self._session._restart(self)
        return self

    @property
    def _may_restart(self) -> bool:
        return self.ended and self.error is not None and self.role.has_place

    def best_states(self) -> dict[str, dict[str, Tensor]] | None:
        """The weights of its best round, as ``session.states()`` has them; None if it kept none."""
        return self._session._states_of(self.best)

    @property
    def _done_in_words(self) -> str:
        """How many epochs or rounds are done, of how many, as in ``3 of 10 epochs``."""
        done, what = (self.epochs_done, "epochs") if self.role.trains else (self.rounds_done, "rounds")
        of = getattr(self.recipe, "epochs", None)
        return f"{done} of {of} {what}" if of else f"{done} {what}"

    def __repr__(self) -> str:
        how = "at work"
        if self.ended:
            how = "failed" if self.error else "stopped" if self.stopped else "ended"
        return f"<Attachment {self.name!r}: {self.role}, {self._done_in_words}, {how}>"

    # ── what its session tells it ────────────────────────────────────────────────────────────────────

    def _note(self, record: SentinelReport) -> None:
        """It has reported this."""
        if isinstance(record, EpochDone):
            _append(self.epochs, record)
            self.epochs_done += 1
            self._batches = record.batches_so_far
        elif isinstance(record, RoundDone):
            _append(self.rounds, record)
            self.rounds_done += 1
        elif isinstance(record, TrainingProgress):
            self.progress = record
        elif isinstance(record, StreamReport):
            _append(self.stream, record)
        elif isinstance(record, BestKept):
            self.best = record
        elif len(self.refusals) < KEPT_MAX:
            self.refusals.append(record)
        if isinstance(record, EpochDone | RoundDone):
            self.samples += record.samples
            self.seconds += record.seconds

    def _go_on_from(self, start: PlainState) -> None:
        """It goes on where another of its name was, in a run before."""
        self._epochs_before = start["before"]
        self.samples, self.seconds = start.get("samples", 0), start.get("seconds_of_all", 0.0)
        if self.role.trains:
            self.epochs_done, self._batches = start["epochs"], BatchCount(*start["batches"])
        else:
            self.rounds_done = start.get("rounds", 0)
        kept = start.get("best_kept")
        if kept is not None:
            self.best = BestKept(self.name, kept["round"], kept["value"], kept["states"])

    def _end(self, batches: BatchCount | None = None, result: Any = None, cut_short: bool = False) -> None:
        """It has ended; without its last count, what was under way is lost."""
        self._cut_short = cut_short or batches is None
        if batches is None:
            known = self._batches
            batches = replace(known, lost=known.sent - known.trained - known.refused)
        self._batches, self.result, self.ended = batches, result, not self._comes_back
        if self.ended and not self._may_restart:
            self.recipe = replace(self.recipe, batches=())  # its data may be large, and names outlive it

    def _begin_again(self, start: PlainState | None) -> None:
        """It is at work again, from there."""
        self.error, self._state = None, None
        self.ended = self._told_to_end = self._cut_short = self._error_is_known = self._comes_back = False
        if start is not None and self.role.trains:
            self._saved = start  # until it tells itself where it is
            self.epochs_done, self._batches = start["epochs"], BatchCount(*start["batches"])

    def _make_last_round(self) -> None:
        """Have one that makes one round after another make a last one."""
        self._last_round_due = True
        self._session._send(self.address, Due(last=True))

    def _raise_error(self) -> None:
        """Raise the error it failed with, anew: one that is raised again and again grows."""
        if self.error is not None:
            self._error_is_known = True
            raise again(self.error)


def _append(records: list[Any], record: Any) -> None:
    records.append(record)
    if len(records) > KEPT_MAX:
        del records[:-KEPT_MAX]
