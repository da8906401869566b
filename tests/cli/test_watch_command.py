"""`akkordeon watch` and `akkordeon train --web`: a page until the end, or a signal."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from tests.support.commands import MINE, QUICK, akkordeon, alone, read_until
from tests.support.harness import WAIT_S
from tests.support.pages import Orders, asked, browser_of, whole

from akkordeon.cli.options import PORT, page_address
from akkordeon.core.errors import RecipeError


@contextmanager
def watching(*arguments):
    """The command at work: the address that it tells, and the process; ended by a signal."""
    process = alone("watch", *arguments, "--port", 0)
    lines = read_until(process, "shows ")
    yield re.search(r"at (http\S+)/;", lines[-1])[1], process
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "ended by SIGTERM\n"


def test_a_kept_run_is_shown_until_a_signal(tmp_path):
    akkordeon("train", *QUICK, "--out", tmp_path)
    with watching(tmp_path) as (url, _):
        seen = whole(SimpleNamespace(url=url))
        with asked(f"{url}/") as answer:
            assert b"<title>akkordeon</title>" in answer.read()
    assert set(seen["picture"]["sentinels"]) == {"train", "validate"}
    assert len(seen["curves"]["validate"]["accuracy"]) >= 2
    assert [gate["version"] > 0 for gate in seen["picture"]["gates"].values()] == [True] * len(
        seen["picture"]["row"]
    )


ENDLESS = (
    MINE
    + """
def endless_task():
    return task(train=(examples(8) for _ in itertools.count()), epochs=1)
"""
)


def address_of(process):
    """Where a run that trains is shown, and the token that steers it."""
    line = next(line for line in process.stderr if line.startswith("the page is at "))
    return re.search(r"at (http\S+)/#(\w+)", line).groups()


def test_a_run_is_shown_while_it_trains_and_stopped_from_the_page(tmp_path):
    (tmp_path / "mine.py").write_text(ENDLESS)
    process = alone("train", f"{tmp_path}/mine.py:endless_task", "--web", 0)
    url, token = address_of(process)
    with browser_of(url) as events:
        seen = next(seen for seen in events if (seen.picture["gates"]["gate/0"].get("version") or 0) > 3)
        assert set(seen.picture["sentinels"]) == {"train", "validate"}
        assert seen.picture["offers"] == {
            "orders": ["attach", "detach", "set", "stop"], "sentinels": ["train", "validate"],
        }  # fmt: skip
        assert Orders(url, token)(do="stop") == (200, "all that trains was told to end")
        last = [seen.is_last for seen in events]
    assert last[-1] is True
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0


def test_a_checkpoint_is_said_to_be_kept_once_it_is(tmp_path):
    (tmp_path / "mine.py").write_text(ENDLESS)
    out, in_the_way = tmp_path / "out", tmp_path / "out" / "checkpoints"
    out.mkdir()
    in_the_way.write_text("of somebody else")
    process = alone("train", f"{tmp_path}/mine.py:endless_task", "--web", 0, "--out", out)
    url, token = address_of(process)
    order = Orders(url, token)
    code, sentence = order(do="checkpoint")
    assert (code, "cannot be written: File exists" in sentence) == (422, True), sentence
    in_the_way.unlink()
    assert order(do="checkpoint") == (200, f"a checkpoint was kept in {out}")
    assert (in_the_way / "000001" / "manifest.json").exists()
    order(do="stop")
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, None),
        ("9000", ("127.0.0.1", 9000)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:9000", ("0.0.0.0", 9000)),
        ("[::1]:9000", ("::1", 9000)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_the_address_of_a_page_is_a_port_or_a_host_and_a_port(text, address):
    assert page_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "65536", "localhost", "localhost:", ":80", "-1"])
def test_what_is_no_address_of_a_page_is_told_so(text):
    with pytest.raises(RecipeError, match="--web is a port below 65536, or HOST:PORT"):
        page_address(text)


@pytest.mark.parametrize(
    ("words", "web"),
    [
        (["digits", "--web"], str(PORT)),
        (["--web", "digits"], str(PORT)),
        (["--web", "9000", "digits"], "9000"),
        (["--web=9000", "digits"], "9000"),
        (["--web", "0.0.0.0:9000"], "0.0.0.0:9000"),
        (["--web", "--json"], str(PORT)),
        (["digits"], None),
    ],
)
def test_the_port_may_be_left_out(words, web, monkeypatch):
    from akkordeon.cli import train

    given = []
    monkeypatch.setattr(train, "carry_out", lambda *arguments, web=None: given.append(web))
    akkordeon("train", *words)
    assert given == [web]


def test_a_port_that_is_taken_costs_nothing_of_the_run_that_is_kept(tmp_path):
    akkordeon("train", *QUICK, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = akkordeon("train", *QUICK, "--out", tmp_path, "--web", port, expecting=1).stderr
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in told
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_watched_is_told_in_a_sentence(tmp_path):
    for arguments, why in (
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path], "has no report.jsonl"),
        ([tmp_path, "--token", "a"], "is a folder, where --token would change nothing"),
        (["127.0.0.1:1/mine"], "127.0.0.1:1"),
        (["127.0.0.1:1"], "127.0.0.1:1"),
        ([tmp_path, "--token", "a", "--read-only"], "leave out --read-only or --token"),
    ):
        told = akkordeon("watch", *arguments, expecting=1).stderr
        assert why in told
        assert told.count("\n") == 1
    assert "--web is a port" in akkordeon("train", "--web=mine", expecting=1).stderr
