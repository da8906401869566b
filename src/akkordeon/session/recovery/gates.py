"""Gates and shards that come back: each is made anew, alone, from the latest snapshot it left.

    StageSaved ─▶ kept                      ActorFailed ─▶ its last words ─┐
                                            ActorLost ─────────────────────┴▶ [wait] ─▶ made anew
                                                                                          │ Restarted
                                            to who talks to it: shards, replicas' gates, sentinels

A gate that raises tells its version with its last words, so it is made anew after them. One whose restarts
are too many within the time, or that raised what would only come again, does not come back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import ClusterError, RecipeError, explain
from akkordeon.core.messages import Batch, Close, Fault, Forget, Message, Refused
from akkordeon.core.plain_state import StageState
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import ActorFailed, ActorLost, GateLeft, GateRestarted
from akkordeon.engines.base import Engine
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.session.recovery.restart_limit import RestartLimit

__all__ = ["GateRecovery"]

GONE_MAX = 64
"""Sentinels that have ended of which a gate that is made anew is told, as something may be on its way."""

RECIPE = StageState(0, {})
"""What a gate goes back to that left no snapshot: the weights of its recipe."""


@dataclass
class _Kept:
    """A gate that comes back, and what is known of it."""

    spawn: Spawn
    state: StageState
    version: int  # the highest that was heard of
    limit: RestartLimit
    gone: _Gone | None = None  # until it is back
    waits: bool = False  # it has said all it had to say, and waits for its time
    comes: bool = False  # it is being made


@dataclass(frozen=True)
class _Gone:
    """Why a gate is away."""

    why: str
    refused: Refused | None = None
    wait_s: float = 0.0


class GateRecovery:
    """Has gates made anew. Reports are heard one at a time, and go on meanwhile; any thread may stop it.

    Args:
        recovery: how often, and when; None lets none come back.
        row: those that leave their weights with their last words.
        engine: makes them.
        send: carries a message to an actor.
        tell: has those who look on see a record.
        talk_to: who talks to an actor, in the order in which they are to hear that it was made anew.
        give_up: is told the address of an actor that cannot be made anew, why, and the error.

    Attributes:
        restarts: how often each was made anew, by address.
    """

    def __init__(
        self,
        recovery: Recovery | None,
        row: Collection[str],
        engine: Engine,
        *,
        send: Callable[[str, Message], None],
        tell: Callable[[Any], None],
        talk_to: Callable[[str], Iterable[str]],
        give_up: Callable[[str, str, BaseException | None], None],
    ) -> None:
        self.restarts: Counter[str] = Counter()
        self._recovery = recovery
        self._row = row
        self._engine = engine
        self._send = send
        self._tell = tell
        self._talk_to = talk_to
        self._give_up = give_up
        self._kept: dict[str, _Kept] = {}
        self._departed: deque[str] = deque(maxlen=GONE_MAX)
        self._over = False

    def keep(
        self, spawns: Iterable[Spawn], states: Mapping[str, StageState] | None = None
    ) -> Iterator[Spawn]:
        """Actors that are about to be made, from these states where there are any: note who comes back."""
        for spawn in spawns:
            if self._recovery is not None and spawn.restore is not None:
                state = (states or {}).get(spawn.address, RECIPE)
                self._kept[spawn.address] = _Kept(spawn, state, state.version, RestartLimit(self._recovery))
            yield spawn

    def rearranged(self, row: Collection[str]) -> None:
        """These leave their weights with their last words from now on."""
        self._row = row

    def changed(self, spawn: Spawn) -> None:
        """An actor at work is as another recipe has it, or stands elsewhere."""
        kept = self._kept.get(spawn.address)
        if kept is not None:
            kept.spawn = spawn

    def drop(self, addresses: Iterable[str]) -> None:
        """These actors have been told to end."""
        for address in addresses:
            self._kept.pop(address, None)

    def stop(self) -> list[str]:
        """Have none come back from now on.

        Returns:
            Those that are away, and left nothing.
        """
        self._over = True
        return [address for address, kept in list(self._kept.items()) if kept.waits or kept.comes]

    # ── what is heard of them ────────────────────────────────────────────────────────────────────────

    def saved(self, record: StageSaved) -> None:
        """A snapshot has come."""
        kept = self._kept.get(record.address)
        if kept is not None and record.state.version >= kept.state.version:
            kept.state = record.state
            self.heard(record.address, record.state.version)

    def heard(self, address: str, version: int) -> None:
        """A version of it was reported."""
        kept = self._kept.get(address)
        if kept is not None:
            kept.version = max(kept.version, version)

    def departed(self, sentinel: str) -> None:
        """A sentinel has ended; a gate that is made anew does not know that its batches are to be dropped."""
        self._departed.append(sentinel)

    def failed(self, record: ActorFailed) -> bool:
        """A gate raised; whether it will come back, after its last words."""
        kept = self._kept.get(record.address)
        if kept is None:
            return False
        if kept.gone is not None:  # it raised once more, in its last words: there will be no others
            return kept.waits or self._come_back(record.address, kept)
        if not isinstance(record.error, Exception) or isinstance(record.error, RecipeError):
            return False
        why = f"failed on {record.doing}: {explain(record.error)}"
        refused = _refused(record.address, record.batch, why, record.error)
        if not self._goes(kept, why, refused):
            return False
        return record.address in self._row or self._come_back(record.address, kept)

    def lost(self, record: ActorLost) -> bool:
        """A gate is lost; whether it will come back."""
        kept, recovery = self._kept.get(record.address), self._recovery
        if kept is None or recovery is None:
            return False
        if kept.gone is None and not self._goes(kept, f"is lost: {record.why}", None):
            return False
        assert kept.gone is not None, "it goes"
        if not kept.waits:  # it may have raised before, and will have no last words
            kept.gone = replace(kept.gone, wait_s=max(kept.gone.wait_s, record.back_after_s or 0.0))
            self._come_back(record.address, kept, kept.state.version + recovery.updates_between)
        return True

    def left(self, record: GateLeft) -> bool:
        """A gate has left its weights; whether these were the last words of one that comes back."""
        kept = self._kept.get(record.address)
        if kept is None or kept.gone is None or self._over:
            return False
        self.heard(record.address, record.version)
        return self._come_back(record.address, kept)

    def is_away(self, address: str) -> bool:
        """Whether an actor is gone, and comes back."""
        kept = self._kept.get(address)
        return kept is not None and not self._over and (kept.gone is not None or kept.comes)

    def story(self, address: str) -> str:
        """How often a gate that does not come back was made anew, and why, to follow its last failure."""
        kept = self._kept.get(address)
        return "" if kept is None else kept.limit.story()

    # ── making them anew ─────────────────────────────────────────────────────────────────────────────

    def _goes(self, kept: _Kept, why: str, refused: Refused | None) -> bool:
        """Note that one is gone; whether its restarts are not too many yet."""
        wait_s = None if self._over else kept.limit.wait_s(self._engine.now_s(), why)
        if wait_s is None:
            return False
        kept.gone = _Gone(why, refused, wait_s)
        return True

    def _come_back(self, address: str, kept: _Kept, unheard: int = 0) -> bool:
        assert kept.gone is not None
        restart = partial(self._restart, address, unheard)
        if kept.gone.wait_s > 0:
            kept.waits = True
            self._engine.after(kept.gone.wait_s, restart)
        else:
            restart()
        return True

    def _restart(self, address: str, unheard: int) -> None:
        """Make one anew, with a version above all that it may have had, and tell everybody.

        Args:
            address: whose.
            unheard: the highest version that it may have had without anybody hearing of it.
        """
        kept = self._kept.get(address)
        if self._over or kept is None or kept.gone is None:
            return
        gone, kept.gone, kept.waits, kept.comes = kept.gone, None, False, True
        before, saved = kept.version, kept.state.version
        kept.version = max(before, unheard) + 1
        kept.state = replace(kept.state, version=kept.version)
        assert kept.spawn.restore is not None, "only those are kept"
        spawn = replace(kept.spawn, make=partial(kept.spawn.restore, kept.state))
        record = GateRestarted(address, gone.why, self.restarts[address] + 1, before, saved, kept.version)
        self._engine.respawn(spawn, partial(self._is_back, kept, record, gone.refused))

    def _is_back(
        self, kept: _Kept, record: GateRestarted, refused: Refused | None, failure: Exception | None
    ) -> None:
        """One was made anew, or could not be."""
        kept.comes = False
        if self._over or self._kept.get(record.address) is not kept:
            self._send(record.address, Close())
        elif failure is None:
            self.restarts[record.address] += 1
            self._tell_all(record.address, refused)
            self._tell(record)
        elif kept.gone is None:  # else its new process was lost, and it comes once more
            why = f"could not be made anew: {explain(failure)}"
            if isinstance(failure, ClusterError) and self._goes(kept, why, refused):
                self._come_back(record.address, kept)  # to another process, or when there is one
            else:
                self._give_up(record.address, f"{record.why}, and {why}", failure)

    def _tell_all(self, address: str, refused: Refused | None) -> None:
        for sentinel in self._departed:
            self._send(address, Forget(sentinel))
        for to in self._talk_to(address):
            self._send(to, Restarted(address, refused))


def _refused(address: str, batch: Batch | None, why: str, error: Exception) -> Refused | None:
    """The refusal of the batch that a gate raised on: sent again it would have it raise again."""
    return None if batch is None else Refused(batch, address, Fault.RAISED, f"it {why}", error)
