"""A server of predictions: its weights, and what computes with them."""

from __future__ import annotations

from akkordeon.core.payload import Payload
from akkordeon.session.http.server import HttpServer, listening_at
from akkordeon.session.serving.app import Service
from akkordeon.session.serving.batcher import Batcher
from akkordeon.session.serving.bodies import Inputs
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.weights import Refresher, WeightSource

__all__ = ["Server"]


class Server(HttpServer):
    """Answers requests until it is closed.

    Args:
        source: of the weights.
        host: address to listen at.
        port: likewise; 0 takes one that is free.
        token: that requests must bear; None lets everybody in.
        refresh_s: seconds between two fetches of weights.
        example: a batch of inputs, by which others are made of what comes.
        limits: of requests.
        learning: takes examples to learn from; None where nobody does.

    Raises:
        SessionError: the port is taken, or the address not of this machine.
        AkkordeonError: there are no weights.
    """

    def __init__(
        self,
        source: WeightSource,
        host: str,
        port: int,
        token: str | None,
        refresh_s: float,
        example: Payload | None,
        limits: Limits,
        learning: Learning | None = None,
    ) -> None:
        listening = listening_at(host, port)
        try:
            self._weights = Refresher(source, refresh_s)
        except BaseException:
            listening.close()
            raise
        self._batcher = Batcher(lambda: self._weights.latest, limits.batch_max, limits.wait_ms / 1000)
        service = Service(self._weights, self._batcher, Inputs(example), limits, token, learning)
        super().__init__(service.app, listening, host, token)

    def _how(self) -> str:
        return f": version {self._weights.latest.version}"

    @property
    def version(self) -> int:
        """Of the weights that are served now."""
        return self._weights.latest.version

    def _ended(self) -> None:
        self._batcher.close()
        self._weights.close()
