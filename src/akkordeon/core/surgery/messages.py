"""The messages that change a gate which is at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from akkordeon.core.messages import Message

__all__ = ["Change"]


@dataclass(frozen=True, slots=True)
class Change(Message):
    """Learn with other settings from the next update on, or refuse all of them. To a gate.

    Batches in flight need not come back first: their gradients are taken on the weights of their forward.

    Attributes:
        settings: by name; see :func:`akkordeon.pipeline.surgery.change.changed`.
        number: comes back in the report :class:`akkordeon.core.surgery.reports.Changed`.
    """

    settings: Mapping[str, Any]
    number: int = 0
