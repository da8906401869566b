"""A session on the threads engine, from end to end."""

from __future__ import annotations

import _thread
import gc
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import torch
import torchmetrics
from tests.support.harness import SIZE, WAIT_S, batches_of, bits, breaking, same_bits, sgd, small_network
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import akkordeon as ak
from akkordeon.core.errors import (
    DataError,
    GateFailedError,
    NameTakenError,
    NoSuchSentinelError,
    RecipeError,
    SentinelFailedError,
    SessionClosedError,
    SessionError,
    WaitTimeoutError,
)
from akkordeon.core.reports import EpochDone, RoundDone
from akkordeon.engines.simulator import Compute, Cost, Crash
from akkordeon.session import session as session_module
from akkordeon.session.subscription import Watchers

X, Y = torch.randn(40, 6), torch.randint(4, (40,))


class Endless:
    """A stream that never ends, and goes as fast as it is let."""

    def __init__(self, open_at_once: bool = True) -> None:
        self.gate = threading.Event()
        self.reached = threading.Event()
        if open_at_once:
            self.gate.set()

    def __iter__(self) -> Iterator:
        while True:
            if not self.gate.is_set():
                self.reached.set()
            self.gate.wait(WAIT_S)
            yield from batches_of(1)


def training(source=None, name="tdp", **kwargs):
    return ak.Sentinel.train(
        batches_of(10) if source is None else source, F.cross_entropy, name=name, **kwargs
    )


def endless_training(name="tdp", **kwargs):
    return training(Endless(), name, samples=10**9, **kwargs)


def validation(source=None, name="vdp", **kwargs):
    return ak.Sentinel.validate(source or batches_of(3), F.cross_entropy, name=name, **kwargs)


def until(session, condition) -> None:
    """Wait for something that a report brings about."""
    assert session._engine.wait_until(condition, WAIT_S)


def holds_nothing(session) -> bool:
    return all(gate.stashed == gate.pinned == 0 for gate in session.status(WAIT_S).gates)


@contextmanager
def running(network=None, **kwargs):
    with ak.run(network or small_network(), **kwargs) as session:
        yield session


# ── training, validating, testing, predicting ────────────────────────────────────────────────────────


def test_everything_at_once_ends_and_is_accounted_for():
    with running() as session:
        tdp = session.attach(training(epochs=3, in_flight=4, scores={"accuracy": ak.accuracy}))
        vdp = session.attach(validation(every_epoch=1))
        test = session.attach(ak.Sentinel.test(batches_of(2), F.cross_entropy, name="test"))
        session.wait(WAIT_S)
        assert [epoch.epoch for epoch in tdp.epochs] == [1, 2, 3]
        assert [epoch.samples for epoch in tdp.epochs] == [10 * SIZE] * 3
        assert tdp.batches.as_tuple() == (30, 30, 0, 0)
        assert tdp.epochs[0].scores.keys() == {"accuracy"}
        assert vdp.rounds[-1].version == 30
        assert len(test.rounds) == 1
        assert all(a.ended and a.error is None for a in (tdp, vdp, test))
        assert holds_nothing(session)


def test_predictions_are_what_the_module_gives_in_the_order_of_the_inputs():
    with running() as session:
        session.attach(training()).wait(WAIT_S)
        module = session.module(WAIT_S).eval()
        assert torch.allclose(session.predict(X, WAIT_S, batch_size=7), module(X), atol=1e-6)
        assert torch.allclose(session.predict([X[:9], X[9:]], WAIT_S), module(X), atol=1e-6)
        assert session.predict(X[:0], WAIT_S).shape == (0, 4)


def test_predictions_come_while_training_never_ends():
    with running() as session:
        tdp = session.attach(endless_training(in_flight=5))
        for _ in range(5):
            assert session.predict(X, WAIT_S).shape == (40, 4)
        assert not tdp.ended
        assert len(session.attachments) == 1
        session.detach("tdp")
        tdp.wait(WAIT_S)
        assert holds_nothing(session)


def test_a_prediction_that_does_not_come_in_time_says_so_and_leaves_nothing_behind():
    with running() as session:
        slow = Endless(open_at_once=False)
        with pytest.raises(WaitTimeoutError, match=r"'predict' has not ended after 0.05 s"):
            session.predict((x for x, _ in slow), timeout=0.05)
        slow.gate.set()
        assert session.predict(X, WAIT_S).shape == (40, 4)
        assert holds_nothing(session)
        assert session.attachments == []


class Sums(nn.Module):
    """One input from several, in a tuple or a dict."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, some):
        a, b = some.values() if isinstance(some, dict) else some
        return self.linear(a + b)


@pytest.mark.parametrize("form", [lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}], ids=["tuple", "dict"])
def test_several_inputs_train_and_predict_in_a_tuple_or_dict(form):
    with running(ak.Network([ak.Gate(Sums(), sgd)])) as session:
        source = [(form(x, x), y) for x, y in batches_of(5)]
        session.attach(training(source)).wait(WAIT_S)
        expected = session.module(WAIT_S)(form(X, -X))
        assert torch.equal(session.predict(form(X, -X), WAIT_S, batch_size=16), expected)
        with pytest.raises(DataError, match="differ in length: 39, 40"):
            session.predict(form(X, X[1:]), WAIT_S)


# ── sources, limits, rhythms ─────────────────────────────────────────────────────────────────────────


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_sources_of_every_kind_give_every_sample_once():
    sources = {
        "tensors": (X, Y),
        "batches": ak.Batches(X, Y, 7, shuffle=True),
        "list": list(zip(X.split(7), Y.split(7), strict=True)),
        "loader": DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True),
        "stream": DataLoader(Stream(), batch_size=7),
        "generator": ((x, y) for x, y in zip(X.split(7), Y.split(7), strict=True)),
        "iterator": zip(X.split(7), Y.split(7), strict=True),
    }
    with running() as session:
        all_of_them = [session.attach(training(source, name)) for name, source in sources.items()]
        session.wait(WAIT_S)
        assert {a.name: a.epochs[0].samples for a in all_of_them} == dict.fromkeys(sources, 40)


def test_the_last_partial_batch_counts():
    with running() as session:
        tdp = session.attach(training((X[:10], Y[:10]), batch_size=4)).wait(WAIT_S)
        assert tdp.batches.sent == 3
        assert tdp.epochs[0].samples == 10


def test_it_ends_after_so_many_samples_or_seconds():
    with running() as session:
        by_samples = session.attach(training(Endless(), "samples", samples=5 * SIZE + 1)).wait(WAIT_S)
        assert by_samples.batches.trained == 6
        by_seconds = session.attach(training(Endless(), "seconds", seconds=0.05)).wait(WAIT_S)
        assert by_seconds.batches.trained == by_seconds.batches.sent > 0


def test_a_source_that_stalls_holds_up_nobody_else():
    slow = Endless(open_at_once=False)
    with running(engine=ak.Threads(2)) as session:
        stalled = [session.attach(training(slow, f"slow{i}", samples=10**9)) for i in range(4)]
        assert slow.reached.wait(WAIT_S)
        tdp = session.attach(training(epochs=3)).wait(WAIT_S)
        assert tdp.batches.trained == 30
        assert not any(a.ended for a in stalled)
        slow.gate.set()
        for a in stalled:
            a.detach()
            a.wait(WAIT_S)


def test_validation_keeps_its_rhythm_in_epochs_updates_and_seconds():
    with running() as session:
        by_epoch = session.attach(validation(every_epoch=2, name="epochs"))
        by_updates = session.attach(validation(every_updates=20, name="updates"))
        session.attach(training(epochs=6))
        session.wait(WAIT_S)
        for validator in (by_epoch, by_updates):
            versions = [done.version for done in validator.rounds]
            assert 1 <= len(versions) <= 3  # what fell due during a round made one more
            assert versions == sorted(set(versions))  # and none on weights it had seen
            assert versions[-1] == 60
        assert holds_nothing(session)


def test_validation_by_the_clock_goes_on_as_long_as_training_does():
    with running() as session:
        by_seconds = session.attach(validation(every_s=0.001))
        tdp = session.attach(endless_training())
        until(session, lambda: len(by_seconds.rounds) >= 3)
        tdp.detach()
        session.wait(WAIT_S)
        versions = [done.version for done in by_seconds.rounds]
        assert versions == sorted(set(versions))
        assert versions[-1] == tdp.batches.trained
        assert holds_nothing(session)


def test_a_metric_of_torchmetrics_scores_training_and_validation():
    metric = torchmetrics.classification.MulticlassAccuracy(4, average="micro")
    with running() as session:
        tdp = session.attach(training(scores={"metric": metric, "plain": ak.accuracy}))
        vdp = session.attach(validation(scores={"metric": metric, "plain": ak.accuracy}))
        session.wait(WAIT_S)
    for scores in (tdp.epochs[0].scores, vdp.rounds[0].scores):
        assert scores["metric"] == pytest.approx(scores["plain"])


def test_the_best_weights_are_kept_and_training_stops_when_they_get_no_better():
    rounds = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2, 0.1] + [0.0] * 1000)
    with running() as session:
        assert session.best_module() is None
        assert session.best_states() is None
        vdp = session.attach(
            ak.Sentinel.validate(
                [(X, Y)],
                F.cross_entropy,
                scores={"score": lambda out, y: next(rounds)},
                every_updates=5,
                best=ak.Best("score", patience=2),
                name="vdp",
            )
        )
        tdp = session.attach(endless_training())
        tdp.wait(WAIT_S)  # nobody detached it
        best = session.best_states()
        assert [r.best for r in vdp.rounds[:4]] == [True, True, False, False]
        assert vdp.rounds[3].stop_training
        assert vdp.best.round == 2
        assert same_bits(session.best_module(), session.network.module(best))
        assert not same_bits(session.best_module(), session.module(WAIT_S))


# ── names, attaching, detaching ──────────────────────────────────────────────────────────────────────


def test_a_name_is_taken_while_its_sentinel_is_at_work_and_free_afterwards():
    with running() as session:
        first = session.attach(endless_training())
        with pytest.raises(NameTakenError, match="a sentinel 'tdp' is at work already"):
            session.attach(training())
        session.detach("tdp")
        first.wait(WAIT_S)
        second = session.attach(training())
        assert (first.address, second.address) == ("sentinel/tdp#1", "sentinel/tdp#2")
        second.wait(WAIT_S)
        assert session.attachments == [second]


def test_sentinels_without_a_name_get_one():
    with running() as session:
        names = [session.attach(endless_training(name=None)).name for _ in range(3)]
        assert names == ["train", "train-2", "train-3"]


def test_nobody_of_that_name_is_an_error_that_tells_who_was_there():
    with running() as session:
        with pytest.raises(NoSuchSentinelError, match="no sentinel 'x' here; attached were: none"):
            session.detach("x")
        session.attach(training()).wait(WAIT_S)
        with pytest.raises(NoSuchSentinelError, match="attached were: 'tdp'"):
            session.detach("x")
        session.detach("tdp")  # it has ended: nothing happens


@pytest.mark.parametrize("drop", [False, True])
def test_a_detached_trainer_brings_its_batches_home_or_loses_them(drop):
    with running() as session:
        tdp = session.attach(endless_training(in_flight=6))
        other = session.attach(training(name="other", epochs=5))
        until(session, lambda: other.ended)
        session.detach("tdp", drop=drop)
        sent, trained, refused, lost = tdp.wait(WAIT_S).batches.as_tuple()
        assert refused == 0
        assert sent == trained + lost
        assert drop or lost == 0
        assert other.batches.as_tuple() == (50, 50, 0, 0)
        assert holds_nothing(session)


@pytest.mark.parametrize("drop", [False, True])
def test_a_detached_validator_ends_and_leaves_no_pin(drop):
    with running() as session:
        vdp = session.attach(validation(every_updates=1))
        tdp = session.attach(endless_training())
        until(session, lambda: len(vdp.rounds) >= 2)
        session.detach("vdp", drop=drop)
        vdp.wait(WAIT_S)
        session.detach("tdp")
        tdp.wait(WAIT_S)
        assert holds_nothing(session)


def test_more_batches_in_flight_than_the_network_allows_are_refused_before_any_is_sent():
    with running(small_network(max_in_flight=8)) as session:
        session.attach(endless_training(in_flight=5))
        with pytest.raises(
            RecipeError, match="with 'more' up to 9 batches would be in flight, but the network"
        ):
            session.attach(training(name="more", in_flight=4))
        session.attach(training(name="enough", in_flight=3)).wait(WAIT_S)
        with pytest.raises(RecipeError, match=r"takes a sentinel, as Sentinel\.train"):
            session.attach(F.cross_entropy)


def test_many_threads_may_use_a_session_at_once():
    errors, done = [], []
    with running() as session:

        def user(i):
            try:
                for k in range(3):
                    tdp = session.attach(training(batches_of(4), f"t{i}-{k}"))
                    done.append(session.predict(X, WAIT_S))
                    session.status(WAIT_S)
                    session.module(WAIT_S)
                    tdp.wait(WAIT_S)
                    session.detach(tdp.name)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=user, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert errors == []
        assert len(done) == 18
        assert sum(a.batches.trained for a in session.attachments) == 6 * 3 * 4
        assert session.status(WAIT_S).gates[0].version == 72
        assert holds_nothing(session)


# ── weights: while it runs, after it ended, after a failure ──────────────────────────────────────────


def test_modules_are_plain_copies_that_training_does_not_touch():
    with running() as session:
        tdp = session.attach(endless_training())
        modules = []
        for _ in range(3):
            modules.append(session.module(WAIT_S))
            if len(modules) == 1:
                was = bits(modules[0])
            seen = session.status(WAIT_S).gates[0].version
            while session.status(WAIT_S).gates[0].version <= seen:
                pass
        assert isinstance(modules[0], nn.Sequential)
        assert same_bits(modules[0], was)
        assert not same_bits(modules[0], modules[2])
        session.detach("tdp")
        tdp.wait(WAIT_S)


def test_after_the_end_the_weights_are_those_it_ended_with():
    with running() as session:
        session.attach(training()).wait(WAIT_S)
        last = session.module(WAIT_S)
    assert same_bits(session.module(), last)
    assert session.states().keys() == {"gate/0", "gate/1", "gate/2"}
    session.close()  # twice does nothing
    for asked in (lambda: session.attach(training()), lambda: session.predict(X)):
        with pytest.raises(SessionClosedError, match="the session has ended"):
            asked()


class FailsOn(nn.Module):
    """Raises on its n-th training batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.linear, self.n = nn.Linear(7, 7), n

    def forward(self, x):
        self.n -= self.training
        y = self.linear(x)
        return y if self.n else breaking(y, ZeroDivisionError("the module broke"))


def test_after_a_failure_the_weights_are_the_last_good_ones_and_every_call_raises_it():
    parts = [nn.Linear(6, 7), FailsOn(20), nn.Linear(7, 4)]
    network = ak.Network([ak.Gate(part, sgd) for part in parts])
    with running(network) as session:
        vdp = session.attach(validation(every_updates=2))
        tdp = session.attach(training(epochs=5, in_flight=1))
        for asked in (
            lambda: tdp.wait(WAIT_S),
            lambda: session.wait(WAIT_S),
            lambda: session.predict(X, WAIT_S),
        ):
            with pytest.raises(
                GateFailedError, match=r"gate/1 failed on Backward of batch 19 of sentinel/tdp#1"
            ):
                asked()
        with pytest.raises(GateFailedError):
            session.attach(training(name="late"))
        states = session.states()
        assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
        until(session, lambda: tdp.ended and vdp.ended)
        assert tdp.batches.as_tuple() == (20, 19, 0, 1)
    assert same_bits(session.states()["gate/1"], states["gate/1"])
    assert not same_bits(session.module()[0], parts[0])


def test_a_failed_sentinel_leaves_the_others_and_the_network_at_work():
    def breaks(outputs, targets):
        raise ZeroDivisionError("no loss today")

    with running() as session:
        bad = session.attach(ak.Sentinel.train(batches_of(5), breaks, name="bad", in_flight=3))
        good = session.attach(training(epochs=3))
        vdp = session.attach(validation(every_updates=10))
        with pytest.raises(SentinelFailedError, match="sentinel 'bad' failed on batch 0: ZeroDiv") as info:
            bad.wait(WAIT_S)
        assert isinstance(info.value.__cause__, ZeroDivisionError)
        good.wait(WAIT_S)
        session.wait(WAIT_S)  # whoever waited for it was told of its failure
        assert vdp.rounds[-1].version == 30
        assert bad.batches.as_tuple() == (3, 0, 0, 3)
        assert holds_nothing(session)
        session.attach(training(name="bad")).wait(WAIT_S)  # its name is free again
        session.wait(WAIT_S)


def test_waiting_takes_a_timeout_and_what_is_waited_for_goes_on():
    slow = Endless(open_at_once=False)
    with running() as session:
        tdp = session.attach(training(slow, samples=3 * SIZE))
        with pytest.raises(WaitTimeoutError, match=r"'tdp' has not ended after 0.01 s"):
            tdp.wait(0.01)
        with pytest.raises(WaitTimeoutError, match=r"the sentinels have not ended after 0.01 s"):
            session.wait(0.01)
        slow.gate.set()
        assert tdp.wait(WAIT_S).batches.trained == 3


def test_a_timeout_that_is_no_number_is_refused():
    """It was waited for without end, and without rest."""
    with running() as session:
        tdp = session.attach(training(Endless(open_at_once=False), samples=10))
        for wait in (session.wait, tdp.wait, session.module, session.status):
            with pytest.raises(RecipeError, match="a timeout is a number of seconds, got nan"):
                wait(float("nan"))


def test_whoever_waits_is_told_that_the_session_has_ended():
    told = []
    with running() as session:
        tdp = session.attach(training(Endless(open_at_once=False), samples=10))
        waiting = threading.Event()

        def wait():
            waiting.set()
            try:
                tdp.wait(WAIT_S)
            except SessionError as error:
                told.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait(WAIT_S)
    thread.join(WAIT_S)
    assert told in ([], ["'tdp' has not ended, and the session has ended"])  # or it ended in time
    assert tdp.ended


def test_an_interrupt_while_waiting_ends_the_session_in_good_order():
    interrupts = iter([_thread.interrupt_main])
    with running() as session:
        session.subscribe(lambda record: isinstance(record, EpochDone) and next(interrupts, int)())
        tdp = session.attach(training(batches_of(5), samples=10**9))
        with pytest.raises(KeyboardInterrupt):
            session.wait(WAIT_S)
    sent, trained, _, lost = tdp.batches.as_tuple()
    assert tdp.ended
    assert sent == trained + lost
    assert not same_bits(session.module(), session.network.module())


# ── looking on ───────────────────────────────────────────────────────────────────────────────────────


def test_status_tells_of_every_gate_and_of_every_sentinel_at_work():
    with running() as session:
        tdp = session.attach(endless_training())
        status = session.status(WAIT_S)
        assert [gate.address for gate in status.gates] == ["gate/0", "gate/1", "gate/2"]
        assert [sentinel.name for sentinel in status.sentinels] == ["tdp"]
        assert status.loads.keys() >= {"gate/0", "gate/1", "gate/2", "sentinel/tdp#1"}
        session.detach("tdp")
        tdp.wait(WAIT_S)
        assert session.status(WAIT_S).sentinels == []


def test_a_subscriber_hears_every_report():
    heard = []
    with running() as session:
        session.subscribe(heard.append)
        session.attach(training(epochs=2))
        session.attach(validation())
        session.wait(WAIT_S)
    assert [record.epoch for record in heard if isinstance(record, EpochDone)] == [1, 2]
    assert sum(isinstance(record, RoundDone) for record in heard) == 1


# ── networks of any size, and the process around ─────────────────────────────────────────────────────


@pytest.mark.parametrize("gates", [1, 100])
def test_networks_of_one_and_of_a_hundred_gates_train(gates):
    parts = (
        [nn.Linear(6, 4)] if gates == 1 else [nn.Linear(6, 6) for _ in range(gates - 1)] + [nn.Linear(6, 4)]
    )
    with running(ak.Network([ak.Gate(part, sgd) for part in parts])) as session:
        tdp = session.attach(training(batches_of(30)))
        vdp = session.attach(validation(every_updates=5))
        session.wait(WAIT_S)
        assert tdp.batches.as_tuple() == (30, 30, 0, 0)
        assert {gate.version for gate in session.status(WAIT_S).gates} == {30}
        assert vdp.rounds[-1].version == 30
        assert len(session.module(WAIT_S)) == gates


def test_the_process_is_left_as_it_was_found():
    network = small_network()
    torch.set_num_threads(2)
    torch.manual_seed(7)
    expected, threads = torch.rand(3), threading.active_count()
    torch.manual_seed(7)
    with running(network, seed=99) as session:
        session.attach(training(DataLoader(TensorDataset(X, Y), 7, shuffle=True))).wait(WAIT_S)
        session.attach(training(Endless(), samples=20)).wait(WAIT_S)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(3), expected)
    assert threading.active_count() == threads


def test_the_seed_of_a_run_is_that_of_its_shuffling_and_its_masks():
    def weights(seed):
        network = ak.Network([ak.Gate(nn.Sequential(*small_network().gates[0].module, nn.Linear(9, 4)), sgd)])
        torch.manual_seed(0)
        for parameter in network.gates[0].module.parameters():
            nn.init.normal_(parameter)
        loader = DataLoader(TensorDataset(X, Y), 7, shuffle=True)
        with running(network, seed=seed, engine=ak.Threads(1)) as session:
            session.attach(training(loader)).wait(WAIT_S)
        return session.module()

    first = weights(1)
    assert same_bits(weights(1), first)
    assert not same_bits(weights(2), first)


def test_an_engine_carries_one_session_at_a_time_and_can_be_used_again():
    engine = ak.Threads(2)
    with running(engine=engine) as session:
        with pytest.raises(SessionError, match="carries a session already"):
            ak.run(small_network(), engine=engine)
        session.attach(training()).wait(WAIT_S)
    with running(engine=engine) as session:
        session.attach(training()).wait(WAIT_S)


def test_there_are_engines_of_two_names_and_no_other():
    with pytest.raises(RecipeError, match="no engine 'akka'"):
        ak.run(small_network(), engine="akka")
    with pytest.raises(RecipeError, match="workers is at least 1, got 0"):
        ak.Threads(0)


# ── what an attachment tells ─────────────────────────────────────────────────────────────────────────


def test_the_best_weights_are_those_of_the_validator_that_is_asked():
    """A second validator, or worse weights later, replaced those that the first had kept."""
    scores = {"good": 0.9, "bad": 0.1}
    with running() as session:
        session.attach(training()).wait(WAIT_S)
        kept = {}
        for name, score in scores.items():
            validator = ak.Sentinel.validate(
                [(X, Y)],
                F.cross_entropy,
                scores={"score": lambda out, y, score=score: score},
                best=ak.Best("score"),
                name=name,
            )
            kept[name] = session.attach(validator)
            session.wait(WAIT_S)
            if name == "good":
                first = session.module(WAIT_S)
                assert same_bits(session.best_module(), first)
                session.attach(training(name="again")).wait(WAIT_S)
        assert same_bits(session.best_module("good"), first)
        assert same_bits(session.best_module("bad"), session.module(WAIT_S))
        assert same_bits(session.network.module(kept["good"].best_states()), first)
        with pytest.raises(SessionError, match=r"'good', 'bad' keep their best, each its own; say whose"):
            session.best_states()
        with pytest.raises(NoSuchSentinelError, match="no sentinel 'x' here"):
            session.best_module("x")


def test_where_batches_went_is_true_while_they_go():
    """It read zeros until the end."""
    with running() as session:
        tdp = session.attach(endless_training(in_flight=2))
        for _ in range(3):
            seen = session.status(WAIT_S).gates[0].version
            while session.status(WAIT_S).gates[0].version <= seen:
                pass
            sent, trained, refused, lost = tdp.batches.as_tuple()
            assert trained >= seen
            assert trained <= sent <= trained + 2
            assert refused == lost == 0
        session.detach("tdp")
        tdp.wait(WAIT_S)


def test_an_attachment_says_how_it_ended():
    with running() as session:
        whole = session.attach(training(epochs=2, name="whole")).wait(WAIT_S)
        detached = session.attach(endless_training("detached"))
        session.detach("detached")
        detached.wait(WAIT_S)
        closed = session.attach(training(Endless(), "closed", epochs=5))
        assert not closed.stopped
        assert repr(closed) == "<Attachment 'closed': train, 0 of 5 epochs, at work>"
    assert (whole.stopped, detached.stopped, closed.stopped) == (False, True, True)
    assert repr(whole) == "<Attachment 'whole': train, 2 of 2 epochs, ended>"
    assert repr(closed) == "<Attachment 'closed': train, 0 of 5 epochs, stopped>"
    assert repr(session) == "<Session of 3 gates: ended>"


def test_leaving_the_block_while_training_goes_on_is_said(caplog):
    """Training ended in silence, after as many epochs as there happened to be time for."""
    with running() as session:
        session.attach(training(Endless(), epochs=500))
        session.attach(training(Endless(), "other", samples=10**9))
    assert (
        "ends before its training does ('tdp' after 0 of 500 epochs, 'other' after 0 epochs)" in caplog.text
    )
    caplog.clear()
    with running() as session:
        session.attach(endless_training())
        session.detach("tdp")
        session.attach(training(name="other")).wait(WAIT_S)
    with running() as session:
        session.attach(endless_training())
        session.close()

    def leave_by_an_error():
        with running() as session:
            session.attach(endless_training())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave_by_an_error()
    assert caplog.text == ""


def test_records_of_epochs_are_bounded_and_their_sums_are_not(monkeypatch):
    """A long run of small epochs kept a record of each."""
    monkeypatch.setattr("akkordeon.session.attachment.KEPT_MAX", 3)
    with running() as session:
        tdp = session.attach(training(epochs=10)).wait(WAIT_S)
        vdp = session.attach(validation(every_updates=1))
        session.attach(training(name="other", epochs=9))
        session.wait(WAIT_S)
    assert [epoch.epoch for epoch in tdp.epochs] == [8, 9, 10]
    assert (tdp.epochs_done, tdp.samples) == (10, 10 * 10 * SIZE)
    assert tdp.seconds > sum(epoch.seconds for epoch in tdp.epochs)
    assert vdp.rounds[-1].round == vdp.rounds_done


def test_the_data_of_a_sentinel_that_has_ended_is_let_go():
    """Its recipe was kept under its name, and the data with it."""

    class Data(list):
        pass

    data = Data(batches_of(3))
    gone = weakref.ref(data)
    with running(engine=ak.Threads(1)) as session:
        tdp = session.attach(training(data, name="once"))
        del data
        tdp.wait(WAIT_S)
        session.attach(training(name="another")).wait(WAIT_S)
        gc.collect()
        assert gone() is None
        assert [a.name for a in session.attachments] == ["once", "another"]


# ── errors, each to its handler ──────────────────────────────────────────────────────────────────────


def traceback_length(error):
    entries = 0
    trace = error.__traceback__
    while trace is not None:
        entries, trace = entries + 1, trace.tb_next
    return entries


def breaks(outputs, targets):
    raise ZeroDivisionError("no loss today")


def test_every_wait_raises_an_error_of_its_own_with_the_same_cause():
    """One object was raised again and again, and its traceback grew each time."""
    with running() as session:
        bad = session.attach(ak.Sentinel.train(batches_of(3), breaks, name="bad"))
        errors = []
        for _ in range(3):
            with pytest.raises(SentinelFailedError, match="'bad' failed on batch 0") as info:
                bad.wait(WAIT_S)
            errors.append(info.value)
    assert len({id(error) for error in errors}) == 3
    assert len({traceback_length(error) for error in errors}) == 1
    assert all(error.__cause__ is bad.error.__cause__ for error in errors)


def test_a_failure_is_raised_by_the_wait_of_a_session_unless_somebody_was_told():
    with running() as session:
        for name in ("one", "two"):
            session.attach(ak.Sentinel.train(batches_of(3), breaks, name=name))
        for name in ("one", "two"):
            with pytest.raises(SentinelFailedError, match=f"'{name}'"):
                session.wait(WAIT_S)
        session.wait(WAIT_S)


class CannotReset:
    def update(self, outputs, targets): ...
    def compute(self): ...
    def reset(self):
        raise RuntimeError("cannot reset")


def test_a_sentinel_that_cannot_be_made_leaves_nothing_behind():
    """Its reader stayed, with a thread of its own."""
    with running(engine=ak.Threads(2)) as session:
        fine = training(Endless(open_at_once=False), name="fine")
        broken = training(iter(batches_of(3)), scores={"score": CannotReset()}, name="broken")
        for attach in (lambda: session.attach(broken), lambda: session.attach_all([fine, broken])):
            with pytest.raises(RuntimeError, match="cannot reset"):
                attach()
        gone = partial(session._engine.wait_until, lambda: len(session._engine._cells) == 3, 0.05)
        assert any(gone() for _ in range(600))  # no report says that they left
        for thread in threading.enumerate():
            if thread.name in ("akkordeon-reader/fine#1", "akkordeon-reader/broken#1"):
                thread.join(WAIT_S)
                assert not thread.is_alive()
        assert session.attachments == []
        session.attach(training(name="broken")).wait(WAIT_S)


# ── repeatable with several trainers ─────────────────────────────────────────────────────────────────


def test_trainers_attached_at_one_moment_repeat_to_the_bit_on_one_worker():
    """Of two attached one after the other, the second came at another moment in every run."""
    network, data = small_network(), batches_of(20)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        runs = []
        for _ in range(15):
            with running(network, engine=ak.Threads(1)) as session:
                found = session.attach_all([training(data[:10], "a"), training(data[10:], "b"), validation()])
                assert [each.name for each in found] == ["a", "b", "vdp"]
                session.wait(WAIT_S)
                runs.append(session.module(WAIT_S))
    finally:
        sys.setswitchinterval(interval)
    assert all(same_bits(run, runs[0]) for run in runs)


def test_trainers_without_names_that_join_a_downpour_at_one_moment_get_one_each():
    """The second was given the name of the first, and refused as if a sentinel of that name were at work."""
    with running(ak.Downpour(small_network(), replicas=2)) as session:
        found = session.attach_all([training(name=None), training(name=None), training(name=None, replica=1)])
        assert [each.name for each in found[:2]] == ["train", "train2"]
        assert [part.name for part in found[1]] == ["train2-0", "train2-1"]
        session.wait(WAIT_S)
        assert session.attach(training(name=None)).wait(WAIT_S).name == "train"


# ── gates that are lost ──────────────────────────────────────────────────────────────────────────────


def test_a_lost_gate_does_not_cost_the_weights_of_the_others():
    """What the others had left was there, and refused."""
    compute = Compute({"gate/*": Cost(forward_s=0.01, backward_s=0.01)})
    engine = ak.Simulator(compute=compute, faults=[Crash(who="gate/1", at_s=1.0)])
    with running(engine=engine) as session:
        session.attach(endless_training())
        with pytest.raises(GateFailedError, match="gate/1 is lost"):
            session.wait()
        with pytest.raises(GateFailedError, match=r"gate/1 is lost.*; session\.states\(partial=True\) gives"):
            session.states(WAIT_S)
        assert session.states(WAIT_S, partial=True).keys() == {"gate/0", "gate/2"}
    assert session.states(partial=True).keys() == {"gate/0", "gate/2"}


# ── watchers ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 2])
def test_a_watcher_that_blocks_is_nobody_elses_wait(workers, monkeypatch):
    """No timeout was kept, and the session never closed."""
    monkeypatch.setattr("akkordeon.session.subscription.DRAIN_S", 0.05)
    blocked, wake = threading.Event(), threading.Event()

    def watcher(record):
        blocked.set()
        wake.wait(WAIT_S)

    with running(engine=ak.Threads(workers)) as session:
        session.subscribe(watcher)
        tdp = session.attach(training(epochs=3)).wait(WAIT_S)
        assert blocked.wait(WAIT_S)
        session.wait(WAIT_S)
        assert [gate.version for gate in session.status(WAIT_S).gates] == [30] * 3
        session.module(WAIT_S)
    assert tdp.batches.trained == 30
    wake.set()


def test_when_a_wait_is_over_a_slow_watcher_has_seen_what_came_before():
    seen, pause = [], threading.Event()

    def slow(record):
        pause.wait(0.005)
        if isinstance(record, EpochDone):
            seen.append(record.epoch)

    with running() as session:
        session.subscribe(slow)
        session.attach(training(epochs=9)).wait(WAIT_S)
        assert seen == list(range(1, 10))


def test_records_that_are_too_many_for_a_watcher_are_dropped_and_counted(monkeypatch, caplog):
    monkeypatch.setattr("akkordeon.session.subscription.QUEUED_MAX", 5)
    seen, blocked, wake = [], threading.Event(), threading.Event()

    def watcher(record):
        blocked.set()
        wake.wait(WAIT_S)
        seen.append(record)

    with running() as session:
        session.subscribe(lambda record: None)
        subscription = session.subscribe(watcher)
        session.attach(training(batches_of(1)))
        assert blocked.wait(WAIT_S)
        tdp = session.attach(training(batches_of(1), "many", epochs=50))
        until(session, lambda: tdp.ended)
        wake.set()
    assert subscription.dropped > 40
    assert f"a watcher of the session missed {subscription.dropped} records" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_watcher_may_close_the_session_and_the_weights_are_there(workers):
    """With one worker it closed upon itself: ten seconds, and the weights were lost."""
    session = ak.run(small_network(), engine=ak.Threads(workers))
    session.subscribe(lambda record: isinstance(record, EpochDone) and record.epoch == 3 and session.close())
    session.attach(training(epochs=10**6))
    began_s = time.monotonic()
    with suppress(SessionClosedError):  # or the training has ended in time
        session.wait(WAIT_S)
    assert session.module(WAIT_S)(X).shape == (40, 4)
    assert time.monotonic() - began_s < session_module.CLOSE_S


def test_a_watcher_may_ask_the_session_on_one_worker():
    outputs = []
    with running(engine=ak.Threads(1)) as session:
        session.subscribe(
            lambda record: isinstance(record, EpochDone) and outputs.append(session.predict(X, WAIT_S))
        )
        session.attach(training(epochs=3)).wait(WAIT_S)
        until(session, lambda: len(outputs) == 3)


def test_a_watcher_inline_is_called_in_the_midst_of_things():
    threads = set()
    with running(engine=ak.Threads(1)) as session:
        session.subscribe(lambda record: threads.add(threading.current_thread().name), inline=True)
        session.attach(training()).wait(WAIT_S)
        assert threads == {"akkordeon-worker-0"}


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_watcher_inline_that_raises_is_unsubscribed_whatever_it_raises(raised, caplog):
    """A ``KeyboardInterrupt`` or a ``GeneratorExit`` of its own ended the worker that called it."""
    calls = []

    def watch(record):
        calls.append(record)
        raise raised

    with running(engine=ak.Threads(1)) as session:
        session.subscribe(watch, inline=True)
        session.attach(training()).wait(WAIT_S)
    assert len(calls) == 1
    assert "a watcher of the session raised and was unsubscribed" in caplog.text


def test_ctrl_c_that_breaks_into_a_watcher_of_the_main_thread_interrupts():
    def watch(record):
        raise KeyboardInterrupt

    watchers = Watchers()
    watchers.add(watch, inline=True)
    with pytest.raises(KeyboardInterrupt):
        watchers.tell("record")


# ── other mistakes ───────────────────────────────────────────────────────────────────────────────────


class WordlessError(Exception):
    def __str__(self):
        return self.args[0].format()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_that_cannot_be_put_into_words_kills_no_worker(workers):
    """Its ``__str__`` raised in the worker that reported it, and everybody waited for ever."""

    def loss(outputs, targets):
        raise WordlessError(3)

    with running(engine=ak.Threads(workers)) as session:
        bad = session.attach(ak.Sentinel.train(batches_of(3), loss, name="bad"))
        with pytest.raises(SentinelFailedError, match="WordlessError: its text cannot be had"):
            bad.wait(WAIT_S)
        session.attach(training()).wait(WAIT_S)


def test_a_module_is_no_network_and_says_so():
    """It was an AttributeError."""
    with pytest.raises(RecipeError, match=r"got the module Sequential; cut it .*Network\.from_module"):
        ak.run(nn.Sequential(nn.Linear(6, 4)))
    with pytest.raises(RecipeError, match="run stages a Network or a Downpour, got list"):
        ak.run([nn.Linear(6, 4)])


@pytest.mark.parametrize("seed", [2**63, -(10**30)])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(RecipeError, match=f"a seed is a whole number of 64 bits, got {seed}"):
        ak.run(small_network(), seed=seed)


@pytest.mark.timeout(60)
def test_an_endless_stream_tells_how_it_goes_and_its_metrics_keep_little():
    most = []

    class Kept(torchmetrics.CatMetric):
        def update(self, outputs, targets):
            super().update(outputs)
            most.append(len(self.value))

        def compute(self):
            return super().compute().mean()

    def endless():
        while True:
            yield from batches_of(5)

    with ak.run(small_network(), engine=ak.Threads(1)) as session:
        training = session.attach(
            ak.Sentinel.train(
                endless(), F.cross_entropy, scores={"kept": Kept()}, report_every=10, samples=400
            )
        )
        training.wait(WAIT_S)
    assert training.progress.batches == 10
    assert training.progress.loss > 0
    assert max(most) == 10


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", [lambda: ak.Threads(1), ak.Simulator])
@pytest.mark.parametrize(
    "source",
    [
        lambda x, y: ak.Batches(x, y, 8, shuffle=True),
        lambda x, y: DataLoader(TensorDataset(x, y), 8, shuffle=True),
        lambda x, y: DataLoader(
            TensorDataset(x, y), 8, shuffle=True, generator=torch.Generator().manual_seed(3)
        ),
    ],
    ids=["Batches", "DataLoader", "DataLoader with a generator"],
)
def test_three_epochs_and_three_more_are_six(engine, source):
    x, y = torch.randn(24, 6), torch.randint(4, (24,))

    def trained(*runs):
        batches = source(x, y)
        with ak.run(network, engine=engine()) as session:
            for epochs in runs:
                session.attach(ak.Sentinel.train(batches, F.cross_entropy, epochs=epochs)).wait(WAIT_S)
            return session.module()

    network = small_network()
    assert same_bits(trained(3, 3), trained(6))
    assert same_bits(trained(3, 2, 1), trained(6))


def test_a_new_session_begins_with_the_first_epoch_again():
    batches, network = (
        ak.Batches(torch.randn(24, 6), torch.randint(4, (24,)), 8, shuffle=True),
        small_network(),
    )
    made = []
    for _ in range(2):
        with ak.run(network, engine=ak.Threads(1)) as session:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, epochs=2)).wait(WAIT_S)
            made.append(session.module())
    assert same_bits(*made)


def test_a_generator_that_fills_one_array_again_trains_as_in_a_plain_loop():
    torch.manual_seed(3)
    targets = [torch.randint(4, (8,)) for _ in range(30)]

    def source(array):
        for y in targets:
            array[:] = torch.eye(6)[y]
            yield array, y

    module = nn.Linear(6, 4)
    with ak.run(ak.Network([ak.Gate(module, sgd)]), engine=ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train(source(torch.zeros(8, 6)), F.cross_entropy)).wait(WAIT_S)
        ours = session.module()[0]
    optimizer = sgd(module.parameters())
    for x, y in source(torch.zeros(8, 6)):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    assert same_bits(ours, module)


def test_batches_of_another_form_train_validate_and_test_with_split():
    batches = [{"pixels": x, "label": y, "id": [str(i)]} for i, (x, y) in enumerate(batches_of(4))]
    how = {"split": lambda batch: (batch["pixels"], batch["label"])}
    with ak.run(small_network()) as session:
        session.attach(ak.Sentinel.validate(batches, F.cross_entropy, **how, every_epoch=1))
        done = session.attach(ak.Sentinel.train(batches, F.cross_entropy, **how)).wait(WAIT_S)
        test = session.attach(ak.Sentinel.test(batches, F.cross_entropy, **how)).wait(WAIT_S)
        session.wait(WAIT_S)
    assert done.batches.trained == 4
    assert test.rounds[0].samples == 32


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        raise KeyError("no such picture")


def test_an_error_in_a_worker_of_a_loader_is_one_sentence_with_its_traceback_as_the_cause():
    loader = torch.utils.data.DataLoader(Broken(), 4, num_workers=1)
    with ak.run(small_network()) as session:
        bad = session.attach(ak.Sentinel.train(loader, F.cross_entropy))
        with pytest.raises(SentinelFailedError, match=r"no such picture.*DataLoader worker") as told:
            bad.wait(WAIT_S)
    assert "Traceback" not in str(told.value)
    assert "__getitem__" in str(told.value.__cause__)


def test_a_bug_in_the_users_forward_is_the_cause_with_its_traceback():
    class Wrong(nn.Linear):
        def forward(self, x):
            return super().forward(x) + self.nothing_of_that_name

    with ak.run(ak.Network([ak.Gate(Wrong(6, 4), sgd)])) as session:
        bad = session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy))
        with pytest.raises(SentinelFailedError) as told:
            bad.wait(WAIT_S)
    error = told.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, AttributeError)
    assert "nothing_of_that_name" in "".join(traceback.format_exception(error))
    assert "in forward" in "".join(traceback.format_exception(error))
