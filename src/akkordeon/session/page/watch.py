"""``session.watch()``: the session in a browser, and what may be asked of it there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.errors import SessionClosedError
from akkordeon.session.http.access import LOOPBACK, require_extra, token_for
from akkordeon.session.page.watched import Watched, WatchedSession

if TYPE_CHECKING:
    from akkordeon.sentinels.recipes import Evaluation, Training
    from akkordeon.session.page.server import PageServer
    from akkordeon.session.page.steering import Keep
    from akkordeon.session.session import Session

__all__ = ["PORT", "watch_only", "watch_session"]

PORT = 8001


def watch_session(
    self: Session,
    port: int = PORT,
    *,
    host: str = LOOPBACK,
    token: str | bool | None = None,
    every_s: float = 1.0,
    sentinels: Sequence[Training | Evaluation] = (),
    keep: Keep | str | Path | None = None,
    title: str = "akkordeon",
) -> PageServer:
    """Show the session in a browser until it, or what this returns, is closed; see docs/page.md.

    Anybody who reaches the page may look. To attach and detach sentinels, take a checkpoint, stop, and change
    how gates learn takes the token, which is in the ``page`` of what this returns. Where a run can be
    repeated, gates are not asked how they are, as that would change it.

    Args:
        self: the session; what was reported before is on the page as far as the session has kept it.
        port: to listen at; 0 takes one that is free.
        host: an address of this machine.
        token: that orders must bear; one is made if not given. False lets nobody order anything.
        every_s: seconds between two looks at the session, which are made as long as somebody looks at it.
        sentinels: recipes that may be attached on the page, under their names.
        keep: a folder for checkpoints, or a function that keeps one and says where; None keeps none.
        title: of the page.

    Raises:
        SessionError: Starlette or uvicorn is not installed, or the port is taken, or the session has ended.
        RecipeError: a number out of range, or a token that cannot be sent.
    """
    _check(port, every_s)
    if self._closed:
        raise SessionClosedError("the session has ended, and its page with it; watch it from its beginning")
    from akkordeon.session.page.server import PageServer
    from akkordeon.session.page.steering import Steering, keep_in

    watched = WatchedSession(self, title)
    if isinstance(keep, str | Path):
        keep = keep_in(self, keep)
    made = token_for(True if token is None else token, host)
    if made is None:
        server = PageServer(watched, host, port, None, every_s)
    else:
        steering = Steering(self, sentinels, keep, watched.history)
        server = PageServer(watched, host, port, made, every_s, steering.offers, steering.carry_out)
    self.subscribe(watched.tell)
    server.at_end(watched.close)
    self.at_close(server.close)
    if self._closed:  # meanwhile, and perhaps without this server
        server.close()
    return server


def watch_only(watched: Watched, port: int, host: str = LOOPBACK, every_s: float = 1.0) -> PageServer:
    """Likewise something that nobody can steer."""
    _check(port, every_s)
    from akkordeon.session.page.server import PageServer

    return PageServer(watched, host, port, None, every_s)


def _check(port: int, every_s: float) -> None:
    require_extra("the page", "web")
    require_whole("port", port, 0)
    require_above("every_s", every_s)
