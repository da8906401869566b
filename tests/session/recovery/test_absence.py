"""A network that went away, and sentinels that wait for it. The network itself is made up here."""

from __future__ import annotations

import logging
import threading

import pytest
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import ClusterError
from akkordeon.core.messages import Close, Detach
from akkordeon.core.reports import ActorLost, BatchCount, ClusterLost, EpochDone, SentinelEnded, Undelivered
from akkordeon.session.recovery.absence import Absence, start_of
from akkordeon.session.registry import Registry

WAIT_S = 10
ROW = ("gate/0", "gate/1")
STATE = {"role": "train", "position": {"place": [2, 7], "done": []}, "source": None, "epochs": 2}


class Engine:
    """A network that comes again, or does not, when the test says so."""

    target = "10.0.0.7:25520/net"

    def __init__(self):
        self.changed = threading.Condition()
        self.sent, self.reported = [], []
        self.comes = threading.Event()
        self.refusal = None
        self.given_up = None

    def send(self, to, message):
        self.sent.append((to, message))

    def wait_until(self, condition, timeout_s):
        with self.changed:
            return self.changed.wait_for(condition, timeout_s)

    def report(self, record):
        self.reported.append(record)

    def come_again(self, timeout_s, given_up):
        self.given_up = given_up
        assert self.comes.wait(WAIT_S)
        if self.refusal:
            raise ClusterError(self.refusal)


class Setting:
    """A session's sentinel, and what has become of it."""

    def __init__(self):
        self.engine, self.registry = Engine(), Registry(8)
        recipe = ak.Sentinel.train([], F.cross_entropy, epochs=5, name="t")
        self.attachment = self.registry.register(recipe, ROW, None)
        self.relaunched = threading.Event()
        self.starts = {}
        self.absence = Absence(self.engine, ROW, self.registry, self.relaunch, 60)

    def relaunch(self, starts):
        self.starts = dict(starts)
        self.relaunched.set()

    def hear(self, record):
        with self.engine.changed:
            heard = self.absence.hear(record)
            self.engine.changed.notify_all()
        return heard

    def end(self):
        self.engine.comes.set()
        self.absence.give_up()


@pytest.fixture
def setting():
    setting = Setting()
    yield setting
    setting.end()


LOST = ActorLost("gate/1", "its process died")


def test_sentinels_close_and_go_on_where_they_said_they_were(setting, caplog):
    caplog.set_level(logging.WARNING)
    assert setting.hear(LOST)
    address = setting.attachment.address
    assert not setting.hear(EpochDone("t", 2, 0.5, {}, 160, 1.0, 0.0, 0, 0, BatchCount(20, 20)))
    assert setting.hear(SentinelEnded(address, BatchCount(27, 26, 0, 1), None, True, STATE))
    setting.engine.comes.set()
    assert setting.relaunched.wait(WAIT_S)
    assert setting.engine.sent == [(address, Close())]
    assert setting.starts == {setting.attachment: STATE}
    assert not setting.attachment.ended
    away, there = [record.getMessage() for record in caplog.records]
    assert away == (
        "10.0.0.7:25520/net is away (gate/1 is lost: its process died); waiting for it up to 60 s"
    )
    assert there == "10.0.0.7:25520/net is there again, and its sentinels go on"


def test_a_network_that_does_not_come_ends_the_session_in_a_sentence_with_exact_counts(setting):
    setting.engine.refusal = "10.0.0.7:25520/net was away for 60 s: nothing answers"
    setting.hear(ClusterLost("the head is dead"))
    setting.hear(SentinelEnded(setting.attachment.address, BatchCount(27, 26, 0, 1), None, True, STATE))
    setting.engine.comes.set()
    setting.absence.wait_until_over()
    setting.absence.give_up()
    (record,) = setting.engine.reported
    assert record == ClusterLost(f"{setting.engine.refusal} (it was lost: the head is dead)")
    assert setting.attachment.ended
    assert setting.attachment.batches.as_tuple() == (27, 26, 0, 1)
    assert not setting.hear(record)  # the session hears of it


def test_a_sentinel_that_is_detached_while_its_network_is_away_has_ended(setting):
    address = setting.attachment.address
    setting.hear(LOST)
    setting.hear(SentinelEnded(address, BatchCount(27, 26, 0, 1), None, True, STATE))
    setting.hear(Undelivered(address, Detach(False)))
    assert setting.attachment.ended
    assert setting.attachment.batches.as_tuple() == (27, 26, 0, 1)
    setting.engine.comes.set()
    assert setting.relaunched.wait(WAIT_S)
    assert setting.starts == {}


def test_who_gives_up_is_not_waited_for(setting):
    setting.hear(LOST)
    setting.hear(ActorLost(setting.attachment.address, "its process died"))
    threading.Timer(0.05, setting.engine.comes.set).start()
    setting.absence.give_up()
    assert setting.engine.given_up.is_set()


def test_losses_that_are_none_of_the_network_are_the_sessions_business(setting):
    assert not setting.hear(ActorLost(setting.attachment.address, "its process died"))
    assert not setting.hear(EpochDone("t", 1, 0.5, {}, 160, 1.0, 0.0, 0, 0, BatchCount(20, 20)))


def test_a_sentinel_whose_process_died_goes_on_where_it_had_told_last_that_it_was(setting):
    assert start_of(setting.attachment, None) is None
    setting.attachment._saved = {"position": {"place": [1, 0], "done": []}, "batches": [21, 20, 0, 1]}
    assert start_of(setting.attachment, None) == setting.attachment._saved


def test_a_source_that_can_be_read_once_is_read_on():
    source = iter([])
    attachment = Registry(8).register(ak.Sentinel.train(source, F.cross_entropy), ROW, None)
    assert start_of(attachment, STATE)["position"] == {"place": [0, 0], "done": []}
    validating = Registry(8).register(ak.Sentinel.validate(source, F.cross_entropy), ROW, None)
    assert start_of(validating, None) is None
