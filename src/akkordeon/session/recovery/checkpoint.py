"""All that a run can be taken up from, in memory: of one consistent cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Message
from akkordeon.core.plain_state import PlainState, StageState
from akkordeon.core.reports import CheckpointTaken
from akkordeon.core.streams.messages import Kept
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.module_state import Outline, outline_of
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.splitting.part import Part
from akkordeon.session.attachment import Attachment
from akkordeon.session.recovery.recut import recut, refuse_others
from akkordeon.session.registry import Registry

__all__ = ["Checkpoint", "checkpoint_of"]


@dataclass(frozen=True)
class Checkpoint:
    """What a run was at one moment.

    Attributes:
        stages: weights, and what each stage learns with, by address in the row of cuts, head first.
        sentinels: what each goes on from, by name: role, address, place in its data, counts, best so far.
        session: its seed, epochs counted, the generator's state where all were at rest.
        number: of the checkpoint in its run.
    """

    stages: Mapping[str, StageState]
    sentinels: Mapping[str, PlainState]
    session: PlainState
    number: int = 0

    def stages_for(self, network: Network | Downpour) -> Mapping[str, StageState]:
        """What the stages of a network go on from; those of other gates of the same layers, too.

        Raises:
            RecipeError: it is another network.
        """
        if not isinstance(network, Downpour):
            of_one_module = all(isinstance(gate.module, Part) for gate in network.gates)
            return recut(self.stages, _outlines(network), of_one_module=of_one_module)
        self._refuse_other_row(network.row())
        kept = network.by_gate({address: stage.tensors for address, stage in self.stages.items()})
        refuse_others(kept, _outlines(network.network))
        return self.stages

    def news(self) -> list[tuple[str, Message]]:
        """What to tell whom once it is where nothing loses it: of a stream, up to where that is in it."""
        streams = [state for state in self.sentinels.values() if "stream" in state]
        return [(state["address"], Kept(state["position"]["place"][1])) for state in streams]

    def _refuse_other_row(self, row: Sequence[str]) -> None:
        if list(row) != list(self.stages):
            raise RecipeError(
                f"the checkpoint has {', '.join(self.stages)}, and the network {', '.join(row)}"
            )


def _outlines(network: Network) -> dict[str, Outline]:
    gates = zip(network.row(), network.gates, strict=True)
    return {address: outline_of(gate.module) for address, gate in gates}


def checkpoint_of(
    taken: CheckpointTaken,
    registry: Registry,
    epochs_done: int,
    seed: int,
    to_come: Mapping[str, PlainState],
) -> Checkpoint:
    """What a sentinel has kept, with what the session knows beside it.

    Args:
        taken: of the gates, and of sentinels at work.
        registry: knows their names, those that have ended, and the best weights.
        epochs_done: of all sentinels together.
        seed: of the session.
        to_come: what sentinels go on from that are still to join a run that was taken up.
    """
    sentinels: dict[str, PlainState] = dict(to_come)
    for attachment in registry.attachments:
        state = taken.sentinels.get(attachment.address, attachment._state)
        if attachment.role.keeps and attachment.role.repeats:
            its = attachment.name == taken.sentinel
            state = {
                "role": str(attachment.role),
                "rounds": taken.number,
                "random": taken.random,
                "due": its and taken.due,
            }
        if state is not None:
            sentinels[attachment.name] = {
                **state,
                "address": attachment.address,
                "before": attachment._epochs_before,
                "data": attachment._data,
                "best_kept": _best(attachment),
                "samples": attachment.samples,
                "seconds_of_all": attachment.seconds,
            }
        if attachment.role.trains:  # what is told again after the checkpoint is counted then
            epochs_done += (0 if state is None else state["epochs"]) - attachment.epochs_done
    session = {"seed": seed, "epochs_done": epochs_done, "random": taken.random}
    return Checkpoint(taken.stages, sentinels, session, taken.number)


def _best(attachment: Attachment) -> PlainState | None:
    best = attachment.best
    return None if best is None else {"round": best.round, "value": best.value, "states": best.states}
