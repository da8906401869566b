"""The sessions and sentinels of a network, as its registrar knows them. Without a cluster."""

from __future__ import annotations

import pytest

from akkordeon.core.errors import NameTakenError, NoSuchSentinelError
from akkordeon.engines.ray import members as known
from akkordeon.engines.ray.members import Members
from akkordeon.engines.ray.network_info import SentinelEntry

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
