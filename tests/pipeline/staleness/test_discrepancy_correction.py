"""PipeMare's T2: backwards are on what the weights of the forward are guessed to have been."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from tests.support.runs import is_replayed_to_the_bit
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import AkkordeonError, RecipeError
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Fixed

LR, D = 0.05, 0.3
RULES = [ak.DiscrepancyCorrection(), ak.DiscrepancyCorrection(annealed=10)]


def plain_sgd(params):
    return torch.optim.SGD(params, lr=LR)


class Times(nn.Module):
    """Multiplies by each of its numbers in turn."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = nn.ParameterList(torch.tensor([n], dtype=torch.float64) for n in numbers)

    def forward(self, x):
        for number in self.numbers:
            x = x * number
        return x


class Weight:
    """A number, how it moves, and how often it has moved."""

    def __init__(self, value):
        self.value, self.velocity = value, 0.0

    def then(self, staleness):
        return self.value - staleness * self.velocity

    def learn(self, gradients, staleness, size):
        before = self.value
        self.value -= LR * size * sum(gradients) / len(gradients)
        gamma = D ** (1 / staleness) if staleness else 0.0
        self.velocity = gamma * self.velocity + (1 - gamma) * (self.value - before)


def by_hand(points, delay, *, annealed=None, accumulate=1, recompute=False):
    """y = a·b·c·x by numbers alone: c in the first gate, b and a in the second one."""
    a, b, c = weights = [Weight(0.9), Weight(-1.2), Weight(1.1)]
    due, gathered, version = deque(), [], 0

    def backward():
        nonlocal version
        x, cx, bcx, dy, of = due.popleft()
        late = version - of
        size = 1.0 if annealed is None else max(1, late) ** -(1 - min(version / annealed, 1))
        a_then, b_then = a.then(late), b.then(late)
        by_a = dy * (b_then * cx if recompute else bcx)
        gathered.append((by_a, a_then * dy * cx, a_then * b_then * dy * x, size))
        if len(gathered) == accumulate:
            *gradients, sizes = zip(*gathered, strict=True)
            for weight, its in zip(weights, gradients, strict=True):
                weight.learn(its, late, min(sizes))
            gathered.clear()
            version += 1

    for x, target in points:
        if len(due) > delay:
            backward()
        cx, bcx = c.value * x, b.value * c.value * x
        due.append((x, cx, bcx, 2 * (a.value * bcx - target), version))
    while due:
        backward()
    return [[c.value], [b.value, a.value]]


@pytest.mark.parametrize("delay", [0, 1, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"annealed": 12}, {"accumulate": 2}, {"recompute": True}], ids=lambda s: " ".join(s)
)
def test_it_is_the_formula_worked_out_by_hand(settings, delay):
    points = [(0.3 + 0.07 * i, 0.5 - 0.02 * i) for i in range(20)]
    rule = ak.DiscrepancyCorrection(decay=D, annealed=settings.get("annealed"))
    gates = [ak.Gate(module, plain_sgd, rule) for module in (Times(1.1), Times(-1.2, 0.9))]
    of_gates = {name: value for name, value in settings.items() if name != "annealed"}
    row = DelayedRow(ak.Network(gates).replacing(**of_gates), Fixed(delay))
    for x, target in points:
        x, target = (torch.tensor([n], dtype=torch.float64) for n in (x, target))
        row.learn(x, target, F.mse_loss)
    row.finish()
    for gate, expected in zip(row.module(), by_hand(points, delay, **settings), strict=True):
        assert [p.item() for p in gate.parameters()] == pytest.approx(expected, rel=1e-12)


def test_where_weights_move_evenly_it_finds_those_of_the_forward():
    rule, step = ak.DiscrepancyCorrection(), torch.tensor([0.5, -0.25])
    weights = [torch.zeros(2, requires_grad=True)]
    state = rule.initial(weights)
    for update in range(60):
        rule.correct([None], weights, weights, min(update, 3), state)
        weights.append((weights[-1].detach() + step).requires_grad_())
        rule.follow(weights[-2:-1], weights[-1:], state)
    (guess,) = rule.behind(weights[-1:], 3, state)
    torch.testing.assert_close(guess, weights[-4].detach())


def test_after_as_many_updates_as_a_gradient_is_late_the_share_of_the_decay_is_left():
    rule, weight = ak.DiscrepancyCorrection(decay=0.2), torch.zeros(1, requires_grad=True)
    state = rule.initial([weight])
    rule.follow([weight], [(weight.detach() + 1).requires_grad_()], state)
    rule.correct([None], [weight], [weight], 4, state)
    for _ in range(4):
        rule.follow([weight], [weight], state)
    torch.testing.assert_close(state.of_weights[0], torch.tensor([0.2]))


@pytest.mark.parametrize("rule", RULES)
def test_with_one_batch_in_flight_it_is_the_plain_loop_to_the_bit(rule):
    network, modules = small_network(), []
    for each in (ak.Stash(), rule):
        with ak.run(network.replacing(staleness=each), engine=ak.Threads(2)) as session:
            session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy, in_flight=1))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules)


def test_a_frozen_gate_comes_to_rest():
    network = small_network().replacing(staleness=ak.DiscrepancyCorrection(decay=0.1))
    with ak.run(network, engine=ak.Simulator(seed=1)) as session:
        session.attach(ak.Sentinel.train(batches_of(12), F.cross_entropy, in_flight=4, name="first"))
        session.wait(timeout=WAIT_S)
        session.gate("gate/0").set(frozen=True)
        moved = session.checkpoint().stages["gate/0"].learner["rule"]
        session.attach(ak.Sentinel.train(batches_of(30), F.cross_entropy, in_flight=4, name="second"))
        session.wait(timeout=WAIT_S)
        rests = session.checkpoint().stages["gate/0"].learner["rule"]
    assert all(rests[name].abs().max() < 1e-6 * moved[name].abs().max() for name in moved)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_taken_up_goes_on_to_the_bit(accumulate):
    network, batches = (
        small_network().replacing(staleness=ak.DiscrepancyCorrection(), accumulate=accumulate),
        batches_of(24),
    )

    def trained(part, resume=None):
        with ak.run(network, engine=ak.Simulator(seed=2), resume=resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=4, name=f"of {len(part)}"))
            session.wait(timeout=WAIT_S)
            return session.checkpoint(), session.module()

    first, _ = trained(batches[:11])
    velocity = first.stages["gate/0"].learner["rule"]
    assert set(velocity) == {"0.weight", "0.bias"}
    assert all(bool(each.any()) for each in velocity.values())
    second, module = trained(batches[11:], resume=first)
    assert same_bits(trained(batches[11:], resume=first)[1], module)
    assert not same_bits(second.stages["gate/0"].learner["rule"], velocity)
    with ak.run(network, engine=ak.Simulator(seed=2)) as session:
        for part in (batches[:11], batches[11:]):
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=4, name=f"of {len(part)}"))
            session.wait(timeout=WAIT_S)
        assert same_bits(session.module(), module)


@pytest.mark.parametrize("make_engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=3)])
def test_a_recorded_run_is_replayed_to_the_same_bits(make_engine, tmp_path):
    network, batches = small_network().replacing(staleness=ak.DiscrepancyCorrection()), batches_of(30)
    train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=5)
    assert is_replayed_to_the_bit(network, [train], make_engine(), tmp_path / "run.record")


def test_what_does_not_go_together_is_refused_in_a_sentence():
    network = small_network().replacing(staleness=ak.DiscrepancyCorrection())
    for change, sentence in (
        (lambda: ak.DiscrepancyCorrection(decay=1.0), "at least 0 and below 1, got 1.0"),
        (lambda: ak.DiscrepancyCorrection(annealed=0), "over which steps grow"),
        (lambda: ak.Downpour(network, replicas=2), "not known from how they move"),
        (
            lambda: ak.Downpour(small_network(), replicas=2, staleness=ak.DiscrepancyCorrection()),
            "not known from how they move",
        ),
        (lambda: ak.Network(network.gates, schedule=ak.TwoBuffers(2)), "keeps no weights but the latest"),
        (lambda: ak.Network(network.gates, clip_whole_norm=1.0), "clip_norm each instead"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            change()
    with ak.run(network) as session, pytest.raises(AkkordeonError, match="backwards on weights that it"):
        session.gate("gate/0").set(staleness=ak.Latest())
