"""Schedules by samples: pipeline/learning/schedule.py, and the gates that count them."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, sgd, small_network
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as schedulers

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.learning.schedule import moving
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
from akkordeon.session.recovery.state_check import require_whole

SIZES = (8, 3, 8, 8, 1, 5, 8, 8, 2, 8, 8, 4)
"""Of batches; 71 samples."""


def cosine(samples):
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, samples / 60))


def scheduled(params):
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    return optimizer, schedulers.LambdaLR(optimizer, cosine)


def uneven(sizes=SIZES):
    return [batches_of(1, size=size)[0] for size in sizes]


def plain(model, batches, accumulate=1):
    """The loop that sets the scheduler to the samples that it has learned from."""
    model = copy.deepcopy(model)
    optimizer, scheduler = scheduled(model.parameters())
    samples = 0
    for number, (x, y) in enumerate(batches, 1):
        (F.cross_entropy(model(x), y) / accumulate).backward()
        samples += len(y)
        if number % accumulate == 0:
            optimizer.step()
            scheduler.last_epoch = samples - 1
            scheduler.step()
            optimizer.zero_grad()
    return model


def network_of(**settings):
    return small_network().replacing(optimizer=scheduled, schedule_by="samples", **settings)


def trained(network, *parts, **run):
    with ak.run(network, **run) as session:
        for batches in parts:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        return session.module()


def counts(network, *sentinels):
    """The samples that the scheduler of each gate has counted in the end."""
    with ak.run(network) as session:
        for sentinel in sentinels:
            session.attach(sentinel)
        session.wait(timeout=WAIT_S)
        stages = session.checkpoint().stages.values()
        return [stage.learner["scheduler"]["last_epoch"] for stage in stages]


# ── trained ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_it_is_the_loop_that_sets_its_scheduler_to_the_samples_so_far_bit_for_bit(accumulate):
    network, batches = network_of(accumulate=accumulate), uneven()
    expected = plain(network.module(), batches, accumulate)
    assert same_bits(trained(network, batches), expected)
    assert same_bits(trained(network, batches[:5], batches[5:]), expected)
    by_updates = network.replacing(schedule_by="updates")
    assert not same_bits(trained(by_updates, batches), expected)


def test_gates_count_what_the_sentinel_counts_whatever_travels_between_them():
    class TimeFirst(nn.Module):
        def forward(self, x):
            return self.layer(x).transpose(0, 1).reshape(-1, 9)

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 9)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(9, 4)

        def forward(self, x):
            return self.layer(x).reshape(5, -1, 4).mean(0)

    gates = [ak.Gate(part, scheduled, schedule_by="samples") for part in (TimeFirst(), Mean())]
    batches = [(torch.randn(size, 5, 6), torch.randint(4, (size,))) for size in SIZES]
    network = ak.Network(gates)
    assert counts(network, ak.Sentinel.train(batches, F.cross_entropy)) == [71, 71]
    assert same_bits(trained(network, batches), plain(network.module(), batches))


def test_a_cut_module_and_one_gate_among_others_can_have_it():
    model, batches = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), uneven()
    cut = ak.Network.from_module(
        model, optimizer=scheduled, schedule_by="samples", example=batches[0][0], cut_before=["2"]
    )
    assert same_bits(trained(cut, batches), plain(model, batches))
    mixed = [ak.Gate(model[:2], scheduled), ak.Gate(model[2], scheduled, schedule_by="samples")]
    assert counts(ak.Network(mixed), ak.Sentinel.train(batches, F.cross_entropy)) == [len(SIZES), 71]


def test_all_sentinels_count_together_and_refused_batches_do_not():
    batches = uneven()
    spoilt = [*batches[:3], (torch.full((7, 6), torch.nan), torch.zeros(7).long()), *batches[3:]]
    sentinels = [ak.Sentinel.train(each, F.cross_entropy, in_flight=3) for each in (batches, spoilt)]
    assert counts(network_of(), *sentinels) == [142] * 3


def test_a_stream_counts_its_examples():
    x, y = torch.randn(20, 6), torch.randint(4, (20,))
    stream = ak.Sentinel.stream((x, y), F.cross_entropy)
    assert counts(network_of(), stream) == [20] * 3


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_taken_up_from_a_checkpoint_has_the_bits_of_one_that_never_stopped(accumulate):
    network, batches = network_of(accumulate=accumulate), uneven()

    def trained_on(part, name, network=network, **resume):
        with ak.run(network, ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=name)).wait(timeout=WAIT_S)
            return session.checkpoint(), session.module()

    _, whole = trained_on(batches, "first")
    kept, _ = trained_on(batches[:6], "first")
    require_whole(kept)
    _, again = trained_on(batches[6:], "second", resume=kept)
    assert same_bits(again, whole)
    with pytest.raises(RecipeError, match="the scheduler LambdaLR by samples, and its recipe has LambdaLR;"):
        trained_on(batches[6:], "second", resume=kept, network=network.replacing(schedule_by="updates"))


def by_milestones(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    return optimizer, schedulers.MultiStepLR(optimizer, [20, 50])


def to_milestones(params):
    optimizer = torch.optim.SGD(params, lr=0.1)
    parts = [schedulers.ConstantLR(optimizer, 0.5, 8), schedulers.MultiStepLR(optimizer, [2])]
    return optimizer, schedulers.SequentialLR(optimizer, parts, [8])


@pytest.mark.parametrize(("optimizer", "by"), [(by_milestones, "samples"), (to_milestones, "updates")])
def test_milestones_are_still_counted_when_a_run_is_taken_up(optimizer, by, tmp_path):
    """As plain data they were a dict, and the gates failed at the next one: a dict has no elements()."""
    network, batches = small_network().replacing(optimizer=optimizer, schedule_by=by), uneven()

    def trained_on(part, name, **resume):
        with ak.run(network, ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=name)).wait(timeout=WAIT_S)
            return session.checkpoint(tmp_path), session.module()

    _, whole = trained_on(batches, "whole")
    kept, _ = trained_on(batches[:6], "first")
    for start in (kept, CheckpointFolder.inside(tmp_path).latest()):
        _, again = trained_on(batches[6:], "second", resume=start)
        assert same_bits(again, whole)


# ── which schedulers ─────────────────────────────────────────────────────────────────────────────────

WITH_A_FORMULA = {
    "LambdaLR": lambda optimizer: schedulers.LambdaLR(optimizer, cosine),
    "StepLR": lambda optimizer: schedulers.StepLR(optimizer, 20, gamma=0.5),
    "MultiStepLR": lambda optimizer: schedulers.MultiStepLR(optimizer, [20, 50]),
    "ConstantLR": lambda optimizer: schedulers.ConstantLR(optimizer, 0.5, 20),
    "LinearLR": lambda optimizer: schedulers.LinearLR(optimizer, 0.1, total_iters=50),
    "ExponentialLR": lambda optimizer: schedulers.ExponentialLR(optimizer, 0.98),
    "PolynomialLR": lambda optimizer: schedulers.PolynomialLR(optimizer, 60, 2.0),
    "CosineAnnealingLR": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 80),
    "CosineAnnealingWarmRestarts": lambda optimizer: schedulers.CosineAnnealingWarmRestarts(optimizer, 20, 2),
    "CyclicLR": lambda optimizer: schedulers.CyclicLR(optimizer, 0.01, 0.2, 15),
    "OneCycleLR": lambda optimizer: schedulers.OneCycleLR(optimizer, 0.2, total_steps=71),
}
FROM_STEP_TO_STEP = {
    "MultiplicativeLR": lambda optimizer: schedulers.MultiplicativeLR(optimizer, lambda step: 0.9),
    "SequentialLR": lambda optimizer: schedulers.SequentialLR(
        optimizer, [schedulers.ConstantLR(optimizer), schedulers.ExponentialLR(optimizer, 0.9)], [20]
    ),
    "ReduceLROnPlateau": schedulers.ReduceLROnPlateau,
}


@pytest.mark.parametrize("name", WITH_A_FORMULA)
def test_it_is_where_so_many_steps_would_have_taken_it(name):
    def made():
        optimizer = sgd([nn.Parameter(torch.zeros(1))])
        scheduler = WITH_A_FORMULA[name](optimizer)
        optimizer.step()  # PyTorch warns where no step came before the scheduler's
        return scheduler, optimizer.param_groups[0]

    (ours, group), (stepped, expected) = made(), made()
    move = moving(ours, True, "gate/1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in SIZES:
            move(size)
            for _ in range(size):
                stepped.step()
            for setting in ("lr", "momentum"):
                assert group[setting] == pytest.approx(expected[setting], rel=1e-6)
    assert ours.last_epoch == sum(SIZES)


@pytest.mark.parametrize("name", FROM_STEP_TO_STEP)
def test_one_that_goes_from_step_to_step_is_refused_in_a_sentence(name):
    def factory(params):
        optimizer = sgd(params)
        return optimizer, FROM_STEP_TO_STEP[name](optimizer)

    network = small_network().replacing(optimizer=factory, schedule_by="samples")
    sentence = f"the scheduler of gate/0 is {name}, which goes from one step to the next and cannot be set"
    with pytest.raises(RecipeError, match=sentence):
        ak.run(network).close()


def test_other_words_and_replicas_are_refused_in_a_sentence():
    with pytest.raises(RecipeError, match="schedule_by is 'updates' or 'samples', got 'epochs'"):
        small_network().replacing(schedule_by="epochs")
    with pytest.raises(
        RecipeError, match="gate 0 has schedule_by='samples', and the gates of replicas count"
    ):
        ak.Downpour(network_of())
