"""The page in a real browser: `pip install playwright`, and a Chromium, such as Debian's."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest
import torch
from tests.support.harness import WAIT_S, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; name one in CHROMIUM"),
]

WIDTHS = (320, 768, 1440, 3840)
HTML = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def endless():
    return itertools.repeat((torch.randn(8, 6), torch.randint(4, (8,))))


@pytest.fixture
def opened(chromium):
    """Opens pages whose errors, and requests to elsewhere, fail the test."""
    wrong, contexts = [], []

    def open_page(url, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_S * 1000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(url.partition("#")[0]) else wrong.append(request.url)
            ),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def session():
    with ak.run(small_network(), ak.Threads(2)) as session:
        yield session


def test_it_shows_the_row_curves_and_sentinels_and_they_move(session, opened):
    page = session.watch(0, every_s=0.1)
    browser = opened(page.url)
    scores = {"accuracy": ak.accuracy}
    session.attach(
        ak.Sentinel.train(
            endless(), cross_entropy, in_flight=3, report_every=0.1, scores=scores, name="train"
        )
    )
    browser.wait_for_selector("#curves canvas")
    sync_api.expect(browser.locator("#curves figure")).to_have_count(2)
    assert browser.locator("#row .gate").count() == 3
    assert browser.locator("#row .edge").count() == 4
    version = browser.locator("#row .gate dd").first
    sync_api.expect(version).not_to_have_text(version.inner_text())
    assert "train" in browser.locator("#sentinels").inner_text()
    assert "came" in browser.locator("#log").inner_text()
    session.detach("train")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(width, session, opened):
    page = session.watch(0, every_s=0.1)
    session.attach(ak.Sentinel.train(endless(), cross_entropy, report_every=0.1, name="t" * 60))
    for scheme in ("dark", "light"):
        browser = opened(page.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
        browser.wait_for_selector("#curves canvas")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        dark = browser.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(22,")
        assert dark == (scheme == "dark")


def test_a_name_that_is_html_is_shown_as_text(session, opened):
    def broken(outputs, y):
        raise ValueError(HTML)

    page = session.watch(0, every_s=0.1, title=HTML)
    browser = opened(page.url)
    session.attach(ak.Sentinel.train(endless(), broken, name=HTML))
    browser.wait_for_selector("#sentinels .card >> text=failed")
    assert HTML in browser.locator("#sentinels h3").inner_text()
    assert HTML in browser.locator("#log").inner_text()
    assert browser.locator("img").count() == 0
    assert browser.title() == HTML


def test_it_is_read_only_without_the_token_and_steers_with_it_after_a_question(session, opened):
    page = session.watch(0, every_s=0.1)
    train = session.attach(ak.Sentinel.train(endless(), cross_entropy, name="train"))
    looker = opened(page.url)
    looker.wait_for_selector("#sentinels .card")
    assert looker.locator("button:visible").all_inner_texts() == ["light or dark", "use it"]
    browser = opened(page.page)
    browser.wait_for_selector("text=stop")
    assert page.token not in browser.evaluate("location.href")
    browser.click("#orders button >> text=stop")
    browser.click("#no")
    assert not train.ended
    browser.click("#row .gate >> nth=0 >> text=learning rate")
    browser.fill("#value", "0.125")
    browser.click("#yes")
    browser.wait_for_selector("#told >> text=lr=0.125")
    browser.click("#orders button >> text=stop")
    browser.click("#yes")
    train.wait(WAIT_S)
    browser.wait_for_selector("#log >> text=all that trains was told to end")


def test_the_browser_refuses_html_that_is_made_of_text(session, chromium):
    page = session.watch(0)
    context = chromium.new_context()
    browser = context.new_page()  # its console tells of the refusal
    browser.goto(page.url)
    with pytest.raises(sync_api.Error, match="TrustedHTML"):
        browser.evaluate("document.body.innerHTML = '<b>no</b>'")
    context.close()


def test_a_wrong_token_is_told_and_forgotten(session, opened, chromium):
    page = session.watch(0, every_s=0.1)
    context = chromium.new_context()
    browser = context.new_page()  # its console tells of the answer 401
    browser.goto(page.url)
    browser.fill("#token", "wrong")
    browser.click("#use-token")
    browser.click("#orders button >> text=stop")
    browser.click("#yes")
    browser.wait_for_selector("#told >> text=not the token")
    assert browser.locator("#token").is_visible()
    context.close()


def test_it_says_when_the_session_has_ended_and_asks_no_more(opened):
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=0.1)
        browser = opened(page.url)
        browser.wait_for_selector("#state >> text=live")
    browser.wait_for_selector("#state >> text=has ended")
