"""What stages and sentinels can be made again from: plain data, which files can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Applied", "LearnerState", "PlainState", "StageState"]


class Applied(NamedTuple):
    """Of one sentinel's batches, which a gate has learned from: those below ``next`` but the ``missing``."""

    next: int = 0
    missing: frozenset[int] = frozenset()

    def __contains__(self, number: object) -> bool:
        """Whether a batch of this number is one of them."""
        return isinstance(number, int) and number < self.next and number not in self.missing


LearnerState = Mapping[str, Any]
"""What a stage learns with, as plain data: tensors, numbers, strings, None, and lists, tuples, dicts of them.

``optimizer`` (``state`` by the weight's name, and ``groups`` with the names of theirs) and ``scheduler``,
None where there is none; ``rule``, of the staleness rule, by the weight's name; ``updates``, their number.
"""


@dataclass(frozen=True, slots=True)
class StageState:
    """All that a stage can be made from again.

    Attributes:
        version: of the weights.
        tensors: weights, buffers and extra state by name in the module; nobody else writes to them.
        learner: what it learns with; None where only the weights were asked for.
        applied: of each sentinel's batches, which it has learned from, where it is the last of its row.
    """

    version: int
    tensors: dict[str, Tensor]
    learner: LearnerState | None = None
    applied: Mapping[str, Applied] = field(default_factory=dict)


PlainState = Mapping[str, Any]
"""What a sentinel goes on from, as plain data; see :data:`LearnerState`."""
