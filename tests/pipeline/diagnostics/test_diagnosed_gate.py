"""Gates that measure how stale their gradients are: what they find, and that they learn what they would."""

from __future__ import annotations

import math

import pytest
import torch
from tests.support.engines import ALL_ENGINES, ENGINES, NAMES
from tests.support.harness import (
    SIZE,
    WAIT_S,
    backward,
    batches_of,
    do,
    forward,
    reports,
    same_bits,
    sgd,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Batch, Cut, CutId, Forget, Probe
from akkordeon.core.numerics.generator import GeneratorUse
from akkordeon.core.reports import GateStatus
from akkordeon.core.surgery.messages import Change
from akkordeon.pipeline.diagnostics.diagnosed_gate import is_sampled
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.stage import Position

ONES = torch.ones(())


class Quadratic(nn.Module):
    """½ Σ (w ⊙ x)², of which the gradient by w is w ⊙ x²."""

    def __init__(self, *weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.weight * x) ** 2).sum() / 2


def plain_sgd(params):
    return torch.optim.SGD(params, lr=1.0)


def standing(params):
    return torch.optim.SGD(params, lr=0.0)


def measuring(module: nn.Module, optimizer=plain_sgd, every: int = 1, **recipe) -> GateActor:
    where = Position("gate/1", 1, "gate/0", "gate/2")
    return gate_actor(ak.Gate(module, optimizer, diagnose_every=every, **recipe), where)


def diagnosis(gate: GateActor):
    (status,) = reports(do(gate, Probe(1)), GateStatus)
    return status.diagnosis


# ── what is found ────────────────────────────────────────────────────────────────────────────────────


def test_the_cosine_is_that_of_the_stale_and_the_fresh_gradient_of_a_quadratic():
    gate = measuring(Quadratic(1.0, 1.0))
    do(gate, forward(0, torch.tensor([1.0, 0.0])), forward(1, torch.tensor([1.0, 1.0])))
    do(gate, backward(0, ONES))  # w = (1, 1) - (1, 0)
    assert diagnosis(gate).cosine_mean == 1.0  # nothing came before: τ is 0
    do(gate, backward(1, ONES))  # stale (1, 1), fresh (0, 1)
    found = diagnosis(gate)
    assert found.cosine_min == pytest.approx(1 / math.sqrt(2))
    assert found.cosine_mean == pytest.approx((1 + 1 / math.sqrt(2)) / 2)
    assert (found.every, found.batches, found.failed, found.why) == (1, 2, 0, None)


def test_a_gradient_that_has_turned_round_has_a_cosine_of_minus_one():
    gate = measuring(Quadratic(1.0))
    do(gate, forward(0, torch.tensor([2.0])), forward(1, torch.tensor([1.0])), backward(0, ONES))
    do(gate, backward(1, ONES))  # the weight was 1, and is 1 - 4
    assert diagnosis(gate).cosine_min == -1.0


def test_where_a_gradient_is_nothing_there_is_no_cosine_and_no_correction():
    gate = measuring(Quadratic(1.0))
    do(gate, forward(0, torch.tensor([0.0])), backward(0, ONES))
    found = diagnosis(gate)
    assert (found.batches, found.cosine_mean, found.correction_mean) == (1, None, None)


def test_the_correction_is_what_the_rule_adds_over_the_gradient():
    gate = measuring(Quadratic(1.0), standing, staleness=ak.InverseStaleness())
    do(gate, *(forward(i, torch.ones(1)) for i in range(4)), *(backward(i, ONES) for i in range(4)))
    found = diagnosis(gate)  # by τ = 0, 1, 2, 3: g, g, g/2, g/3
    assert found.correction_mean == pytest.approx((0 + 0 + 1 / 2 + 2 / 3) / 4)
    assert found.correction_max == pytest.approx(2 / 3)


def test_the_correction_is_measured_on_after_the_rule_was_exchanged():
    gate = measuring(Quadratic(1.0), standing)
    do(gate, *(forward(i, torch.ones(1)) for i in range(3)), backward(0, ONES))
    do(gate, Change({"staleness": ak.InverseStaleness()}), backward(1, ONES), backward(2, ONES))
    assert diagnosis(gate).correction_max == pytest.approx(1 / 2)


def test_copies_of_weights_are_those_of_batches_in_flight_and_of_cuts_each_once():
    gate = measuring(Quadratic(1.0, 1.0))
    x, each_bytes = torch.full((2,), 0.1), 2 * 4
    do(gate, forward(0, x), forward(1, x))
    assert (diagnosis(gate).copies, diagnosis(gate).bytes) == (1, each_bytes)  # both are on that of now
    do(gate, Cut(CutId("v", 0)), backward(0, ONES), forward(2, x), backward(1, ONES))
    assert (diagnosis(gate).copies, diagnosis(gate).bytes) == (3, 3 * each_bytes)  # cut, batch 2, now
    do(gate, backward(2, ONES), Forget("v"))
    found = diagnosis(gate)
    assert (found.copies, found.bytes) == (1, each_bytes)
    assert (found.copies_max, found.bytes_max) == (3, 3 * each_bytes)


def test_a_rule_that_keeps_no_weights_has_one_copy():
    gate = measuring(Quadratic(1.0), staleness=ak.Latest())
    do(gate, *(forward(i, torch.full((1,), 0.1)) for i in range(3)), backward(0, ONES))
    assert diagnosis(gate).copies == 1


def test_one_batch_in_each_stretch_is_measured_at_another_place_each_time():
    sample = [number for number in range(40) if is_sampled(Batch("s", number), 4)]
    assert sample == [0, 5, 10, 15, 16, 21, 26, 31, 32, 37]
    assert all(is_sampled(Batch("s", number), 1) for number in range(10))


class Checkpointed(nn.Module):
    """A part of it runs again in the backward, where it draws once more."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), ak.nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=False)


@pytest.mark.parametrize(
    "module",
    [
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Tanh()),
        lambda: nn.Sequential(nn.Linear(6, 5), ak.nn.Dropout(0.5), nn.Tanh()),
        lambda: ak.nn.DropConnectLinear(6, 5),
        Checkpointed,
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)),
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5)),
    ],
)
def test_the_fresh_gradient_has_the_masks_of_the_stale_one(module):
    gate = measuring(module(), standing)  # where weights stay, both are the same
    x, g = [torch.randn(SIZE, 6) for _ in range(4)], torch.randn(SIZE, 5)
    do(gate, *(forward(i, x[i]) for i in range(4)), *(backward(i, g) for i in range(4)))
    found = diagnosis(gate)
    assert (found.batches, found.failed) == (4, 0)
    assert found.cosine_min == pytest.approx(1.0, abs=1e-6)
    assert max(gate.staleness_seen) == 3


def test_a_batch_that_cannot_be_measured_is_counted_and_learned_from():
    class Choosy(nn.Linear):
        ran = 0

        def forward(self, x: Tensor) -> Tensor:
            Choosy.ran += 1
            if Choosy.ran > 2:
                raise ValueError("twice is enough")
            return super().forward(x)

    gate, g = measuring(Choosy(6, 4), sgd), torch.randn(SIZE, 4)
    do(gate, *(forward(i, torch.randn(SIZE, 6)) for i in range(2)), *(backward(i, g) for i in range(2)))
    found = diagnosis(gate)
    assert (found.batches, found.failed, found.why) == (1, 1, "ValueError: twice is enough")
    assert gate.version == 2


def test_weights_that_are_predicted_are_compared_with_those_of_now():
    gate = measuring(Quadratic(1.0, 1.0), staleness=ak.Prediction())
    x, zero = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0])
    do(gate, forward(0, zero), backward(0, ONES))  # w goes from (1, 1) to (0.75, 1)
    do(gate, forward(1, 0 * x), forward(2, x), backward(1, ONES))  # 2 is on (0.5, 1), one update ahead
    do(gate, backward(2, ONES))  # fresh (0.75, 1), as nothing has moved
    assert diagnosis(gate).cosine_min == pytest.approx(1.375 / math.sqrt(1.25 * 1.5625))


# ── what stays as it is ──────────────────────────────────────────────────────────────────────────────


class Stateful(nn.Module):
    """Its forward writes wherever a module can, and what it computes depends on all of that."""

    def __init__(self, max_norm: float | None) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6, max_norm=max_norm)  # writes to its weights
        self.linear = spectral_norm(nn.Linear(6, 6))  # to buffers, in a pre-hook
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0
        self.recent: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.recent = [*self.recent[-3:], x.detach().mean()]
        y = x + self.table(torch.arange(len(x)) % 7) + torch.stack(self.recent).mean()
        return self.norm(self.linear(y)) * (1 + 0.1 * (self.calls % 3))


class Noisy(nn.Module):
    """Draws from the process's generator past any module of PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


def row(**settings) -> ak.Network:
    torch.manual_seed(0)
    refuses_writes = settings.keys() & {"recompute", "schedule", "staleness"}
    max_norm = None if refuses_writes else 1.0
    parts = [
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), ak.nn.Dropout(0.2), Noisy()),
        Stateful(max_norm),
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), ak.nn.DropConnectLinear(5, 4)),
    ]
    network = {name: settings.pop(name) for name in ("clip_whole_norm", "schedule") if name in settings}
    settings = {"staleness": ak.DelayCompensation()} | settings
    gates = [ak.Gate(part, sgd, **settings) for part in parts]
    return ak.Network(gates, **network)


def trained(network: ak.Network, engine, batches):
    with ak.run(network, engine) as session:
        session.attach(ak.Sentinel.train(batches, cross_entropy, in_flight=4))
        session.wait(WAIT_S)
        state, drawn = session.module().state_dict(), torch.rand(4)
        return state | {"drawn": drawn}, session.status().gates


@pytest.mark.parametrize("engine", ["threads, 1 worker", "simulator"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate": 3},
        {"clip_whole_norm": 0.5},
        {"schedule": ak.TwoBuffers(2)},
        {"staleness": ak.Prediction()},
        {"staleness": ak.DiscrepancyCorrection()},
        {"recompute": True},
        {"autocast": torch.bfloat16},
        {"ema": 0.9},
    ],
    ids=str,
)
def test_a_run_that_measures_has_the_bits_of_one_that_does_not(engine, settings):
    batches = batches_of(30)
    one, off = trained(row(**settings), ENGINES[engine](), batches)
    other, on = trained(row(**settings, diagnose_every=2), ENGINES[engine](), batches)
    assert same_bits(one, other)
    assert [gate.staleness for gate in on] == [gate.staleness for gate in off]
    assert all(gate.diagnosis is None for gate in off)
    assert all((gate.diagnosis.batches, gate.diagnosis.failed) == (15, 0) for gate in on)
    assert all(sum(gate.staleness.values()) == 30 and gate.staleness_max > 0 for gate in on)


def test_a_gate_that_draws_and_measures_works_alone_as_it_rewinds_the_generator():
    gate = measuring(nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)))
    do(gate, forward(0, torch.randn(SIZE, 6)), backward(0, torch.randn(SIZE, 4)))
    assert gate.generator_use is GeneratorUse.ALONE
    still = measuring(nn.Linear(6, 4))
    do(still, forward(0, torch.randn(SIZE, 6)), backward(0, torch.randn(SIZE, 4)))
    assert still.generator_use is GeneratorUse.NONE


def test_a_gate_that_is_not_to_measure_is_none_that_could():
    assert type(gate_actor(ak.Gate(nn.Linear(6, 4), sgd), Position("gate/0", 0))) is GateActor


# ── where it is asked for ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", NAMES)
def test_status_has_the_figures_on_every_engine(engine):
    parts = [nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7)), nn.Linear(7, 4)]
    network = ak.Network([ak.Gate(part, sgd, diagnose_every=2) for part in parts])
    with ak.run(network, ALL_ENGINES[engine]()) as session:
        session.attach(ak.Sentinel.train(batches_of(20), cross_entropy, in_flight=3))
        session.wait(WAIT_S)
        for gate in session.status().gates:
            assert (gate.diagnosis.batches, gate.diagnosis.failed) == (10, 0)
            assert -1 <= gate.diagnosis.cosine_min <= gate.diagnosis.cosine_mean <= 1
            assert gate.diagnosis.copies == 1
            assert 1 <= gate.diagnosis.copies_max <= 4


@pytest.mark.parametrize("every", [0, -1, 1.5, "often"])
def test_a_number_of_batches_that_is_none_is_refused(every):
    with pytest.raises(RecipeError, match="diagnose_every"):
        ak.Gate(nn.Linear(6, 4), sgd, diagnose_every=every)


def test_replicas_refuse_to_measure():
    network = ak.Network([ak.Gate(nn.Linear(6, 4), sgd, diagnose_every=10)])
    with pytest.raises(RecipeError, match="gate 0 has diagnose_every=10"):
        ak.Downpour(network, replicas=2)
