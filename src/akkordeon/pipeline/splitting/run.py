"""One forward of a whole module in a gate that has some of its calls: who is called, and who stands aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.splitting.form import Piece
from akkordeon.pipeline.splitting.walk import CallSpan, Source, leaves_in

__all__ = ["Begins", "Ends", "Given", "LeftError", "Passed", "Run", "SpanEnds"]


class LeftError(BaseException):
    """The forward has done what is this gate's; nothing on the way up may catch it."""


class Run:
    """One forward: which call comes next, and the values that are known."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.values: dict[Source, Tensor] = {}
        self.shapes: dict[Source, Tensor] = {}
        self.is_over = True
        self._is_training = True
        self._running = 0
        self._next = self._number = 0

    def begin(self, values: dict[Source, Tensor], shapes: dict[Source, Tensor], is_training: bool) -> None:
        """A forward begins, with what came from the gate before."""
        self.values, self.shapes, self.is_over, self._running, self._next = values, shapes, False, 0, 0
        self._is_training = is_training

    def end(self) -> None:
        """It is over: nothing of the batch is kept."""
        self.values, self.shapes, self.is_over = {}, {}, True

    def enter(self, block: str) -> None:
        """A block of this gate begins; in the backward it may again, to compute once more what it gave."""
        if self.is_over:
            return
        self._running += 1
        if self._running == 1:  # else another block has called it
            self._number = self.next_call(block)

    def leave(self, gave: Any) -> None:
        """A block of this gate ends."""
        if self.is_over:
            return
        self._running -= 1
        if self._running == 0:
            self.note(self._number, gave)

    @property
    def is_inside(self) -> bool:
        """Whether a block of this gate is running."""
        return self._running > 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within, blocks are called by one of this gate."""
        self._running += 1
        yield
        self._running -= 1

    def next_call(self, block: str) -> int:
        """The number of a call.

        Raises:
            RecipeError: on the example another block was called here.
        """
        self._refuse_backward(block)
        if self._may_call(block):
            return self.piece.last
        number, names = self._next, self.piece.names
        if number >= len(names) or names[number] != block or self._has_left(number):
            raise self._other_order(block)
        self._next += 1
        return number

    def pass_by(self, span: CallSpan) -> Any:
        """What an opened module gave that was over before this gate.

        Raises:
            RecipeError: on the example another one was called here.
        """
        self._refuse_backward(span.module)
        if self._next != span.first or self.is_inside:
            raise self._other_order(span.module)
        self._next = span.end
        return span.gave.filled(self.values, self.shapes, span.number)

    def _refuse_backward(self, name: str) -> None:
        if self.is_over:
            raise RecipeError(
                f"{name!r} is called again in the backward, by a checkpoint around blocks of several gates; "
                "have each checkpoint be around one block"
            )

    def _has_left(self, number: int) -> bool:
        return number > self.piece.last and self.piece.gives is not None

    def _other_order(self, name: str) -> RecipeError:
        number, names = self._next, self.piece.names
        then = repr(names[number]) if number < len(names) else "no other"
        if not self._is_training:
            return RecipeError(
                f"in evaluation mode the module calls {name!r} where in training it called {then}; its "
                "gates are cut for one order of calls up to the last gate: have the last gate begin "
                "before that (cut_before), or put what decides between them into one block"
            )
        return RecipeError(
            f"the module calls {name!r} where on the example it called {then}; its gates are cut for "
            "one order of calls: put what decides between them into one block"
        )

    def _may_call(self, block: str) -> bool:
        """Whether a block may be called in any order: nobody after this gate counts its calls.

        If there are gates before it, that is so in evaluation mode alone, as what they send is what is
        needed on the example, and for each mode the example has shown that it is enough.
        """
        piece = self.piece
        if piece.gives is not None or self._next < piece.first or (piece.first and self._is_training):
            return False
        return block in piece.names[piece.first :] or block not in piece.names

    def note(self, number: int, gave: Any) -> None:
        """Note what a call of this gate gave; after the last one the forward is left, or soon."""
        piece = self.piece
        if piece.gives is not None:
            piece.gave[number].refuse_other(gave, f"what {piece.names[number]!r} gives")
        for place, tensor in enumerate(leaves_in(gave)):
            self.values[Source(number, place)] = tensor
        if number == piece.last and piece.gives is not None and piece.leaves_with is None:
            raise LeftError

    def note_end(self, span: CallSpan, gave: Any) -> None:
        """Note what an opened module gave; after the last one that is sent the forward is left."""
        if self.is_over:
            return
        span.gave.refuse_other(gave, f"what {span.module!r} gives")
        for place, tensor in enumerate(leaves_in(gave)):
            self.values[Source(span.number, place)] = tensor
        if span.number == self.piece.leaves_with:
            raise LeftError


@dataclass
class Given:
    """In place of the forward of a block that is in another gate, or in several.

    Args:
        run: of this gate.
        block: its name.
        module: the block.
        forward: that of the block alone, where it has not that of its class.
        is_everywhere: it has no weights, so that any gate may call it.
    """

    run: Run
    block: str
    module: nn.Module
    forward: Callable[..., Any] | None
    is_everywhere: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gives, or gave in its gate."""
        run = self.run
        if run.is_inside or (self.is_everywhere and run.is_over):  # a block of this gate has it as well
            return self._compute(*args, **kwargs)
        number = run.next_call(self.block)
        if not run.piece.first <= number <= run.piece.last:
            return run.piece.gave[number].filled(run.values, run.shapes, number)
        with run.inside():
            gave = self._compute(*args, **kwargs)
        run.note(number, gave)
        return gave

    def _compute(self, *args: Any, **kwargs: Any) -> Any:
        if self.forward is not None:
            return self.forward(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


@dataclass
class Passed:
    """In place of the forward of an opened module that was over before this gate."""

    run: Run
    span: CallSpan

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What it gave there."""
        return self.run.pass_by(self.span)


@dataclass
class SpanEnds:
    """A hook after an opened module of which other gates need what it gave."""

    run: Run
    span: CallSpan

    def __call__(self, module: nn.Module, args: Any, gave: Any) -> None:
        """Note it."""
        self.run.note_end(self.span, gave)


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
