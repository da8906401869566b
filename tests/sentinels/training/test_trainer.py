"""A training sentinel, driven by hand: what it sends, counts, refuses and leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from tests.support.harness import do, reports, sends, stops
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import After
from akkordeon.core.checkpoint_messages import GoOn, Locate, Located
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.messages import (
    Attach,
    Backward,
    Batch,
    Close,
    Detach,
    EpochEnd,
    Fault,
    Forget,
    Forward,
    Item,
    Probe,
    Pull,
    Refused,
    SourceFailed,
)
from akkordeon.core.plain_state import Applied
from akkordeon.core.reports import (
    BatchCount,
    BatchRefused,
    EpochDone,
    SentinelEnded,
    SentinelStatus,
    TrainingProgress,
)
from akkordeon.sentinels.training.refusals import REFUSED_MAX
from akkordeon.sentinels.training.trainer import Trainer

ME, ROW = "sentinel/tdp#1", ("gate/0", "gate/1", "gate/2")


def trainer_of(loss=F.cross_entropy, start=None, **recipe) -> Trainer:
    sentinel = ak.Sentinel.train([], loss, **({"in_flight": 2} | recipe))
    return Trainer(ME, "tdp", ROW, "reader/tdp#1", sentinel, start=start)


def item(size: int = 4, y=None) -> Item:
    return Item(torch.randn(size, 6), torch.zeros(size, dtype=torch.int64) if y is None else y)


def outputs(number: int, size: int = 4, value: float | None = None) -> Forward:
    y = torch.randn(size, 3) if value is None else torch.full((size, 3), value)
    return Forward(Batch(ME, number), y)


def back(number: int, staleness=(0, 1, 2)) -> Backward:
    return Backward(Batch(ME, number), None, staleness)


def refused(number: int, gate: str = "gate/1", fault: Fault = Fault.FORM) -> Refused:
    return Refused(Batch(ME, number), gate, fault, "why")


def trained(trainer, *numbers) -> list:
    return do(trainer, *(message for n in numbers for message in (outputs(n), back(n))))


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────


def test_it_reads_two_blocks_ahead_and_asks_again_after_each_block_sent():
    trainer = trainer_of(in_flight=3)
    assert sends(do(trainer, Attach())) == [Pull(6)]
    effects = do(trainer, *(item() for _ in range(6)))
    assert len(sends(effects, Forward)) == 3
    assert sends(effects, Pull) == [Pull(3)]
    assert sends(trained(trainer, 0, 1, 2), Pull) == [Pull(3)]


def test_one_batch_is_under_way_if_nothing_else_was_said():
    trainer = Trainer(ME, "tdp", ROW, "reader/tdp#1", ak.Sentinel.train([], F.cross_entropy))
    assert len(sends(do(trainer, *(item() for _ in range(5))), Forward)) == 1


def test_what_was_read_before_the_source_failed_is_trained_first():
    trainer, error = trainer_of(), SourceFailed(OSError("gone"))
    effects = do(trainer, item(), item(), item(), error)
    assert len(sends(effects, Forward)) == 2
    assert len(sends(trained(trainer, 0), Forward)) == 1
    (again,) = sends(trained(trainer, 1, 2), SourceFailed)  # to itself: it fails on reading, not on a batch
    assert trainer.batches.trained == 3
    with pytest.raises(OSError, match="gone"):
        do(trainer, again)


def test_a_source_that_fails_beyond_what_was_asked_for_fails_nothing():
    trainer = trainer_of(samples=8)
    do(trainer, item(), item(), SourceFailed(OSError("gone")))
    assert stops(trained(trainer, 0, 1))


def test_labels_do_not_leave_it():
    secret = torch.tensor([1, 2, 0, 1])
    trainer, one = trainer_of(), item(y=secret)
    (message,) = sends(do(trainer, one))
    assert message == Forward(Batch(ME, 0), one.x, len(one.x))
    (gradient,) = sends(do(trainer, outputs(0)))
    assert isinstance(gradient, Backward)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_loss_with_trainable_weights_of_its_own_is_refused(freeze):
    temperature = torch.nn.Parameter(torch.ones(()), requires_grad=not freeze)

    def loss(out, y):
        return F.cross_entropy(out * temperature, y)

    trainer = trainer_of(loss)
    do(trainer, item())
    if freeze:
        assert sends(do(trainer, outputs(0)), Backward)
    else:
        with pytest.raises(RecipeError, match="its loss has a trainable weight of its own, of shape"):
            do(trainer, outputs(0))


def test_a_loss_module_with_trainable_weights_is_refused_where_the_recipe_is_made():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

    with pytest.raises(RecipeError, match="a trainable weight of its own, 'scale', which no optimizer has"):
        ak.Sentinel.train([], Scaled())


def test_a_complex_loss_is_refused_in_a_sentence():
    trainer = trainer_of(lambda out, y: out.sum() * 1j)
    do(trainer, item())
    with pytest.raises(RecipeError, match="its loss must be a real number, got complex64"):
        do(trainer, outputs(0))


def test_the_gradient_of_the_loss_goes_to_the_last_gate():
    trainer, one = trainer_of(), item()
    do(trainer, one)
    y = outputs(0)
    leaf = y.payload.clone().requires_grad_()
    (effect,) = do(trainer, y)
    assert effect.to == "gate/2"
    assert torch.equal(effect.message.payload, torch.autograd.grad(F.cross_entropy(leaf, one.y), leaf)[0])


def test_outputs_in_any_form_get_a_gradient_in_that_form():
    def loss(out, y):
        return out["a"].mean() + 0 * out["n"].sum()

    trainer = trainer_of(loss)
    do(trainer, item())
    y = {"a": torch.randn(4), "n": torch.arange(4), "unused": torch.randn(4)}
    (message,) = sends(do(trainer, Forward(Batch(ME, 0), y)))
    assert torch.equal(message.payload["a"], torch.full((4,), 0.25))
    assert message.payload["n"] is None
    assert message.payload["unused"] is None


def test_a_trained_batch_makes_room_for_the_next():
    trainer = trainer_of(in_flight=1)
    do(trainer, item(), item())
    assert sends(do(trainer, outputs(0)), Forward) == []
    (message,) = sends(do(trainer, back(0)), Forward)
    assert message.batch == Batch(ME, 1)


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────


def test_an_epoch_is_reported_when_its_last_batch_is_back():
    trainer = trainer_of(scores={"ones": lambda out, y: torch.ones(())}, epochs=2)
    do(trainer, Attach(), now_s=10.0)
    do(trainer, item(4), item(2), EpochEnd(last=False), item(4))
    do(trainer, outputs(0), outputs(1, 2), back(0, (0, 0, 1)))
    effects = do(trainer, back(1, (0, 3, 2)), now_s=14.0)
    (done,) = reports(effects, EpochDone)
    assert (done.sentinel, done.epoch, done.samples, done.seconds) == ("tdp", 1, 6, 4.0)
    assert done.scores == {"ones": 1.0}
    assert (done.staleness_mean, done.staleness_max) == (1.0, 3)
    assert math.isfinite(done.loss)
    assert not stops(effects)


def test_after_the_last_epoch_it_ends_and_closes_its_reader():
    trainer = trainer_of()
    do(trainer, item(), EpochEnd(last=True))
    effects = trained(trainer, 0)
    ended = reports(effects)[-1]
    assert ended == SentinelEnded(ME, trainer.batches, state=ended.state)
    assert ended.state["left"] == 0
    assert trainer.batches.as_tuple() == (1, 1, 0, 0)
    assert sends(effects, Close) == [Close()]
    assert stops(effects)


def test_it_ends_after_the_batch_that_reaches_its_samples():
    trainer = trainer_of(samples=6)
    effects = do(trainer, item(4), item(4), item(4))
    assert len(sends(effects, Forward)) == 2
    effects = trained(trainer, 0, 1)
    assert reports(effects, EpochDone)[0].samples == 8
    assert stops(effects)


def test_a_time_limit_detaches_it():
    trainer = trainer_of(seconds=5.0)
    (timer,) = [effect for effect in do(trainer, Attach()) if isinstance(effect, After)]
    assert timer == After(5.0, Detach(done=True))


@pytest.mark.parametrize("done", [True, False])
def test_one_that_was_told_that_it_is_done_has_nothing_left_and_one_told_to_end_may_go_on(done):
    trainer = trainer_of(epochs=3)
    do(trainer, item(), item(), item(), Detach(done=done))
    (ended,) = reports(trained(trainer, 0, 1), SentinelEnded)
    assert ended.cut_short
    assert ended.state["left"] == (0 if done else None)


def test_one_that_goes_on_after_it_was_done_trains_what_the_weights_had_not_learned_and_no_more():
    trainer = trainer_of(epochs=3)
    do(trainer, item(), item(), item(), Detach(done=True))
    (located,) = sends(do(trainer, Locate("keeper", applied=Applied(1))), Located)
    assert located.state["left"] == 1
    again = trainer_of(epochs=3, seconds=1.0, start=located.state)
    begun = do(again, Attach())
    assert not [effect for effect in begun if isinstance(effect, After)]
    (sent,) = sends(do(again, GoOn(), item(), item()), Forward)
    effects = trained(again, sent.batch.number)
    assert again.batches.as_tuple() == (2, 2, 0, 0)
    assert stops(effects)


def test_one_that_lost_its_last_batches_has_nothing_left():
    """Another that went on from there waited for more of a source that had been read to its end."""
    trainer = trainer_of(epochs=1)
    (ended,) = reports(do(trainer, item(), EpochEnd(last=True), Close()), SentinelEnded)
    assert (ended.batches.lost, ended.state["left"]) == (1, 0)
    again = trainer_of(epochs=1, start=ended.state)
    assert stops(do(again, Attach()))


def test_a_loss_that_is_not_finite_ends_the_batch_in_all_gates():
    trainer = trainer_of(in_flight=1)
    do(trainer, item(), item())
    effects = do(trainer, outputs(0, value=float("nan")))
    assert [(e.to, e.message) for e in effects[:3]] == [(gate, Forget(ME, 0)) for gate in ROW]
    (record,) = reports(effects, BatchRefused)
    assert str(record) == "tdp refused its own batch 0: its loss is nan, expected a finite number"
    assert trainer.batches.as_tuple() == (2, 0, 1, 0)
    assert sends(effects, Forward)[0].batch.number == 1


@pytest.mark.parametrize("turned", [False, True])
def test_a_refused_batch_is_forgotten_by_the_gates_that_hold_it(turned):
    """A gate that refuses a forward keeps nothing of it; told to forget it, it waited for it for ever."""
    trainer = trainer_of()
    do(trainer, item(), item())
    if turned:
        do(trainer, outputs(0))
    effects = do(trainer, refused(0, "gate/1"))
    told = [e.to for e in effects if getattr(e, "message", None) == Forget(ME, 0)]
    assert told == (["gate/0", "gate/1"] if turned else ["gate/0"])
    assert reports(effects, BatchRefused)[0].gate == "gate/1"
    assert trainer.batches.refused == 1
    assert do(trainer, refused(0, "gate/0"), outputs(0), back(0)) == []  # it is counted once
    assert trainer.batches.as_tuple() == (2, 0, 1, 0)


def test_refused_batches_are_part_of_their_epochs_report():
    trainer = trainer_of()
    do(trainer, item(), item(), EpochEnd(last=True), refused(0))
    (done,) = reports(trained(trainer, 1), EpochDone)
    assert (done.refused, done.samples) == (1, 4)


def test_it_gives_up_when_nothing_but_refusals_came():
    trainer = trainer_of(in_flight=1)
    for n in range(REFUSED_MAX - 1):
        do(trainer, item(), refused(n))
    do(trainer, item())
    with pytest.raises(
        DataError, match=f"all {REFUSED_MAX} of its batches were refused; gate/1 refused batch 9"
    ):
        do(trainer, refused(REFUSED_MAX - 1))


def test_it_gives_up_at_the_end_of_a_short_source_too():
    trainer = trainer_of()
    do(trainer, item(), EpochEnd(last=True))
    with pytest.raises(DataError, match="all 1 of its batches were refused"):
        do(trainer, refused(0))


def test_gradients_that_are_too_old_are_no_reason_to_give_up():
    trainer = trainer_of(in_flight=1)
    for n in range(2 * REFUSED_MAX):
        do(trainer, item(), refused(n, fault=Fault.TOO_STALE))
    assert trainer.batches.refused == 2 * REFUSED_MAX


def test_so_many_batches_refused_in_a_row_fail_it_at_any_time():
    trainer, cause = trainer_of(in_flight=1), ValueError("shapes")
    do(trainer, item())
    trained(trainer, 0)
    for n in range(1, REFUSED_MAX):
        do(trainer, item(), refused(n))
    do(trainer, item())
    last = Refused(Batch(ME, REFUSED_MAX), "gate/1", Fault.RAISED, "why", cause)
    with pytest.raises(
        DataError, match="10 of its batches in a row were refused, after 1 were trained"
    ) as told:
        do(trainer, last)
    assert told.value.__cause__ is cause


def test_a_trained_batch_is_hope_again_and_staleness_neither_hope_nor_fault():
    trainer = trainer_of(in_flight=1)
    for n in range(4 * REFUSED_MAX):
        do(trainer, item())
        if n % REFUSED_MAX == REFUSED_MAX - 1:
            trained(trainer, n)
        else:
            do(trainer, refused(n, fault=Fault.TOO_STALE if n % 2 else Fault.NOT_FINITE))
    assert trainer.batches.trained == 4


def test_it_fails_at_its_end_if_nearly_all_was_refused():
    trainer = trainer_of(in_flight=1)
    for n in range(29):
        do(trainer, item())
        trained(trainer, n) if n % 10 == 5 else do(trainer, refused(n))
    do(trainer, item(), EpochEnd(last=True))
    with pytest.raises(DataError, match="27 of its 30 batches were refused"):
        do(trainer, refused(29))


# ── progress ─────────────────────────────────────────────────────────────────────────────────────────


def progress_of(trainer, n: int, at_s: float) -> list:
    told = do(trainer, item(), now_s=at_s)
    return reports(told + do(trainer, outputs(n), back(n, (n, 2 * n)), now_s=at_s), TrainingProgress)


def test_progress_is_reported_every_so_many_seconds_of_a_long_epoch():
    trainer = trainer_of(in_flight=1)
    do(trainer, Attach(), now_s=100.0)
    assert not [r for n in range(4) for r in progress_of(trainer, n, 102.0 + n)]
    (report,) = progress_of(trainer, 4, 111.0)
    assert (report.sentinel, report.epoch, report.batches, report.samples) == ("tdp", 1, 5, 20)
    assert (report.seconds, report.staleness_mean, report.staleness_max) == (11.0, 3.0, 8)
    assert report.loss == pytest.approx(trainer._epoch.board.loss)
    assert not progress_of(trainer, 5, 120.9)
    (report,) = progress_of(trainer, 6, 121.0)
    assert (report.batches, report.seconds, report.samples_per_s) == (2, 10.0, 0.8)


def test_progress_is_reported_every_so_many_batches_and_the_epoch_has_the_sums_of_all():
    trainer = trainer_of(in_flight=1, report_every=2)
    do(trainer, Attach())
    assert [len(progress_of(trainer, n, 1.0)) for n in range(5)] == [0, 1, 0, 1, 0]
    do(trainer, item(), EpochEnd(last=True))
    told = do(trainer, outputs(5), back(5, (9, 0)))
    assert not reports(told, TrainingProgress), "the report of the epoch is enough"
    (epoch,) = reports(told, EpochDone)
    assert (epoch.samples, epoch.staleness_max, epoch.staleness_mean) == (24, 9, 39 / 12)


def test_an_epoch_shorter_than_that_and_a_sentinel_told_so_report_no_progress():
    trainer = trainer_of(in_flight=1)
    do(trainer, Attach())
    for n in range(5):
        assert not progress_of(trainer, n, 6.0 * n)
        do(trainer, EpochEnd(last=False), now_s=6.0 * n)
    never = trainer_of(in_flight=1, report_every=None)
    do(never, Attach())
    assert not [r for n in range(4) for r in progress_of(never, n, 1e6 * n)]


# ── ending ───────────────────────────────────────────────────────────────────────────────────────────


def test_detached_it_sends_nothing_new_and_ends_when_all_is_back():
    trainer = trainer_of()
    do(trainer, item(), item(), item())
    assert do(trainer, Detach()) == []
    assert sends(trained(trainer, 0), Forward) == []
    effects = trained(trainer, 1)
    assert reports(effects, EpochDone)[0].samples == 8
    assert stops(effects)
    assert trainer.batches.as_tuple() == (2, 2, 0, 0)


def test_detached_with_drop_it_loses_what_is_in_flight_and_ends_at_once():
    trainer = trainer_of()
    do(trainer, item(), item())
    effects = do(trainer, Detach(drop=True))
    assert [e.to for e in effects if getattr(e, "message", None) == Forget(ME)] == list(ROW)
    assert trainer.batches.as_tuple() == (2, 0, 0, 2)
    assert stops(effects)


def test_detached_before_it_began_it_ends_at_once():
    effects = do(trainer_of(), Detach())
    assert stops(effects)
    assert reports(effects, EpochDone) == []


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_closed_or_failed_it_leaves_nothing_in_the_gates_and_tells_what_was_lost(how):
    trainer = trainer_of()
    do(trainer, item(), item())
    trained(trainer, 0)
    effects = do(trainer, Close()) if how == "closed" else list(trainer.last_words())
    assert [e.to for e in effects if getattr(e, "message", None) == Forget(ME)] == list(ROW)
    (ended,) = reports(effects, SentinelEnded)
    assert ended.batches.as_tuple() == (2, 1, 0, 1)
    assert sends(effects, Close) == [Close()]


def test_a_source_that_failed_fails_it_with_that_error():
    with pytest.raises(ZeroDivisionError, match="the disk is gone"):
        do(trainer_of(), SourceFailed(ZeroDivisionError("the disk is gone")))


BAD_LOSSES = {
    "no tensor": (lambda out, y: 1.0, "its loss must be a tensor with one number, got a float"),
    "no scalar": (
        lambda out, y: F.cross_entropy(out, y, reduction="none"),
        r"its loss must be one number, got shape \(4,\); take the mean",
    ),
    "no gradient": (lambda out, y: torch.ones(()), "does not depend on the network's outputs"),
}


@pytest.mark.parametrize("what", BAD_LOSSES)
def test_a_loss_that_is_no_loss_fails_it_with_what_is_wrong(what):
    loss, sentence = BAD_LOSSES[what]
    trainer = trainer_of(loss)
    do(trainer, item())
    with pytest.raises(RecipeError, match=sentence):
        do(trainer, outputs(0))


def test_a_probe_is_answered_with_what_there_is_to_tell():
    trainer = trainer_of()
    do(trainer, item(), item())
    trained(trainer, 0)
    (status,) = reports(do(trainer, Probe(3)), SentinelStatus)
    assert (status.probe, status.name, status.role, status.in_flight) == (3, "tdp", "train", 1)
    assert (status.rounds, status.samples, status.batches.as_tuple()) == (0, 4, (2, 1, 0, 0))
    do(trainer, item())
    assert status.batches.sent == 2  # a report does not change afterwards


def test_a_batch_that_a_shard_takes_back_counts_as_refused_and_only_once():
    trainer = trainer_of(replica=0, epochs=1)
    do(trainer, Attach(), *(item() for _ in range(3)))
    trained(trainer, 0, 1)
    told = do(trainer, refused(0, gate="shard/0"), refused(0, gate="shard/1"))
    assert [record.number for record in reports(told, BatchRefused)] == [0]
    do(trainer, refused(2))  # by a gate: it never came back, so no shard can take it back
    do(trainer, refused(2, gate="shard/0"))
    assert trainer.batches.as_tuple() == (3, 1, 2, 0)


def test_the_report_of_an_epoch_says_where_all_batches_have_gone_so_far():
    trainer = trainer_of(epochs=2)
    do(trainer, Attach(), item(), item(), EpochEnd(last=False), item(), EpochEnd(last=True))
    told = do(trainer, refused(0)) + trained(trainer, 1)
    (first,) = reports(told, EpochDone)
    assert first.batches_so_far == BatchCount(sent=3, trained=1, refused=1)
    (second,) = reports(trained(trainer, 2), EpochDone)
    assert second.batches_so_far == BatchCount(sent=3, trained=2, refused=1)
    assert first.batches_so_far == BatchCount(sent=3, trained=1, refused=1)
