"""A server of predictions: its socket, its thread, its end."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn

from akkordeon.core.errors import SessionError
from akkordeon.core.payload import Payload
from akkordeon.session.serving.app import Service
from akkordeon.session.serving.batcher import Batcher
from akkordeon.session.serving.bodies import Inputs
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.weights import Refresher, WeightSource

__all__ = ["Server"]

END_S = 5
"""How long requests under way may take when the server ends."""


class Server:
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

    Attributes:
        url: where it is, without a path.
        port: likewise.
        token: the token.

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
        listening = _listening(host, port)
        try:
            self._weights = Refresher(source, refresh_s)
        except BaseException:
            listening.close()
            raise
        self._batcher = Batcher(lambda: self._weights.latest, limits.batch_max, limits.wait_ms / 1000)
        service = Service(self._weights, self._batcher, Inputs(example), limits, token, learning)
        self.token = token
        self.port: int = listening.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        config = uvicorn.Config(
            service.app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=END_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="akkordeon server", daemon=True
        )
        self._thread.start()
        self._closing = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Server at {self.url}: version {self._weights.latest.version}>"

    @property
    def version(self) -> int:
        """Of the weights that are served now."""
        return self._weights.latest.version

    def close(self) -> None:
        """Answer what is under way, and end. Doing it twice does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._server.should_exit = True
            self._thread.join()
            self._batcher.close()
            self._weights.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SessionError(f"the server cannot listen at {host}:{port}: {why}") from error
