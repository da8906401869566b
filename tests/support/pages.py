"""What tests of the page share: browsers without a window, and somebody who orders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.support.harness import WAIT_S


def applied(before: Any, patch: Any) -> Any:
    """A value with a JSON Merge Patch applied, as RFC 7396 has it."""
    if not isinstance(patch, Mapping):
        return patch
    into = dict(before) if isinstance(before, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = applied(into.get(key), value)
    return into


def without_null(value: Any) -> Any:
    """A value without what is null in it, as it is once it was put together of patches."""
    if isinstance(value, Mapping):
        return {key: without_null(each) for key, each in value.items() if each is not None}
    return value


class Seen:
    """What a browser has put together of events.

    Attributes:
        picture: as it was last.
        curves: all points.
        log: all entries.
        events: how many there were.
        is_last: whether the last has come.
    """

    def __init__(self) -> None:
        self.picture: Any = {}
        self.curves: dict[str, dict[str, list[Any]]] = {}
        self.log: list[Any] = []
        self.events = 0
        self.is_last = False

    def take(self, kind: str, told: Any) -> None:
        self.events += 1
        self.is_last = kind == "last"
        if told.get("first"):
            self.picture, self.curves, self.log = {}, {}, []
        self.picture = applied(self.picture, told.get("picture", {}))
        for who, measures in told.get("curves", {}).items():
            for measure, points in measures.items():
                self.curves.setdefault(who, {}).setdefault(measure, []).extend(points)
        self.log += told.get("log", [])


@contextmanager
def asked(url: str, method: str = "GET", **options: Any) -> Iterator[HTTPResponse]:
    """The answer to a request; a client that reads certificates would take longer than most tests here."""
    address = urlsplit(url)
    with closing(HTTPConnection(address.hostname or "", address.port, timeout=WAIT_S)) as connection:
        connection.request(method, address.path, **options)
        yield connection.getresponse()


def whole(page: Any) -> Any:
    """All that there is to see on a page."""
    with asked(f"{page.url}/picture") as answer:
        assert answer.status == 200
        return json.load(answer)


@contextmanager
def browser_of(url: str) -> Iterator[Iterator[Seen]]:
    """Somebody who reads events: gives what was seen so far after each of them."""
    with asked(f"{url}/events") as answer:
        assert answer.status == 200
        yield _seen(line.decode().rstrip("\n") for line in answer)


def _seen(lines: Iterator[str]) -> Iterator[Seen]:
    seen, kind = Seen(), ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            seen.take(kind, json.loads(value))
            yield seen


class Orders:
    """Somebody who orders, with the token of a page."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}/orders"
        self._headers = {"authorization": f"Bearer {token}"}

    def __call__(self, **order: Any) -> tuple[int, str]:
        """The code and the sentence of the answer."""
        with asked(self._url, "POST", body=json.dumps(order), headers=self._headers) as answer:
            (sentence,) = json.load(answer).values()
            return answer.status, sentence
