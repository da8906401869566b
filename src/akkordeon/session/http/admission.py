"""Which requests are answered: those with the token, if there are not too many, once their body is there."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

__all__ = ["Admission", "Endpoint", "come_again"]

BODY_S = 30.0
"""How long a body may take to come."""

RETRY_S = 1
"""When a request that was too many is to come again."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Admission:
    """Lets requests in; in the thread of one event loop.

    Args:
        token: that they must bear; None lets everybody in.
        requests_max: that are under way at once.
        body_bytes_max: of each.

    Attributes:
        under_way: requests that are read, wait or are worked on.
    """

    def __init__(self, token: str | None, requests_max: int, body_bytes_max: int) -> None:
        self._token = token
        self._requests_max = requests_max
        self._body_bytes_max = body_bytes_max
        self.under_way = 0

    def admitted(self, endpoint: Callable[[Request, bytes], Awaitable[Response]]) -> Endpoint:
        """What answers those that are let in, with their body."""

        async def answer(request: Request) -> Response:
            self.check_token(request)
            with self.room():
                return await endpoint(request, await self._body(request))

        return answer

    def check_token(self, request: Request) -> None:
        """Raise an ``HTTPException`` where a request has not the token."""
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode(), self._token.encode()
        ):
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "it has not the server's token: Authorization: Bearer TOKEN", headers)

    @contextmanager
    def room(self) -> Iterator[None]:
        """One more is under way; raises an ``HTTPException`` where that is one too many."""
        if self.under_way >= self._requests_max:
            raise come_again(f"{self.under_way} requests are under way, the most that there may be")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def _body(self, request: Request) -> bytes:
        most = self._body_bytes_max
        too_large = HTTPException(413, f"a body has at most {most:,} bytes", {"Connection": "close"})
        length = request.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
        except ClientDisconnect:
            raise HTTPException(400, "its body breaks off") from None
        except TimeoutError:
            raise HTTPException(
                408, f"its body has not come in {BODY_S:g} s", {"Connection": "close"}
            ) from None
        return bytes(body)


def come_again(sentence: str) -> HTTPException:
    """What tells a request to come again later."""
    return HTTPException(503, sentence, {"Retry-After": str(RETRY_S)})
