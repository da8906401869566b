"""Learning from a Redis stream, which is told what was learned: nothing is lost with a learner."""

from __future__ import annotations

import random
import threading
from functools import partial
from pathlib import Path

import pytest
from tests.support import redis as support
from tests.support.engines import ALL_ENGINES, ENGINES
from tests.support.forks import FORKS
from tests.support.harness import WAIT_S
from tests.support.lineage import OneOf, counted, counting_network, latest, learn_from_redis, learned

import akkordeon as ak
from akkordeon.core.reports import TrainingProgress

pytestmark = support.needs_redis
url, client = support.url, support.client

N = 60


def write(client, numbers):
    for n in numbers:
        client.xadd("s", {"n": n})


def pending(client):
    return client.xpending("s", "akkordeon")["pending"]


def stream(url, follow=False, keyed=False, loss=counted, **options):
    source = ak.RedisStream(url, "s", follow=follow, poll_s=0.01)
    return ak.Sentinel.stream(source, loss, split=OneOf(N, keyed), name="learner", **options)


def until(session, trained):
    """Set when so many were trained; a stream of these reports each."""
    reached = threading.Event()
    seen = iter(range(1, trained + 1))

    def hear(record):
        if isinstance(record, TrainingProgress) and next(seen, trained) == trained:
            reached.set()

    session.subscribe(hear)
    return reached


@pytest.mark.parametrize("name", [*ENGINES, pytest.param("ray", marks=pytest.mark.slow)])
def test_every_entry_is_trained_and_acknowledged(client, url, name):
    write(client, range(N))
    with ak.run(counting_network(N), ALL_ENGINES[name]()) as session:
        session.attach(stream(url)).wait(WAIT_S)
        assert learned(session.states()) == [1] * N
    assert pending(client) == 0


def test_what_was_trained_is_acknowledged_while_the_stream_waits_for_more(client, url):
    write(client, range(3))
    with ak.run(counting_network(N), ak.Threads(2)) as session:
        three = until(session, 3)
        attached = session.attach(stream(url, follow=True, report_every=1))
        assert three.wait(WAIT_S)
        acknowledged = threading.Event()
        while pending(client):
            acknowledged.wait(0.01)
        attached.detach()
        attached.wait(WAIT_S)


def test_no_more_is_fetched_than_may_be_under_way(client, url):
    write(client, range(N))
    most = 0

    def loss(outputs, y):
        nonlocal most
        most = max(most, pending(client))
        return outputs.sum()

    with ak.run(counting_network(N), ak.Threads(2)) as session:
        session.attach(stream(url, loss=loss, in_flight=3)).wait(WAIT_S)
    assert 1 <= most <= 3 + 1  # one may be back, and its acknowledgement on the way


def test_what_comes_under_a_key_again_is_counted_and_not_learned_twice(client, url):
    write(client, [*range(N), *range(0, N, 3)])
    with ak.run(counting_network(N), ak.Threads(2)) as session:
        attached = session.attach(stream(url, keyed=True, in_flight=3)).wait(WAIT_S)
        assert learned(session.states()) == [1] * N
    assert attached.stream[-1].labels.duplicates == N // 3
    assert pending(client) == 0


@pytest.mark.parametrize("in_flight", [1, 4])
def test_what_was_trained_after_a_checkpoint_is_trained_again_by_whoever_goes_on(
    client, url, in_flight, tmp_path
):
    write(client, range(40))
    with ak.run(counting_network(N), ak.Threads(2)) as session:
        session.checkpoint(tmp_path)
        ten, forty = until(session, 10), until(session, 40)
        session.attach(stream(url, follow=True, report_every=1, in_flight=in_flight))
        assert ten.wait(WAIT_S)
        session.checkpoint(tmp_path)
        assert forty.wait(WAIT_S)
        assert sum(learned(session.states())) == 40
        session.attachments[0].detach()
    write(client, range(40, N))
    with ak.run(counting_network(N), ak.Threads(2), resume=latest(tmp_path)) as session:
        already = sum(learned(session.states()))
        assert 10 <= already <= 40
        session.attach(stream(url, in_flight=in_flight)).wait(WAIT_S)
        assert learned(session.states()) == [1] * N
        assert 0 < pending(client) <= N
        session.checkpoint(tmp_path)
    with ak.run(counting_network(N), ak.Threads(2), resume=latest(tmp_path)) as session:
        session.attach(stream(url)).wait(WAIT_S)
        assert learned(session.states()) == [1] * N
    assert pending(client) == 0


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_stream_whose_server_was_out_of_reach_fails_with_a_sentence_and_goes_on(client, url, in_flight):
    write(client, range(20))
    socket = Path(url.removeprefix("unix://"))
    source = ak.RedisStream(url, "s", patience_s=0.05, poll_s=0.01)
    with ak.run(counting_network(N), ak.Threads(2)) as session:
        ten = until(session, 10)
        attached = session.attach(
            ak.Sentinel.stream(source, counted, split=OneOf(N), in_flight=in_flight, report_every=1)
        )
        assert ten.wait(WAIT_S)
        away = socket.rename(socket.with_name("away"))
        client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ak.AkkordeonError, match=f"{url} was out of reach for 0.05 s"):
            attached.wait(WAIT_S)
        away.rename(socket)
        write(client, range(20, N))
        source.close()
        attached.restart().wait(WAIT_S)
        assert learned(session.states()) == [1] * N
    assert pending(client) == 0


def killed_in_the_middle(client, learn, kills, seed):
    """Have learners be killed, each after so much was given to it; then one comes to the end."""
    chance, given = random.Random(seed), 0
    for _ in range(kills):
        learner = FORKS.Process(target=learn)
        learner.start()
        given += chance.randint(1, 250)
        while not (groups := client.xinfo_groups("s")) or (groups[0]["entries-read"] or 0) < given:
            assert learner.is_alive()
            learner.join(0.002)
        learner.kill()
        learner.join()
        given = client.xinfo_groups("s")[0]["entries-read"]
    learner = FORKS.Process(target=learn)
    learner.start()
    learner.join(WAIT_S)
    assert learner.exitcode == 0
    return given


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_learner_that_is_killed_again_and_again_loses_nothing(client, url, seed, tmp_path):
    n = 2000
    write(client, range(n))
    learn = partial(learn_from_redis, url, str(tmp_path), n, every_s=0.05)
    given = killed_in_the_middle(client, learn, kills=8, seed=seed)
    assert 0 < given < n
    weights = {address: stage.tensors for address, stage in latest(tmp_path).stages.items()}
    counts = learned(weights)
    assert {i: c for i, c in enumerate(counts) if c != 1} == {}
