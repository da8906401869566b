"""Sentinels that go on by themselves where they were."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.session.recovery.test_lost import SAMPLES, batches, network, simulator, total
from tests.support.harness import WAIT_S

import akkordeon as ak
from akkordeon.core.errors import ActorFailedError, RecipeError, SentinelFailedError
from akkordeon.core.reports import SentinelRestarted
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash

ENGINES = {"threads": lambda: ak.Threads(2), "one worker": lambda: ak.Threads(1), "simulator": ak.Simulator}
OFTEN = ak.Recovery(restarts=100, backoff_s=0.0)


class Raises:
    """A loss that raises in some of its calls, and counts the samples of all others."""

    def __init__(self, *calls):
        self.calls, self.left, self.seen = 0, set(calls), Counter()

    def __call__(self, outputs, y):
        self.calls += 1
        if self.calls in self.left:
            raise OSError(f"call {self.calls} went wrong")
        self.seen.update(y.tolist())
        return outputs.sum()


def trainer(loss=total, size=1, **options):
    return ak.Sentinel.train(batches(size), loss, **({"name": "a", "on_failure": "restart"} | options))


def restarts_in(session):
    """The records of restarts, as they come."""
    found = []
    session.subscribe(lambda r: found.append(r) if isinstance(r, SentinelRestarted) else None, inline=True)
    return found


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_every_gate_learns_from_every_sample_once_an_epoch_whenever_its_sentinel_is_killed(data):
    gates, in_flight, size = (data.draw(st.integers(1, most)) for most in (3, 5, 3))
    epochs, every = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([None, 1, 4, 0.1]))
    kills_s = data.draw(st.lists(st.floats(0, 1.5), min_size=1, max_size=4))
    engine = simulator(kills_s, data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0.0, 0.02])))
    with ak.run(network(gates, recovery=data.draw(st.sampled_from([None, OFTEN]))), engine) as session:
        training = session.attach(trainer(size=size, epochs=epochs, in_flight=in_flight, report_every=every))
        try:
            session.wait(1000)
        except SentinelFailedError:
            assert "3 times" in str(training.error) or len(kills_s) > 3
            return
        assert session.status().batches == training.batches
        states = session.states(1000)
    sent = epochs * -(-SAMPLES // size)
    assert training.batches.as_tuple() == (sent, sent, 0, 0)
    assert training.epochs_done == epochs
    for state in states.values():
        assert state["times"].tolist() == [-epochs] * SAMPLES


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_stream_that_is_killed_learns_from_every_example_once(data):
    gates, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    in_flight, delay = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([None, 0, 2, 7]))
    kills_s = data.draw(st.lists(st.floats(0, 1.0), min_size=1, max_size=3))
    engine = simulator(kills_s, data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0.0, 0.02])))
    with ak.run(network(gates, recovery=OFTEN), engine) as session:
        streaming = session.attach(
            ak.Sentinel.stream(
                (torch.eye(SAMPLES), torch.arange(SAMPLES)),
                total,
                batch_size=size,
                delay=delay,
                in_flight=in_flight,
                report_every=data.draw(st.sampled_from([None, 1, 3])),
                name="a",
                on_failure="restart",
            )
        )
        session.wait(1000)
        assert session.status().batches == streaming.batches
        states = session.states(1000)
    sent = -(-SAMPLES // size)
    assert streaming.batches.as_tuple() == (sent, sent, 0, 0)
    last = streaming.stream[-1]
    assert last.examples + last.unscored == SAMPLES
    assert last.labels.waiting == 0
    for state in states.values():
        assert state["times"].tolist() == [-1] * SAMPLES


@pytest.mark.parametrize("gate_s", [0.17, 0.185])
def test_a_gate_that_comes_back_meanwhile_does_not_change_what_is_known(gate_s):
    """What was under way was sent again under other numbers, and examples were learned from twice."""
    costs = Compute({"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)})
    faults = [Crash(who="sentinel/a*", at_s=0.15), Crash(who="gate/0", at_s=gate_s)]
    recovery = ak.Recovery(snapshot_every=1, restarts=100)
    with ak.run(network(1, recovery=recovery), ak.Simulator(compute=costs, faults=faults)) as session:
        session.attach(
            ak.Sentinel.stream(
                (torch.eye(SAMPLES), torch.arange(SAMPLES)),
                total,
                in_flight=2,
                delay=7,
                report_every=None,
                name="a",
                on_failure="restart",
            )
        )
        session.wait(1000)
        (state,) = session.states(1000).values()
    assert state["times"].tolist() == [-1] * SAMPLES


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_one_that_raises_goes_on_behind_what_was_under_way(engine, in_flight):
    loss = Raises(5, 20)
    with ak.run(network(2, recovery=OFTEN), engine()) as session:
        restarts = restarts_in(session)
        training = session.attach(trainer(loss, epochs=3, in_flight=in_flight))
        session.wait(WAIT_S)
        assert session.status().batches == training.batches
        states = session.states(WAIT_S)
    assert [(each.sentinel, each.times) for each in restarts] == [("a", 1), ("a", 2)]
    assert "OSError: call 5 went wrong" in restarts[0].why
    assert training.error is None
    sent, trained, refused, lost = training.batches.as_tuple()
    assert (sent, trained + lost, refused) == (3 * SAMPLES, sent, 0)
    assert 2 <= lost <= 2 * in_flight
    assert max(loss.seen.values()) <= 3
    for state in states.values():
        learned = -state["times"]
        assert learned.max() <= 3
        assert 3 * SAMPLES - learned.sum() <= lost


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_one_that_raises_each_time_ends_with_one_error_that_tells_the_story(engine):
    loss, recovery = Raises(*range(99)), ak.Recovery(restarts=2, backoff_s=0.01)
    with ak.run(network(2, recovery=recovery), engine()) as session:
        training = session.attach(trainer(loss))
        with pytest.raises(SentinelFailedError) as failed:
            session.wait(WAIT_S)
        assert training.ended
    assert str(failed.value) == (
        "sentinel 'a' failed on batch 2: OSError: call 3 went wrong; it was made anew 2 times in the 60 s "
        "before that, the most allowed (failed on batch 0: OSError: call 1 went wrong; failed on batch 1: "
        "OSError: call 2 went wrong)"
    )
    assert isinstance(failed.value.__cause__, OSError)
    assert training.batches.as_tuple() == (3, 0, 0, 3)


def test_without_being_asked_none_goes_on():
    with ak.run(network(1, recovery=OFTEN), ak.Simulator()) as session:
        training = session.attach(trainer(Raises(2), on_failure="fail"))
        with pytest.raises(SentinelFailedError, match="call 2 went wrong"):
            training.wait(WAIT_S)
    with pytest.raises(RecipeError, match="on_failure is 'restart' or 'fail', got 'again'"):
        trainer(on_failure="again")


def test_what_akkordeon_refuses_does_not_go_on_as_it_would_only_come_again():
    with ak.run(network(1), ak.Threads(2)) as session:
        restarts = restarts_in(session)
        training = session.attach(trainer(lambda outputs, y: outputs))
        with pytest.raises(SentinelFailedError, match="its loss must be one number"):
            training.wait(WAIT_S)
    assert not restarts


def test_one_that_is_detached_while_it_waits_to_go_on_stays_away():
    recovery = ak.Recovery(restarts=5, backoff_s=1000.0)
    with ak.run(network(1, recovery=recovery), ak.Threads(2)) as session:
        training = session.attach(trainer(Raises(1, 2)))
        assert session._engine.wait_until(lambda: training._batches.lost == 2, WAIT_S)
        assert not training.ended
        assert session.status().batches == training.batches
        training.detach()
        with pytest.raises(SentinelFailedError, match="call 2 went wrong"):
            session.wait(WAIT_S)


def test_a_session_that_is_closed_waits_for_none_that_would_go_on():
    recovery = ak.Recovery(restarts=5, backoff_s=1000.0)
    with ak.run(network(1, recovery=recovery), ak.Threads(2)) as session:
        training = session.attach(trainer(Raises(1, 2)))
        assert session._engine.wait_until(lambda: "call 2" in str(training.error), WAIT_S)
    assert training.ended
    assert training.batches.in_flight == 0


@pytest.mark.parametrize("at_s", [0.03, 0.45, 0.95])
def test_a_validator_goes_on_and_makes_its_last_round(at_s):
    costs = Compute({"*": Cost(forward_s=0.01, backward_s=0.01, evaluate_s=0.01)})
    faults = [Crash(who="sentinel/v*", at_s=at_s)]
    with ak.run(network(2), ak.Simulator(compute=costs, faults=faults)) as session:
        restarts = restarts_in(session)
        validator = session.attach(
            ak.Sentinel.validate(batches(2), total, every_updates=4, name="v", on_failure="restart")
        )
        session.attach(ak.Sentinel.train(batches(1), total, epochs=2, name="t"))
        session.wait(1000)
    assert len(restarts) == 1
    assert [each.round for each in validator.rounds] == list(range(1, validator.rounds_done + 1))
    assert validator.rounds[-1].version == 2 * SAMPLES


@pytest.mark.parametrize("kills_s", [[0.05], [0.02, 0.11]])
def test_replicas_whose_sentinels_are_killed_go_on_too(kills_s):
    costs = Compute({"*": Cost(forward_s=0.01, backward_s=0.01, message_s=0.001)})
    faults = [Crash(who="sentinel/a-0*", at_s=at_s) for at_s in kills_s]
    with ak.run(ak.Downpour(network(2), replicas=2), ak.Simulator(compute=costs, faults=faults)) as session:
        restarts = restarts_in(session)
        training = session.attach(trainer(epochs=3))
        session.wait(1000)
    assert [each.sentinel for each in restarts] == ["a-0"] * len(kills_s)
    assert training.batches.as_tuple() == (3 * SAMPLES, 3 * SAMPLES, 0, 0)
    assert not training.errors


@pytest.mark.parametrize("back_after_s", [0.0, 15.0])
def test_one_that_is_lost_with_its_replica_goes_on_as_soon_as_that_is_back(back_after_s):
    """It waited 8 s for gates that were not there, and trained without having asked them."""
    engine = simulator_of_lost_replica(back_after_s)
    with ak.run(ak.Downpour(network(2, recovery=OFTEN), replicas=2), engine) as session:
        training = session.attach(trainer(epochs=2, in_flight=2))
        session.wait(1000)
        assert 0 < session._engine.now_s() - back_after_s < 1.0
    assert training.batches.as_tuple() == (2 * SAMPLES, 2 * SAMPLES, 0, 0)


def test_one_that_is_lost_with_its_replica_for_good_ends_at_once():
    engine = simulator_of_lost_replica(None)
    with ak.run(ak.Downpour(network(2), replicas=2), engine) as session:
        training = session.attach(trainer(epochs=2, in_flight=2))
        with pytest.raises(ActorFailedError, match="could not go on: there is no replica 0"):
            session.wait(1000)
        assert session._engine.now_s() < 1.0
    assert list(training.errors) == [0]


def simulator_of_lost_replica(back_after_s):
    costs = Compute({"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)})
    who = "sentinel/a-0*", "replica/0/*"
    return ak.Simulator(
        compute=costs, faults=[Crash(who=each, at_s=0.1, back_after_s=back_after_s) for each in who]
    )


def test_a_sentinel_whose_place_is_back_later_waits_for_it():
    costs = Compute({"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)})
    faults = [Crash(who="sentinel/a*", at_s=0.1, back_after_s=5.0)]
    engine = ak.Simulator(compute=costs, faults=faults)
    with ak.run(network(2), engine) as session:
        training = session.attach(trainer(epochs=2))
        session.wait(1000)
        assert session._engine.now_s() > 5.0
        (state, *_) = session.states(1000).values()
    assert training.batches.as_tuple() == (2 * SAMPLES, 2 * SAMPLES, 0, 0)
    assert state["times"].tolist() == [-2] * SAMPLES
