"""A sentinel that failed goes on where it was."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import akkordeon as ak
from akkordeon.sentinels.roles import TEST

SAMPLES, EPOCHS = 20, 3
ENGINES = {"threads": lambda: ak.Threads(2), "simulator": lambda: ak.Simulator(seed=1)}


class FailsOnce:
    """A loss, or a score, that raises in its n-th call; it remembers the labels of all others."""

    def __init__(self, call):
        self.calls_left = call
        self.seen = Counter()

    def __call__(self, outputs, y):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise OSError("out of reach")
        self.seen.update(y.tolist())
        return outputs.square().mean()


class BreaksOnce:
    """A source that raises once, at a batch."""

    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.at:
                self.at = None
                raise OSError("out of reach")
            yield batch


def network(**settings):
    torch.manual_seed(0)
    gates = [
        ak.Gate(module, lambda p: torch.optim.SGD(p, lr=0.01))
        for module in (nn.Linear(3, 3), nn.Linear(3, 2))
    ]
    return ak.Network(gates, **settings)


def batches(size=1):
    return ak.Batches(torch.ones(SAMPLES, 3), torch.arange(SAMPLES), size, shuffle=True, seed=4)


def failed(session, sentinel):
    attachment = session.attach(sentinel)
    with pytest.raises(ak.errors.SentinelFailedError, match="out of reach"):
        attachment.wait(60)
    return attachment


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_no_batch_is_trained_twice_and_none_left_out_that_is_not_lost(engine, in_flight):
    loss = FailsOnce(call=33)
    with ak.run(network(), engine()) as session:
        trainer = failed(
            session, ak.Sentinel.train(batches(), loss, epochs=EPOCHS, in_flight=in_flight, name="a")
        )
        at = trainer.batches
        assert 1 <= at.lost <= in_flight
        assert trainer.restart() is trainer
        session.wait(60)
        total = session.status().batches
    assert trainer.error is None
    assert not trainer.stopped
    assert (
        trainer.batches.as_tuple()
        == total.as_tuple()
        == (EPOCHS * SAMPLES, EPOCHS * SAMPLES - at.lost, 0, at.lost)
    )
    assert trainer.epochs_done == EPOCHS
    assert max(loss.seen.values()) == EPOCHS
    assert EPOCHS * SAMPLES - loss.seen.total() <= at.lost


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_of_a_source_that_was_out_of_reach_nothing_is_lost(engine, in_flight):
    source = BreaksOnce([(torch.ones(1, 3), torch.tensor([i])) for i in range(SAMPLES)], at=7)
    loss = FailsOnce(call=0)
    with ak.run(network(), engine()) as session:
        trainer = failed(session, ak.Sentinel.train(source, loss, epochs=EPOCHS, in_flight=in_flight))
        assert trainer.batches.as_tuple() == (7, 7, 0, 0)
        trainer.restart().wait(60)
        assert trainer.batches.as_tuple() == (EPOCHS * SAMPLES, EPOCHS * SAMPLES, 0, 0)
        assert session.status().gates[0].version == EPOCHS * SAMPLES
    assert set(loss.seen.values()) == {EPOCHS}


def test_a_validator_makes_the_round_again_in_which_it_failed():
    with ak.run(network(), ak.Simulator()) as session:
        score = FailsOnce(call=4)
        validator = session.attach(
            ak.Sentinel.validate(batches(10), FailsOnce(0), every_updates=5, scores={"s": score}, name="v")
        )
        session.attach(ak.Sentinel.train(batches(), FailsOnce(0), name="a")).wait(1000)
        assert "out of reach" in str(validator.error)
        assert validator.rounds_done == 1
        validator.restart()
        session.wait(1000)
    assert [each.round for each in validator.rounds] == [1, 2]
    assert validator.rounds[-1].version == SAMPLES


def test_one_that_was_restarted_is_in_checkpoints():
    def run(session, loss):
        sentinel = ak.Sentinel.train(batches(), loss, epochs=EPOCHS, in_flight=2, name="a")
        return session.attach_all([sentinel, ak.Sentinel.checkpoint(every_updates=1000, name="k")])[0]

    with ak.run(network(), ak.Threads(2)) as session:
        trainer = run(session, FailsOnce(call=9))
        assert session._engine.wait_until(lambda: trainer.ended, 60)
        trainer.restart()
        kept = session.checkpoint(timeout=60)
    with ak.run(network(), ak.Threads(2), resume=kept) as session:
        again = run(session, FailsOnce(0))
        session.wait(60)
    sent, trained, refused, lost = again.batches.as_tuple()
    assert (sent, refused) == (EPOCHS * SAMPLES, 0)
    assert trained + lost == sent
    assert 1 <= lost <= 2


def test_replicas_whose_sentinels_failed_go_on():
    loss = FailsOnce(call=11)
    with ak.run(ak.Downpour(network(), replicas=2), ak.Simulator()) as session:
        trainers = failed(session, ak.Sentinel.train(batches(), loss, epochs=EPOCHS, name="a"))
        assert len(trainers.errors) == 1
        trainers.restart().wait(1000)
        assert not trainers.errors
        sent, trained, _, lost = trainers.batches.as_tuple()
    assert (sent, trained, lost) == (EPOCHS * SAMPLES, EPOCHS * SAMPLES - 1, 1)


def test_what_cannot_be_restarted_is_refused_in_a_sentence(tmp_path):
    with ak.run(network(), ak.Simulator()) as session:
        well = session.attach(ak.Sentinel.train(batches(), FailsOnce(0), name="well"))
        with pytest.raises(ak.errors.SessionError, match="'well' has not failed"):
            well.restart()
        well.wait(1000)
        with pytest.raises(ak.errors.SessionError, match="'well' has not failed"):
            well.restart()
        test = failed(session, ak.Sentinel.test(batches(), FailsOnce(1), name="t"))
        with pytest.raises(ak.errors.SessionError, match=f"'t' is to {TEST}: attach it again"):
            test.restart()
        first = failed(session, ak.Sentinel.train(batches(), FailsOnce(1), name="a"))
        second = failed(session, ak.Sentinel.train(batches(), FailsOnce(1), name="a"))
        second.restart()
        with pytest.raises(ak.errors.NameTakenError):
            first.restart()
        assert first.error is not None
        second.wait(1000)
    with pytest.raises(ak.errors.SessionClosedError):
        first.restart()
    with ak.run(network(), ak.Threads(1), record=tmp_path / "run.rec") as session:
        recorded = failed(session, ak.Sentinel.train(batches(), FailsOnce(1), name="a"))
        with pytest.raises(ak.errors.SessionError, match="the run is recorded"):
            recorded.restart()


def test_the_data_of_one_that_ended_well_are_not_kept_and_of_one_that_failed_are():
    with ak.run(network(), ak.Simulator()) as session:
        ended = session.attach(ak.Sentinel.train(batches(), FailsOnce(0), name="a")).wait(1000)
        assert ended.recipe.batches == ()
        assert isinstance(
            failed(session, ak.Sentinel.train(batches(), FailsOnce(1))).recipe.batches, ak.Batches
        )
