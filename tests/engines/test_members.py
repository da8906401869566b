"""The sessions and sentinels of a network, as its registrar knows them. Without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from akkordeon.core.errors import NameTakenError, NoSuchSentinelError
from akkordeon.engines.ray import members as known
from akkordeon.engines.ray.members import Members
from akkordeon.engines.ray.network_info import NetworkInfo, SentinelEntry

HERE = ("10.0.0.7", 42)


def register(members: Members, name: str | None, key: str = "mine") -> tuple[str, int]:
    return members.register(name, "train", False, key, f"host of {key}", HERE)


def test_a_name_is_of_one_sentinel_at_a_time_and_a_number_of_one_for_ever():
    members = Members("net")
    assert register(members, None) == ("train", 1)
    assert register(members, None) == ("train-2", 1)
    with pytest.raises(NameTakenError, match="'train' is at work in 'net' already"):
        register(members, "train", "theirs")
    assert members.unregister("sentinel/train#1") is not None
    assert register(members, "train", "theirs") == ("train", 2)
    assert members.host_of("train") == ("sentinel/train#2", "host of theirs")
    with pytest.raises(NoSuchSentinelError, match=r"no sentinel 'x' .* there are: 'train', 'train-2'"):
        members.host_of("x")


def test_a_session_gives_a_name_again_of_whose_end_is_not_heard_here_yet():
    members = Members("net")
    assert [register(members, "a"), register(members, "a")] == [("a", 1), ("a", 2)]
    members.unregister("sentinel/a#1")
    assert members.host_of("a") == ("sentinel/a#2", "host of mine")


def test_a_session_takes_its_sentinels_along():
    members = Members("net")
    register(members, "a")
    register(members, "b", "theirs")
    assert [entry.name for entry in members.remove_session("mine")] == ["a"]
    assert [entry.name for entry in members.entries()] == ["b"]
    assert members.hosts() == {"theirs": "host of theirs"}


def test_names_without_end_are_not_all_kept_and_no_address_comes_twice(monkeypatch):
    """The registrar kept a number of every name that there ever was."""
    monkeypatch.setattr(known, "NUMBERS_MAX", 3)
    members, addresses = Members("net"), set()
    for name in [*"abcdef", *"abcdef"]:
        address = "sentinel/{}#{}".format(*register(members, name))
        assert address not in addresses
        addresses.add(address)
        members.unregister(address)
    assert len(members._numbers) == 3


def test_a_registrar_made_anew_gives_no_number_that_was_given_before():
    members = Members("net", numbers_before=1000)
    members.add_session("mine", "host", [SentinelEntry("a", "train", "sentinel/a#7", *HERE)])
    members.unregister("sentinel/a#7")
    assert register(members, "a") == ("a", 1001)


@pytest.fixture
def taken_up(monkeypatch):
    """What a registrar made anew takes for the way in, and whose process it ends, by what each knows."""

    def take_up(knows):
        hosts = {name: SimpleNamespace(membership=Asked((knows[name], {}))) for name in knows}
        ended = []
        monkeypatch.setattr(known, "hosts_of", lambda network: hosts)
        monkeypatch.setattr(known, "answered", lambda ray, asked, missing: list(asked))
        monkeypatch.setattr(known, "end_named", ended.extend)
        for info in filter(None, knows.values()):
            info.hosts.update({gate: hosts.get(host) for gate, host in info.hosts.items()})
        return Members("net").take_up(), ended

    return take_up


class Asked:
    def __init__(self, answer):
        self._answer = answer

    def remote(self):
        return self._answer


def way_in(edition, **hosts):
    return NetworkInfo(b"", 0, hosts, {}, {gate: gate for gate in hosts}, edition=edition)


def test_of_two_ways_in_the_one_to_gates_that_are_there_is_taken(taken_up):
    before, now = way_in(1, a="host/net/a", b="lost"), way_in(1, a="host/net/a", b="host/net/b")
    info, ended = taken_up({"host/net/a": before, "host/net/b": now})
    assert info is now
    assert ended == []


def test_a_process_ends_that_no_way_in_leads_to_but_not_one_that_is_spare_or_was_left_lately(taken_up):
    before, now = way_in(1, a="host/net/a", left="host/net/left"), way_in(2, a="host/net/a")
    others = dict.fromkeys(("host/net/new", "host/net/spare/1"))
    info, ended = taken_up({"host/net/a": now, "host/net/left": before, **others})
    assert info is now
    assert ended == ["host/net/new"]


def test_no_process_ends_where_none_knows_the_way_in(taken_up):
    assert taken_up(dict.fromkeys(("host/net/a", "host/net/b"))) == (None, [])


def test_a_session_that_was_silent_is_known_once_it_answers_and_hears_of_gates_made_meanwhile():
    """Its sentinels were forgotten: a gate was made anew, nobody told them, and they waited for ever."""
    a, b = (SentinelEntry(name, "train", f"sentinel/{name}#7", *HERE) for name in "ab")
    members, host = Members("net"), "host"
    members._late["mine"] = "asked"
    members.add_session("mine", host)
    members.made("gate/1")
    members.add_session("mine", host, [b])  # it has registered another since
    assert members.late() == {"mine": "asked"}
    assert members.came_late("mine", [a, b]) == ([a], ["gate/1"])
    assert [entry.name for entry in members.entries()] == ["b", "a"]
    members.made("gate/1")
    assert members.late() == {}
    assert members.came_late("mine", [a]) == ([], [])


def test_a_sentinel_that_ended_before_its_session_was_heard_is_not_known_again():
    """The answer was there, and heard only after the row had settled: its name was taken for ever."""
    members = Members("net")
    members.add_session("mine", "host")
    members._late["mine"] = "asked"
    assert members.unregister("sentinel/a#7") is None
    assert members.came_late("mine", [SentinelEntry("a", "train", "sentinel/a#7", *HERE)]) == ([], [])
    assert members.entries() == []


def test_a_session_that_died_silent_is_not_waited_for():
    members = Members("net")
    members.add_session("mine", "host")
    members._late["mine"] = "asked"
    members.remove_session("mine")
    assert members.late() == {}
    members.made("gate/1")
    assert members.came_late("mine", [SentinelEntry("a", "train", "sentinel/a#7", *HERE)]) == ([], [])
