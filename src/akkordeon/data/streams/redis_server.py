"""A Redis server to ask, which may be out of reach for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from akkordeon.core.errors import DataError, RecipeError

__all__ = ["RedisServer"]

Reply = TypeVar("Reply")

PAUSE_S, PAUSE_MAX_S = 0.05, 2.0
"""After the first attempt in vain, and at most; each pause is twice the one before."""

NOT_THERE = ("NOGROUP", "UNBLOCKED", "LOADING")
"""What a server says that has lost what it knew, or does not know it yet: it is asked again."""


class RedisServer:
    """Asks a server through one connection, which is made when it is needed, and again when it broke.

    Args:
        url: of the server.
        greet: is called with the client whenever a connection is new.
        answer_s: a server that takes longer to answer is out of reach.
        patience_s: seconds to wait in all, before one that is out of reach is given up.

    Attributes:
        closed: once this is set nobody waits for a server any more.

    Raises:
        RecipeError: the client is not installed, or the url is none of Redis.
    """

    def __init__(self, url: str, greet: Callable[[Any], None], *, answer_s: float, patience_s: float) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise RecipeError("a RedisStream needs redis: pip install 'akkordeon[streams]'") from error
        try:
            redis.Redis.from_url(url).close()  # nothing is connected yet
        except (ValueError, AttributeError) as error:
            raise RecipeError(f"{url!r} is no url of a Redis server: {error}") from error
        self._url = url
        self._greet = greet
        self._answer_s = answer_s
        self._patience_s = patience_s
        self._begin()

    def _begin(self) -> None:
        self._client: Any = None
        self._one_at_a_time = threading.Lock()
        self.closed = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """It travels without its connection."""
        of_this = ("_client", "_one_at_a_time", "closed")
        return {name: value for name, value in vars(self).items() if name not in of_this}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def __str__(self) -> str:
        """Its url, without a password."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def ask(self, question: Callable[[Any], Reply], patience_s: float | None = None) -> Reply:
        """The answer to a question; it is put again while nobody answers.

        Args:
            question: a function of the client.
            patience_s: another than for others.

        Raises:
            DataError: the server is out of reach, or refuses.
        """
        from redis import exceptions

        patience_s = self._patience_s if patience_s is None else patience_s
        waited_s, pause_s = 0.0, PAUSE_S
        while True:
            try:
                with self._one_at_a_time:  # a reader in place of another may meet that at its last message
                    return question(self._connected())
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ResponseError) as error:
                self.forget()
                refuses = isinstance(error, exceptions.ResponseError) and not str(error).startswith(NOT_THERE)
                if refuses or isinstance(error, exceptions.AuthenticationError):
                    raise DataError(f"{self} refuses to answer: {error}") from error
                if waited_s >= patience_s or self.closed.is_set():
                    raise DataError(f"{self} was out of reach for {waited_s:g} s: {error}") from error
            pause_s = min(pause_s, patience_s - waited_s)
            self.closed.wait(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, PAUSE_MAX_S)

    def _connected(self) -> Any:
        if self._client is None:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            client = Redis.from_url(
                self._url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=self._answer_s,
                socket_connect_timeout=self._answer_s,
            )
            self._greet(client)
            self._client = client
        return self._client

    def forget(self) -> None:
        """Drop the connection; the next question makes another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
