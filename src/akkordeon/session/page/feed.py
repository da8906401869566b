"""What goes to browsers: everything once, then what has changed, as server-sent events.

    browser ◀── {"picture": patch, "curves": points, "log": entries} ◀── what it was sent last ┐
                                                                      ◀── the newest look       ┘ differ by

Nothing waits for a browser. There is no queue: one that is slow is sent fewer, larger differences. A look is
made when somebody wants one and the latest is old enough, so without a browser there is none.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from akkordeon.core.errors import explain
from akkordeon.session.http.json_bodies import finite
from akkordeon.session.page.merge_patch import merge_patch
from akkordeon.session.page.watched import Watched

__all__ = ["Feed"]

FRESH = 0.9
"""The part of the time between two looks after which another is made."""


@dataclass(frozen=True)
class Look:
    """What was seen at a time.

    Attributes:
        picture: plain data.
        at_s: when.
    """

    picture: dict[str, Any]
    at_s: float


class Feed:
    """Looks at something for all browsers together; in the thread of one event loop, but for :meth:`end`.

    Args:
        watched: what to look at.
        every_s: seconds between two looks.
        always: what every picture has beside what is seen.
    """

    def __init__(self, watched: Watched, every_s: float, always: dict[str, Any]) -> None:
        self._watched = watched
        self._every_s = every_s
        self._always = always
        self._looking = asyncio.Lock()
        self._latest: Look | None = None
        self._has_looked_last = False  # for all browsers together
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._is_over = False

    def end(self) -> None:
        """Send all a last picture, and nothing more; from any thread."""
        self._is_over = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended before
                self._loop.call_soon_threadsafe(self._end.set)

    async def whole(self) -> dict[str, Any]:
        """All there is to see, in one piece."""
        look, news = await self._look(), self._watched.history.since(0)
        return {"picture": look.picture, "curves": finite(news.curves), "log": news.log}

    async def events(self) -> AsyncIterator[bytes]:
        """The events for one browser, until the end."""
        self._loop = asyncio.get_running_loop()
        sent: dict[str, Any] = {}
        number, is_first = 0, True
        while True:
            is_last = self._is_over
            look = await self._look(is_last)
            news = self._watched.history.since(number)
            told: dict[str, Any] = {}
            if is_first or news.is_anew:
                told["first"], sent = True, {}
            if patch := merge_patch(sent, look.picture):
                told["picture"] = patch
            told |= {"curves": news.curves} if news.curves else {}
            told |= {"log": news.log} if news.log else {}
            yield _event(told, "last" if is_last else "message")
            if is_last:
                return
            sent, number, is_first = look.picture, news.number, False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), self._every_s)

    async def _look(self, is_last: bool = False) -> Look:
        async with self._looking:
            latest = self._latest
            is_old = latest is None or time.monotonic() - latest.at_s >= FRESH * self._every_s
            if latest is None or (not self._has_looked_last if is_last else is_old):
                latest = await run_in_threadpool(self._look_now)
                self._latest = latest
                self._has_looked_last |= is_last
            return latest

    def _look_now(self) -> Look:
        try:
            seen = finite(self._watched.look())
            trouble = None
        except Exception as error:  # a page that shows nothing new and says why is better than none
            seen = {} if self._latest is None else self._latest.picture
            trouble = explain(error)
        return Look({**seen, **self._always, "trouble": trouble}, time.monotonic())


def _event(told: dict[str, Any], name: str) -> bytes:
    """An event; JSON in ASCII has no line breaks, which would end it."""
    return f"event: {name}\ndata: {json.dumps(told, allow_nan=False, separators=(',', ':'))}\n\n".encode()
