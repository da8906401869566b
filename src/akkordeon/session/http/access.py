"""Who may ask a server: addresses, tokens, and whether one can be begun at all."""

from __future__ import annotations

import ipaddress
import secrets
from importlib.util import find_spec

from akkordeon.core.errors import RecipeError, SessionError

__all__ = ["LOOPBACK", "is_loopback", "require_extra", "token_for"]

LOOPBACK = "127.0.0.1"


def require_extra(what: str, extra: str) -> None:
    """Raise where a server's libraries are not there.

    Args:
        what: needs them, in a word.
        extra: that brings them.

    Raises:
        SessionError: Starlette or uvicorn is not installed.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SessionError(f"{what} needs {' and '.join(missing)}: pip install 'akkordeon[{extra}]'")


def token_for(token: str | bool | None, host: str) -> str | None:
    """The token that requests must bear; None where they need none.

    Args:
        token: one, or True to have one made, as is done for None where others than this machine can ask.
        host: where the server listens.

    Raises:
        RecipeError: a token that cannot be sent.
    """
    if token is True or (token is None and not is_loopback(host)):
        return secrets.token_hex(32)
    if isinstance(token, str) and not (
        token.isascii() and token.isprintable() and " " not in token and token
    ):
        raise RecipeError("a token is of printable ASCII characters without spaces")
    return token if isinstance(token, str) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
