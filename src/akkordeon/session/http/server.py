"""A server: its socket, its thread, its end."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import uvicorn

from akkordeon.core.errors import SessionError

__all__ = ["HttpServer", "listening_at"]

END_S = 5
"""How long they may if nothing else is said."""

VANISHED_S = 60
"""How long a client may take nothing of what it is sent, or of the question whether it is there still."""


class HttpServer:
    """Has an application answer requests until it is closed.

    Args:
        app: of ASGI.
        listening: the socket that it listens at.
        host: its address, as it was given.
        token: that requests must bear; None where they need none.
        end_s: how long requests under way may take when the server ends.

    Attributes:
        url: where it is, without a path.
        port: likewise.
        token: the token.
    """

    def __init__(
        self, app: Any, listening: socket.socket, host: str, token: str | None, end_s: int = END_S
    ) -> None:
        self.token = token
        self.port: int = listening.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._end_s = end_s
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=end_s + 1,  # of which those are left that no client waits for
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
        return f"<{type(self).__name__} at {self.url}{self._how()}>"

    def close(self) -> None:
        """Answer what is under way, and end. Doing it twice does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._ending()
            self._server.should_exit = True
            self._thread.join(self._end_s)
            if self._thread.is_alive():
                self._hang_up()
                self._thread.join()
            self._ended()

    def _hang_up(self) -> None:
        """End the connections there are: those of clients, as a rule, that do not read what they are sent."""
        for connection in list(self._server.server_state.connections):
            with suppress(RuntimeError):  # the loop has ended meanwhile
                connection.loop.call_soon_threadsafe(connection.transport.abort)

    def _how(self) -> str:
        """What there is to say of it beside where it is."""
        return ""

    def _ending(self) -> None:
        """Have requests end that would not by themselves."""

    def _ended(self) -> None:
        """End what only served requests."""


def listening_at(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine.
        port: 0 takes one that is free.

    Raises:
        SessionError: the port is taken, or the address not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SessionError(f"the server cannot listen at {host}:{port}: {why}") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # what it accepts has these, too
    if hasattr(socket, "TCP_KEEPIDLE"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_S * 1000)
    return listening
