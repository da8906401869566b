"""Gates that raise, or are lost, come back alone from their latest snapshot, and the others go on."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, sgd
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import GateFailedError, RecipeError
from akkordeon.core.reports import GateRestarted
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.hosts import Host
from akkordeon.watch.summary import summary


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if next(ctx.module.calls) in ctx.module.at:
            raise ValueError("boom")
        return gradient, None


class FailingBackward(nn.Module):
    """Raises in some of its backwards, counted over all its copies."""

    def __init__(self, *at):
        super().__init__()
        self.linear = nn.Linear(9, 7)
        self.at = at
        self.calls = _Calls()

    def forward(self, x):
        return _Fails.apply(torch.tanh(self.linear(x)), self)


class _Calls:
    """Counts; a copy of a module has the same."""

    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return self.count

    def __deepcopy__(self, memo):
        return self


def network(middle=None, recovery=None, optimizer=sgd, **gate):
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Linear(9, 7), nn.Tanh()) if middle is None else middle
    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(6, 9), nn.ReLU()), sgd),
            ak.Gate(middle, optimizer, **gate),
            ak.Gate(nn.Linear(7, 4), sgd),
        ],
        recovery=ak.Recovery(snapshot_every=5) if recovery is None else recovery,
    )


def data(n=40):
    torch.manual_seed(1)
    return [(x, x[:, :4].argmax(1)) for x, _ in batches_of(n)]


def training(n=40, in_flight=4, **kwargs):
    return ak.Sentinel.train(data(n), F.cross_entropy, in_flight=in_flight, name="tdp", **kwargs)


def trained(net, sentinel=None, engine=None):
    """The attachment of a run, the restarts there were, and the weights."""
    restarts = []
    with ak.run(net, engine=engine or ak.Threads(workers=1)) as session:
        session.subscribe(lambda r: restarts.append(r) if isinstance(r, GateRestarted) else None, inline=True)
        tdp = session.attach(sentinel or training())
        session.wait(timeout=WAIT_S)
        module = session.module()
    return tdp, restarts, module


def assert_sums(batches):
    assert batches.sent == batches.trained + batches.refused + batches.lost
    assert batches.in_flight == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gate_whose_backward_raises_comes_back_and_its_batch_is_refused(workers):
    tdp, restarts, _ = trained(network(FailingBackward(13)), engine=ak.Threads(workers=workers))
    assert [r.address for r in restarts] == ["gate/1"]
    (restart,) = restarts
    assert (restart.version_before, restart.version_saved, restart.version_after) == (12, 10, 13)
    assert restart.updates_lost == 2
    assert "failed on Backward of batch" in restart.why
    assert "boom" in restart.why
    assert tdp.batches.sent == 40
    assert tdp.batches.refused == 1
    assert tdp.batches.lost <= 3
    assert_sums(tdp.batches)
    (refusal,) = tdp.refusals
    assert refusal.fault == "raised"
    assert "boom" in refusal.reason


def test_a_gate_whose_optimizer_raises_comes_back():
    calls = _Calls()

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if next(calls) in (7, 20):
                raise ValueError("no step")
            return super().step(closure)

    tdp, restarts, _ = trained(network(optimizer=lambda params: Fails(params, lr=0.05)))
    assert [r.address for r in restarts] == ["gate/1"] * 2
    assert [r.times for r in restarts] == [1, 2]
    assert tdp.batches.refused == 2
    assert_sums(tdp.batches)


def test_recovery_that_is_not_needed_changes_no_bit():
    plain = network()
    kept = ak.Network(plain.gates)
    assert same_bits(trained(plain)[2], trained(kept)[2])


def test_a_gate_that_is_to_end_the_session_does():
    with ak.run(network(FailingBackward(3), on_failure="fail"), engine=ak.Threads(workers=1)) as session:
        session.attach(training())
        with pytest.raises(GateFailedError, match="boom"):
            session.wait(timeout=WAIT_S)


def test_too_many_restarts_end_the_session_with_the_whole_story():
    recovery = ak.Recovery(snapshot_every=5, restarts=2, backoff_s=0.01)
    with ak.run(network(FailingBackward(3, 6, 9), recovery), engine=ak.Threads(workers=2)) as session:
        session.attach(training())
        with pytest.raises(GateFailedError) as failure:
            session.wait(timeout=WAIT_S)
    told = str(failure.value)
    assert told.startswith("gate/1 failed on Backward")
    assert "it was made anew 2 times in the 60 s before that" in told
    assert told.count("boom") == 3
    assert isinstance(failure.value.__cause__, ValueError)


def test_an_optimizer_that_cannot_be_kept_is_refused_at_once():
    def forgetful(params):
        optimizer = torch.optim.SGD(params, lr=0.05)
        optimizer.param_groups[0]["what"] = object()
        return optimizer

    with pytest.raises(RecipeError, match="has something of type object in its state"):
        ak.run(network(optimizer=forgetful), engine=ak.Threads(workers=1))


def test_an_optimizer_that_cannot_be_kept_later_is_not_tried_again():
    class Keeps(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["what"] = object()
            return super().step(closure)

    net = network(optimizer=lambda params: Keeps(params, lr=0.05))
    with ak.run(net, engine=ak.Threads(workers=1)) as session:
        session.attach(training())
        with pytest.raises(GateFailedError) as failure:
            session.wait(timeout=WAIT_S)
    assert isinstance(failure.value.__cause__, RecipeError)
    assert "made anew" not in str(failure.value)


@pytest.mark.parametrize(
    "wrong",
    [{"snapshot_every": 0}, {"snapshot_every": True}, {"restarts": 0}, {"within_s": 0}, {"backoff_s": -1}],
)
def test_a_recovery_that_cannot_be_is_refused(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        ak.Recovery(**wrong)


# ── in the simulator, with real gradients ────────────────────────────────────────────────────────────


def simulator(*faults, hosts=()):
    costs = {"*gate/*": Cost(forward_s=0.01, backward_s=0.01, update_s=0.005), "*": Cost(message_s=0.001)}
    return ak.Simulator(compute=Compute(costs), faults=faults, hosts=hosts)


@pytest.mark.parametrize("back_after_s", [None, 0.5])
@pytest.mark.parametrize("gate", [0, 1, 2])
@pytest.mark.parametrize("at_s", [0.0, 0.307, 0.5])
def test_a_gate_that_crashes_comes_back_while_others_train_and_validate(gate, at_s, back_after_s):
    crash = Crash(who=f"gate/{gate}", at_s=at_s, back_after_s=back_after_s)
    restarts = []
    with ak.run(network(), engine=simulator(crash)) as session:
        session.subscribe(lambda r: restarts.append(r) if isinstance(r, GateRestarted) else None, inline=True)
        tdp, other = (
            session.attach(ak.Sentinel.train(data(), F.cross_entropy, epochs=4, in_flight=4, name=name))
            for name in ("tdp", "other")
        )
        vdp = session.attach(ak.Sentinel.validate(data(6), F.cross_entropy, every_updates=7, name="vdp"))
        outputs = session.predict(torch.ones(100, 6), batch_size=10, timeout=1000)
        session.wait(timeout=1000)
        versions = [g.version for g in session.status(timeout=10).gates]
    assert [r.address for r in restarts] == [f"gate/{gate}"]
    assert outputs.shape == (100, 4)
    for trainer in (tdp, other):
        assert trainer.batches.sent == 160
        assert trainer.batches.lost <= 4
        assert trainer.batches.refused == 0
        assert_sums(trainer.batches)
    assert vdp.rounds_done > 5
    assert all(one.version < two.version for one, two in zip(vdp.rounds, vdp.rounds[1:], strict=False))
    assert vdp.rounds[-1].loss < vdp.rounds[0].loss
    assert min(versions) > 300


def test_all_that_was_sent_is_accounted_for_at_any_moment_and_in_total():
    crash = Crash(who="gate/1", at_s=0.3, back_after_s=0.5)
    with ak.run(network(), engine=simulator(crash)) as session:
        one = session.attach(training(n=12))
        session.attach(ak.Sentinel.train(data(30), F.cross_entropy, in_flight=4, name="other"))
        for _ in range(20):
            session._engine.wait_until(lambda: False, 0.05)
            status = session.status(timeout=0.01)
            for sentinel in status.sentinels:
                assert sentinel.batches.in_flight == sentinel.in_flight
        session.wait(timeout=1000)
        assert one.ended
        status = session.status(timeout=1)
        assert status.restarts == {"gate/1": 1}
        assert status.batches.sent == 42
        assert status.batches.lost > 0
        assert_sums(status.batches)
        outcome = summary(session, 1.0)
    assert outcome["batches"]["sent"] == 42
    assert outcome["restarts"] == {"gate/1": 1}


def test_a_sentinel_that_is_killed_lost_what_was_in_flight():
    with ak.run(network(), engine=simulator(Crash(who="sentinel/tdp*", at_s=0.4))) as session:
        tdp = session.attach(training(in_flight=4))
        session._engine.wait_until(lambda: False, 0.39)
        before = tdp.batches
        assert before.in_flight == 4
        with pytest.raises(ak.errors.SentinelFailedError):
            session.wait(timeout=1000)
    assert before.in_flight - 1 <= tdp.batches.lost <= before.in_flight  # the gates know of one more
    assert_sums(tdp.batches)


def test_a_host_that_crashes_takes_its_gates_and_all_come_back():
    host = Host("rack", ["gate/1", "gate/2"])
    crash = Crash(who="rack", at_s=0.4, back_after_s=1.0)
    tdp, restarts, _ = trained(network(), engine=simulator(crash, hosts=[host]))
    assert [r.address for r in restarts] == ["gate/1", "gate/2"]
    assert tdp.batches.trained > 30
    assert_sums(tdp.batches)


def test_the_same_crash_gives_the_same_bits():
    def run():
        return trained(network(), engine=simulator(Crash(who="gate/*", every_s=0.3)))

    one, other = run(), run()
    assert len(one[1]) > 1
    assert one[0].batches == other[0].batches
    assert same_bits(one[2], other[2])


def test_a_session_may_end_while_a_gate_is_away():
    crash = Crash(who="gate/1", at_s=0.1, back_after_s=50.0)
    with ak.run(network(), engine=simulator(crash)) as session:
        session.attach(training())
        session._engine.wait_until(lambda: False, 5.0)
        session.close()
        with pytest.raises(GateFailedError, match="gate/1 was gone when the session ended"):
            session.states()
        assert session.states(partial=True).keys() == {"gate/0", "gate/2"}
