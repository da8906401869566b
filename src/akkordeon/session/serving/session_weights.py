"""The weights of a running network."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from akkordeon.core.errors import SessionClosedError
from akkordeon.core.plain_state import CutStates
from akkordeon.sentinels.recipes import Evaluation
from akkordeon.sentinels.roles import EXPORT
from akkordeon.session.serving.weights import ServedWeights

if TYPE_CHECKING:
    from akkordeon.session.session import Session

__all__ = ["SessionWeights"]

FETCH_S = 10.0
"""How long a cut may take; if it takes longer, there will be another time."""

ASK_S = 0.5
"""How long sentinels have to tell what they have trained."""


class SessionWeights:
    """Takes a cut of a session's network whenever it is asked.

    Args:
        session: at work.
        ema: the average of the weights, where gates keep one.
    """

    def __init__(self, session: Session, ema: bool) -> None:
        self._session = session
        self._ema = ema
        self._row: Collection[str] = ()  # of the latest cut

    def fetch(self, before: ServedWeights | None) -> ServedWeights:
        """The weights of a cut that is made now.

        Raises:
            AkkordeonError: as ``Session.states``.
        """
        began_s = time.monotonic()
        session = self._session
        recipe = Evaluation(role=EXPORT, batches=(), loss=None, ema=self._ema)
        cut: CutStates | None = session._result(recipe, FETCH_S)
        if cut is None:
            raise SessionClosedError("the session has ended; it has no newer weights")
        module = session._topology.module(session._topology.by_gate(cut.states)).eval()
        row, self._row = self._row, cut.states.keys()
        if before is not None and row == self._row and _are_equal(module, before.module):
            return replace(before, taken_s=began_s)
        least = 0 if before is None else before.version + 1
        return ServedWeights(module, max(least, *cut.versions), began_s)

    def batches_trained(self) -> int | None:
        """By all sentinels of the session."""
        return self._session.status(ASK_S).batches.trained


def _are_equal(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one form have equal weights; gates made anew count again from earlier ones."""
    one, two = module.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(
        isinstance(value, Tensor) and torch.equal(value, two[name]) for name, value in one.items()
    )
