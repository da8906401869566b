"""Sentinels come and go, a hundred times over: no error, no leak, every batch accounted for.

``python -m pytest -m slow -s tests/whole/test_stress.py`` runs the whole of it and prints its figures.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time

import psutil
import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.sentinels.training.trainer import READ_AHEAD

DATA, IN_FLIGHT = batches_of(5), 5


def rss() -> float:
    """Resident memory in MiB, once what nobody holds is gone."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def endless(read: threading.Event | None = None):
    """Batches for ever; an event tells when more have been read than lie ahead: some are under way."""
    for number in itertools.count():
        yield DATA[number % len(DATA)]
        if read is not None and number == READ_AHEAD * IN_FLIGHT:
            read.set()


def trainer(name: str, read: threading.Event | None = None, in_flight: int = IN_FLIGHT):
    return ak.Sentinel.train(
        endless(read),
        F.cross_entropy,
        samples=10**12,
        in_flight=in_flight,
        name=name,
        scores={"a": ak.accuracy},
    )


def validator(name: str):
    return ak.Sentinel.validate(DATA[:2], F.cross_entropy, every_updates=3, name=name)


def balanced(attachment) -> bool:
    sent, trained, refused, lost = attachment.batches.as_tuple()
    return attachment.ended and attachment.error is None and refused == 0 and sent == trained + lost


def come_and_go(session, drop: bool) -> None:
    """A third trainer and a second validator join, work, and leave."""
    read = threading.Event()
    third, second = session.attach(trainer("third", read)), session.attach(validator("second"))
    assert read.wait(WAIT_S)
    assert session._engine.wait_until(lambda: bool(second.rounds), WAIT_S)
    assert {s.name for s in session.status(WAIT_S).sentinels} >= {"third", "second"}
    third.detach(drop)
    second.detach(drop)
    third.wait(WAIT_S)
    second.wait(WAIT_S)
    assert balanced(third)
    assert drop or third.batches.lost == 0


def one_session(rounds: int) -> list[float]:
    """Two trainers and a validator stay while others come and go; memory after every 20 rounds."""
    memory = []
    with ak.run(small_network(max_staleness=1000), engine=ak.Threads(2)) as session:
        stay = [session.attach(trainer(name)) for name in ("first", "other")]
        watching = session.attach(validator("stays"))
        for number in range(rounds):
            come_and_go(session, drop=number % 2 == 1)
            if number % 20 == 19:
                memory.append(rss())
        for attachment in (*stay, watching):
            attachment.detach()
            attachment.wait(WAIT_S)
        assert all(balanced(attachment) for attachment in stay)
        assert watching.rounds
        status = session.status(WAIT_S)
        assert [(gate.stashed, gate.pinned) for gate in status.gates] == [(0, 0)] * 3
        assert status.sentinels == []
        assert len(session.attachments) == 5  # of each name the last
        assert not session._registry.by_address
        assert not session._supervisor.sentinels
        assert len(session._engine._cells) <= 3 + 5  # the gates, and readers that still have to hear of it
    return memory


def many_sessions(rounds: int) -> list[float]:
    """A session each time, all of whose sentinels are still at work when it is closed."""
    memory = []
    for number in range(rounds):
        with ak.run(small_network(), engine=ak.Threads(2)) as session:
            stay = [session.attach(trainer(name)) for name in ("first", "other")]
            watching = session.attach(validator("stays"))
            come_and_go(session, drop=number % 2 == 1)
        assert all(balanced(attachment) for attachment in stay)
        assert watching.ended
        if number % 20 == 19:
            memory.append(rss())
    return memory


@pytest.mark.parametrize("stress", [one_session, many_sessions])
def test_sentinels_come_and_go_without_error_or_loss(stress):
    threads = threading.active_count()
    stress(15)
    assert threading.active_count() == threads


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stress", [one_session, many_sessions])
def test_a_hundred_times_over_memory_does_not_grow(stress, capsys):
    began_s = time.monotonic()
    memory = stress(100)
    growth = memory[-1] / memory[0] - 1
    with capsys.disabled():
        print(
            f"\n{stress.__name__}: 100 rounds in {time.monotonic() - began_s:.1f} s, resident memory "
            f"{memory[0]:.1f} MiB after round 20, {memory[-1]:.1f} MiB after round 100 ({growth:+.1%})"
        )
    assert growth < 0.05
