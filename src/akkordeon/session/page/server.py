"""A server of a page."""

from __future__ import annotations

from collections.abc import Callable

from akkordeon.session.http.server import HttpServer, listening_at
from akkordeon.session.page.app import Order, PageService
from akkordeon.session.page.feed import Feed
from akkordeon.session.page.watched import Watched

__all__ = ["PageServer"]

END_S = 1
"""How long browsers may take to read the last picture, and orders to be carried out, when the server ends."""


class PageServer(HttpServer):
    """Shows something to browsers until it is closed.

    Args:
        watched: what it shows.
        host: address to listen at.
        port: likewise; 0 takes one that is free.
        token: that orders must bear; None where there are none.
        every_s: seconds between two looks.
        offers: what may be ordered, for the page.
        carry_out: does it; None where nobody may order anything.

    Raises:
        SessionError: the port is taken, or the address not of this machine.
    """

    def __init__(
        self,
        watched: Watched,
        host: str,
        port: int,
        token: str | None,
        every_s: float,
        offers: dict[str, object] | None = None,
        carry_out: Order | None = None,
    ) -> None:
        always = {"every_s": every_s, "offers": offers}
        self._feed = Feed(watched, every_s, always)
        self._at_end: list[Callable[[], None]] = []
        service = PageService(self._feed, host, carry_out, token)
        super().__init__(service.app, listening_at(host, port), host, token, END_S)

    @property
    def page(self) -> str:
        """The address for a browser that may steer: the token is behind the ``#``, which no browser sends."""
        return self.url + ("/" if self.token is None else f"/#{self.token}")

    def at_end(self, do: Callable[[], None]) -> None:
        """Have something done when the server has ended."""
        self._at_end.append(do)

    def _ending(self) -> None:
        self._feed.end()

    def _ended(self) -> None:
        for do in self._at_end:
            do()
