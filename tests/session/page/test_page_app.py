"""Who may look and who may order, and what every answer says to a browser. Without a socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pytest
from tests.support.harness import WAIT_S
from tests.support.serving import Asker

from akkordeon.core.errors import RecipeError, SessionClosedError
from akkordeon.session.page import app
from akkordeon.session.page.app import PageService
from akkordeon.session.page.feed import Feed
from akkordeon.session.page.history import History

TOKEN = "a" * 64
HERE = "http://127.0.0.1"


class Given:
    """Shows what it was given; raises it where it is an error."""

    def __init__(self, picture):
        self.picture = picture
        self.history = History()

    def look(self):
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


def asker_of(watched=None, carry_out=lambda order: f"did {order['do']}", token=TOKEN, host="127.0.0.1"):
    feed = Feed(watched or Given({"title": "mine"}), 1.0, {"offers": None})
    service = PageService(feed, host, carry_out, token)
    asker = Asker(service, HERE)
    asker.feed = feed
    return asker


def bearing(token=TOKEN):
    return {"authorization": f"Bearer {token}"}


def test_the_page_and_all_that_it_is_made_of_are_there():
    asker = asker_of()
    page = asker.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert "assets/page.js" in named
    for path in named:
        assert asker.get(f"/{path}").status_code == 200, path
    for script in ("page.js", "row.js", "curves.js"):
        for other in re.findall(r'from "\./([^"]+)"', asker.get(f"/assets/{script}").text):
            assert asker.get(f"/assets/{other}").headers["content-type"] == "text/javascript; charset=utf-8"
    assert asker.get("/assets/none.js").status_code == 404
    assert asker.get("/assets/..%2fapp.py").status_code == 404


def test_every_answer_has_the_policy_and_the_page_names_nothing_elsewhere():
    asker = asker_of()
    for answer in (
        asker.get("/"),
        asker.get("/picture"),
        asker.get("/none"),
        asker.post("/orders"),
        asker.get("/", headers={"host": "elsewhere.example"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "trusted-types 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    assets = files("akkordeon.session.page").joinpath("assets")
    ours = [file for file in assets.iterdir() if not file.name.startswith(("uPlot", "LICENSE"))]
    assert len(ours) > 8
    for file in ours:
        text = file.read_text(encoding="utf-8")
        found = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+", text)) - {"http://www.w3.org"}
        assert not found, (file.name, found)
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file.name
        )
        assert not re.search(r"<[^>]+ (?:style|on\w+)=", text) or file.suffix != ".html", file.name


def test_without_the_token_nobody_orders_anything_and_anybody_looks():
    done = []
    asker = asker_of(carry_out=lambda order: done.append(order) or "done")
    assert asker.get("/picture").json()["picture"]["title"] == "mine"
    for headers in ({}, bearing("b" * 64), {"authorization": f"Basic {TOKEN}"}, bearing("")):
        answer = asker.post("/orders", json={"do": "stop"}, headers=headers)
        assert answer.status_code == 401
        assert "token" in answer.json()["error"]
    assert asker.post(f"/orders?token={TOKEN}", json={"do": "stop"}).status_code == 401
    assert done == []
    answer = asker.post("/orders", json={"do": "stop"}, headers=bearing())
    assert (answer.status_code, answer.json()) == (200, {"done": "done"})
    assert done == [{"do": "stop"}]


def test_where_nobody_may_order_there_is_no_way_to():
    asker = asker_of(carry_out=None, token=None)
    assert asker.get("/picture").status_code == 200
    assert asker.post("/orders", json={"do": "stop"}, headers=bearing()).status_code == 404


def test_what_cannot_be_done_is_told_in_a_sentence():
    def refuse(order):
        raise RecipeError("there is\nno such gate")

    asker = asker_of(carry_out=refuse)
    answer = asker.post("/orders", json={"do": "set"}, headers=bearing())
    assert (answer.status_code, answer.json()) == (422, {"error": "there is no such gate"})
    for content, code in ((b"", 422), (b"[1]", 422), (b"\xff", 422), (b"{" * 9, 422), (b" " * 20_000, 413)):
        answer = asker.post("/orders", content=content, headers=bearing())
        assert answer.status_code == code
        assert answer.json()["error"]


def test_one_order_too_many_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(app, "ORDERS_MAX", 1)
    begun, may_end = threading.Event(), threading.Event()

    def wait(order):
        begun.set()
        assert may_end.wait(WAIT_S)
        return "done"

    asker = asker_of(carry_out=wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asker.post, "/orders", json={"do": "stop"}, headers=bearing())
        assert begun.wait(WAIT_S)
        second = asker.post("/orders", json={"do": "stop"}, headers=bearing())
        may_end.set()
        assert first.result(WAIT_S).status_code == 200
    assert second.status_code == 503
    assert "retry-after" in second.headers


def test_one_browser_too_many_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(app, "BROWSERS_MAX", 0)
    assert asker_of().get("/events").status_code == 503


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.1.elsewhere.example:80", "", "[::2]:8001"])
def test_on_this_machine_alone_a_page_called_by_another_name_does_not_answer(name):
    answer = asker_of().get("/picture", headers={"host": name})
    assert answer.status_code == 421
    assert "mine" not in answer.text


@pytest.mark.parametrize("name", ["127.0.0.1:8001", "localhost:8001", "LOCALHOST", "[::1]:8001"])
def test_it_answers_by_its_own_names(name):
    assert asker_of().get("/picture", headers={"host": name}).status_code == 200


def test_where_others_reach_it_any_name_will_do():
    answer = asker_of(host="0.0.0.0").get("/picture", headers={"host": "trainer.example:8001"})
    assert answer.status_code == 200


def test_numbers_that_json_does_not_have_are_null():
    picture = (
        asker_of(Given({"loss": float("nan"), "of": [float("inf"), 1.0]})).get("/picture").json()["picture"]
    )
    assert (picture["loss"], picture["of"]) == (None, [None, 1.0])


def test_what_cannot_be_looked_at_is_told_on_the_page():
    watched = Given({"title": "mine"})
    feed = Feed(watched, 1e-9, {})  # each look is a new one
    asker = Asker(PageService(feed, "127.0.0.1", None, None), HERE)
    assert asker.get("/picture").json()["picture"]["trouble"] is None
    watched.picture = SessionClosedError("the session has ended")
    picture = asker.get("/picture").json()["picture"]
    assert (picture["title"], picture["trouble"]) == ("mine", "the session has ended")


def test_after_the_end_a_browser_is_sent_all_there_is_and_nothing_more():
    watched = Given({"title": "mine"})
    watched.history.note("went", "train", "ended")
    asker = asker_of(watched)
    asker.feed.end()
    answer = asker.get("/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    (event,) = answer.text.strip().split("\n\n")
    assert event.startswith("event: last\ndata: {")
    assert '"title":"mine"' in event
    assert '"text":"ended"' in event


def test_no_line_break_in_a_name_breaks_an_event():
    watched = Given({"title": "a\nb\r\nevent: c\u2028d"})
    asker = asker_of(watched)
    asker.feed.end()
    lines = asker.get("/events").text.strip().splitlines()
    assert len(lines) == 2


def test_where_another_begins_in_the_place_of_what_is_watched_a_browser_begins_too():
    watched = Given({"title": "mine", "gates": {"gate/0": {}}})
    watched.history.point("train", "loss", 0.5)

    async def two_events():
        events = Feed(watched, 1e-9, {}).events()
        yield await anext(events)
        watched.picture = {"title": "mine"}
        watched.history.begin_anew()
        watched.history.point("train", "loss", 0.25)
        yield await anext(events)
        await events.aclose()

    async def told():
        return [json.loads(event.split(b"data: ")[1]) async for event in two_events()]

    first, second = asyncio.run(told())
    assert first["first"] is second["first"] is True
    assert second["picture"] == {"title": "mine", "trouble": None}
    assert [value for _, value in second["curves"]["train"]["loss"]] == [0.25]


def test_at_the_end_one_look_is_made_for_all_browsers():
    looks = itertools.count(1)
    watched = Given(None)
    watched.look = lambda: {"looks": next(looks)}

    async def ends():
        feed = Feed(watched, 60.0, {})
        browsers = [feed.events() for _ in range(5)]
        for events in browsers:
            await anext(events)
        feed.end()
        return await asyncio.gather(*(anext(events) for events in browsers))

    last = asyncio.run(ends())
    assert all(event.startswith(b'event: last\ndata: {"picture":{"looks":2}') for event in last), last
