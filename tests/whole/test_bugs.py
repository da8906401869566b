"""One test for each bug that was found: what happened, so that it does not happen again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch
from tests.support.harness import (
    SIZE,
    WAIT_S,
    backward,
    batches_of,
    bits,
    do,
    forward,
    gate_alone,
    reports,
    same_bits,
    sends,
    sgd,
    small_network,
    stops,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.errors import (
    DataError,
    GateFailedError,
    ProtocolError,
    RecipeError,
    RecordError,
    SentinelFailedError,
    SessionClosedError,
    WaitTimeoutError,
)
from akkordeon.core.messages import (
    Attach,
    Backward,
    Batch,
    Cut,
    CutId,
    Due,
    EpochEnd,
    Evaluate,
    Fault,
    Forward,
    Item,
    Pull,
    Refused,
    Release,
)
from akkordeon.core.recovery.messages import ForgetBefore, Restarted
from akkordeon.core.reports import RoundDone
from akkordeon.engines import threads
from akkordeon.engines.threads import workers
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.training.trainer import Trainer
from akkordeon.session import session as session_module


def training(source=None, name="tdp", **kwargs):
    source = batches_of(10) if source is None else source
    return ak.Sentinel.train(source, F.cross_entropy, name=name, **kwargs)


def endless():
    while True:
        yield from batches_of(1)


# ── sessions and engines ────────────────────────────────────────────────────────────────────────────


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
        assert session._registry.by_address == {}
        session.attach(training()).wait(WAIT_S)
        session.wait(WAIT_S)


class ClosesMeanwhile(threads.Threads):
    """An engine whose session is closed by somebody else while a sentinel is being attached."""

    def spawn(self, spawn, beside=None):
        if spawn.address.startswith("sentinel/"):
            self.closing = threading.Thread(target=self.session.close)
            self.closing.start()
            assert self.all_told.wait(WAIT_S)
        super().spawn(spawn, beside)


def test_attaching_while_the_session_closes_is_refused_and_holds_nothing_up():
    """The sentinel was told to close before it was there, and close waited ten seconds for it."""
    engine = ClosesMeanwhile(2)
    session = engine.session = ak.run(small_network(), engine=engine)
    engine.all_told, close_actors = threading.Event(), session._supervisor.close_actors

    def tell():
        close_actors()
        engine.all_told.set()

    session._supervisor.close_actors = tell
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
        assert len(session._engine._pool._own_threads) < 10


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
    assert time.monotonic() - began_s < workers.JOIN_S / 2
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
    monkeypatch.setattr(workers, "JOIN_S", 0.01)
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


def test_a_validator_makes_no_round_on_weights_it_has_seen():
    """It made its last round though nobody had learned since the one before, and ``patience`` counted it."""
    validator = Evaluator("v", "v", ("gate/0",), "reader", ak.Sentinel.validate([], F.cross_entropy))
    (begun,) = sends(do(validator, Due()))
    assert sends(do(validator, Cut(begun.cut, (7,)))) == [Pull(2, 0)]
    batch = Item(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))
    do(validator, batch, EpochEnd(last=False))
    assert len(reports(do(validator, Evaluate(Batch("v", 0), torch.randn(4, 4), begun.cut)), RoundDone)) == 1

    (again,) = sends(do(validator, Due()))
    effects = do(validator, Cut(again.cut, (7,)))
    assert sends(effects) == [Release(again.cut)]
    assert reports(effects) == []
    (third,) = sends(do(validator, Due(last=True)))
    assert len({begun.cut, again.cut, third.cut}) == 3  # a Release may overtake a Cut
    effects = do(validator, Cut(third.cut, (8,)))
    assert sends(effects) == [Pull(2, 1)]  # a round after all: somebody has learned
    assert not stops(effects)


@pytest.mark.parametrize("engine", ["threads", "simulator"])
def test_the_last_round_is_not_made_twice(engine):
    """A round at the end of the last epoch was made again by ``wait``, on the same weights."""
    with ak.run(small_network(), engine) as session:
        vdp = session.attach(ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_epoch=1))
        session.attach(training())
        session.wait(WAIT_S)
        assert [done.version for done in vdp.rounds] == [10]


# ── gates and trainers ──────────────────────────────────────────────────────────────────────────────


class Checkpointed(nn.Module):
    """Keeps no activations: it runs again when the backward comes."""

    def __init__(self, net: nn.Module, again: bool) -> None:
        super().__init__()
        self.net, self.again = net, again

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False) if self.again else self.net(x)


@pytest.mark.parametrize("between", [nn.BatchNorm1d(7), ak.nn.Dropout(0.5)])
def test_a_checkpointed_module_runs_again_on_the_weights_and_masks_of_its_forward(between):
    """Its forward was computed anew with whatever weights were installed by then.

    With two batches in flight the second gradient was silently one of a function that never was.
    """
    net = nn.Sequential(nn.Linear(6, 7), between, nn.Tanh(), nn.Linear(7, 4))
    x, g = torch.randn(2, SIZE, 6), torch.randn(2, SIZE, 4)

    def weights(again: bool):
        gate = GateActor(ak.Gate(Checkpointed(net, again), sgd), Position("gate/0", 0, previous="before"))
        for i in range(2):
            list(gate.receive(Forward(Batch("s", i), x[i]), 0.0))
        for i in range(2):
            list(gate.receive(Backward(Batch("s", i), g[i]), 0.0))
        return gate.weights.now

    for plain, checkpointed in zip(weights(False), weights(True), strict=True):
        assert torch.equal(plain, checkpointed)


class InPlaceInEvaluation(nn.Module):
    def forward(self, x):
        return F.relu(x, inplace=not self.training)


def test_a_module_in_place_in_evaluation_alone_leaves_the_inputs_of_predict_as_they_are():
    """The gate had learned from training that this module leaves its input alone."""
    network = ak.Network([ak.Gate(InPlaceInEvaluation()), ak.Gate(nn.Linear(6, 4), sgd)])
    x = torch.randn(SIZE, 6)
    before = x.clone()
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy)).wait(WAIT_S)
        for _ in range(2):
            session.predict(x, timeout=WAIT_S)
    assert torch.equal(x, before)


def test_a_score_that_works_in_place_changes_nothing():
    """It wrote into the outputs that the last gate kept for its backward: that gate was blamed."""

    def score(outputs, targets):
        return outputs.clamp_(0, 0).sum()

    network = ak.Network([ak.Gate(nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), sgd)])
    with ak.run(network) as session:
        trainer = session.attach(
            ak.Sentinel.train(batches_of(20), F.cross_entropy, scores={"score": score}, in_flight=3)
        )
        assert trainer.wait(WAIT_S).batches.trained == 20


def test_lazy_parameters_are_refused_with_the_recipe():
    """They made a gate that refused every batch, and a sentinel that ended without a word."""
    with pytest.raises(RecipeError, match="lazy parameters"):
        ak.Gate(nn.LazyLinear(4), sgd)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sentinel_whose_few_batches_were_all_refused_fails(workers):
    """If the last refusal came before the end of the source was known, it ended as if all were well."""
    nan = [(torch.full((SIZE, 6), torch.nan), torch.zeros(SIZE, dtype=torch.int64))] * 3
    with ak.run(small_network(), engine=ak.Threads(workers)) as session:
        trainer = session.attach(ak.Sentinel.train(nan, F.cross_entropy))
        with pytest.raises(SentinelFailedError, match="all 3 of its batches were refused"):
            trainer.wait(WAIT_S)


def test_clipping_sparse_gradients_is_refused_in_a_sentence():
    """Torch answered with a page about missing kernels."""
    gate = ak.Gate(nn.EmbeddingBag(9, 4, sparse=True), lambda p: torch.optim.SGD(p, lr=0.1), clip_norm=1.0)
    batches = [(torch.randint(9, (SIZE, 3)), torch.randint(4, (SIZE,))) for _ in range(3)]
    with ak.run(ak.Network([gate])) as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy))
        with pytest.raises(ak.AkkordeonError, match="clipping a norm needs dense gradients"):
            trainer.wait(WAIT_S)


# ── payloads ────────────────────────────────────────────────────────────────────────────────────────


class Begins(nn.Linear):
    def forward(self, x):
        return {"h": F.relu_(super().forward(x))}


class GoesOn(nn.Linear):
    def forward(self, d):
        d["h"] = torch.tanh(super().forward(d["h"]))
        d["more"] = d["h"] * 2
        return d


class Ends(nn.Linear):
    def forward(self, d):
        return super().forward(d["h"] + d.pop("more"))


def test_modules_that_change_the_dict_they_are_given_learn_as_in_a_plain_loop():
    """From its second payload on a gate gave the module the very dict it kept for the backward."""
    parts, batches = [Begins(6, 5), GoesOn(5, 5), Ends(5, 4)], batches_of(20)
    with ak.run(ak.Network([ak.Gate(part, sgd) for part in parts])) as session:
        tdp = session.attach(training(batches, in_flight=1)).wait(WAIT_S)
        module = session.module()
    assert tdp.batches.as_tuple() == (20, 20, 0, 0)
    optimizers = [sgd(part.parameters()) for part in parts]
    for x, y in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(nn.Sequential(*parts)(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert same_bits(module, nn.Sequential(*parts))


class LaterInPlace(nn.Module):
    """Counts in a frozen parameter, and works in place from its third batch on; it may draw."""

    def __init__(self, draws):
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.draws = draws

    def forward(self, x):
        with torch.no_grad():
            self.seen += 1
        noise = torch.rand(()) if self.draws else 1
        return x.mul_(2) * noise if self.seen > 2 else x * noise


# Its forward ran once more on copies: what it wrote to its parameter it wrote twice, and what it drew it drew
# twice, so that every later batch had other masks than in the plain loop. Nobody was told.
def test_a_forward_that_is_run_again_on_copies_has_happened_once():
    parts, batches = [nn.Linear(6, 9), LaterInPlace(draws=False), nn.Linear(9, 4)], batches_of(10)
    with ak.run(ak.Network([ak.Gate(part, sgd) for part in parts])) as session:
        tdp = session.attach(training(batches, in_flight=1)).wait(WAIT_S)
        assert session.module()[1].seen == 10
    assert tdp.batches.as_tuple() == (10, 10, 0, 0)


def test_a_forward_that_draws_is_not_run_again_but_its_batch_refused():
    parts, batches = [nn.Linear(6, 9), LaterInPlace(draws=True), nn.Linear(9, 4)], batches_of(10)
    with ak.run(ak.Network([ak.Gate(part, sgd) for part in parts])) as session:
        tdp = session.attach(training(batches, in_flight=1)).wait(WAIT_S)
        assert session.module()[1].seen == 9
    assert tdp.batches.as_tuple() == (10, 9, 1, 0)
    assert "in-place" in str(tdp.refusals[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_autocast_around_a_session_reaches_its_modules_its_loss_and_its_predictions(workers):
    """PyTorch keeps it by thread, and the workers are others: it was ignored without a word."""
    plain, batches = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), batches_of(10)
    network = ak.Network([ak.Gate(part, sgd) for part in (plain[:2], plain[2:])])
    seen = []

    def loss(outputs, y):
        seen.append((outputs.dtype, torch.is_autocast_enabled("cpu")))
        return F.cross_entropy(outputs, y)

    with torch.autocast("cpu", torch.bfloat16):
        with ak.run(network, engine=ak.Threads(workers)) as session:
            session.attach(ak.Sentinel.train(batches, loss, in_flight=1)).wait(WAIT_S)
            predicted = session.predict(batches[0][0], WAIT_S)
            module = session.module()
        optimizer = sgd(plain.parameters())
    assert set(seen) == {(torch.bfloat16, True)}
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            lost = F.cross_entropy(plain(x), y)
        lost.backward()
        optimizer.step()
    states = zip(module.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(predicted, plain(batches[0][0]))


# Adam without its epsilon divides 0 by 0 where an input is always 0. The weights became NaN, were published,
# and every batch after the first was refused, of which wait() said nothing.
@pytest.mark.parametrize("gates", [1, 2])
def test_updates_that_are_never_finite_end_training_with_the_weights_it_began_with(gates):
    x = torch.randn(40, 8, 6)
    x[:, :, 0] = 0
    layers = [nn.Linear(6, 6) for _ in range(gates)]
    network = ak.Network([ak.Gate(layer, lambda p: torch.optim.Adam(p, eps=0.0)) for layer in layers])
    with ak.run(network, engine=ak.Threads(workers=1)) as session:
        training = session.attach(ak.Sentinel.train([(b, b) for b in x], nn.functional.mse_loss))
        with pytest.raises(SentinelFailedError, match="would make the weights not finite"):
            training.wait(WAIT_S)
        assert same_bits(session.module()[0], layers[0])
    sent, trained, refused, lost = training.batches.as_tuple()
    assert (trained, lost) == (0, 0)
    assert sent == refused >= 10


# A sentinel detached in its last or only epoch said that it had come to its end: the epoch that was cut off
# counts as one.
def test_training_that_is_detached_in_its_last_epoch_was_stopped():
    begun = threading.Event()

    def loss(outputs, targets):
        begun.set()
        return nn.functional.mse_loss(outputs, targets)

    with ak.run(ak.Network([ak.Gate(nn.Linear(2, 2), sgd)]), engine=ak.Threads(workers=2)) as session:
        endless = ((torch.ones(1, 2), torch.zeros(1, 2)) for _ in iter(int, 1))
        training = session.attach(ak.Sentinel.train(endless, loss, epochs=1))
        assert begun.wait(WAIT_S)
        training.detach()
        assert training.wait(WAIT_S).stopped
        whole = session.attach(ak.Sentinel.train([(torch.ones(1, 2), torch.zeros(1, 2))], loss))
        assert not whole.wait(WAIT_S).stopped


# A loss that closed its session had the block left at once, and the counts of its sentinel read as zeros.
def test_a_block_is_left_when_its_session_has_ended_whoever_closes_it(monkeypatch):
    monkeypatch.setattr(session_module, "CLOSE_S", 0.2)
    closing = threading.Event()

    def loss(outputs, targets):
        closing.set()
        session.close()
        return nn.functional.mse_loss(outputs, targets)

    with ak.run(ak.Network([ak.Gate(nn.Linear(2, 2), sgd)]), engine=ak.Threads(workers=2)) as session:
        training = session.attach(ak.Sentinel.train([(torch.ones(1, 2), torch.zeros(1, 2))] * 3, loss))
        assert closing.wait(WAIT_S)
    assert training.ended
    assert training.batches.as_tuple() == (1, 0, 0, 1)


# A service that attached sentinels of ever new names, one for each of its customers, kept an attachment of
# each for as long as it ran, and looked through all of them at every report.
def test_sentinels_of_ever_new_names_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr("akkordeon.session.registry.ENDED_MAX", 3)

    def broken(outputs, targets):
        raise ZeroDivisionError

    with ak.run(small_network()) as session:
        working = session.attach(training(endless(), name="at work"))
        untold = session.attach(ak.Sentinel.test(batches_of(1), broken, name="untold"))
        validation = ak.Sentinel.validate(
            batches_of(1), F.cross_entropy, every_updates=1, name="best", best=ak.Best()
        )
        vdp = session.attach(validation)
        assert session._engine.wait_until(lambda: vdp.rounds_done > 0, WAIT_S)
        vdp.detach()
        for ended in (untold, vdp):
            assert session._engine.wait_until(lambda ended=ended: ended.ended, WAIT_S)
        for i in range(9):
            session.attach(training(batches_of(1), name=f"customer {i}")).wait(WAIT_S)
        names = [attachment.name for attachment in session.attachments]
        assert names == ["at work", "untold", "best", *(f"customer {i}" for i in (5, 6, 7, 8))]
        assert session.best_module() is not None
        again = session.attach(training(batches_of(1), name="customer 0")).wait(WAIT_S)
        assert again.address == "sentinel/customer 0#2", "no address is given twice"
        assert len(session._registry._numbers) < 9
        working.detach()
        with pytest.raises(SentinelFailedError, match="'untold'"):
            session.wait(WAIT_S)


class CountsItself:
    """A loader of the user's with an attribute that `Batches` has as a method."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter(batches_of(3))


def test_a_source_with_an_attribute_epoch_is_read_as_any_other():
    """The number was called for the batches of an epoch."""
    source = CountsItself()
    with ak.run(small_network()) as session:
        training = session.attach(ak.Sentinel.train(source, F.cross_entropy, epochs=2)).wait(timeout=WAIT_S)
    assert training.batches.as_tuple() == (6, 6, 0, 0)
    assert source.epoch >= 2


# A timeout from a configuration, "3", passed as it was: on the simulator it ended in a TypeError about floats
# and strings, and after a replica had been told to leave.
@pytest.mark.parametrize("timeout", ["3", float("nan"), [1]], ids=str)
@pytest.mark.parametrize("engine", ["threads", "simulator"])
def test_a_timeout_that_is_no_number_is_told_in_a_sentence(engine, timeout):
    with ak.run(ak.Downpour(small_network(), replicas=1), engine=engine) as session:
        vdp = session.attach(ak.Sentinel.validate(batches_of(1), F.cross_entropy, every_epoch=1))
        waits = {
            "wait for all": lambda: session.wait(timeout),
            "wait for one": lambda: vdp.wait(timeout),
            "predict": lambda: session.predict(batches_of(1)[0][0], timeout),
            "states": lambda: session.states(timeout),
            "module": lambda: session.module(timeout),
            "status": lambda: session.status(timeout),
            "remove_replica": lambda: session.remove_replica(0, timeout=timeout),
        }
        for wait in waits.values():
            with pytest.raises(RecipeError, match="a timeout is a number of seconds, got "):
                wait()
        assert session.attachments == [vdp], "nothing was attached first"
        assert session.replicas == (0,)
        session.close()
        for what in ("states", "module"):
            with pytest.raises(RecipeError, match="a timeout is a number of seconds, got "):
                waits[what]()


# Python lets no StopIteration out of a generator, which every actor's receive is: a loss that read on in a
# stream that had ended was told of as "RuntimeError: generator raised StopIteration".
@pytest.mark.parametrize("where", ["loss", "score", "split"])
def test_a_stop_iteration_of_the_users_own_code_is_told_as_what_it_is(where):
    def stop(*_):
        raise StopIteration("no more weights for the classes")

    recipe = ak.Sentinel.train(
        batches_of(2),
        stop if where == "loss" else F.cross_entropy,
        scores={"score": stop} if where == "score" else None,
        split=stop if where == "split" else None,
    )
    with ak.run(small_network()) as session:
        training = session.attach(recipe)
        with pytest.raises(SentinelFailedError, match=": StopIteration: no more weights") as failed:
            training.wait(WAIT_S)
        assert isinstance(failed.value.__cause__, StopIteration)


# What is of another kind was told by Python, of something inside: "len() of a 0-d tensor".
@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (5, "a int is no source of inputs; give"),
        (None, "a NoneType is no source of inputs; give"),
        ("text", "a str is no source of inputs; give"),
        (torch.tensor(1.0), "a tensor of its inputs has no dimensions; give"),
        ((torch.ones(2, SIZE), torch.tensor(1.0)), "a tensor of its inputs has no dimensions; give"),
        (torch.ones(2, SIZE).numpy(), "its inputs are a NumPy ndarray; give a tensor: torch"),
    ],
)
def test_inputs_of_another_kind_are_refused_before_anything_is_sent(inputs, sentence):
    with ak.run(small_network()) as session:
        with pytest.raises(DataError, match=sentence):
            session.predict(inputs, WAIT_S)
        assert session.attachments == []


def test_inputs_without_a_tensor_are_refused_in_a_sentence():
    with ak.run(small_network()) as session, pytest.raises(ProtocolError, match="holds tensors alone"):
        session.predict((torch.ones(2, SIZE).numpy(),), WAIT_S)


def test_what_is_no_list_of_sentinels_or_no_watcher_is_refused_in_a_sentence():
    recipe = ak.Sentinel.train(batches_of(2), F.cross_entropy)
    with ak.run(small_network()) as session:
        for mistaken in (5, recipe, (one for one in [recipe])):  # a generator was read to its end, in vain
            with pytest.raises(RecipeError, match=r"sentinels are given as a list, .*, got "):
                session.attach_all(mistaken)
        for inline in (False, True):
            with pytest.raises(RecipeError, match="a watcher is a function of a record, got int"):
                session.subscribe(5, inline=inline)
        assert session.attachments == []


def test_arguments_of_another_kind_are_refused_by_run_and_by_replay(tmp_path):
    with pytest.raises(RecordError, match="a record is the path of a file, got int"):
        ak.run(small_network(), record=5)
    with pytest.raises(RecipeError, match=r"resume is a checkpoint, got 'folder'; akkordeon\.resume takes"):
        ak.run(small_network(), resume="folder")
    file, recipe = tmp_path / "run.akr", ak.Sentinel.train(batches_of(2), F.cross_entropy)
    with ak.run(small_network(), record=file) as session:
        session.attach(recipe).wait(WAIT_S)
    with pytest.raises(RecordError, match="a record is the path of a file, got int"):
        ak.replay(5, small_network())
    with pytest.raises(RecipeError, match="replay takes a Network or a Downpour, got int"):
        ak.replay(file, 5)
    for mistaken in (5, recipe):
        with pytest.raises(RecipeError, match=r"sentinels are given as a list, .*, got "):
            ak.replay(file, small_network(), mistaken)
    with pytest.raises(RecipeError, match=r"replay takes a sentinel, as .*, got int"):
        ak.replay(file, small_network(), [5])


# ── gates that come back ─────────────────────────────────────────────────────────────────────────────


def test_a_cut_that_was_given_up_is_not_pinned_by_a_gate_that_was_made_anew_twice():
    """The second one did not know that the first had been told to release it, and kept it for ever.

    Seeds 148, 654, 1438 and 1458 of the study of crashes with return.
    """
    gate = gate_alone(nn.Linear(2, 2))
    do(gate, ForgetBefore("v", 2))
    (passed,) = sends(do(gate, Cut(CutId("v", 1))))
    assert passed.cut == CutId("v", 1)
    assert gate.pins == {}
    do(gate, Cut(CutId("v", 2)))
    assert list(gate.pins) == [CutId("v", 2)]


def test_a_batch_that_a_gate_raised_on_after_it_had_passed_it_on_is_refused_however_late_that_is_said():
    """The restart waited a second, and by then the batch was back from the other gates as trained."""
    trainer = Trainer("s", "s", ("gate/0",), "r", training(epochs=1))
    x, y = batches_of(1)[0]
    do(trainer, Attach(), Item(x, y))
    batch = Batch("s", 0)
    do(trainer, Forward(batch, torch.zeros(SIZE, 4)), Backward(batch, None))
    assert trainer.batches.trained == 1
    do(trainer, Restarted("gate/0", Refused(batch, "gate/0", Fault.RAISED, "it failed")))
    assert trainer.batches.as_tuple() == (1, 0, 1, 0)


def test_a_rule_that_lets_a_late_gradient_make_no_step_leaves_the_weights_as_they_are():
    """A factor of 0 was taken for none given, so the optimizer made its whole step."""

    class OnlyFresh(ak.Rule):
        def lr_factor(self, staleness, updates):
            return float(staleness == 0)

    gate = gate_alone(nn.Linear(4, 3), staleness=OnlyFresh())
    do(gate, forward(0, torch.ones(SIZE, 4)), forward(1, torch.ones(SIZE, 4)))
    do(gate, backward(0, torch.ones(SIZE, 3)))
    once = [master.clone() for master in gate.weights.masters]
    do(gate, backward(1, torch.ones(SIZE, 3)))
    assert gate.version == 2
    assert all(map(torch.equal, gate.weights.masters, once))
