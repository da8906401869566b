"""A gate that clips the norm of the whole gradient: pipeline/learning/clipping_gate.py."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, do, reports, same_bits, sends, sgd, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.core.recovery.messages import Save
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.surgery.messages import Change, Rewire
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.stage import Position
from akkordeon.session.recovery.state_check import require_whole

MAX_NORM = 0.3


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2, fused=True)


def plain(model, batches, optimizer=sgd, accumulate=1, autocast=None):
    """A loop that scales each part by the norm of the step before, or by what is known of its own."""
    model = copy.deepcopy(model)
    optimizers = [optimizer(list(part.parameters())) for part in model]
    latest = 0.0
    for number, (x, y) in enumerate(batches, 1):
        around = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
        with around:
            outputs = model(x)
        (F.cross_entropy(outputs, y) / accumulate).backward()
        if number % accumulate:
            continue
        squared = 0.0
        for part in reversed(model):
            gradients = [parameter.grad for parameter in part.parameters()]
            norm = nn.utils.get_total_norm(gradients)
            squared += norm.item() ** 2
            known = norm.new_tensor(max(latest, math.sqrt(squared)))
            for gradient in gradients:
                gradient.mul_(torch.clamp(MAX_NORM / (known + 1e-6), max=1.0))
        latest = math.sqrt(squared)
        for each in optimizers:
            each.step()
            each.zero_grad()
    return model


def network_of(**settings):
    return small_network(clip_whole_norm=MAX_NORM).replacing(**settings)


def trained(network, *parts, in_flight=1, **run):
    """The module after one sentinel after the other."""
    with ak.run(network, **run) as session:
        for batches in parts:
            sentinel = ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight)
            session.attach(sentinel).wait(timeout=WAIT_S)
        return session.module()


def alone(index=1, restored=None, **position):
    """A gate of a row of three that is not there, with the weight 0 and the learning rate 1."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    gate = ak.Gate(layer, lambda params: torch.optim.SGD(params, lr=1.0))
    where = {"previous": f"gate/{index - 1}" if index else None, "next": f"gate/{index + 1}"} | position
    return gate_actor(gate, Position(f"gate/{index}", index, clip_norm=1.0, **where), restored)


def step(actor, number, gradient, norm=0.0, squared_norm=0.0):
    """What it sends for a batch with this gradient."""
    batch = Batch("s", number)
    forward = Forward(batch, torch.ones(1, 1), 1, norm)
    return sends(do(actor, forward, Backward(batch, torch.full((1, 1), gradient), (), squared_norm)))


# ── which norm ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": adamw},
        {"accumulate": 2},
        {"autocast": torch.bfloat16, "accumulate": 4},
        {"staleness": ak.DelayCompensation()},
    ],
    ids=["SGD", "AdamW", "accumulated", "autocast", "compensated"],
)
def test_with_one_batch_in_flight_it_clips_by_the_norm_of_the_step_before_bit_for_bit(settings):
    network, batches = network_of(**settings), batches_of(24)
    asked = {name: each for name, each in settings.items() if name != "staleness"}
    expected = plain(network.module(), batches, **asked)
    assert same_bits(trained(network, batches), expected)
    assert not same_bits(trained(small_network().replacing(**settings), batches), expected)


def test_whoever_sends_the_next_batch_it_is_clipped_by_the_latest_norm():
    network, batches = network_of(), batches_of(12)
    assert same_bits(trained(network, batches[:5], batches[5:]), plain(network.module(), batches))


def test_a_row_of_one_gate_clips_as_pytorch_does():
    model, batches = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), batches_of(12)
    network = ak.Network.from_module(model, 1, sgd, clip_whole_norm=MAX_NORM)
    ours, optimizer = trained(network, batches, in_flight=1), sgd(model.parameters())
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    assert same_bits(ours, model)


def test_a_gate_takes_the_norm_that_came_with_the_batch_or_more_where_it_knows_of_more():
    gate = alone()
    for number, (gradient, norm, squared_norm, moved) in enumerate(
        [
            (2.0, 4.0, 0.0, 0.5),  # by the norm of a batch before
            (4.0, 1.0, 9.0, 0.8),  # by 5, its own and that of the gate behind
            (0.5, 0.0, 0.0, 0.5),  # there is nothing to clip
        ]
    ):
        before = gate.weights.now[0].item()
        forward, backward = step(gate, number, gradient, norm, squared_norm)
        assert (forward.norm, backward.squared_norm) == (norm, gradient**2 + squared_norm)
        assert before - gate.weights.now[0].item() == pytest.approx(moved, abs=1e-5)


def test_the_first_gate_sends_the_latest_norm_along_and_none_that_is_not_finite():
    gate = alone(index=0)
    sent = [step(gate, 0, 3.0, squared_norm=16.0)[0].norm]
    for number, squared_norm in enumerate([math.inf, math.nan, 0.0], 1):
        sent.append(step(gate, number, 2.0, squared_norm=squared_norm)[0].norm)
    sent.append(step(gate, 4, 0.0)[0].norm)
    assert sent == [0.0, 5.0, 5.0, 2.0, 2.0]


def test_a_gradient_whose_norm_overflows_moves_nothing_and_is_forgotten():
    recipe = ak.Gate(nn.Linear(32, 1, bias=False), lambda params: torch.optim.SGD(params, lr=1.0))
    gate = gate_actor(recipe, Position("gate/0", 0, next="gate/1", clip_norm=1.0))
    before, x = gate.weights.now[0].detach().clone(), torch.ones(1, 32)
    forward, backward = Forward(Batch("s", 0), x), Backward(Batch("s", 0), torch.full((1, 1), 1e38))
    assert sends(do(gate, forward, backward))[1].squared_norm == math.inf
    assert torch.equal(gate.weights.now[0], before)
    assert sends(do(gate, Forward(Batch("s", 1), x)))[0].norm == 0.0


def test_a_refused_batch_leaves_the_norm_as_it_was():
    network, batches = network_of(), batches_of(8)
    spoilt = [*batches[:3], (torch.full((8, 6), torch.nan), batches[0][1]), *batches[3:]]
    assert same_bits(trained(network, spoilt), plain(network.module(), batches))


def test_a_gate_that_does_not_learn_passes_the_norm_on():
    torch.manual_seed(0)
    parts = [nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Linear(9, 4)]
    gates = [ak.Gate(part, sgd if i in (0, 3) else None) for i, part in enumerate(parts)]
    network, batches = ak.Network(gates, clip_whole_norm=MAX_NORM), batches_of(8)
    ours = trained(network, batches)
    model = network.module()
    model[2].requires_grad_(False)
    learning = [model[0], model[3]]
    optimizer, latest = sgd([*model[0].parameters(), *model[3].parameters()]), 0.0
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
        squared = 0.0
        for part in reversed(learning):
            gradients = [parameter.grad for parameter in part.parameters()]
            squared += nn.utils.get_total_norm(gradients).item() ** 2
            known = torch.tensor(max(latest, math.sqrt(squared)))
            for gradient in gradients:
                gradient.mul_(torch.clamp(MAX_NORM / (known + 1e-6), max=1.0))
        latest = math.sqrt(squared)
        optimizer.step()
        optimizer.zero_grad()
    assert same_bits(ours, model)


def test_a_first_gate_that_is_left_alone_in_its_row_goes_by_each_batch_itself():
    gate = alone(index=0)
    step(gate, 0, 3.0, squared_norm=16.0)
    do(gate, Rewire(("gate/0",)))
    assert step(gate, 1, 0.5)[0].norm == 0.0


def test_a_gate_that_is_frozen_for_now_adds_nothing():
    gate = alone()
    step(gate, 0, 2.0)
    do(gate, Change({"frozen": True}))
    assert step(gate, 1, 3.0, squared_norm=1.0)[1].squared_norm == 1.0
    do(gate, Change({"frozen": False}))
    assert step(gate, 2, 3.0, squared_norm=1.0)[1].squared_norm == 10.0


# ── kept and put back ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_taken_up_from_a_checkpoint_has_the_bits_of_one_that_never_stopped(accumulate):
    network, batches = network_of(accumulate=accumulate), batches_of(22)

    def trained_on(part, name, **resume):
        with ak.run(network, ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=name)).wait(timeout=WAIT_S)
            return session.checkpoint(), session.module()

    _, whole = trained_on(batches, "first")
    kept, _ = trained_on(batches[:10], "first")
    require_whole(kept)
    _, again = trained_on(batches[10:], "second", resume=kept)
    assert same_bits(again, whole)
    assert kept.stages["gate/0"].learner["clipping"]["whole_norm"] > 0


def test_a_first_gate_made_anew_has_the_norm_of_its_snapshot():
    gate = alone(index=0, snapshot_every=100)
    step(gate, 0, 3.0, squared_norm=16.0)
    (kept,) = reports(do(gate, Save()), StageSaved)
    assert step(alone(index=0, restored=kept.state), 1, 1.0)[0].norm == 5.0


def test_a_record_of_it_is_replayed_to_the_bit(tmp_path):
    def network():
        torch.manual_seed(1)
        return network_of()

    sentinel = ak.Sentinel.train(batches_of(10), F.cross_entropy, in_flight=3, name="a")
    with ak.run(network(), record=tmp_path / "record.gz") as session:
        session.attach(sentinel)
        session.wait(timeout=WAIT_S)
        states = session.states()
    replayed = ak.replay(tmp_path / "record.gz", network(), [sentinel])
    assert all(same_bits(states[gate], replayed.states[gate]) for gate in states)
    with pytest.raises(ak.AkkordeonError, match="Not as it was: the network's modules, weights or rules"):
        ak.replay(tmp_path / "record.gz", small_network(), [sentinel])


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_norm_and_replicas_are_refused_in_a_sentence():
    with pytest.raises(RecipeError, match="clip_whole_norm is above 0, got 0"):
        small_network(clip_whole_norm=0)
    with pytest.raises(RecipeError, match=r"clip_whole_norm=0\.3, and what is pushed is each gate's own"):
        ak.Downpour(network_of())
