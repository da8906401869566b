"""Who may begin while the row of a network on its own is changed, and what its registrar makes of it."""

from __future__ import annotations

import threading
from unittest.mock import MagicMock

import pytest
from tests.engines.test_registrar import ROW, registrar, take
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import ClusterError, SessionError, WaitTimeoutError
from akkordeon.core.messages import Attach, Cut, CutId, Exported
from akkordeon.core.reports import GateLeft
from akkordeon.core.surgery.messages import Pause, Resume, Rewire
from akkordeon.core.surgery.reports import AtRest, Rewired, RowChanged

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture
def pauses():
    """With sentinels ``a`` and ``b``, of which ``a`` has begun; ``sent`` has what they are told."""
    from akkordeon.engines.ray.members import Members
    from akkordeon.engines.ray.surgery.network_pauses import NetworkPauses

    members, sent = Members("net"), []
    made = NetworkPauses(members, lambda to, message: sent.append((to, message)))
    made.sent, made.members = sent, members
    for name in "ab":
        made.admit(lambda name=name: register(members, name))
    made.begin_sentinel("sentinel/a#1")
    return made


def register(members, name):
    return members.register(name, "train", False, "key", MagicMock(), ("here", 2))


def test_a_sentinel_that_has_not_begun_keeps_the_row_from_being_changed(pauses):
    pauses.begin_pause()
    assert pauses.sent == [("sentinel/a#1", Pause())]
    pauses.at_rest("sentinel/a#1")
    assert not pauses.is_paused()
    pauses.begin_sentinel("sentinel/b#1")
    assert pauses.sent[1:] == [("sentinel/b#1", Pause())]
    assert not pauses.is_paused()
    pauses.at_rest("sentinel/b#1")
    assert pauses.is_paused()


def test_sentinels_that_begin_together_may_come_until_nothing_is_under_way(pauses):
    """One that is registered waits for others before it begins: they are not to wait for it."""
    pauses.begin_pause()
    assert pauses.admit(lambda: register(pauses.members, "c")) == ("c", 1)
    for name in "abc":
        pauses.begin_sentinel(f"sentinel/{name}#1")
        pauses.at_rest(f"sentinel/{name}#1")
    assert pauses.is_paused()
    assert pauses.admit(lambda: register(pauses.members, "d")) is None
    pauses.end(("gate/0", "gate/3"))
    assert pauses.admit(lambda: register(pauses.members, "d")) == ("d", 1)
    assert pauses.sent[-3:] == [(f"sentinel/{name}#1", Resume(("gate/0", "gate/3"))) for name in "abc"]


def test_one_that_ended_or_whose_session_died_is_waited_for_no_more(pauses):
    pauses.begin_pause()
    pauses.members.unregister("sentinel/a#1")
    assert not pauses.is_paused()
    pauses.members.remove_session("key")
    assert pauses.is_paused()


# ── in a registrar ───────────────────────────────────────────────────────────────────────────────────


def told_to(made):
    """What a registrar tells gates and sentinels, from now on."""
    sent = []
    made._send = made._surgery._send = made._surgery.pauses._send = lambda to, message: sent.append(
        (to, message)
    )
    return sent


def test_a_sentinel_made_for_another_row_has_to_come_again():
    made = registrar()
    what = "late", "train", False, "key", MagicMock(), ("here", 2)
    assert made.register_sentinel(*what, ROW[:2]) is None
    assert made.register_sentinel(*what, ROW) == ("late", 1)


def test_a_session_that_knows_an_earlier_row_is_told_of_the_latest():
    from akkordeon.engines.ray.network_info import NetworkInfo, with_row
    from akkordeon.engines.ray.serialization import deserialize, serialize

    made, behind, ahead = registrar(), MagicMock(), MagicMock()
    info = made._info
    plain = NetworkInfo(info.recipe, 0, {}, info.locations, info.places)
    network = ak.Network([ak.Gate(nn.Linear(4, 3))], addresses=("gate/2",))
    made._info = with_row(plain, ("gate/2",), serialize(network))
    made.register_session("behind", behind, 0)
    made.register_session("ahead", ahead, 1)
    assert deserialize(behind.report.remote.call_args.args[0]).row == ("gate/2",)
    assert not ahead.report.remote.called
    assert set(made._info.past) == set(ROW)


def test_who_waits_ends_with_whoever_asked_and_with_the_network():
    made = registrar()
    surgery = made._surgery
    surgery._asker = "nobody"
    with pytest.raises(SessionError, match="whoever asked for it is gone"):
        surgery.wait(lambda: False, None, "not all is back", drain=False)
    surgery._asker = "key"
    with pytest.raises(WaitTimeoutError, match="not all is back after 0 s"):
        surgery.wait(lambda: False, 0, "not all is back", drain=False)
    made._failure = "gate/0 is lost"
    with pytest.raises(ClusterError, match="not all is back: gate/0 is lost"):
        surgery.wait(lambda: False, None, "not all is back", drain=False)


def test_a_registrar_that_was_killed_in_the_middle_of_a_change_has_all_go_on():
    made = registrar()
    sent = told_to(made)
    made._surgery._engine.end_unused = lambda after_s: None  # which are processes
    settling = threading.Thread(target=made._surgery.settle)
    settling.start()
    for gate in ROW:
        take(made, Rewired(gate))
    settling.join(30)
    assert [to for to, message in sent[: len(ROW)] if message == Rewire(ROW)] == list(ROW)
    assert {to for to, message in sent if message == Resume(ROW)} == {f"sentinel/{name}#1" for name in "abvc"}
    assert not made._surgery.pauses.is_rewiring


def test_what_sentinels_say_reaches_whoever_changes_the_row():
    made, heard = registrar(), []
    made._surgery.begin(heard.append)
    take(made, AtRest("sentinel/a#1"))
    take(made, Attach())
    assert heard == [AtRest("sentinel/a#1")]


def test_what_a_gate_that_was_taken_out_left_is_none_of_the_weights():
    """It ends before the row is told of; nobody could have weights any more."""
    from akkordeon.engines.ray.snapshots import REGISTRAR

    made = registrar()
    take(made, GateLeft("gate/2", 2, 7, {}))
    made._row_changed(RowChanged(ROW[:2], (), ROW[2:]))
    cut = CutId(REGISTRAR, made._snapshots._number)
    take(made, Cut(cut, (2, 1)))
    for gate in ROW[:2]:
        take(made, Exported(cut, gate, {}))
    assert made._snapshots.latest().versions == {"gate/0": 1, "gate/1": 2}
