"""The stages of a checkpoint for a network that has the same layers in other gates.

    kept    gate/0: layers 0 1 2      gate/1: layers 3 4
    here    gate/0: layers 0 1    gate/1: layers 2 3    gate/2: layer 4

Layers go by their order in the row: in a gate of an ``nn.Sequential`` each child that has a state is one, any
other gate is one as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import LearnerState, StageState

__all__ = ["recut"]


@dataclass(frozen=True)
class _Layer:
    """Where the tensors of a layer are: by their names in it, the names in its gate."""

    gate: str
    names: Mapping[str, str]


_Pair = tuple[_Layer, _Layer]
"""A layer of the checkpoint, and the same one here."""


def recut(
    stages: Mapping[str, StageState], wanted: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, StageState]:
    """Deal the stages of a checkpoint out to other gates.

    Args:
        stages: of the checkpoint, head first.
        wanted: the tensors of each gate of the network by name, head first.

    Raises:
        RecipeError: it has other layers; the first that differs.
    """
    kept = _layers({gate: stage.tensors for gate, stage in stages.items()})
    here = _layers(wanted)
    _refuse_others(kept, here, stages, wanted)
    parts: dict[str, list[_Pair]] = {gate: [] for gate in wanted}
    for theirs, mine in zip(kept, here, strict=True):
        parts[mine.gate].append((theirs, mine))
    last, applied = list(wanted)[-1], list(stages.values())[-1].applied
    return {
        gate: StageState(
            max(stages[theirs.gate].version for theirs, _ in part),
            {new: stages[old_gate].tensors[old] for old_gate, old, new in _renamed(part)},
            _learner(stages, part),
            applied if gate == last else {},
        )
        for gate, part in parts.items()
    }


def _renamed(part: Sequence[_Pair]) -> Iterator[tuple[str, str, str]]:
    """Of every tensor of a gate, the gate it was in, its name there and its name here."""
    for theirs, mine in part:
        for name, old in theirs.names.items():
            yield theirs.gate, old, mine.names[name]


def _layers(gates: Mapping[str, Mapping[str, Tensor]]) -> list[_Layer]:
    layers: list[_Layer] = []
    for gate, tensors in gates.items():
        heads = list(dict.fromkeys(name.partition(".")[0] for name in tensors))
        if all(head.isdecimal() for head in heads):
            for head in sorted(heads, key=int):
                names = [name for name in tensors if name.partition(".")[0] == head]
                layers.append(_Layer(gate, {name.partition(".")[2]: name for name in names}))
        else:
            layers.append(_Layer(gate, {name: name for name in tensors}))
    return layers


def _refuse_others(
    kept: Sequence[_Layer],
    here: Sequence[_Layer],
    stages: Mapping[str, StageState],
    wanted: Mapping[str, Mapping[str, Tensor]],
) -> None:
    for theirs, mine in zip(kept, here, strict=False):
        has = {n: tuple(stages[theirs.gate].tensors[name].shape) for n, name in theirs.names.items()}
        needs = {n: tuple(wanted[mine.gate][name].shape) for n, name in mine.names.items()}
        for n in sorted(has.keys() | needs.keys()):
            if has.get(n) != needs.get(n):
                where = mine.names.get(n) or theirs.names[n]
                raise RecipeError(
                    f"the checkpoint is of another network: {where} of {mine.gate} is {_shown(has.get(n))} "
                    f"there and {_shown(needs.get(n))} here"
                )
    if len(kept) != len(here):
        raise RecipeError(
            f"the checkpoint is of another network: it has {len(kept)} layers with weights there and "
            f"{len(here)} here"
        )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)


def _learner(stages: Mapping[str, StageState], part: Sequence[_Pair]) -> LearnerState | None:
    """What a gate learns with, of those that its layers were in; settings are those of the first."""
    learners = {gate: stages[gate].learner for gate in dict.fromkeys(theirs.gate for theirs, _ in part)}
    with_optimizer = {gate: learner for gate, learner in learners.items() if learner and learner["optimizer"]}
    if not with_optimizer:
        return next(iter(learners.values()), None)
    first = next(iter(with_optimizer.values()))
    state: dict[str, Any] = {}
    rule: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = [{**group, "params": []} for group in first["optimizer"]["groups"]]
    for gate, old, new in _renamed(part):
        learner = with_optimizer.get(gate)
        if learner is None:
            continue
        if old in learner["optimizer"]["state"]:
            state[new] = learner["optimizer"]["state"][old]
        if old in learner["rule"]:
            rule[new] = learner["rule"][old]
        for mine, theirs in zip(groups, learner["optimizer"]["groups"], strict=False):
            if old in theirs["params"]:
                mine["params"].append(new)
    return {**first, "optimizer": {"state": state, "groups": groups}, "rule": rule}
