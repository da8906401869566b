"""A sentinel and its reader find each other by their addresses."""

from __future__ import annotations

from akkordeon.core.addresses import is_sentinel, reader_of, sentinel_address, sentinel_of


def test_a_reader_has_the_name_and_number_of_its_sentinel():
    sentinel = sentinel_address("tdp", 2)
    assert sentinel == "sentinel/tdp#2"
    assert reader_of(sentinel) == "reader/tdp#2"
    assert sentinel_of("reader/tdp#2") == sentinel


def test_a_sentinel_is_its_own_and_a_gate_nobodys():
    assert sentinel_of("sentinel/tdp#2") == "sentinel/tdp#2"
    assert sentinel_of("replica/0/gate/1") == "replica/0/gate/1"


def test_only_the_beginning_of_an_address_counts():
    """A user may call a sentinel ``reader/`` or ``sentinel/``."""
    for name in ("reader/x", "sentinel/x", "a/sentinel/x"):
        address = sentinel_address(name, 1)
        assert sentinel_of(reader_of(address)) == sentinel_of(address) == address


def test_a_sentinel_is_told_from_others():
    assert is_sentinel("sentinel/tdp#1")
    assert not is_sentinel("reader/tdp#1")
    assert not is_sentinel("shard/0.1")
