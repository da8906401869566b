"""A Redis stream, at a server of our own: what comes, comes again, and is acknowledged."""

from __future__ import annotations

import pickle
import threading
from itertools import islice

import pytest
from tests.support import redis as support

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.data.streams.redis import RedisStream

pytestmark = support.needs_redis
url, client = support.url, support.client


def write(client, *numbers):
    return [client.xadd("s", {"n": n}) for n in numbers]


def source(url, **options):
    return RedisStream(url, "s", **({"follow": False, "patience_s": 0.2} | options))


def numbers(records, count=None):
    return [int(record["n"]) for record in islice(records, count)]


def pending(client, consumer="learner"):
    found = client.xpending_range("s", "akkordeon", "-", "+", 1000, consumer)
    return [each["message_id"] for each in found]


def test_a_record_has_the_fields_of_its_entry_and_its_id(client, url):
    ids = [client.xadd("s", {"n": 1.5, "to": "Rome", "raw": b"\xff"}), client.xadd("s", {"id": "mine"})]
    assert list(source(url)) == [{"id": ids[0], "n": 1.5, "to": "Rome", "raw": b"\xff"}, {"id": "mine"}]


def test_at_the_end_there_is_nothing_for_now_and_then_what_was_written(client, url):
    write(client, 1)
    stream = source(url, follow=True, poll_s=0.001)
    records = iter(stream)
    assert [next(records)["n"], next(records)] == [1, None]
    write(client, 2)
    assert next(record for record in records if record)["n"] == 2


def test_closed_it_ends_after_the_entries_that_are_there(client, url):
    write(client, 1, 2)
    stream = source(url, follow=True, poll_s=0.01)
    waits, found = threading.Event(), []

    def read():
        for record in stream:
            found.append(record)
            if record is None:
                waits.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert waits.wait(10)
    stream.close()
    reader.join(10)
    assert not reader.is_alive()
    assert [record["n"] for record in found if record] == [1, 2]


def test_no_more_is_fetched_than_was_asked_for(client, url):
    write(client, *range(10))
    records = iter(source(url))
    assert numbers(records, 3) == [0, 1, 2]
    assert len(pending(client)) == 3


def test_what_was_not_acknowledged_comes_again_to_the_next_of_that_name(client, url):
    write(client, *range(6))
    first = source(url)
    records, positions = iter(first), []
    for _ in range(4):
        next(records)
        positions.append(first.state_dict())
    first.acknowledge(positions[1:3])
    assert numbers(source(url)) == [0, 3, 4, 5]


def test_what_another_has_left_is_taken_over_and_comes_first(client, url):
    write(client, *range(4))
    assert numbers(source(url, consumer="killed"), 2) == [0, 1]
    assert numbers(source(url, claim_after_s=60)) == [2, 3]
    assert pending(client, "killed")
    assert numbers(source(url, claim_after_s=1e-9)) == [0, 1, 2, 3]
    assert not pending(client, "killed")


def test_an_entry_that_was_deleted_while_it_was_pending_is_left_out_and_told(client, url, caplog):
    ids = write(client, 1, 2)
    assert numbers(source(url)) == [1, 2]
    client.xdel("s", ids[0])
    assert numbers(source(url)) == [2]
    assert pending(client) == ids[1:]
    assert f"entry {ids[0]} of the stream 's' at {url} was deleted" in caplog.text


@pytest.mark.parametrize("count", [1, 3])
def test_after_its_connection_broke_all_comes_once_and_in_order(client, url, count):
    write(client, *range(9))
    stream = source(url, count=count)
    found = []
    for record in stream:
        found.append(int(record["n"]))
        client.client_kill_filter(_type="normal", skipme=True)
        if len(found) % 2:
            stream.acknowledge([stream.state_dict()])
    assert found == list(range(9))
    assert len(pending(client)) == 4


def test_what_was_in_an_answer_that_did_not_arrive_comes_in_the_next(client, url, monkeypatch):
    from redis.exceptions import ConnectionError as Broken

    write(client, *range(4))
    records = iter(stream := source(url, count=2))
    assert numbers(records, 2) == [0, 1]
    connected = stream._server._client

    def break_after(*asked):
        type(connected).xreadgroup(connected, *asked)
        raise Broken("reset by peer")

    monkeypatch.setattr(connected, "xreadgroup", break_after)
    assert numbers(records) == [2, 3]
    assert len(pending(client)) == 4


def test_a_group_that_is_gone_is_made_again_where_it_was(client, url):
    write(client, *range(4))
    stream = source(url)
    records = iter(stream)
    assert numbers(records, 2) == [0, 1]
    client.xgroup_destroy("s", "akkordeon")
    assert numbers(records) == [2, 3]
    client.xgroup_destroy("s", "akkordeon")
    another = source(url)
    another.load_state_dict({"id": stream.state_dict()["id"]})
    write(client, 4)
    assert numbers(another) == [4]


def test_read_again_it_goes_on_at_the_place_it_is_given_or_begins_with_what_is_pending(client, url):
    write(client, *range(4))
    stream = source(url)
    records = iter(stream)
    next(records)
    place = stream.state_dict()
    numbers(records, 2)
    stream.load_state_dict(place)
    assert numbers(stream) == [1, 2, 3]
    assert numbers(stream) == [0, 1, 2, 3]


def test_it_travels_to_another_process_without_its_connection(client, url):
    write(client, *range(3))
    stream = source(url)
    assert numbers(stream, 1) == [0]
    assert numbers(pickle.loads(pickle.dumps(stream))) == [0, 1, 2]


def test_a_server_that_is_back_in_time_is_asked_again(tmp_path):
    from redis import Redis

    with support.redis_server(tmp_path) as url, Redis.from_url(url) as client:
        write(client, 1)
        stream = source(url, follow=True, patience_s=20, poll_s=0.01)
        records = iter(stream)
        assert next(records)["n"] == 1
    found = []
    reader = threading.Thread(target=lambda: found.append(next(record for record in records if record)))
    reader.start()
    with support.redis_server(tmp_path) as url, Redis.from_url(url) as client:
        write(client, 2)
        reader.join(20)
    assert [record["n"] for record in found] == [2]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:secret@127.0.0.1:1/0", r"redis://127.0.0.1:1/0 was out of reach for 0.2 s: .*refused"),
        (
            "unix:///nowhere/redis.sock",
            "unix:///nowhere/redis.sock was out of reach for 0.2 s: .*No such file",
        ),
    ],
)
def test_a_server_that_is_out_of_reach_is_given_up_after_the_patience(url, why):
    with pytest.raises(DataError, match=why):
        list(source(url))


def test_a_stream_that_is_none_is_refused_with_its_name(client, url):
    with pytest.raises(DataError, match="there is no stream 's' at unix://"):
        list(source(url))
    client.set("s", "a string")
    with pytest.raises(DataError, match="refuses to answer: WRONGTYPE"):
        list(source(url))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"url": "http://localhost"}, "'http://localhost' is no url of a Redis server"),
        ({"count": 0}, "count is at least 1, got 0"),
        ({"patience_s": 0}, "patience_s is above 0, got 0"),
        ({"poll_s": -1}, "poll_s is above 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(given, why):
    with pytest.raises(RecipeError, match=why):
        RedisStream(**({"url": "redis://localhost", "stream": "s"} | given))
