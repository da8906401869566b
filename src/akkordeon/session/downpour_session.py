"""A running Downpour: a session whose recipe has many rows to train, which come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Self, TypeVar, cast, overload

from akkordeon.core.addresses import free_name
from akkordeon.core.checks import require_timeout
from akkordeon.core.errors import ActorFailedError, NameTakenError, RecipeError
from akkordeon.core.reports import BatchCount, BatchRefused, BestKept, EpochDone, RoundDone, TrainingProgress
from akkordeon.core.streams.reports import StreamReport
from akkordeon.downpour.recipe import Downpour
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.sentinels.roles import TRAIN
from akkordeon.session.attachment import Attachment
from akkordeon.session.session import Session
from akkordeon.session.topology import ReplicaTopology

__all__ = ["Attachments", "DownpourSession"]

AnyReport = TypeVar("AnyReport", EpochDone, TrainingProgress)


class Attachments(Sequence[Attachment]):
    """The sentinels of one recipe, one for each replica; together they offer what one attachment does.

    Args:
        name: of all of them: ``NAME-0`` trains replica 0, and so on.
        members: in the order of their replicas.
        session: where they are attached.
    """

    role = TRAIN
    rounds: Sequence[RoundDone] = ()
    stream: Sequence[StreamReport] = ()
    rounds_done = 0
    best: BestKept | None = None
    result = None

    def __init__(self, name: str, members: Sequence[Attachment], session: Session) -> None:
        self.name = name
        self._members = tuple(members)
        self._session = session

    @overload
    def __getitem__(self, i: int) -> Attachment: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Attachment]: ...
    def __getitem__(self, i: int | slice) -> Attachment | Sequence[Attachment]:
        return self._members[i]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._members)

    @property
    def ended(self) -> bool:
        """Whether all have."""
        return all(member.ended for member in self._members)

    @property
    def batches(self) -> BatchCount:
        """Where the batches of all of them went; final once they have ended."""
        return sum((member.batches for member in self._members), BatchCount())

    @property
    def epochs(self) -> list[EpochDone]:
        """One record for each epoch that all have been through, or have ended before."""
        found: dict[int, list[EpochDone]] = {}
        for member in self._members:
            for record in list(member.epochs):
                found.setdefault(record.epoch, []).append(record)
        under_way = [member.epochs_done for member in self._members if not member.ended]
        last = min(under_way, default=max(found, default=0))
        return [_epoch_together(self.name, found[number]) for number in sorted(found) if number <= last]

    @property
    def epochs_done(self) -> int:
        """How many epochs all have been through, or have ended before."""
        under_way = [member.epochs_done for member in self._members if not member.ended]
        return min(under_way, default=max(member.epochs_done for member in self._members))

    @property
    def progress(self) -> TrainingProgress | None:
        """What they told last within the earliest epoch that any told of; None before the first report."""
        told = [member.progress for member in self._members if member.progress is not None]
        epoch = min((record.epoch for record in told), default=0)
        told = [record for record in told if record.epoch == epoch]
        if not told:
            return None
        return replace(_together(self.name, told), batches=sum(record.batches for record in told))

    @property
    def refusals(self) -> list[BatchRefused]:
        """What was refused of any of them, each as far as it is kept."""
        return [refusal for member in self._members for refusal in list(member.refusals)]

    @property
    def samples(self) -> int:
        """Of all epochs of all of them."""
        return sum(member.samples for member in self._members)

    @property
    def samples_wanted(self) -> int | None:
        """Those that all of them are to train; None as long as nobody knows, and for other roles."""
        wanted = [member.samples_wanted for member in self._members]
        known = [samples for samples in wanted if samples is not None]
        return sum(known) if len(known) == len(wanted) else None

    @property
    def seconds(self) -> float:
        """That the epochs took whoever took longest."""
        return max(member.seconds for member in self._members)

    @property
    def stopped(self) -> bool:
        """Whether any was told to end before it was done."""
        return self.ended and any(member.stopped for member in self._members)

    @property
    def error(self) -> ActorFailedError | None:
        """Why the first of those failed that did; ``errors`` has all."""
        return next(iter(self.errors.values()), None)

    @property
    def errors(self) -> dict[int, ActorFailedError]:
        """Why some of them failed, by replica."""
        return {
            cast(Training, member.recipe).replica or 0: member.error
            for member in self._members
            if member.error is not None
        }

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until all have ended.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            ActorFailedError: the first failure, after the others have ended.
            WaitTimeoutError: they have not ended by then; they go on.
        """
        self._session._wait(lambda: self.ended, timeout, f"{self.name!r} have not ended")
        failed = [member for member in self._members if member.error is not None]
        for member in reversed(failed):
            member._error_is_known = True  # ``errors`` has them all
        if failed:
            failed[0]._raise_error()
        return self

    def detach(self, drop: bool = False) -> None:
        """Have all of them send nothing new and end; see :meth:`Session.detach`."""
        for member in self._members:
            member.detach(drop)

    def restart(self) -> Self:
        """Have those go on that have failed; see :meth:`Attachment.restart`."""
        for member in self._members:
            if member.error is not None:
                member.restart()
        return self

    def best_states(self) -> None:
        """None: those that train keep no best weights; whoever validates with ``Best`` does."""

    def __repr__(self) -> str:
        at_work = sum(not member.ended for member in self._members)
        how = f"{at_work} at work" if at_work else "ended"
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"<Attachments {self.name!r}: train, {len(self)} replicas, {how}{failed}>"


def _together(name: str, records: Sequence[AnyReport]) -> AnyReport:
    """What several sentinels report, as one report: means count by samples."""
    samples = [record.samples for record in records]

    def mean(values: Iterable[float], of_none: float = float("nan")) -> float:
        counted = sum(value * n for value, n in zip(values, samples, strict=True) if n)
        return counted / sum(samples) if any(samples) else of_none

    return replace(
        records[0],
        sentinel=name,
        loss=mean(record.loss for record in records),
        scores={score: mean(record.scores[score] for record in records) for score in records[0].scores},
        samples=sum(samples),
        seconds=max(record.seconds for record in records),
        staleness_mean=mean((record.staleness_mean for record in records), of_none=0.0),
        staleness_max=max(record.staleness_max for record in records),
        refused=sum(record.refused for record in records),
    )


def _epoch_together(name: str, records: Sequence[EpochDone]) -> EpochDone:
    counts = sum((record.batches_so_far for record in records), BatchCount())
    return replace(_together(name, records), batches_so_far=counts)


class DownpourSession(Session):
    """A running Downpour. Every method may be called from any thread.

    What validates, tests, predicts or fetches weights sees the master weights of the shards. A shard that
    fails ends the session; a replica that fails costs its own work alone: its sentinels end with the
    error, and the others go on.
    """

    network: Downpour
    _topology: ReplicaTopology

    @property
    def replicas(self) -> tuple[int, ...]:
        """The replicas that live."""
        return self._topology.replicas

    # ── sentinels ────────────────────────────────────────────────────────────────────────────────────

    @overload  # type: ignore[override]  # one that trains becomes one for each replica
    def attach(self, sentinel: Training) -> Attachments: ...
    @overload
    def attach(self, sentinel: Evaluation) -> Attachment: ...
    def attach(self, sentinel: Training | Evaluation) -> Attachments | Attachment:
        """Have a sentinel join.

        One that trains is attached once for each replica, with a part of the batches each, as ``NAME-0``,
        ``NAME-1``, …; ``samples`` is for all together. With ``replica=i`` all of it goes to that replica.

        Raises:
            DataError: the batches cannot be dealt out.
            NameTakenError: a sentinel of that name is at work.
            RecipeError: there is no such replica, or none at all.
            SessionClosedError: the session has ended.
            GateFailedError: a shard has failed.
        """
        return self.attach_all([sentinel])[0]

    def attach_all(  # type: ignore[override]  # one that trains becomes one for each replica
        self, sentinels: Sequence[Training | Evaluation]
    ) -> Sequence[Attachments | Attachment]:
        """Have several sentinels join at one moment; see :meth:`Session.attach_all` and :meth:`attach`."""
        dealt: list[tuple[str | None, Sequence[Training | Evaluation]]] = []
        for sentinel in sentinels:
            dealt.append(self._dealt(sentinel, {name for name, _ in dealt if name is not None}))
        members = iter(self._attach([part for _, parts in dealt for part in parts]))
        groups = [(name, [next(members) for _ in parts]) for name, parts in dealt]
        return [found[0] if name is None else Attachments(name, found, self) for name, found in groups]

    def _dealt(
        self, sentinel: Training | Evaluation, joining: set[str]
    ) -> tuple[str | None, Sequence[Training | Evaluation]]:
        """A name for all, and a sentinel for each replica; no name where there is one sentinel in all.

        Args:
            sentinel: to be dealt.
            joining: the names of those that join at the same moment.
        """
        if not isinstance(sentinel, Training):
            return None, [sentinel]
        if sentinel.replica is not None:
            self._check_replica(sentinel.replica)
            return sentinel.name or str(sentinel.role), [sentinel]
        self._check_open()
        if not self.replicas:
            raise RecipeError("no replica is left; add one with session.add_replica()")
        at_work = {a.name for a in self._registry.at_work()}
        begun = {name.rpartition("-")[0] for name in at_work}
        name = sentinel.name or free_name(str(sentinel.role), begun | joining, joint="")
        sentinel = self._registry.epochs_read.going_on(replace(sentinel, name=name), self.seed)
        parts = self._topology.deal(sentinel, self.replicas, self.seed)
        self._registry.epochs_read.derive([part.batches for part in parts], sentinel.batches)
        taken = ", ".join(repr(part.name) for part in parts if part.name in at_work)
        if taken:
            raise NameTakenError(f"sentinels {taken} are at work already; give these another name")
        return name, parts

    def _check_replica(self, replica: int) -> None:
        if replica not in self.replicas:
            known = ", ".join(map(str, self.replicas)) or "none"
            raise RecipeError(f"there is no replica {replica!r}; there are {known}")

    # ── replicas ─────────────────────────────────────────────────────────────────────────────────────

    def add_replica(self) -> int:
        """Have one replica more; it starts from the shards' weights. Give it a sentinel by its number.

        Returns:
            Its number, never used before.

        Raises:
            SessionClosedError: the session has ended.
        """
        self._check_open()
        replica = self._topology.new_replica()
        if self._recorder is not None:
            self._recorder.joined(replica)
        try:
            spawns = self._topology.replica_spawns(replica, self.seed)
            self._engine.spawn_all(self._supervisor.recovery.keep(spawns))
        except BaseException:
            self._supervisor.remove_replica(replica, drained=True)
            raise
        return replica

    def remove_replica(self, replica: int, *, drop: bool = False, timeout: float | None = None) -> None:
        """Have a replica leave, after its sentinels have ended.

        Args:
            replica: its number.
            drop: forget its batches in flight instead of waiting for them; they count as lost.
            timeout: seconds to wait for its sentinels.

        Raises:
            RecipeError: there is no such replica.
            WaitTimeoutError: its sentinels have not ended by then; they go on to.
        """
        require_timeout(timeout)
        self._check_replica(replica)
        trainers = self._registry.at_work(self._topology.replica_row(replica))
        for trainer in trainers:
            trainer.detach(drop)
        what = f"the sentinels of replica {replica} have not ended"
        self._wait(lambda: all(trainer.ended for trainer in trainers), timeout, what)
        self._supervisor.remove_replica(replica, drained=True)
