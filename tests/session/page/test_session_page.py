"""A session in a browser, over a real socket, while it trains."""

from __future__ import annotations

import itertools
import socket
import threading
from types import SimpleNamespace

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from tests.support.pages import Orders, browser_of, whole, without_null
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError, SessionClosedError, SessionError
from akkordeon.core.reports import BatchCount, EpochDone, GateStatus
from akkordeon.session.http import access

QUICK_S = 0.01


def endless():
    return itertools.repeat((torch.randn(8, 6), torch.randint(4, (8,))))


def orders_of(page):
    return Orders(page.url, page.token)


def until(events, condition):
    """The first that is seen of which the condition holds."""
    for seen in events:
        if condition(seen):
            return seen
    raise AssertionError("the events have ended")


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_browser_puts_together_is_what_there_is():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=QUICK_S)
        with browser_of(page.url) as events:
            next(events)
            train = session.attach(ak.Sentinel.train(batches_of(6), cross_entropy, epochs=2))
            train.wait(WAIT_S)
            seen = until(
                events, lambda seen: seen.picture["sentinels"].get("train", {}).get("state") == "ended"
            )
            seen = until(events, lambda seen: len(seen.curves.get("train", {}).get("loss", ())) == 2)
            there = whole(page)
            seen = until(events, lambda seen: seen.picture["seconds"] > there["picture"]["seconds"])
        for part in ("row", "edges", "sentinels", "offers", "title"):
            assert seen.picture[part] == without_null(there["picture"][part])
        assert [gate["version"] for gate in seen.picture["gates"].values()] == [12, 12, 12]
        assert seen.picture["sentinels"]["train"]["trained"] == 12
        assert [value for _, value in seen.curves["train"]["loss"]] == [e.loss for e in train.epochs]
        assert seen.curves == there["curves"]
        assert [entry["kind"] for entry in seen.log] == ["came", "went"]


def test_batches_in_flight_are_on_the_edges_of_the_row():
    may_go_on = threading.Event()

    def waits(outputs, y):
        assert may_go_on.wait(WAIT_S)
        return cross_entropy(outputs, y)

    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=QUICK_S)
        train = session.attach(ak.Sentinel.train(batches_of(8), waits, in_flight=4))
        with browser_of(page.url) as events:
            until(events, lambda seen: seen.picture["edges"] == [0, 0, 0, 4])
        may_go_on.set()
        train.wait(WAIT_S)
        with browser_of(page.url) as events:
            until(events, lambda seen: seen.picture["edges"] == [0, 0, 0, 0])


def test_a_sentinel_that_trains_on_a_pair_of_tensors_has_samples_to_train():
    may_go_on = threading.Event()

    def waits(outputs, y):
        assert may_go_on.wait(WAIT_S)
        return cross_entropy(outputs, y)

    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0)
        pair = torch.randn(40, 6), torch.randint(4, (40,))
        train = session.attach(ak.Sentinel.train(pair, waits, epochs=3, batch_size=8))
        seen = without_null(whole(page)["picture"])
        may_go_on.set()
        train.wait(WAIT_S)
    assert "trouble" not in seen
    assert seen["sentinels"]["train"]["samples_wanted"] == 120


def test_what_was_reported_before_is_there_for_who_comes_late():
    with ak.run(small_network(), ak.Threads(2)) as session:
        train = session.attach(ak.Sentinel.train(batches_of(4), cross_entropy, epochs=3)).wait(WAIT_S)
        seen = whole(session.watch(0))
    points = seen["curves"]["train"]["loss"]
    assert [value for _, value in points] == [epoch.loss for epoch in train.epochs]
    assert [s for s, _ in points] == sorted(s for s, _ in points)


def test_replicas_have_shards_in_place_of_gates():
    with ak.run(ak.Downpour(small_network(), replicas=2), ak.Threads(2)) as session:
        page = session.watch(0)
        session.attach(ak.Sentinel.train(batches_of(8), cross_entropy)).wait(WAIT_S)
        seen = whole(page)["picture"]
    assert len(seen["row"]) == 3
    shards = [gate["shard"] for gate in seen["gates"].values()]
    assert all(shard["pushes"] > 0 and shard["bytes_in"] > 0 for shard in shards)
    assert set(seen["sentinels"]) == {"train-0", "train-1"}


def test_a_sentinel_that_failed_says_why():
    def broken(outputs, y):
        raise ValueError("<b>no</b> such loss")

    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0)
        train = session.attach(ak.Sentinel.train(batches_of(2), broken))
        with pytest.raises(ak.errors.SentinelFailedError):
            train.wait(WAIT_S)
        seen = whole(page)
    assert seen["picture"]["sentinels"]["train"]["state"] == "failed"
    assert "<b>no</b> such loss" in seen["picture"]["sentinels"]["train"]["why"]
    assert [entry["kind"] for entry in seen["log"]] == ["came", "failed"]


def test_a_row_that_changes_is_the_one_that_is_shown():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=QUICK_S)
        assert whole(page)["picture"]["row"] == ["gate/0", "gate/1", "gate/2"]
        session.gate("gate/1").insert_after(ak.Gate(nn.Tanh()), timeout=WAIT_S)
        with browser_of(page.url) as events:
            seen = until(events, lambda seen: len(seen.picture["row"]) == 4)
    assert set(seen.picture["gates"]) == set(seen.picture["row"])


def test_sentinels_of_other_sessions_are_those_that_the_network_knows(monkeypatch):
    epoch = EpochDone("far", 3, 0.25, {}, 8, 1.0, 0.0, 0, 1, BatchCount(9, 8, 1, 0))
    entries = [
        SimpleNamespace(
            name="far", role="train", address="sentinel/far#1", node="b", pid=7, answers=False, last=epoch
        ),
        SimpleNamespace(
            name="asks", role="predict", address="sentinel/asks#1", node="b", pid=7, answers=True, last=None
        ),
    ]
    network = SimpleNamespace(sentinels=entries, events=["near has ended"])
    with ak.run(small_network(), ak.Threads(2)) as session:
        monkeypatch.setattr(session._engine, "network_status", lambda: network)
        monkeypatch.setattr(session._engine, "locations", lambda: {"gate/0": ("a", 1), "gate/1": ("b", 7)})
        page = session.watch(0, every_s=1e-6)
        whole(page)
        seen = whole(page)
    assert set(seen["picture"]["sentinels"]) == {"far"}
    assert seen["picture"]["sentinels"]["far"]["where"] == "b 7"
    assert seen["picture"]["sentinels"]["far"]["trained"] == 8
    assert [value for _, value in seen["curves"]["far"]["loss"]] == [0.25]
    assert [entry["text"] for entry in seen["log"]] == ["near has ended"]
    assert seen["picture"]["hosts"]["b 7"] == {"node": "b", "pid": 7, "actors": ["gate/1"]}


# ── what it must not do ──────────────────────────────────────────────────────────────────────────────


def test_while_nobody_looks_no_gate_is_asked():
    asked = []
    with ak.run(small_network(), ak.Threads(2)) as session:
        session.subscribe(lambda record: asked.append(record) if isinstance(record, GateStatus) else None)
        page = session.watch(0, every_s=1e-3)
        session.attach(ak.Sentinel.train(batches_of(50), cross_entropy)).wait(WAIT_S)
        assert asked == []
        whole(page)
        session.attach(ak.Sentinel.train(batches_of(1), cross_entropy)).wait(WAIT_S)  # watchers have seen all
        assert len(asked) == 3


def test_a_browser_that_reads_nothing_holds_up_nobody():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=1e-3, title="x" * 10_000_000)  # more than sockets take in
        with socket.create_connection(("127.0.0.1", page.port)) as silent:
            silent.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            with browser_of(page.url) as events:
                session.attach(ak.Sentinel.train(batches_of(50), cross_entropy, epochs=5)).wait(WAIT_S)
                until(events, lambda seen: seen.picture["sentinels"].get("train", {}).get("state") == "ended")
            page.close()


def test_a_browser_that_vanishes_is_forgotten():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=QUICK_S)
        for _ in range(50):  # more than there may be at once
            with browser_of(page.url) as events:
                next(events)
        assert whole(page)["picture"]["row"]


def test_a_run_that_can_be_repeated_is_the_same_with_a_page():
    def trained(shown):
        torch.manual_seed(0)
        with ak.run(small_network(), ak.Threads(1)) as session:
            page = session.watch(0, every_s=1e-3) if shown else None
            train = session.attach(ak.Sentinel.train(batches_of(30), cross_entropy, in_flight=3, epochs=2))
            if page is not None:
                with browser_of(page.url) as events:
                    seen = until(events, lambda seen: len(seen.curves.get("train", {}).get("loss", ())) == 2)
                assert "repeated" in seen.picture["note"]
            train.wait(WAIT_S)
            return session.module()

    assert same_bits(trained(False), trained(True))


def test_the_page_of_a_simulation_does_not_make_it_run():
    with ak.run(small_network(), ak.Simulator()) as session:
        page = session.watch(0, every_s=QUICK_S)
        session.attach(ak.Sentinel.train(batches_of(5), cross_entropy))
        assert whole(page)["picture"]["now_s"] == 0
        session.wait(WAIT_S)
        assert len(whole(page)["curves"]["train"]["loss"]) == 1


def test_the_page_ends_with_its_session_and_says_so():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=60)
        session.attach(ak.Sentinel.train(endless(), cross_entropy))
        with browser_of(page.url) as events:
            next(events)
            session.close()
            seen = until(events, lambda seen: seen.is_last)
            assert seen.events == 2
            assert list(events) == []
    with pytest.raises(ConnectionRefusedError):
        whole(page)
    page.close()


def test_no_server_is_left_of_a_session_that_has_ended(monkeypatch):
    with ak.run(small_network()) as session:
        monkeypatch.setattr(session, "at_close", lambda do: session.close())  # it ends in this moment
        page = session.watch(0)
    with pytest.raises(ConnectionRefusedError):
        whole(page)
    with pytest.raises(SessionClosedError, match="has ended, and its page with it"):
        session.watch(0)


def test_a_page_that_was_closed_hears_no_more():
    with ak.run(small_network(), ak.Threads(2)) as session:
        with session.watch(0) as page:
            whole(page)
        session.attach(ak.Sentinel.train(batches_of(2), cross_entropy)).wait(WAIT_S)


# ── who may ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_made_and_is_in_the_address_of_the_page_alone():
    with ak.run(small_network()) as session:
        with session.watch(0) as page:
            assert len(page.token) == 64
            assert page.page == f"{page.url}/#{page.token}"
            assert page.token not in repr(page)
        with session.watch(0, token="mine") as page:
            assert page.token == "mine"
        with session.watch(0, token=False) as page:
            assert page.token is None
            assert page.page == f"{page.url}/"
            assert "offers" not in without_null(whole(page)["picture"])


def test_what_cannot_be_shown_is_told_in_a_sentence(monkeypatch):
    with ak.run(small_network()) as session:
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            pytest.raises(SessionError, match=r"cannot listen at 127\.0\.0\.1:.*: Address already in use"),
        ):
            session.watch(taken.getsockname()[1])
        for wrong in ({"port": -1}, {"every_s": 0}, {"token": "a b"}):
            with pytest.raises(RecipeError):
                session.watch(**{"port": 0, **wrong})
        monkeypatch.setattr(access, "find_spec", lambda name: None if name == "uvicorn" else object())
        with pytest.raises(SessionError, match=r"the page needs uvicorn: pip install 'akkordeon\[web\]'"):
            session.watch(0)


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────


def test_sentinels_are_attached_and_detached_and_all_that_trains_is_stopped():
    again = ak.Sentinel.train(endless(), cross_entropy, name="again")
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, sentinels=[again])
        order = orders_of(page)
        assert whole(page)["picture"]["offers"]["sentinels"] == ["again"]
        assert order(do="attach", sentinel="again") == (200, "again was attached")
        assert order(do="attach", sentinel="again")[0] == 422
        assert order(do="detach", sentinel="again") == (200, "again was told to end")
        session.attachments[0].wait(WAIT_S)
        other = session.attach(ak.Sentinel.train(endless(), cross_entropy, name="other"))
        assert order(do="stop")[0] == 200
        other.wait(WAIT_S)
        log = [entry["text"] for entry in whole(page)["log"] if entry["kind"] == "asked"]
    assert log == ["again was attached", "again was told to end", "all that trains was told to end"]


def test_a_gate_is_told_another_learning_rate_and_frozen_and_thawed():
    with ak.run(small_network(), ak.Threads(2)) as session:
        page = session.watch(0, every_s=QUICK_S)
        order = orders_of(page)
        assert order(do="set", gate="gate/0", lr=0.125) == (200, "gate/0 learns with lr=0.125")
        assert order(do="set", gate="gate/1", frozen=True) == (200, "gate/1 learns with frozen=True")
        with browser_of(page.url) as events:
            gates = until(events, lambda seen: "settings" in seen.picture["gates"]["gate/1"]).picture["gates"]
        assert gates["gate/0"]["settings"] == {"lr": "0.125"}
        assert gates["gate/1"]["settings"] == {"frozen": "True"}
        assert "settings" not in gates["gate/2"]
        before = session.module()
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
        after = session.module()
        assert same_bits(before[1], after[1])
        assert not same_bits(before[0], after[0])
        assert order(do="set", gate="gate/1", frozen=False)[0] == 200
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
        assert not same_bits(after[1], session.module()[1])


def test_a_checkpoint_is_kept_where_the_session_said(tmp_path):
    with ak.run(small_network(), ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
        with session.watch(0, keep=tmp_path) as page:
            assert orders_of(page)(do="checkpoint") == (200, f"a checkpoint was kept in {tmp_path}")
        with session.watch(0) as page:
            code, sentence = orders_of(page)(do="checkpoint")
            assert (code, sentence.startswith("what can be done is detach, set, stop")) == (422, True)
        trained = session.module()
    with ak.resume(tmp_path, small_network()) as session:
        assert same_bits(session.module(), trained)


def test_an_order_that_makes_no_sense_is_told_so_and_changes_nothing():
    with ak.run(small_network(), ak.Threads(2)) as session:
        order = orders_of(session.watch(0, sentinels=[ak.Sentinel.train(batches_of(1), cross_entropy)]))
        for wrong, why in (
            ({}, "what can be done is"),
            ({"do": 3}, "what can be done is"),
            ({"do": "close"}, "what can be done is"),
            ({"do": "attach"}, "which sentinel?"),
            ({"do": "attach", "sentinel": "none"}, "there are train"),
            ({"do": "detach", "sentinel": "none"}, "no sentinel 'none'"),
            ({"do": "set", "lr": 0.1}, "which gate?"),
            ({"do": "set", "gate": "gate/9", "lr": 0.1}, "none is called 'gate/9'"),
            ({"do": "set", "gate": "gate/0"}, "Give lr, or frozen"),
            ({"do": "set", "gate": "gate/0", "lr": "0.1"}, "a learning rate is a number"),
            ({"do": "set", "gate": "gate/0", "lr": True}, "a learning rate is a number"),
            ({"do": "set", "gate": "gate/0", "lr": 10**400}, "a learning rate is a number"),
            ({"do": "set", "gate": "gate/0", "lr": -1}, "lr"),
            ({"do": "set", "gate": "gate/0", "frozen": 1}, "frozen is true or false"),
        ):
            code, sentence = order(**wrong)
            assert (code, why in sentence) == (422, True), (wrong, sentence)
        assert session.attachments == []
