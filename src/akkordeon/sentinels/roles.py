"""What sentinels are for: one table of roles, and what each means to those who handle sentinels of any."""

from __future__ import annotations

from typing import Self

__all__ = [
    "CHECKPOINT",
    "EXPORT",
    "KEEP",
    "KEEPERS",
    "PREDICT",
    "STREAM",
    "TEST",
    "TRAIN",
    "VALIDATE",
    "Role",
]


class Role(str):
    """The role of a sentinel: its name in reports, records and default names, with what follows from it.

    Attributes:
        trains: gates learn from its batches. It counts epochs, the others rounds.
        repeats: it makes one round after another until it is told to end, and ``session.wait()`` has it make
            a last one. The others end by themselves, and the wait is for them.
        answers: it is a question to the network. It has no loss, its result goes to whoever asked, and
            watchers hear nothing of it. A record keeps what it reads, as nobody has its recipe.
        keeps: it takes checkpoints, and so has no loss and reads nothing.
    """

    trains: bool
    repeats: bool
    answers: bool
    keeps: bool

    def __new__(
        cls,
        name: str,
        *,
        trains: bool = False,
        repeats: bool = False,
        answers: bool = False,
        keeps: bool = False,
    ) -> Self:
        """A role of that name; a sentinel has at most one of the first three."""
        role = super().__new__(cls, name)
        role.trains, role.repeats, role.answers, role.keeps = trains, repeats, answers, keeps
        return role

    @property
    def has_place(self) -> bool:
        """Whether a checkpoint says where it is: it goes on for long, and is no checkpointer itself."""
        return (self.trains or self.repeats) and not self.keeps


TRAIN = Role("train", trains=True)
STREAM = Role("stream", trains=True)
VALIDATE = Role("validate", repeats=True)
TEST = Role("test")
PREDICT = Role("predict", answers=True)
EXPORT = Role("export", answers=True)
"""Fetch the weights of a cut."""
CHECKPOINT = Role("checkpoint", repeats=True, keeps=True)
"""Keep all that a run can be taken up from, again and again."""
KEEP = Role("keep", answers=True, keeps=True)
"""Likewise, once."""
KEEPERS = {str(role): role for role in (CHECKPOINT, KEEP)}
"""Those that take checkpoints, by name."""
