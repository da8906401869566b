"""What every engine promises (engines/base.py), each promise on each engine."""

from __future__ import annotations

import itertools
import math
import signal
import threading

import pytest
import torch
from tests.support.engines import (
    ALL_ENGINES,
    ENGINES,
    NAMES,
    OWN_MEMORY,
    OWN_THREADS,
    ControlNote,
    EvaluationNote,
    ForwardNote,
    Note,
    Stage,
)
from tests.support.forks import python
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import After, Report, Send, Spawn, Stop
from akkordeon.core.errors import SentinelFailedError, WaitTimeoutError
from akkordeon.core.reports import ActorFailed, Undelivered


@pytest.fixture(params=NAMES)
def engine_name(request):
    return request.param


@pytest.fixture
def stage(engine_name):
    stage = Stage(ALL_ENGINES[engine_name]())
    yield stage
    stage.engine.stop()


def teller(message, now_s):
    yield Report(message.text)


# ── delivery ─────────────────────────────────────────────────────────────────────────────────────────


def test_messages_from_one_actor_to_another_arrive_once_and_in_order(stage):
    def chatter(message, now_s):
        for i in range(200):
            yield Send("listener", Note((message.text, i)))

    stage.actor("listener", teller)
    for name in "ab":
        stage.actor(name, chatter)
        stage.engine.send(name, Note(name))
    heard = stage.wait_for(400, tuple)
    for name in "ab":
        assert [i for who, i in heard if who == name] == list(range(200))


def test_messages_from_outside_arrive_in_order(stage):
    stage.actor("listener", teller)
    for i in range(100):
        stage.engine.send("listener", Note(i))
    assert stage.wait_for(100, int) == list(range(100))


def test_what_nobody_can_receive_is_reported_and_throws_nothing_at_the_sender(stage):
    def sender(message, now_s):
        yield Send("nobody", Note("lost"))
        yield Report("still here")

    stage.actor("sender", sender)
    stage.engine.send("sender", Note("go"))
    stage.engine.send("nobody either", Note("lost too"))
    stage.wait_for(1, str)
    assert stage.wait_for(2, Undelivered) is not None
    assert {record.to for record in stage.records if isinstance(record, Undelivered)} == {
        "nobody",
        "nobody either",
    }


def test_messages_are_handed_out_by_class_and_in_order_within_a_class(stage):
    def busy(message, now_s):
        if message.text != "begin":
            yield Report(message.text)
            return
        for text in ("1", "2"):  # to itself, while it is at work: all of them wait
            yield Send("busy", EvaluationNote("evaluation " + text))
            yield Send("busy", ForwardNote("forward " + text))
            yield Send("busy", Note("backward " + text))
            yield Send("busy", ControlNote("control " + text))

    stage.actor("busy", busy)
    stage.engine.send("busy", Note("begin"))
    order = stage.wait_for(8, str)
    kinds = ("control", "backward", "forward", "evaluation")
    assert order == [f"{kind} {i}" for kind in kinds for i in (1, 2)]


def test_evaluation_gets_its_turn_under_any_load(stage):
    handled = []

    def loaded(message, now_s):
        handled.append(message.text)
        if message.text == "evaluation":
            yield Report(handled.index("evaluation"))
        elif len(handled) < 500:
            yield Send("loaded", Note("work"))  # there is always something more urgent
        if message.text == "begin":
            yield Send("loaded", EvaluationNote("evaluation"))

    stage.actor("loaded", loaded)
    stage.engine.send("loaded", Note("begin"))
    assert stage.wait_for(1, int)[0] <= 8


# ── handling ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_actor_handles_one_message_at_a_time(stage):
    inside, most = [], []

    def careful(message, now_s):
        inside.append(message)
        most.append(len(inside))
        yield Send("other", Note(0))  # the engine is in between
        inside.pop()
        yield Report(max(most))

    stage.actor("careful", careful)
    stage.actor("other", lambda message, now_s: iter(()))

    def sender(message, now_s):
        for i in range(50):
            yield Send("careful", Note(i))

    for name in ("a", "b", "c"):
        stage.actor(name, sender)
        stage.engine.send(name, Note("go"))
    assert max(stage.wait_for(150, int)) == 1


def test_effects_are_carried_out_in_order_as_they_are_yielded(stage, engine_name):
    if engine_name in OWN_MEMORY:
        pytest.skip("what is reported in one process is heard in another a little later")
    seen = []

    def worker(message, now_s):
        yield Report("first")
        seen.append(list(stage.records))
        yield Report("second")
        seen.append(list(stage.records))

    stage.actor("worker", worker)
    stage.engine.send("worker", Note("go"))
    stage.wait_for(2)
    stage.engine.send("worker", Note("again"))
    stage.wait_for(4)
    assert seen[:2] == [["first"], ["first", "second"]]


def test_after_brings_a_message_later_and_in_the_order_of_the_times(stage):
    def sleeper(message, now_s):
        if message.text == "go":
            yield After(0.02, Note("late"))
            yield After(0.01, Note("early"))
            yield Report(now_s)
        else:
            yield Report((message.text, now_s))

    stage.actor("sleeper", sleeper)
    stage.engine.send("sleeper", Note("go"))
    (early, early_s), (late, late_s) = stage.wait_for(2, tuple)
    (began_s,) = stage.wait_for(1, float)
    assert (early, late) == ("early", "late")
    assert early_s - began_s >= 0.01
    assert late_s - began_s >= 0.02


def test_what_is_to_be_done_later_is_done_not_before_its_time_and_whoever_waits_looks_again(stage):
    done, began_s = {}, stage.engine.now_s()
    for seconds in (0.06, 0.02, 0.04):
        stage.engine.after(seconds, lambda seconds=seconds: done.update({seconds: stage.engine.now_s()}))
    assert stage.engine.wait_until(lambda: len(done) == 3, 60)
    assert all(at_s - began_s >= 0.99 * seconds for seconds, at_s in done.items())


def test_after_stop_nothing_is_done_later(stage):
    done = []
    stage.engine.after(0.01, lambda: done.append("soon"))
    stage.engine.after(3600, lambda: done.append("late"))
    assert stage.engine.wait_until(lambda: done == ["soon"], 60)
    stage.engine.stop()
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_the_time_an_actor_is_told_is_the_engines(stage):
    before_s = stage.engine.now_s()
    stage.actor("clock", lambda message, now_s: iter([Report(now_s)]))
    stage.engine.send("clock", Note("?"))
    (told_s,) = stage.wait_for(1, float)
    assert before_s <= told_s <= stage.engine.now_s()


def test_after_stop_nothing_is_handled(stage):
    def leaver(message, now_s):
        yield Report(message.text)
        yield Stop()
        yield Report("never")

    stage.actor("leaver", leaver)

    def sender(message, now_s):
        for i in range(5):
            yield Send("leaver", Note(i))
        yield Report("sent")

    stage.actor("sender", sender)
    stage.engine.send("sender", Note("go"))
    stage.wait_for(1, str)
    undelivered = stage.wait_for(4, Undelivered)
    assert [record for record in stage.records if not isinstance(record, Undelivered)] in (
        [0, "sent"],
        ["sent", 0],
    )
    assert sorted(record.message.text for record in undelivered) == [1, 2, 3, 4]


# ── failing ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_actor_that_raises_is_stopped_and_reported_with_its_last_words(stage):
    def clumsy(message, now_s):
        yield Report("before")
        raise ZeroDivisionError(message.text)

    def last_words():
        yield Send("heir", Note("all I had"))
        yield Report("farewell")

    stage.actor("heir", teller)
    stage.actor("clumsy", clumsy, last_words=last_words)
    stage.engine.send("clumsy", Note("oops"))
    assert "all I had" in stage.wait_for(3, str)
    stage.engine.send("clumsy", Note("anybody there?"))
    stage.wait_for(1, Undelivered)
    (failed,) = stage.wait_for(1, ActorFailed)
    assert failed.address == "clumsy"
    assert failed.doing == "Note"
    assert isinstance(failed.error, ZeroDivisionError)
    texts = [record for record in stage.records if isinstance(record, str)]
    assert sorted(texts) == ["all I had", "before", "farewell"]


def test_last_words_that_fail_are_reported_too(stage):
    def clumsy(message, now_s):
        raise ValueError("first")
        yield

    def last_words():
        raise ValueError("second")
        yield

    stage.actor("clumsy", clumsy, last_words=last_words)
    stage.engine.send("clumsy", Note("oops"))
    failures = stage.wait_for(2, ActorFailed)
    assert [str(failed.error) for failed in failures] == ["first", "second"]


def test_a_failing_actor_takes_nobody_with_it(stage):
    def clumsy(message, now_s):
        raise ValueError("alone")
        yield

    stage.actor("clumsy", clumsy)
    stage.actor("listener", teller)
    stage.engine.send("clumsy", Note("oops"))
    stage.engine.send("listener", Note("fine"))
    stage.wait_for(1, ActorFailed)
    assert stage.wait_for(1, str) == ["fine"]


def test_what_making_an_actor_raises_spawn_raises(stage):
    def broken():
        raise ak.AkkordeonError("no such actor")

    with pytest.raises(ak.AkkordeonError, match="no such actor"):
        stage.engine.spawn(Spawn("broken", broken))


def test_an_address_can_be_used_again(stage):
    def once(message, now_s):
        yield Report(message.text)
        yield Stop()

    for i in range(3):
        stage.actor("phoenix", once)
        stage.engine.send("phoenix", Note(i))
        assert stage.wait_for(i + 1, int)[-1] == i


# ── waiting and ending ───────────────────────────────────────────────────────────────────────────────


def test_waiting_ends_with_false_when_the_time_is_over(stage):
    before_s = stage.engine.now_s()
    assert stage.engine.wait_until(lambda: False, 0.05) is False
    assert stage.engine.now_s() - before_s >= 0.05


def test_waiting_for_what_holds_already_takes_no_time(stage):
    assert stage.engine.wait_until(lambda: True, 0.0) is True


def test_loads_tell_what_waits_and_what_was_done(stage):
    stage.actor("listener", teller)
    for i in range(7):
        stage.engine.send("listener", Note(i))
    stage.wait_for(7, int)
    stage.engine.wait_until(lambda: stage.engine.loads()["listener"].handled == 7, 0.2)
    load = stage.engine.loads()["listener"]
    assert load.queued == 0
    assert load.handled in (6, 7)  # the last report comes before the count
    assert load.busy_s >= 0


def test_after_stop_the_process_is_as_it_was(engine_name):
    torch.set_num_threads(2)
    random_before = torch.get_rng_state()
    threads_before = set(threading.enumerate())  # another test may have left a source that blocks
    stage = Stage(ALL_ENGINES[engine_name]())

    def worker(message, now_s):
        torch.set_num_threads(1)
        torch.rand(3)
        yield Report("done")

    stage.actor("worker", worker)
    stage.engine.send("worker", Note("go"))
    stage.wait_for(1)
    stage.engine.stop()
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), random_before)
    begun = set(threading.enumerate()) - threads_before
    assert not [thread for thread in begun if thread.name.startswith("akkordeon")]


def test_messages_may_come_from_any_thread(stage):
    stage.actor("listener", teller)

    def outside(i):
        for j in range(20):
            stage.engine.send("listener", Note((i, j)))

    senders = [threading.Thread(target=outside, args=(i,)) for i in range(4)]
    for thread in senders:
        thread.start()
    heard = stage.wait_for(80, tuple)
    for thread in senders:
        thread.join()
    for i in range(4):
        assert [j for who, j in heard if who == i] == list(range(20))


def test_an_actor_that_blocks_holds_up_nobody_else(stage, engine_name):
    if engine_name not in OWN_THREADS:
        pytest.skip("everything takes turns on one thread here")
    gate = threading.Event()

    def blocked(message, now_s):
        gate.wait(20)
        yield Report("released")

    stage.actor("reader/blocked", blocked, may_block=True)  # it holds what cannot leave this process
    stage.actor("listener", teller)
    stage.engine.send("reader/blocked", Note("read"))
    for i in range(20):
        stage.engine.send("listener", Note(i))
    assert stage.wait_for(20, int) == list(range(20))
    assert "released" not in stage.records
    gate.set()
    assert stage.wait_for(1, str) == ["released"]


def test_what_is_reported_meanwhile_may_send(stage):
    """A session answers reports with messages: an epoch is done, so a round is due."""
    stage.engine.stop()
    records = []

    def answer(record):
        records.append(record)
        if record == "question":
            stage.engine.send("actor", Note("answer"))

    stage.engine.start(answer, seed=0)
    stage.actor("actor", teller)
    stage.engine.send("actor", Note("question"))
    assert stage.engine.wait_until(lambda: "answer" in records, 20)


# ── a real run ───────────────────────────────────────────────────────────────────────────────────────


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def network():
    torch.manual_seed(0)
    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), sgd),
            ak.Gate(nn.Sequential(nn.Linear(16, 8), nn.Tanh()), sgd),
            ak.Gate(nn.Linear(8, 3), sgd),
        ]
    )


def problem(batches=60):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(batches, 16, 6, generator=rng)
    return [(rows, rows[:, :3].argmax(1)) for rows in x]


def test_a_network_learns(engine_name):
    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, in_flight=4, epochs=12))
        session.wait(timeout=60)
        test = session.attach(ak.Sentinel.test(problem(), F.cross_entropy, scores={"accuracy": ak.accuracy}))
        test.wait(timeout=60)
    assert training.batches.as_tuple() == (720, 720, 0, 0)
    assert test.rounds[0].scores["accuracy"] > 0.9


def test_sentinels_come_and_go_while_it_runs(engine_name):
    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
        first = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="first", epochs=1000))
        validator = session.attach(
            ak.Sentinel.validate(problem(3), F.cross_entropy, every_updates=10, name="validator")
        )
        assert session._engine.wait_until(lambda: len(first.epochs) >= 1, 60)
        second = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="second", epochs=2))
        second.wait(timeout=60)
        first.detach(drop=True)
        first.wait(timeout=60)
        session.wait(timeout=60)
        states = session.status(timeout=20).gates
    sent, trained, refused, lost = first.batches.as_tuple()
    assert sent == trained + refused + lost
    assert second.batches.trained == 120
    assert validator.rounds
    assert [gate.stashed for gate in states] == [0, 0, 0]


def test_a_backward_that_raises_ends_the_session_with_its_error(engine_name):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls != 20:
                return x
            y = x * 1
            y.register_hook(self.give_up)
            return y

        def give_up(self, gradient):
            raise RuntimeError("the 20th was too much")

    gates = [*network().gates, ak.Gate(Breaks())]
    with ak.run(ak.Network(gates), engine=ALL_ENGINES[engine_name]()) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy))
        with pytest.raises(RuntimeError, match="the 20th was too much"):
            training.wait(timeout=60)
    sent, trained, refused, lost = training.batches.as_tuple()
    assert sent == trained + refused + lost
    assert lost > 0


def test_a_source_that_raises_ends_its_sentinel_alone(engine_name):
    def source():
        yield from problem(5)
        raise OSError("the disk is gone")

    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
        broken = session.attach(ak.Sentinel.train(source(), F.cross_entropy, name="broken"))
        fine = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="fine"))
        with pytest.raises(RuntimeError, match="the disk is gone"):
            broken.wait(timeout=60)
        fine.wait(timeout=60)
    assert fine.batches.trained == 60


def test_predictions_come_in_order_while_it_trains(engine_name):
    x = torch.randn(50, 6)
    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
        session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=1000, name="t"))
        found = session.predict(x, timeout=60, batch_size=7)
        session.detach("t", drop=True)
        session.wait(timeout=60)
        module = session.module(timeout=60)
    assert found.shape == (50, 3)
    assert module(x).shape == (50, 3)


# ── what one session leaves behind ───────────────────────────────────────────────────────────────────


def test_a_source_that_stalled_in_one_session_feeds_nobody_in_the_next_of_the_same_engine():
    """Addresses are the same in both; the batches of the first were trained by the second."""
    engine, stalled, wake, done = ak.Threads(2), threading.Event(), threading.Event(), threading.Event()

    def stalls():
        yield problem(1)[0]
        stalled.set()
        wake.wait(20)
        yield from problem(8)
        done.set()

    def waits():
        yield problem(1)[0]
        wake.set()
        done.wait(20)
        yield from problem(4)

    with ak.run(network(), engine=engine) as session:
        session.attach(ak.Sentinel.train(stalls(), F.cross_entropy, in_flight=9, name="t"))
        assert stalled.wait(20)
    with ak.run(network(), engine=engine) as session:
        training = session.attach(ak.Sentinel.train(waits(), F.cross_entropy, in_flight=9, name="t"))
        assert training.wait(timeout=20).batches.as_tuple() == (5, 5, 0, 0)


class Waits(nn.Linear):
    """Is at work until it is woken up."""

    at_work, wake = threading.Event(), threading.Event()

    def __init__(self):
        super().__init__(6, 3)
        type(self).at_work, type(self).wake = threading.Event(), threading.Event()

    def forward(self, x):
        type(self).at_work.set()
        type(self).wake.wait(20)
        return super().forward(x)


def test_a_worker_left_behind_by_a_session_does_not_work_in_the_next(monkeypatch):
    monkeypatch.setattr("akkordeon.session.session.CLOSE_S", 0.01)
    monkeypatch.setattr("akkordeon.engines.threads.workers.JOIN_S", 0.01)
    engine = ak.Threads(1)
    with ak.run(ak.Network([ak.Gate(Waits(), sgd)]), engine=engine) as session:
        session.attach(ak.Sentinel.train(problem(3), F.cross_entropy))
        assert Waits.at_work.wait(20)
    left_behind = {thread for thread in threading.enumerate() if thread.name == "akkordeon-worker-0"}
    with ak.run(network(), engine=engine) as session:
        Waits.wake.set()
        for thread in left_behind:
            thread.join(20)
            assert not thread.is_alive()
        training = session.attach(ak.Sentinel.train(problem(5), F.cross_entropy)).wait(timeout=20)
    assert training.batches.trained == 5


def test_a_gate_that_ends_its_message_after_the_session_still_leaves_its_weights(monkeypatch):
    """A batch that took longer than closing did cost all that was learned before it."""
    monkeypatch.setattr("akkordeon.session.session.CLOSE_S", 0.01)
    monkeypatch.setattr("akkordeon.engines.threads.workers.JOIN_S", 0.01)
    with ak.run(ak.Network([ak.Gate(Waits(), sgd)]), engine=ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(problem(3), F.cross_entropy))
        assert Waits.at_work.wait(20)
    with pytest.raises(WaitTimeoutError, match=r"gate/0 had not left its weights after 0\.01 s"):
        session.states()
    Waits.wake.set()
    assert session.states(timeout=20)["gate/0"].keys() == {"weight", "bias"}


@pytest.mark.parametrize("busy", [True, False])
def test_a_session_left_open_does_not_abort_the_interpreter(busy):
    script = f"""
import torch, akkordeon as ak
from torch import nn
from torch.nn import functional as F
batches = [(torch.randn(64, 50), torch.zeros(64, dtype=torch.long))] * 5
network = ak.Network([ak.Gate(nn.Linear(50, 4), lambda p: torch.optim.SGD(p, lr=0.1)) for _ in range(1)])
session = ak.run(network)
training = session.attach(ak.Sentinel.train(batches, F.cross_entropy, epochs=10**7 if {busy} else 2))
session._engine.wait_until(lambda: len(training.epochs) >= 2, 60)
print("the end")
"""
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


# ── waiting for ever, from within, and with others ───────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [math.inf, 1e10])
def test_times_beyond_all_bounds_kill_no_worker(seconds, engine_name):
    """Threads cannot wait so long; those that tried ended, and everybody else waited for ever."""
    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
        session.attach(ak.Sentinel.validate(problem(2), F.cross_entropy, every_s=seconds))
        training = ak.Sentinel.train(problem(5), F.cross_entropy, epochs=3, seconds=seconds)
        assert session.attach(training).wait(timeout=seconds).batches.trained == 15
        session.wait(timeout=60)


def test_a_source_that_asks_its_own_network_is_told_that_the_only_worker_is_itself():
    """It waited for ever."""
    with ak.run(network(), engine=ak.Threads(1)) as session:

        def source():
            for x, y in problem(3):
                session.predict(x)
                yield x, y

        training = session.attach(ak.Sentinel.train(source(), F.cross_entropy))
        with pytest.raises(SentinelFailedError, match="need the thread it comes from, the only worker"):
            training.wait(timeout=20)


def test_a_source_may_ask_its_own_network_where_there_is_a_thread_for_it(engine_name):
    if engine_name in {"threads, 1 worker", "ray"}:
        pytest.skip("there the source has no thread of its own, or no session")
    with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:

        def source():
            for x, y in problem(3):
                session.predict(x)
                yield x, y

        training = session.attach(ak.Sentinel.train(source(), F.cross_entropy))
        assert training.wait(timeout=20).batches.trained == 3


def test_threads_that_wait_at_once_each_find_what_they_wait_for(engine_name):
    """In a simulation one took the news from the other, and was told that nothing could come any more."""
    for _ in range(1 if engine_name == "ray" else 20):
        with ak.run(network(), engine=ALL_ENGINES[engine_name]()) as session:
            trainings = [
                session.attach(ak.Sentinel.train(problem(5), F.cross_entropy, name=name)) for name in "abcd"
            ]
            errors = []

            def wait(training, errors=errors):
                try:
                    training.wait(timeout=None)
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=wait, args=(training,)) for training in trainings]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert errors == []
            assert all(training.batches.trained == 5 for training in trainings)


@pytest.mark.parametrize("name", ENGINES)
def test_an_interrupt_while_a_gate_works_ends_waiting_and_costs_no_weights(name):
    """In a simulation it broke into the gate's work, and the weights could not be had any more."""

    class Interrupted(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 20:
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    row = ak.Network([ak.Gate(Interrupted(6, 3), sgd)])
    with ak.run(row, engine=ENGINES[name]()) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=1000))
        with pytest.raises(KeyboardInterrupt):
            training.wait(timeout=60)
        assert session.module(timeout=20)(torch.ones(1, 6)).shape == (1, 3)
    assert session.states().keys() == {"gate/0"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ── the process around ───────────────────────────────────────────────────────────────────────────────


def test_an_engine_that_is_never_stopped_keeps_no_other_from_putting_back_what_it_found():
    forgotten = Stage(ak.Simulator())
    torch.set_num_threads(2)
    random_before = torch.get_rng_state()
    stage = Stage(ak.Threads(2))
    stage.engine.stop()
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), random_before)
    forgotten.engine.stop()


def test_of_engines_that_overlap_the_last_leaves_the_process_as_the_first_found_it(engine_name):
    """Each put back what it had found: the second had found what the first had made of it."""
    torch.set_num_threads(2)
    random_before = torch.get_rng_state()
    first = Stage(ALL_ENGINES["threads, 2 workers"]())
    started = []
    thread = threading.Thread(target=lambda: started.append(Stage(ALL_ENGINES[engine_name]())))
    thread.start()
    thread.join(60)
    first.engine.stop()
    started[0].engine.stop()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]
    assert torch.equal(torch.get_rng_state(), random_before)


@pytest.mark.parametrize("awake", [True, False])
def test_the_generators_of_cuda_are_put_back_where_cuda_is_in_use(awake, monkeypatch, engine_name):
    """They were not, and where CUDA was not in use yet it would have begun with the seed of the run."""
    state, seeds = ["before"], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: awake)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(state))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda to: state.__setitem__(slice(None), to))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(11)
    stage = Stage(ALL_ENGINES[engine_name]())
    state[0] = "of the run"
    stage.engine.stop()
    assert state == (["before"] if awake else ["of the run"])
    assert seeds[-1] == (0 if awake else 11)


def test_of_losses_that_ask_the_network_on_every_worker_the_last_is_told_so():
    """All workers waited for each other, for ever."""
    both, calls = threading.Barrier(2, timeout=20), itertools.count()
    with ak.run(network(), engine=ak.Threads(2)) as session:

        def loss(outputs, targets):
            if next(calls) < 2:
                both.wait()
                session.predict(torch.ones(1, 6))
            return F.cross_entropy(outputs, targets)

        trainings = session.attach_all(
            [ak.Sentinel.train(problem(3), loss, name=name) for name in ("one", "two")]
        )
        errors = []
        for training in trainings:
            try:
                training.wait(timeout=20)
            except SentinelFailedError as error:
                errors.append(str(error))
        assert len(errors) == 1
        assert "the last worker that is free" in errors[0]


def test_a_second_interrupt_of_a_simulation_waits_for_nobody_and_costs_no_weights():
    class Interrupted(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 20:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().forward(x)

    row = ak.Network([ak.Gate(Interrupted(6, 3), sgd)])
    with ak.run(row, engine=ak.Simulator()) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=1000))
        with pytest.raises(KeyboardInterrupt):
            training.wait(timeout=60)
        assert session.module(timeout=20)(torch.ones(1, 6)).shape == (1, 3)
