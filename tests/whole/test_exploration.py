"""Many worlds: the protocol keeps its promises in all of them, and five broken protocols do not."""

from __future__ import annotations

import time

import pytest
import torch
from tests.support.exploration import explore
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.messages import Cut
from akkordeon.engines import interpreter
from akkordeon.engines.mailbox import Mailbox
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.links import Link, Links
from akkordeon.pipeline import gate_actor
from akkordeon.sentinels import evaluator
from akkordeon.sentinels.training import trainer

BUDGET = 500
"""Worlds in which a broken protocol is found."""

FAST, SLOW = 200, 20_000
"""Worlds of the true protocol in the fast suite, and in the slow one."""


# ── five ways to get it wrong ────────────────────────────────────────────────────────────────────────


def a_forget_that_does_not_purge(patch):
    """A gate that is told to forget keeps what it holds, and takes what is still on its way."""
    patch.setattr(gate_actor.GateActor, "_forget", lambda self, message: iter(()))


def a_backward_that_is_applied_twice(patch):
    right = gate_actor.GateActor._backward

    def twice(self, message):
        before = self.version
        yield from right(self, message)
        if self.version > before:
            self.version += 1
            self.staleness_seen[0] += 1

    patch.setattr(gate_actor.GateActor, "_backward", twice)


def a_cut_that_travels_forward(patch):
    right = gate_actor.GateActor._cut

    def begin(self, now_s):
        for effect in begin.right(self, now_s):
            yield Send(self._row[0], effect.message) if isinstance(effect.message, Cut) else effect

    def cut(self, message):
        for effect in right(self, message):
            yield Send(self.position.next or message.cut.asker, effect.message)

    begin.right = evaluator.Evaluator._begin
    patch.setattr(evaluator.Evaluator, "_begin", begin)
    patch.setattr(gate_actor.GateActor, "_cut", cut)


def an_evaluation_that_can_starve(patch):
    class Starving(Mailbox):
        def __init__(self, fair=False):
            super().__init__(turn=10**9, fair=fair)

    patch.setattr(interpreter, "Mailbox", Starving)


def a_batch_id_that_is_used_again(patch):
    right = trainer.Trainer._launch

    def launch(self, item):
        self._numbers %= 3
        return right(self, item)

    patch.setattr(trainer.Trainer, "_launch", launch)


MUTANTS = {
    a_forget_that_does_not_purge: "keeps",
    a_backward_that_is_applied_twice: "has version",
    a_cut_that_travels_forward: "a cut of versions",
    an_evaluation_that_can_starve: "evaluation was passed over",
    a_batch_id_that_is_used_again: "was used for two batches",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_exploring_finds(mutant, monkeypatch):
    mutant(monkeypatch)
    began_s = time.monotonic()
    found = explore(BUDGET)
    seconds = time.monotonic() - began_s
    assert found.world is not None, f"{found.worlds} worlds and nothing found"
    assert any(MUTANTS[mutant] in violation for violation in found.violations), found.violations
    assert seconds < 60
    print(f"{mutant.__name__}: world {found.worlds}, {seconds:.1f} s, {found.violations[0]}")


def test_exploring_finds_nothing_in_the_true_protocol():
    found = explore(FAST)
    assert found.violations == [], found.world
    assert found.worlds == FAST


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_exploring_finds_nothing_in_many_more_worlds():
    found = explore(SLOW)
    assert found.violations == [], found.world
    print(f"{found.worlds} worlds")


# ── what the worlds cannot promise ───────────────────────────────────────────────────────────────────


def test_a_slow_trainer_beside_a_fast_one_has_no_other_bound_than_max_staleness():
    """One batch in flight each, and still: while the slow one's batch is under way the fast one trains."""

    def staleness(max_staleness):
        sgd = lambda params: torch.optim.SGD(params, lr=0.01)  # noqa: E731
        network = ak.Network([ak.Gate(nn.Linear(2, 2), sgd)], max_staleness=max_staleness)
        links = Links(between=[("sentinel/slow*", "gate/*", Link(1.0))])
        engine = ak.Simulator(links=links, compute=Compute({"gate/*": Cost(forward_s=0.01, backward_s=0.01)}))
        data = [(torch.ones(1, 2), torch.tensor([0]))]
        with ak.run(network, engine=engine) as session:
            slow = session.attach(ak.Sentinel.train(data * 3, F.cross_entropy, in_flight=1, name="slow"))
            session.attach(ak.Sentinel.train(data * 500, F.cross_entropy, in_flight=1, name="fast"))
            session.wait(timeout=100)
            (status,) = session.status(timeout=100).gates
        return status.staleness_max, slow.batches.refused

    longest, refused = staleness(None)
    assert longest > 90  # two seconds under way, fifty updates of the other a second
    assert refused == 0
    longest, refused = staleness(10)
    assert longest <= 10
    assert refused > 0
