"""What the actors of a session report, and what follows from it.

    EpochDone ─▶ Due to whoever validates by epochs        a sentinel failed ─▶ it ends, alone
    RoundDone ─▶ Detach to the trainers, if it says so     a gate failed ─────▶ the session ends

All else is kept for whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from akkordeon.core.checkpoint_messages import Locate, Parted
from akkordeon.core.errors import GateFailedError, SentinelFailedError, WaitTimeoutError, explain
from akkordeon.core.messages import Close, Detach, Due, Forget, Message, batch_of
from akkordeon.core.recovery.reports import Learned, SentinelSaved, StageSaved
from akkordeon.core.reports import (
    ActorFailed,
    ActorLost,
    BatchCount,
    BatchRefused,
    BestKept,
    ClusterLost,
    EpochDone,
    GateLeft,
    GateStatus,
    PeerRefused,
    RoundDone,
    SentinelEnded,
    SentinelStatus,
    ShardStatus,
    TrainingProgress,
    Undelivered,
)
from akkordeon.core.streams.reports import StreamReport
from akkordeon.engines.base import Engine
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.session.attachment import Attachment, SentinelReport
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.session.recovery.sentinels import SentinelRecovery
from akkordeon.session.registry import Registry
from akkordeon.session.topology import RowTopology

__all__ = ["Supervisor"]


class Supervisor:
    """Hears what every actor of a session reports.

    Args:
        topology: who is in the network.
        registry: who is attached.
        engine: carries them all.
        send: carries a message to an actor.
        tell: has those who look on see a record.
        recovery: how gates come back, if they do.
        resume: what the run goes on from.

    Attributes:
        recovery: brings gates back.
        gates: the latest status of each in the row, by address.
        sentinels: likewise, of those at work.
        answered: the latest probe of each address.
        left: what gates left behind when they ended, by address.
        lost: gates that left nothing.
        error: why the session cannot go on, if it cannot.
        epochs_done: of all sentinels together.
    """

    def __init__(
        self,
        topology: RowTopology,
        registry: Registry,
        engine: Engine,
        send: Callable[[str, Message], None],
        tell: Callable[[Any], None],
        recovery: Recovery | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        self.gates: dict[str, GateStatus] = {}
        self.sentinels: dict[str, SentinelStatus] = {}
        self.answered: dict[str, int] = {}
        self.left: dict[str, GateLeft] = {}
        self.lost: set[str] = set()
        self.error: GateFailedError | None = None
        self._topology = topology
        self._registry = registry
        self._send = send
        self._retire = engine.retire
        self.recovery = GateRecovery(
            recovery,
            topology.row,
            engine,
            send=send,
            tell=partial(self._gate_is_back, tell),
            talk_to=self._who_talks_to,
            give_up=self._lost_for_good,
        )
        self._sentinel_recovery = SentinelRecovery(
            recovery or Recovery(),
            engine,
            send=send,
            tell=tell,
            end=self._mark_ended,
            is_away=self.recovery.is_away,
        )
        self.epochs_done: int = 0 if resume is None else resume.session["epochs_done"]

    @property
    def _row(self) -> tuple[str, ...]:
        return self._topology.row

    def hear(self, record: Any) -> None:
        """Keep what was reported and do what follows; called by one thread at a time."""
        handler = self._HANDLERS.get(type(record))
        if handler is not None:
            handler(self, record)

    @property
    def batches_of_ended(self) -> BatchCount:
        """Where the batches went of all sentinels that have ended."""
        return self._registry.batches_of_ended

    def missing(self) -> list[str]:
        """The gates that may still leave their weights, head first."""
        owned = self._topology.owned
        return [address for address in owned if address not in self.left and address not in self.lost]

    def states_left(
        self, waited_s: float, *, partial: bool, ema: bool = False
    ) -> dict[str, dict[str, Tensor]]:
        """The weights and buffers that the gates left when they ended.

        Args:
            waited_s: how long they had the time.
            partial: do without those that are lost, or still at work.
            ema: with the average of the weights, of those that keep one.

        Raises:
            GateFailedError: a gate is lost with its weights.
            RecipeError: no gate keeps an average.
            WaitTimeoutError: a gate has not left them yet.
        """
        if ema:
            self._topology.require_average()
        others = "session.states(partial=True) gives the weights of the other gates"
        late = ", ".join(self.missing())
        if late and not partial:
            raise WaitTimeoutError(
                f"{late} had not left its weights after {waited_s:g} s and may still be at work: "
                f"ask again later; {others}"
            )
        if self.lost and not partial:
            away = f"{', '.join(sorted(self.lost))} was gone when the session ended, and left no weights"
            cause = None if self.error is None else self.error.__cause__
            raise GateFailedError(f"{self.error or away}; {others}") from cause
        left = [self.left[address] for address in self._row if address in self.left]
        return {each.address: (each.averaged if ema else None) or each.state for each in left}

    def close_actors(self) -> None:
        """Have everybody end who ends with the session."""
        self.lost.update(self.recovery.stop())
        self._sentinel_recovery.stop()
        for address in self._who_ends():
            self._send(address, Close())

    def _who_ends(self) -> Iterator[str]:
        for replica in self._topology.replicas:
            yield from self._topology.replica_row(replica)
        for attachment in self._registry.attachments:
            if not attachment.ended:
                yield attachment.address
        yield from self.missing()

    def remove_replica(self, replica: int, drained: bool) -> None:
        """Have the gates of a replica leave; ``drained``: nothing of it is on its way to the shards."""
        row = self._topology.replica_row(replica)
        self.recovery.drop(row)
        for to, message in self._topology.removed(replica, drained):
            self._send(to, message)
        self._retire(row)
        self._sentinel_recovery.lost.give_up(row)

    def _who_talks_to(self, address: str) -> Iterator[str]:
        """Whom it concerns that an actor was made anew: gates first, to whom sentinels will send."""
        yield from self._topology.clients_of(address)
        for attachment in self._registry.at_work():
            if address in attachment.row:
                yield attachment.address

    # ── progress ─────────────────────────────────────────────────────────────────────────────────────

    def _note(self, record: SentinelReport) -> None:
        """Have the sentinel's attachment keep what it reported."""
        attachment = self._registry.named(record.sentinel)
        if attachment is not None:
            attachment._note(record)

    def _epoch_done(self, record: EpochDone) -> None:
        self._note(record)
        self.epochs_done += 1
        for a in list(self._registry.attachments):
            every = getattr(a.recipe, "every_epoch", None)
            if every is not None and not a.ended and self.epochs_done % every == 0:
                self._send(a.address, Due())

    def _round_done(self, record: RoundDone) -> None:
        self._note(record)
        self.recovery.heard(self._row[0], record.version)
        if record.stop_training:
            for a in list(self._registry.attachments):
                if a.role.trains and not a.ended:
                    self._send(a.address, Detach(done=True))

    # ── answers and ends ─────────────────────────────────────────────────────────────────────────────

    def _gate_status(self, record: GateStatus) -> None:
        self.recovery.heard(record.address, record.version)
        if record.address in self._row:
            self.gates[record.address] = record
            self._note_answer(record)

    def _sentinel_status(self, record: SentinelStatus) -> None:
        self.sentinels[record.address] = record
        attachment = self._registry.by_address.get(record.address)
        if attachment is not None:
            attachment._batches = record.batches
        self._note_answer(record)

    def _note_answer(self, record: GateStatus | SentinelStatus) -> None:
        """Remember the latest probe answered: threads that ask at the same time overtake each other."""
        self.answered[record.address] = max(record.probe, self.answered.get(record.address, 0))

    def _gate_left(self, record: GateLeft) -> None:
        if not self.recovery.left(record) and record.address in self._row:
            self.left[record.address] = record
            self.lost.discard(record.address)

    def _stage_saved(self, record: StageSaved) -> None:
        self.recovery.saved(record)

    def _sentinel_ended(self, record: SentinelEnded) -> None:
        self.sentinels.pop(record.address, None)
        self.answered.pop(record.address, None)
        self.recovery.departed(record.address)
        attachment = self._registry.by_address.get(record.address)
        if attachment is None:
            return
        if attachment.role.trains:
            self._registry.epochs_read.add(attachment.recipe.batches, attachment.epochs_done)
        attachment._state = record.state
        self._tell_keepers(attachment)
        self._registry.end(attachment, record.batches, record.result, record.cut_short)
        self._sentinel_recovery.ended(attachment)

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────

    def _actor_failed(self, record: ActorFailed) -> None:
        """Decide what a failure means: a sentinel (or its reader) fails alone, a gate ends the session."""
        attachment = self._registry.owner(record.address)
        if attachment is not None:
            self._sentinel_recovery.failed(attachment, record)
        elif not self.recovery.failed(record):
            self._gone(record.address, f"failed on {record.doing}: {explain(record.error)}", record.error)

    def _gate_is_back(self, tell: Callable[[Any], None], record: Any) -> None:
        self._sentinel_recovery.lost.ask_again(record.address)
        tell(record)

    def _gone(self, address: str, why: str, error: BaseException | None) -> None:
        """An actor of the network is gone for good."""
        why += self.recovery.story(address)
        if address in self._row:
            self.give_up(f"{address} {why}", error)
        else:
            self._other_failed(address, why, error)

    def _peer_refused(self, record: PeerRefused) -> None:
        """A gate takes no more of a sentinel, which is detached."""
        attachment = self._registry.by_address.get(record.sender)
        if attachment is not None and not attachment.ended:
            attachment.error = attachment.error or SentinelFailedError(
                f"sentinel {attachment.name!r} was detached: {record.by} refused {record.in_a_row} of its "
                f"messages in a row, the last because {record.reason}"
            )
            self._send(attachment.address, Close())
        for gate in self._row if attachment is None else attachment.row:
            self._send(gate, Forget(record.sender))

    def _undelivered(self, record: Undelivered) -> None:
        """Have the gates drop a batch of somebody who is not here, and nobody wait for him."""
        if isinstance(record.message, Locate):
            self._send(record.message.asker, Parted(record.to))
        elif isinstance(record.message, Detach):
            self._sentinel_recovery.detached(record.to)
        batch = batch_of(record.message)
        if (
            batch is not None
            and record.to == batch.sentinel
            and batch.sentinel not in self._registry.by_address
        ):
            for gate in self._row:
                self._send(gate, Forget(*batch))

    def give_up(self, why: str, error: BaseException | None) -> None:
        """A gate has failed for good, which ends the session."""
        if self.error is None:
            self.error = GateFailedError(why)
            self.error.__cause__ = error
            self.close_actors()

    def _other_failed(self, address: str, why: str, error: BaseException | None) -> None:
        """An actor is gone that no cut needs: a gate of a replica, which is out with its sentinels."""
        replica = self._topology.replica_of(address)
        if replica is None:
            return
        for trainer in self._registry.at_work(self._topology.replica_row(replica)):
            trainer.error = GateFailedError(f"{address} {why}")
            trainer.error.__cause__ = error
            self._send(trainer.address, Close())
        self.remove_replica(replica, drained=False)

    def _actor_lost(self, record: ActorLost) -> None:
        """As a failure, but whoever is lost says nothing more."""
        attachment = self._registry.owner(record.address)
        if attachment is not None:
            self._sentinel_recovery.gone(attachment, record)
        elif not self.recovery.lost(record):
            self._lost_for_good(record.address, f"is lost: {record.why}", None)

    def _lost_for_good(self, address: str, why: str, error: BaseException | None) -> None:
        """It leaves nothing, and does not come back."""
        if address in self._row:
            self.lost.add(address)
        self._gone(address, why, error)

    def _cluster_lost(self, record: ClusterLost) -> None:
        """All gates end and leave their weights, as long as there is something that carries them."""
        self.give_up(record.why, None)

    def _sentinel_saved(self, record: SentinelSaved) -> None:
        attachment = self._registry.by_address.get(record.address)
        if attachment is not None:
            attachment._saved = record.state

    def _learned(self, record: Learned) -> None:
        self._sentinel_recovery.lost.learned(record)

    def _mark_ended(self, attachment: Attachment, batches: BatchCount | None = None) -> None:
        """It will say nothing more; ``batches``: where they went, if that is known."""
        self.recovery.departed(attachment.address)
        self.sentinels.pop(attachment.address, None)
        self.answered.pop(attachment.address, None)
        self._registry.mark_ended(attachment, batches)
        self._tell_keepers(attachment)
        self._sentinel_recovery.ended(attachment)

    def _tell_keepers(self, ended: Attachment) -> None:
        """Have nobody who takes a checkpoint wait for it."""
        for keeper in self._registry.keepers() if ended.role.has_place else ():
            self._send(keeper.address, Parted(ended.address))

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        EpochDone: _epoch_done,
        TrainingProgress: _note,
        StreamReport: _note,
        RoundDone: _round_done,
        BatchRefused: _note,
        BestKept: _note,
        GateStatus: _gate_status,
        ShardStatus: _gate_status,
        SentinelStatus: _sentinel_status,
        GateLeft: _gate_left,
        SentinelEnded: _sentinel_ended,
        ActorFailed: _actor_failed,
        ActorLost: _actor_lost,
        ClusterLost: _cluster_lost,
        StageSaved: _stage_saved,
        SentinelSaved: _sentinel_saved,
        Learned: _learned,
        PeerRefused: _peer_refused,
        Undelivered: _undelivered,
    }
