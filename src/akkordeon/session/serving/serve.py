"""``session.serve()``: predictions over HTTP while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.payload import Payload
from akkordeon.session.attachment import Attachment
from akkordeon.session.http.access import LOOPBACK, require_extra, token_for
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.session_weights import SessionWeights
from akkordeon.session.serving.weights import WeightSource

if TYPE_CHECKING:
    from akkordeon.session.serving.server import Server
    from akkordeon.session.session import Session

__all__ = ["serve_session", "serve_weights"]


def serve_session(
    self: Session,
    port: int = 8000,
    *,
    host: str = LOOPBACK,
    token: str | bool | None = None,
    refresh_s: float = 1.0,
    ema: bool = False,
    example: Payload | None = None,
    learn: Attachment | None = None,
    limits: Limits | None = None,
) -> Server:
    """Answer predictions over HTTP until the session, or what this returns, is closed.

    Each answer is of one consistent cut; see docs/streams.md.

    Args:
        self: the session.
        port: to listen at; 0 takes one that is free.
        host: an address of this machine.
        token: that requests must bear. True makes one, which the result has; and so does None where others
            than this machine can ask.
        refresh_s: seconds between two cuts.
        ema: serve the average of the weights that gates with ``ema`` keep.
        example: a batch of inputs, whose dtypes and names are those of all that come. Without one they are
            arrays of floats.
        learn: a stream that learns from what is posted: its source is :class:`Posts`.
        limits: how much is done at once.

    Raises:
        SessionError: Starlette or uvicorn is not installed, or the port is taken.
        RecipeError: a number out of range, a token that cannot be sent, no gate keeps an average, or
            ``learn`` is no such stream.
    """
    if ema:
        self._topology.require_average()
    learning = None if learn is None else Learning(learn)
    source = SessionWeights(self, ema)
    server = serve_weights(source, port, host, token, refresh_s, example, limits, learning)
    self.at_close(server.close)
    return server


def serve_weights(
    source: WeightSource,
    port: int,
    host: str = LOOPBACK,
    token: str | bool | None = None,
    refresh_s: float = 1.0,
    example: Payload | None = None,
    limits: Limits | None = None,
    learning: Learning | None = None,
) -> Server:
    """Likewise, with weights from anywhere."""
    require_extra("serving", "serve")
    require_whole("port", port, 0)
    require_above("refresh_s", refresh_s)
    token = token_for(token, host)
    from akkordeon.session.serving.server import Server

    return Server(source, host, port, token, refresh_s, example, limits or Limits(), learning)
