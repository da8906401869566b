"""One test for each bug that was found: what happened, so that it does not happen again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch
from tests.harness import WAIT_S, batches_of, bits, do, gate_alone, same_bits, sgd, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon import session as session_module
from akkordeon.engines import threads
from akkordeon.errors import (
    DataError,
    GateFailedError,
    SentinelFailedError,
    SessionClosedError,
    WaitTimeoutError,
)
from akkordeon.messages import Batch, Cut, CutId, Evaluate
from akkordeon.trainer import Trainer


def training(source=None, name="tdp", **kwargs):
    source = batches_of(10) if source is None else source
    return ak.Sentinel.train(source, F.cross_entropy, name=name, **kwargs)


def endless():
    while True:
        yield from batches_of(1)


def test_a_detached_validator_ends_though_updates_keep_making_it_due():
    """Each update made one round more, and with a quick trainer the last round never came."""
    with ak.run(small_network()) as session:
        tdp = session.attach(training(endless(), samples=10**9))
        vdp = session.attach(
            ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=1, name="vdp")
        )
        assert session._engine.wait_until(lambda: len(vdp.rounds) >= 3, WAIT_S)
        session.detach("vdp")
        had = len(vdp.rounds)
        vdp.wait(WAIT_S)
        assert len(vdp.rounds) <= had + 2
        tdp.detach()
        tdp.wait(WAIT_S)


def test_two_threads_that_ask_for_the_status_do_not_make_each_other_wait(monkeypatch):
    """An older probe answered later hid that the newer one had been answered: two seconds each time."""
    with ak.run(small_network()) as session:
        status = session.status(WAIT_S).gates
        answered = []

        def wait_until(condition, timeout):
            for probe in (10**6, 1):
                for gate in status:
                    session._on_report(replace(gate, probe=probe))
            answered.append(condition())

        with monkeypatch.context() as patch:
            patch.setattr(session._engine, "wait_until", wait_until)
            session.status(WAIT_S)
        assert answered == [True]


def test_predictions_that_cannot_be_joined_do_not_leave_their_asker_waiting():
    """The last words raised as well, so that nobody ever said that the sentinel had ended."""
    inputs = [torch.randn(2, 3), torch.randn(2, 4)]
    with ak.run(ak.Network([ak.Gate(nn.ReLU())])) as session:
        with pytest.raises(
            SentinelFailedError, match=r"cannot be joined: float32 \(\*, 3\) and float32 \(\*, 4\)"
        ):
            session.predict(inputs, WAIT_S)
        assert session.status(WAIT_S).gates[0].pinned == 0


def test_several_inputs_in_a_tuple_are_not_taken_for_several_batches():
    """predict((a, b)) sent a and then b through the network."""

    class Add(nn.Module):
        def forward(self, both):
            return both[0] + both[1]

    a, b = torch.randn(5, 2), torch.randn(5, 2)
    with ak.run(ak.Network([ak.Gate(Add())])) as session:
        assert torch.equal(session.predict((a, b), WAIT_S, batch_size=2), a + b)


def test_evaluation_leaves_buffers_alone_that_a_module_writes_to_in_evaluation_too():
    """It wrote into the pinned ones, which are the gate's own until the next forward."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    gate, cut = gate_alone(Counts(), optimizer=None), CutId("v", 0)
    do(gate, Cut(cut), *(Evaluate(Batch("v", n), torch.ones(2), cut) for n in range(3)))
    assert gate.module.calls == 0


def test_a_watcher_that_raises_is_unsubscribed_and_harms_nobody(caplog):
    """Its error was taken for one of the actor that reported, and a second one killed a worker."""
    heard = []

    def watcher(record):
        heard.append(record)
        raise ZeroDivisionError("the watcher broke")

    with ak.run(small_network()) as session:
        session.subscribe(watcher)
        tdp = session.attach(training(epochs=3)).wait(WAIT_S)
        session.wait(WAIT_S)
    assert tdp.batches.trained == 30
    assert len(heard) == 1
    assert "a watcher of the session raised and was unsubscribed" in caplog.text
    assert "ZeroDivisionError: the watcher broke" in caplog.text


class Exits(nn.Module):
    def forward(self, x):
        raise SystemExit("enough")


def test_a_module_that_exits_is_a_failure_and_kills_no_worker():
    """SystemExit ended the worker in silence, and everybody waited for ever."""
    network = ak.Network([ak.Gate(nn.Linear(6, 4), sgd), ak.Gate(Exits())])
    with ak.run(network, engine=ak.Threads(1)) as session:
        tdp = session.attach(training())
        with pytest.raises(GateFailedError, match=r"gate/1 failed on .* of batch 0 .*: SystemExit: enough"):
            tdp.wait(WAIT_S)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_exits_fails_its_sentinel_and_not_the_session(workers):
    """A reader that failed was taken for a gate."""

    def source():
        yield from batches_of(3)
        raise SystemExit("enough")

    with ak.run(small_network(), engine=ak.Threads(workers)) as session:
        bad = session.attach(training(source(), "bad"))
        with pytest.raises(SentinelFailedError, match="sentinel 'bad' failed on reading: SystemExit: enough"):
            bad.wait(WAIT_S)
        assert session.attach(training()).wait(WAIT_S).batches.trained == 10


def test_what_cannot_be_attached_leaves_no_trace_and_its_name_free():
    with ak.run(small_network()) as session:
        with pytest.raises(DataError):
            session.attach(training([]))
        assert session.attachments == []
        assert session._by_address == {}
        session.attach(training()).wait(WAIT_S)
        session.wait(WAIT_S)


class ClosesMeanwhile(threads.Threads):
    """An engine whose session is closed by somebody else while a sentinel is being attached."""

    def spawn(self, address, make, resources=None):
        if address.startswith("sentinel/"):
            self.closing = threading.Thread(target=self.session.close)
            self.closing.start()
            assert self.all_told.wait(WAIT_S)
        super().spawn(address, make, resources)


def test_attaching_while_the_session_closes_is_refused_and_holds_nothing_up():
    """The sentinel was told to close before it was there, and close waited ten seconds for it."""
    engine = ClosesMeanwhile(2)
    session = engine.session = ak.run(small_network(), engine=engine)
    engine.all_told, close_actors = threading.Event(), session._close_actors

    def tell():
        close_actors()
        engine.all_told.set()

    session._close_actors = tell
    began_s = time.monotonic()
    with pytest.raises(SessionClosedError):
        session.attach(training())
    engine.closing.join(WAIT_S)
    assert time.monotonic() - began_s < session_module.CLOSE_S / 2


def test_threads_of_readers_that_have_ended_are_not_kept():
    """The engine kept a thread for every stream there ever was."""
    with ak.run(small_network(), engine=ak.Threads(2)) as session:
        for _ in range(20):
            session.attach(training(iter(batches_of(2)))).wait(WAIT_S)
        assert len(session._engine._own_threads) < 10


def test_a_stalled_source_does_not_hold_up_the_end_for_long():
    """Closing waited five seconds for a reader that could not hear it."""
    stalled, wake = threading.Event(), threading.Event()

    def source():
        yield from batches_of(2)
        stalled.set()
        wake.wait(WAIT_S)

    session = ak.run(small_network(), engine=ak.Threads(2))
    tdp = session.attach(training(source()))
    assert stalled.wait(WAIT_S)
    began_s = time.monotonic()
    session.close()
    assert time.monotonic() - began_s < threads.JOIN_S / 2
    assert tdp.ended
    wake.set()


def test_an_interrupt_while_closing_still_stops_the_engine(monkeypatch):
    """The workers stayed, and the process was not left as it was found."""
    before = threading.active_count()
    session = ak.run(small_network())

    def interrupted(condition, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(session._engine, "wait_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.close()
    assert threading.active_count() <= before  # a stalled reader of another test may have ended meanwhile


def test_weights_that_a_gate_has_not_left_yet_are_a_timeout_and_no_key_error(monkeypatch):
    at_work, wake = threading.Event(), threading.Event()

    class Sleeps(nn.Module):
        def forward(self, x):
            at_work.set()
            wake.wait(WAIT_S)
            return x

    monkeypatch.setattr(session_module, "CLOSE_S", 0.01)
    monkeypatch.setattr(threads, "JOIN_S", 0.01)
    network = ak.Network([ak.Gate(nn.Linear(6, 4), sgd), ak.Gate(Sleeps())])
    with ak.run(network) as session:
        session.attach(training())
        assert at_work.wait(WAIT_S)
    with pytest.raises(WaitTimeoutError, match=r"gate/1 had not left its weights after 0.01 s"):
        session.states()
    wake.set()


def test_an_update_by_assignment_is_seen_without_stashing():
    """Aliases did not follow masters that were given other memory: such a gate never learned."""

    class Assigns(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.data = parameter.data - 0.1 * parameter.grad

    gate = ak.Gate(nn.Linear(6, 4), lambda params: Assigns(params, lr=0.1), staleness=ak.Latest())
    was = bits(gate.module)
    with ak.run(ak.Network([gate])) as session:
        session.attach(training()).wait(WAIT_S)
        assert not same_bits(session.module(WAIT_S)[0], was)


def test_a_sentinel_whose_last_words_fail_has_ended(monkeypatch):
    """It never reported its end, and a wait without a timeout waited for ever."""

    def speechless(self):
        raise RuntimeError("nothing to say")
        yield

    def broken(outputs, targets):
        raise ValueError("no loss")

    monkeypatch.setattr(Trainer, "last_words", speechless)
    with ak.run(small_network(), ak.Simulator()) as session:
        tdp = session.attach(ak.Sentinel.train(batches_of(3), broken))
        with pytest.raises(SentinelFailedError, match="no loss"):
            tdp.wait()
        assert tdp.ended
