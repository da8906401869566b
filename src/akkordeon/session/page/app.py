"""The routes of a page: anybody who reaches it may look; to steer takes the token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from importlib.resources import files
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from akkordeon.core.errors import AkkordeonError
from akkordeon.session.http.access import is_loopback
from akkordeon.session.http.admission import Admission, come_again
from akkordeon.session.http.answers import json_answer, sentence_answer
from akkordeon.session.http.json_bodies import json_object
from akkordeon.session.page.feed import Feed

__all__ = ["PageService"]

BROWSERS_MAX = 32
"""Browsers that are sent events at once."""

ORDERS_MAX = 4
"""Orders that are carried out at once."""

ORDER_BYTES_MAX = 10_000

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
}

HEADERS = {
    # Nothing from elsewhere, nothing inline, and no HTML made of text: `trusted-types 'none'` has the browser
    # refuse innerHTML altogether.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Order = Callable[[Mapping[str, Any]], str]


class PageService:
    """Answers browsers. All of it runs in the thread of one event loop.

    Args:
        feed: has what they see.
        host: where the page is; on this machine alone, requests must name it so (else a page from elsewhere
            whose name leads here could read this one).
        carry_out: does what is ordered; None where nobody may order anything.
        token: that orders must bear.

    Attributes:
        app: what answers, for a server of ASGI.
    """

    def __init__(self, feed: Feed, host: str, carry_out: Order | None, token: str | None) -> None:
        self._feed = feed
        self._carry_out = carry_out
        self._browsers = 0
        self._assets = _read_assets()
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/assets/{name}", self._asset, methods=["GET"]),
            Route("/picture", self._picture, methods=["GET"]),
            Route("/events", self._events, methods=["GET"]),
        ]
        if carry_out is not None and token is not None:
            admission = Admission(token, ORDERS_MAX, ORDER_BYTES_MAX)
            routes.append(Route("/orders", admission.admitted(self._order), methods=["POST"]))
        handlers = {HTTPException: _refusal, AkkordeonError: _unable}
        self.app = Guarded(Starlette(routes=routes, exception_handlers=handlers), _names_of(host))

    async def _page(self, request: Request) -> Response:
        return self._assets["page.html"]()

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._assets:
            raise HTTPException(404, f"there is no {name}")
        return self._assets[name]()

    async def _picture(self, request: Request) -> Response:
        return json_answer(await self._feed.whole())

    async def _events(self, request: Request) -> Response:
        if self._browsers >= BROWSERS_MAX:
            raise come_again(f"{self._browsers} browsers look at this page, the most that there may be")
        return StreamingResponse(self._counted(), media_type="text/event-stream")

    async def _counted(self) -> AsyncIterator[bytes]:
        self._browsers += 1
        try:
            async for event in self._feed.events():
                yield event
        finally:
            self._browsers -= 1

    async def _order(self, request: Request, body: bytes) -> Response:
        assert self._carry_out is not None, "else there is no such route"
        done = await to_thread.run_sync(self._carry_out, json_object(body), abandon_on_cancel=True)
        return json_answer({"done": done})


class Guarded:
    """Has an application answer those alone who call it by its name, and every answer have our headers.

    Args:
        app: of ASGI.
        names: hosts that a request may name; None for any.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] | None) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *ours]}
            await send(message)

        app = self._app
        if self._names is not None and scope["type"] == "http" and _host_of(scope) not in self._names:
            names = ", ".join(sorted(self._names))
            app = sentence_answer(421, f"this page is at {names}, and only called so it answers")
        await app(scope, receive, guarded)


def _names_of(host: str) -> frozenset[str] | None:
    return frozenset({host, "localhost", "127.0.0.1", "::1"}) if is_loopback(host) else None


def _host_of(scope: Scope) -> str:
    """What a request calls the server, without the port."""
    named = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    if named.startswith("["):
        return named[1:].partition("]")[0]
    return named.partition(":")[0].lower()


def _read_assets() -> dict[str, Callable[[], Response]]:
    """What the page is made of, by name: all of it is in the package."""
    found: dict[str, Callable[[], Response]] = {}
    for file in files("akkordeon.session.page").joinpath("assets").iterdir():
        kind = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            found[file.name] = _answering(file.read_bytes(), kind)
    return found


def _answering(content: bytes, media_type: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=media_type)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "those are told of here"
    return sentence_answer(error.status_code, error.detail, error.headers)


async def _unable(request: Request, error: Exception) -> Response:
    return sentence_answer(422, " ".join(str(error).split()))
