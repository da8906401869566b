"""The stages of a checkpoint for a network that has the same layers in other gates.

    kept    gate/0: layers 0 1 2      gate/1: layers 3 4
    here    gate/0: layers 0 1    gate/1: layers 2 3    gate/2: layer 4

What has the same gates goes by gate and name, and what has names that are unique in the row by these, as the
weights of ``Network.from_module`` have. All else goes by the order of the layers in the row: in a gate of an
``nn.Sequential`` with numbered children each child that has a state is one, any other gate is one as a whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.pipeline.extra_state import owner_of
from akkordeon.pipeline.module_state import Outline

__all__ = ["recut", "refuse_others"]


@dataclass(frozen=True)
class _Place:
    """Where something with a name is, and its shape; None where it has one as it comes."""

    gate: str
    name: str
    shape: tuple[int, ...] | None

    @property
    def head(self) -> str:
        """The child of the gate's module that it is in."""
        return self.name.partition(".")[0]


_Keyed = Mapping[_Place, Hashable]
"""Of places, what is the same in the checkpoint and here."""

_Move = tuple[str, str, str]
"""Of a tensor, the gate it was in, its name there and its name here."""


def recut(
    stages: Mapping[str, StageState], wanted: Mapping[str, Outline], *, of_one_module: bool = False
) -> dict[str, StageState]:
    """Deal the stages of a checkpoint out to other gates.

    Args:
        stages: of the checkpoint, head first.
        wanted: what each gate of the network has by name, head first.
        of_one_module: the gates run one module's own forward: what has the same name in several of them is
            the same buffer, and the last one's counts.

    Raises:
        RecipeError: it has other layers; the first that differs.
    """
    tensors = {gate: stage.tensors for gate, stage in stages.items()}
    kept, here = _paired(_places(_outlines(tensors)), _places(wanted), of_one_module)
    _refuse_others(kept, here)
    moves: dict[str, list[_Move]] = {gate: [] for gate in wanted}
    for gate, old, mine in _moved(stages, kept, here):
        moves[mine.gate].append((gate, old, mine.name + old.removeprefix(owner_of(old))))
    last, applied = list(wanted)[-1], list(stages.values())[-1].applied
    return {
        gate: StageState(
            _version(gate, stages, its),
            {new: stages[old_gate].tensors[old] for old_gate, old, new in its},
            _learner(stages, its),
            applied if gate == last else {},
        )
        for gate, its in moves.items()
    }


def refuse_others(gates: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Outline]) -> None:
    """Refuse what gates of the same names have, if it is not what they have here.

    Raises:
        RecipeError: the first that differs.
    """
    _refuse_others(_by_gate(_places(_outlines(gates))), _by_gate(_places(wanted)))


def _outlines(gates: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Outline]:
    """Of what was kept; the tensors of one extra state are one thing."""
    return {
        gate: {owner_of(name): tuple(tensor.shape) for name, tensor in tensors.items()}
        for gate, tensors in gates.items()
    }


def _places(gates: Mapping[str, Outline]) -> list[_Place]:
    return [_Place(gate, name, shape) for gate, outline in gates.items() for name, shape in outline.items()]


# ── what is the same ─────────────────────────────────────────────────────────────────────────────────


def _paired(kept: Sequence[_Place], here: Sequence[_Place], of_one_module: bool) -> tuple[_Keyed, _Keyed]:
    """Both by the first key under which they have the same; by layers, if there is none."""
    for keyed in (_by_gate, _by_name):
        theirs, mine = keyed(kept), keyed(here)
        optional = {key for place, key in mine.items() if place.shape is None}
        is_unique = len(set(theirs.values())) == len(kept) and len(set(mine.values())) == len(here)
        has_same = {*theirs.values()} | optional == {*mine.values()}
        if has_same and (is_unique or of_one_module):
            return theirs, mine
    return _by_layer(kept), _by_layer(here)


def _by_gate(places: Sequence[_Place]) -> _Keyed:
    return {place: (place.gate, place.name) for place in places}


def _by_name(places: Sequence[_Place]) -> _Keyed:
    return {place: place.name for place in places}


def _by_layer(places: Sequence[_Place]) -> _Keyed:
    """By the number of the layer in the row, and the name in it."""
    keyed: dict[_Place, Hashable] = {}
    number = 0
    for gate in dict.fromkeys(place.gate for place in places):
        own = [place for place in places if place.gate == gate]
        if all(place.head.isdecimal() for place in own):
            heads = sorted({place.head for place in own}, key=int)
            for place in own:
                keyed[place] = number + heads.index(place.head), place.name.partition(".")[2]
            number += len(heads)
        else:
            keyed |= {place: (number, place.name) for place in own}
            number += 1
    return keyed


def _by_key(keyed: _Keyed) -> dict[Hashable, _Place]:
    """The place with each key; of several the last."""
    return {key: place for place, key in keyed.items()}


def _refuse_others(kept: _Keyed, here: _Keyed) -> None:
    all_theirs, all_mine = _by_key(kept), _by_key(here)
    for key in sorted(all_theirs.keys() | all_mine.keys()):  # type: ignore[type-var]  # all of one kind
        theirs, mine = all_theirs.get(key), all_mine.get(key)
        if mine is not None and mine.shape is None:
            continue
        if theirs is None or mine is None or theirs.shape != mine.shape:
            place = mine or theirs
            assert place is not None, "one of them has it"
            raise RecipeError(
                f"the checkpoint is of another network: {place.name} of {place.gate} is {_shown(theirs)} "
                f"there and {_shown(mine)} here"
            )


def _shown(place: _Place | None) -> str:
    return "missing" if place is None else str(place.shape)


# ── dealt out ────────────────────────────────────────────────────────────────────────────────────────


def _moved(stages: Mapping[str, StageState], kept: _Keyed, here: _Keyed) -> Iterator[tuple[str, str, _Place]]:
    """Of every tensor the gate it was in, its name there, and where it goes."""
    names: dict[tuple[str, str], list[str]] = {}
    for gate, stage in stages.items():
        for name in stage.tensors:
            names.setdefault((gate, owner_of(name)), []).append(name)
    theirs = _by_key(kept)
    for mine, key in here.items():
        place = theirs.get(key)
        if place is not None:  # else it may be missing
            for name in names[place.gate, place.name]:
                yield place.gate, name, mine


def _version(gate: str, stages: Mapping[str, StageState], moves: Iterable[_Move]) -> int:
    """That of the gates its layers were in; one without a state goes on as the one in its place."""
    came_from = {old_gate for old_gate, _, _ in moves} or ({gate} & stages.keys()) or set(stages)
    return max(stages[each].version for each in came_from)


def _learner(stages: Mapping[str, StageState], moves: Sequence[_Move]) -> LearnerState | None:
    """What a gate learns with, of those that its weights were in; settings are those of the first."""
    learners = {gate: stages[gate].learner for gate in dict.fromkeys(gate for gate, _, _ in moves)}
    with_optimizer = {
        gate: learner
        for gate, learner in learners.items()
        if learner and any(old in _learned(learner) for each, old, _ in moves if each == gate)
    }
    if not with_optimizer:
        return next((each for each in learners.values() if not (each and each["optimizer"])), None)
    first = next(iter(with_optimizer.values()))
    state: dict[str, Any] = {}
    rule: dict[str, Tensor] = {}
    others = _gathered(with_optimizer, moves)
    for what in ("average", "earlier", "expected"):
        others |= _versions(what, with_optimizer, moves)
    groups: list[dict[str, Any]] = [{**group, "params": []} for group in first["optimizer"]["groups"]]
    for gate, old, new in moves:
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
    return {**first, "optimizer": {"state": state, "groups": groups}, "rule": rule, **others}


def _learned(learner: LearnerState) -> set[str]:
    """The names of the weights that its optimizer has."""
    optimizer = learner["optimizer"]
    return set() if optimizer is None else {name for group in optimizer["groups"] for name in group["params"]}


def _gathered(learners: Mapping[str, LearnerState], moves: Sequence[_Move]) -> dict[str, Any]:
    """The gradients gathered by gates that accumulate, of those that have gathered the same batches."""
    their = {gate: learner["gathered"] for gate, learner in learners.items() if "gathered" in learner}
    if not their:
        return {}
    first = next(iter(their.values()))
    batches = first["batches"]
    sums = {
        new: their[gate]["sums"][old]
        for gate, old, new in moves
        if gate in their and their[gate]["batches"] == batches and old in their[gate]["sums"]
    }
    return {"gathered": {**first, "sums": sums}}


def _versions(what: str, learners: Mapping[str, LearnerState], moves: Sequence[_Move]) -> dict[str, Any]:
    """Other weights than the latest, of those gates that keep them; all else of them is that of the first."""
    their = {gate: learner[what] for gate, learner in learners.items() if learner.get(what)}
    if not their:
        return {}
    weights = {
        new: their[gate]["weights"][old]
        for gate, old, new in moves
        if gate in their and old in their[gate]["weights"]
    }
    return {what: {**next(iter(their.values())), "weights": weights}}
