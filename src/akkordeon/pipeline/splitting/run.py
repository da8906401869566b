"""One forward of a whole module in a gate that has some of its calls: who is called, and who stands aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.splitting.form import Piece
from akkordeon.pipeline.splitting.walk import Source, tensors_in

__all__ = ["Begins", "Ends", "Given", "LeftError", "Run"]


class LeftError(BaseException):
    """The forward has done what is this gate's; nothing on the way up may catch it."""


class Run:
    """One forward: which call comes next, and the values that are known."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.values: dict[Source, Tensor] = {}
        self.shapes: dict[Source, Tensor] = {}
        self._running = 0
        self._next = self._number = 0

    def begin(self, values: dict[Source, Tensor], shapes: dict[Source, Tensor]) -> None:
        """A forward begins, with what came from the gate before."""
        self.values, self.shapes, self._running, self._next = values, shapes, 0, 0

    def end(self) -> None:
        """It is over: nothing of the batch is kept."""
        self.values, self.shapes = {}, {}

    def enter(self, block: str) -> None:
        """A block of this gate begins."""
        self._running += 1
        if self._running == 1:  # else another block has called it
            self._number = self.next_call(block)

    def leave(self, gave: Any) -> None:
        """A block of this gate ends."""
        self._running -= 1
        if self._running == 0:
            self._note(self._number, gave)

    def next_call(self, block: str) -> int:
        """The number of a call.

        Raises:
            RecipeError: on the example another block was called here.
        """
        number, names = self._next, self.piece.names
        if number >= len(names) or names[number] != block:
            then = names[number] if number < len(names) else "no other"
            raise RecipeError(
                f"the module calls {block!r} where on the example it called {then!r}; its gates are cut for "
                "one order of calls: put what decides between them into one block, or into one gate"
            )
        self._next += 1
        return number

    def _note(self, number: int, gave: Any) -> None:
        """Note what a call of this gate gave; after the last one the forward is left."""
        for place, tensor in enumerate(tensors_in(gave)):
            self.values[Source(number, place)] = tensor
        if number == self.piece.last and self.piece.gives is not None:
            raise LeftError


@dataclass
class Given:
    """In place of the forward of a block that is in another gate."""

    run: Run
    block: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gave in its gate."""
        number = self.run.next_call(self.block)
        return self.run.piece.gave[number].filled(self.run.values, self.run.shapes, number)


@dataclass
class Begins:
    """A hook before the forward of a block that is in this gate."""

    run: Run
    block: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Note that the block begins."""
        self.run.enter(self.block)


@dataclass
class Ends:
    """A hook after it."""

    run: Run

    def __call__(self, module: nn.Module, args: Any, gave: Any) -> None:
        """Note what it gave."""
        self.run.leave(gave)
