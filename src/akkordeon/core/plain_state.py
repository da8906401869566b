"""What stages and sentinels can be made again from: plain data, which files can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Applied", "CutStates", "LearnerState", "PlainState", "StageState", "from_json_form", "json_form"]


class Applied(NamedTuple):
    """Of one sentinel's batches, which a gate has learned from: those below ``next`` but the ``missing``."""

    next: int = 0
    missing: frozenset[int] = frozenset()

    def __contains__(self, number: object) -> bool:
        """Whether a batch of this number is one of them."""
        return isinstance(number, int) and number < self.next and number not in self.missing

    def renumbered(self, again: Sequence[int], number: int) -> Applied:
        """The same batches as somebody else numbers them, who begins where ``number`` had come.

        Args:
            again: numbers below ``number`` of the batches that he reads first, in that order.
            number: of the batch that he reads after those; he calls the first one so.
        """
        missing = {number + i for i, each in enumerate(again) if each not in self}
        missing.update(each + len(again) for each in self.missing if each >= number)
        return Applied(max(self.next, number) + len(again), frozenset(missing))

    def moved(self, number: int, by: int) -> Applied:
        """The same batches where those from ``number`` on are numbered higher; those between are others."""
        if self.next <= number:
            return self
        missing = {each + by for each in self.missing if each >= number}.union(range(number, number + by))
        return Applied(self.next + by, frozenset(missing))

    def union(self, other: Applied) -> Applied:
        """The batches that are in one of both."""
        missing = {each for each in self.missing | other.missing if each not in self and each not in other}
        return Applied(max(self.next, other.next), frozenset(missing))

    def count(self, start: int) -> int:
        """How many of them have at least the number ``start``."""
        return max(0, self.next - start) - sum(each >= start for each in self.missing)

    def as_plain(self) -> dict[str, Any]:
        """It as plain data."""
        return {"next": self.next, "missing": sorted(self.missing)}

    @classmethod
    def from_plain(cls, plain: PlainState | None) -> Applied:
        """Make it again; None where there are none."""
        return cls() if plain is None else cls(plain["next"], frozenset(plain["missing"]))


class CutStates(NamedTuple):
    """What stages had in one cut: weights and buffers by address, and the versions pinned, tail first."""

    states: Mapping[str, Mapping[str, Tensor]]
    versions: tuple[int, ...]


LearnerState = Mapping[str, Any]
"""What a stage learns with, as plain data: tensors, numbers, strings, None, and lists, tuples, dicts of them.

``optimizer`` (``state`` by the weight's name, and ``groups`` with the names of theirs) and ``scheduler``,
None where there is none; ``rule``, of the staleness rule, by the weight's name; ``updates``, their number;
``kinds``, the classes of these, by which another recipe is known. A gate that accumulates has ``gathered``:
``sums`` of gradients by the weight's name, and their ``batches``; one that averages its weights ``average``:
the averaged ``weights`` by name, and the ``updates`` in them; one that is frozen ``frozen``, True; one that
learns faster for a while ``boost``, the factor of its learning rate and the updates that are left; one that
clips the norm of the whole gradient ``clipping``: the ``squared_norm`` of its own latest update, and the
``whole_norm``; one that computes on older weights ``earlier``: the ``weights`` before the latest by name; and
one that expects them ``expected``: the ``weights`` that had been expected of the latest version.
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

# ── as JSON can say it ───────────────────────────────────────────────────────────────────────────────

MARKS = frozenset({"tensor", "bytes", "float", "tuple", "dict"})
"""An object with one of these as its only key stands for what JSON has no word for."""


def json_form(value: Any, keep: Callable[[Tensor], Any]) -> Any:
    """Plain data, and bytes, in a form that JSON can say; :func:`from_json_form` makes them again.

    Args:
        value: tensors, numbers, strings, bytes, None, and lists, tuples and dicts of them.
        keep: takes a tensor, and gives what stands for it.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Tensor):
        return {"tensor": keep(value.detach())}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [json_form(each, keep) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [json_form(each, keep) for each in value]}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and not (len(value) == 1 and MARKS.issuperset(value)):
            return {key: json_form(each, keep) for key, each in value.items()}
        return {"dict": [[json_form(key, keep), json_form(each, keep)] for key, each in value.items()]}
    raise TypeError(f"it holds a {type(value).__name__}")


def from_json_form(form: Any, tensor_of: Callable[[Any], Tensor]) -> Any:
    """The plain data of such a form.

    Args:
        form: what :func:`json_form` gave.
        tensor_of: gives the tensor that something stands for.

    Raises:
        LookupError, TypeError, ValueError: it is no such form.
    """
    if isinstance(form, list):
        return [from_json_form(each, tensor_of) for each in form]
    if not isinstance(form, dict):
        return form
    if not (len(form) == 1 and MARKS.issuperset(form)):
        return {key: from_json_form(each, tensor_of) for key, each in form.items()}
    ((mark, content),) = form.items()
    if mark == "tensor":
        return tensor_of(content)
    if mark == "bytes":
        return bytes.fromhex(content)
    if mark == "float":
        return float(content)
    if mark == "tuple":
        return tuple(from_json_form(each, tensor_of) for each in content)
    return {from_json_form(k, tensor_of): from_json_form(v, tensor_of) for k, v in content}
