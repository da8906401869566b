"""The interpreter of effects: what it has carried out, in which order, and how an actor ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.support.engines import Note, Scripted

from akkordeon.core.actor import Actor, After, Report, Send, Stop
from akkordeon.core.messages import Message
from akkordeon.engines.interpreter import Cell, Interpreter


class Noting(Interpreter[Cell]):
    """Notes what it is told to do."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def _send(self, sender: Cell, to: str, message: Message) -> None:
        self.done.append(("send", to))

    def _report(self, record: Any) -> None:
        self.done.append(record if isinstance(record, str) else ("failed", record.doing, str(record.error)))

    def _after(self, cell: Cell, seconds: float, message: Message) -> None:
        self.done.append(("after", seconds))

    def _remove(self, cell: Cell) -> None:
        self.done.append("removed")


def handle(script: Any, last_words: Any = lambda: iter(()), recorder: Any = None) -> list[Any]:
    """What handling one message leads to."""
    interpreter = Noting()
    interpreter.recorder = recorder
    interpreter._handle(Cell(Scripted("a", script, last_words)), Note("x"), 0.0)
    return interpreter.done


def test_effects_are_carried_out_as_they_are_yielded():
    interpreter, seen = Noting(), []

    def script(message: Any, now_s: float) -> Iterator[Any]:
        yield Send("b", message)
        seen.append(list(interpreter.done))
        yield After(2.0, message)
        seen.append(list(interpreter.done))
        yield Report("r")

    interpreter._handle(Cell(Scripted("a", script)), Note("x"), 0.0)
    assert seen == [[("send", "b")], [("send", "b"), ("after", 2.0)]]
    assert interpreter.done == [("send", "b"), ("after", 2.0), "r"]


def test_nothing_is_carried_out_after_a_stop():
    def script(message: Any, now_s: float) -> Iterator[Any]:
        yield Stop()
        yield Report("never")

    assert handle(script) == ["removed"]


def test_an_actor_that_raises_is_removed_then_reported_and_has_its_last_words():
    def script(message: Any, now_s: float) -> Iterator[Any]:
        yield Report("r")
        raise ValueError("no")

    def last_words() -> Iterator[Any]:
        yield Send("b", Note("left"))
        yield Report("left")

    done = handle(script, last_words)
    assert done == ["r", "removed", ("failed", "Note", "no"), ("send", "b"), "left"]


def test_last_words_that_raise_are_reported():
    def script(message: Any, now_s: float) -> Iterator[Any]:
        raise SystemExit(3)
        yield

    def last_words() -> Iterator[Any]:
        yield Report("left")
        raise ValueError("not even this")

    done = handle(script, last_words)
    assert done == ["removed", ("failed", "Note", "3"), "left", ("failed", "its last words", "not even this")]


def test_a_recorder_stands_between_the_interpreter_and_the_actor():
    class Doubling:
        def listen(self, actor: Actor, message: Message, now_s: float) -> Iterator[Any]:
            for effect in actor.receive(message, now_s):
                yield effect
                yield effect

    def script(message: Any, now_s: float) -> Iterator[Any]:
        yield Report("r")

    assert handle(script, recorder=Doubling()) == ["r", "r"]
