"""What may be asked of a session on its page: attach, detach, checkpoint, stop, and how gates learn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akkordeon.core.errors import DataError
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.session.page.history import History

if TYPE_CHECKING:
    from akkordeon.session.session import Session

__all__ = ["Keep", "Steering", "keep_in"]

ANSWER_S = 60.0
"""How long a gate may take to learn otherwise, and a checkpoint to come."""

Keep = Callable[[], str]
"""Keeps a checkpoint, and says where."""


class Steering:
    """Carries out orders; each in whatever thread asks, several at once.

    Args:
        session: what is steered.
        sentinels: recipes that may be attached, by their names or else their roles.
        keep: keeps a checkpoint; None where none can be kept.
        history: has a line for each order.
    """

    def __init__(
        self,
        session: Session,
        sentinels: Sequence[Training | Evaluation],
        keep: Keep | None,
        history: History,
    ) -> None:
        self._session = session
        self._sentinels = {sentinel.name or str(sentinel.role): sentinel for sentinel in sentinels}
        self._keep = keep
        self._history = history
        self._orders: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "detach": self._detach,
            "set": self._set,
        }
        if self._sentinels:
            self._orders["attach"] = self._attach
        if keep is not None:
            self._orders["checkpoint"] = self._checkpoint
        if session._topology.owned:  # else it is others' network, too
            self._orders["stop"] = self._stop

    @property
    def offers(self) -> dict[str, Any]:
        """What may be asked, for the page: the orders, and the sentinels that may be attached."""
        return {"orders": sorted(self._orders), "sentinels": list(self._sentinels)}

    def carry_out(self, order: Mapping[str, Any]) -> str:
        """Do what was asked.

        Args:
            order: ``do`` names it; ``sentinel`` whom to attach or detach; ``gate`` which is to learn with
                another ``lr``, or is to be ``frozen`` or not.

        Returns:
            What was done, in a sentence.

        Raises:
            DataError: there is no such order, or something is missing from it.
            AkkordeonError: the session cannot do it.
        """
        do = order.get("do")
        if not isinstance(do, str) or do not in self._orders:
            raise DataError(f"what can be done is {', '.join(sorted(self._orders))}; got {do!r}")
        done = self._orders[do](order)
        self._history.note("asked", "the page", done)
        return done

    def _attach(self, order: Mapping[str, Any]) -> str:
        name = _text(order, "sentinel")
        if name not in self._sentinels:
            raise DataError(
                f"there is no sentinel {name!r} to attach; there are {', '.join(self._sentinels)}"
            )
        self._session.attach(self._sentinels[name])
        return f"{name} was attached"

    def _detach(self, order: Mapping[str, Any]) -> str:
        name = _text(order, "sentinel")
        self._session.detach(name)
        return f"{name} was told to end"

    def _checkpoint(self, order: Mapping[str, Any]) -> str:
        assert self._keep is not None, "else there is no such order"
        return f"a checkpoint was kept in {self._keep()}"

    def _stop(self, order: Mapping[str, Any]) -> str:
        for attachment in self._session.attachments:
            if attachment.role.trains:
                attachment.detach()
        return "all that trains was told to end"

    def _set(self, order: Mapping[str, Any]) -> str:
        name = _text(order, "gate")
        settings: dict[str, Any] = {}
        lr, frozen = order.get("lr"), order.get("frozen")
        if lr is not None:
            is_number = isinstance(lr, int | float) and not isinstance(lr, bool)
            if not is_number or abs(lr) > sys.float_info.max:  # JSON has integers of any length
                raise DataError(f"a learning rate is a number, got {lr!r}")
            settings["lr"] = float(lr)
        if frozen is not None:
            if not isinstance(frozen, bool):
                raise DataError(f"frozen is true or false, got {frozen!r}")
            settings["frozen"] = frozen
        if not settings:
            raise DataError("what is the gate to learn with? Give lr, or frozen")
        self._session.gate(name).set(timeout=ANSWER_S, **settings)
        how = ", ".join(f"{what}={value}" for what, value in settings.items())
        return f"{name} learns with {how}"


def keep_in(session: Session, folder: str | Path) -> Keep:
    """What keeps checkpoints of a session in a folder."""

    def keep() -> str:
        session.checkpoint(folder, timeout=ANSWER_S)
        return str(folder)

    return keep


def _text(order: Mapping[str, Any], what: str) -> str:
    value = order.get(what)
    if not isinstance(value, str) or not value:
        raise DataError(f"which {what}? It has a name, got {value!r}")
    return value
