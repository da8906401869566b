"""One thing that one actor did."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WORK", "Span", "lane_order"]

WORK = ("forward", "backward", "evaluate", "other")
"""What actors do; all else that they may have is a fault."""


@dataclass(frozen=True, slots=True)
class Span:
    """One thing one actor did, or one fault it had.

    Attributes:
        who: its address.
        what: one of ``WORK``, ``"crash"`` or ``"freeze"``.
        batch: number of the batch, where there is one.
        begin_s: from.
        end_s: until; None for ever.
        message: name of the class of the message that it handled; empty for a fault.
        sender: address of the sentinel whose batch it was, where there is one.
        host: name of the process that it was in, where there are several.
    """

    who: str
    what: str
    batch: int | None
    begin_s: float
    end_s: float | None
    message: str = ""
    sender: str = ""
    host: str = ""


def lane_order(who: str) -> tuple[bool, list[tuple[int, str]]]:
    """What actors are sorted by: gates first, and gate 10 after gate 9."""
    pieces = [(int(piece), "") if piece.isdigit() else (0, piece) for piece in who.split("/")]
    return not who.startswith("gate"), pieces
