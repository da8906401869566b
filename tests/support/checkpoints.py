"""Small checkpoints, each with its number all over it, and a process that writes one after another."""

from __future__ import annotations

import math
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from akkordeon.core.plain_state import Applied, StageState
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder

__all__ = ["assert_is", "numbered", "validating", "write_for_ever"]


def numbered(number: int, size: int = 6) -> Checkpoint:
    """A checkpoint in which every tensor and many a number is this one."""
    weights = {"weight": torch.full((size, 3), float(number)), "bias": torch.full((3,), float(number))}
    moments = {"exp_avg": torch.full((size, 3), -float(number)), "step": torch.tensor(float(number))}
    groups = [{"params": ["weight"], "lr": 0.1, "betas": (0.9, 0.99)}]
    optimizer = {"state": {"weight": moments}, "groups": groups}
    learner = {
        "optimizer": optimizer,
        "scheduler": None,
        "rule": {},
        "updates": number,
        "kinds": {"optimizer": "AdamW"},
    }
    stages = {f"gate/{i}": StageState(number + i, weights, learner) for i in range(2)}
    stages["gate/2"] = StageState(number, weights, None, {"sentinel/a#1": Applied(number, frozenset({1, 3}))})
    sentinels = {"a": {**validating(number), "best": math.nan}}
    session = {"seed": number, "epochs_done": 2, "random": torch.arange(16, dtype=torch.uint8)}
    return Checkpoint(stages, sentinels, session, number)


def validating(rounds: int) -> dict[str, Any]:
    """What a sentinel goes on from that validates."""
    return {
        "role": "validate",
        "address": "sentinel/a#1",
        "before": 0,
        "data": {"kind": "list"},
        "best_kept": None,
        "rounds": rounds,
        "cuts": rounds + 1,
        "versions": [1, 2],
        "best": None,
        "without_better": 0,
        "due": False,
        "last": False,
    }


def assert_is(checkpoint: Checkpoint, number: int) -> None:
    """All of it is of this number, to the last bit."""
    expected = numbered(number, len(checkpoint.stages["gate/0"].tensors["weight"]))
    assert _plain(checkpoint) == _plain(expected)


def _plain(thing: object) -> object:
    """It in a form that can be compared; tensors by dtype, shape and bytes."""
    if isinstance(thing, torch.Tensor):
        return str(thing.dtype), tuple(thing.shape), bytes(thing.reshape(-1).view(torch.uint8).tolist())
    if isinstance(thing, Checkpoint | StageState):
        return {name: _plain(getattr(thing, name)) for name in type(thing).__dataclass_fields__}
    if isinstance(thing, dict):
        return [(key, _plain(value)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return type(thing).__name__, [_plain(each) for each in thing]
    return repr(thing) if isinstance(thing, float) else thing


def write_for_ever(path: str, begun: Synchronized[int], written: Synchronized[int]) -> None:
    """Write checkpoint after checkpoint, and say which has begun and which is written."""
    folder = CheckpointFolder(Path(path))
    while True:
        begun.value = written.value + 1
        folder.write(numbered(begun.value, size=2000))
        written.value = begun.value
