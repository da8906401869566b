"""What sentinels are for: one table of roles, and what each means to those who handle sentinels of any."""

from __future__ import annotations

from typing import Self

__all__ = ["EXPORT", "PREDICT", "TEST", "TRAIN", "VALIDATE", "Role"]


class Role(str):
    """The role of a sentinel: its name in reports, records and default names, with what follows from it.

    Attributes:
        trains: gates learn from its batches. It counts epochs, the others rounds.
        repeats: it makes one round after another until it is told to end, and ``session.wait()`` has it make
            a last one. The others end by themselves, and the wait is for them.
        answers: it is a question to the network. It has no loss, its result goes to whoever asked, and
            watchers hear nothing of it. A record keeps what it reads, as nobody has its recipe.
    """

    trains: bool
    repeats: bool
    answers: bool

    def __new__(
        cls, name: str, *, trains: bool = False, repeats: bool = False, answers: bool = False
    ) -> Self:
        """A role of that name; a sentinel has at most one of the three."""
        role = super().__new__(cls, name)
        role.trains, role.repeats, role.answers = trains, repeats, answers
        return role


TRAIN = Role("train", trains=True)
VALIDATE = Role("validate", repeats=True)
TEST = Role("test")
PREDICT = Role("predict", answers=True)
EXPORT = Role("export", answers=True)
"""Fetch the weights of a cut."""
