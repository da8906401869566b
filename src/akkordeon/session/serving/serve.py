"""``session.serve()``: predictions over HTTP while training goes on."""

from __future__ import annotations

import ipaddress
import secrets
from importlib.util import find_spec
from typing import TYPE_CHECKING

from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.errors import RecipeError, SessionError
from akkordeon.core.payload import Payload
from akkordeon.session.attachment import Attachment
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.session_weights import SessionWeights
from akkordeon.session.serving.weights import WeightSource

if TYPE_CHECKING:
    from akkordeon.session.serving.server import Server
    from akkordeon.session.session import Session

__all__ = ["LOOPBACK", "serve_session", "serve_weights"]

LOOPBACK = "127.0.0.1"


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
    _require_extra()
    require_whole("port", port, 0)
    require_above("refresh_s", refresh_s)
    token = _token(token, host)
    from akkordeon.session.serving.server import Server

    return Server(source, host, port, token, refresh_s, example, limits or Limits(), learning)


def _require_extra() -> None:
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SessionError(f"serving needs {' and '.join(missing)}: pip install 'akkordeon[serve]'")


def _token(token: str | bool | None, host: str) -> str | None:
    if token is True or (token is None and not _is_loopback(host)):
        return secrets.token_hex(32)
    if isinstance(token, str) and not (
        token.isascii() and token.isprintable() and " " not in token and token
    ):
        raise RecipeError("a token is of printable ASCII characters without spaces")
    return token if isinstance(token, str) else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
