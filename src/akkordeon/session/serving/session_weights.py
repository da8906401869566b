"""The weights of a running network."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from akkordeon.core.errors import SessionClosedError
from akkordeon.core.plain_state import CutStates
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
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
        self._of: tuple[Network | Downpour, tuple[int, ...]] | None = None  # the latest cut

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
        network = session.network
        if (
            before is not None
            and self._of is not None
            and self._of[0] is network
            and self._of[1] == cut.versions
        ):
            return replace(before, taken_s=began_s)
        module = network.module(session._topology.by_gate(cut.states)).eval()
        self._of = network, cut.versions
        least = 0 if before is None else before.version + 1
        return ServedWeights(module, max(least, *cut.versions), began_s)

    def batches_trained(self) -> int | None:
        """By all sentinels of the session."""
        return self._session.status(ASK_S).batches.trained
