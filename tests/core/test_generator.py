"""Who draws from the random generator of the process and who rewinds it, and turns at it."""

from __future__ import annotations

import cProfile
import sys
import threading

import pytest
import torch
from tests.support.harness import SIZE, WAIT_S, backward, batches_of, do, forward, gate_alone, sgd
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.numerics.generator import GeneratorObserver, GeneratorUse
from akkordeon.engines.threads.turns import Turns


class Checkpointed(nn.Module):
    """Runs again in the backward."""

    def __init__(self, p: float, reentrant: bool = False) -> None:
        super().__init__()
        self.linear, self.p, self.reentrant = nn.Linear(6, 6), p, reentrant

    def inner(self, x):
        return F.dropout(torch.tanh(self.linear(x)), self.p, training=self.p > 0)

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        (nn.Linear(6, 6), GeneratorUse.NONE),
        (nn.Sequential(nn.Linear(6, 6), ak.nn.Dropout(0.5)), GeneratorUse.NONE),
        (nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), GeneratorUse.DRAWS),
        (Checkpointed(0.0), GeneratorUse.REWINDS),
        (Checkpointed(0.5), GeneratorUse.ALONE),
        (Checkpointed(0.5, reentrant=True), GeneratorUse.ALONE),
    ],
    ids=["linear", "seeded dropout", "dropout", "checkpoint", "checkpointed dropout", "reentrant"],
)
def test_what_a_gate_does_with_the_generator_is_known_after_its_first_backward(module, use):
    gate = gate_alone(module)
    assert gate.generator_use is GeneratorUse.ALONE  # nobody knows yet
    do(gate, forward(0, torch.randn(SIZE, 6)), backward(0, torch.randn(SIZE, 6)))
    assert gate.generator_use is use


def test_a_checkpointed_module_that_begins_to_draw_is_noticed():
    gate = gate_alone(Checkpointed(0.0))
    do(gate, forward(0, torch.randn(SIZE, 6)), backward(0, torch.randn(SIZE, 6)))
    gate.module.p = 0.5
    do(gate, forward(1, torch.randn(SIZE, 6)))
    do(gate, backward(1, torch.randn(SIZE, 6)))
    assert gate.generator_use is GeneratorUse.ALONE


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (GeneratorUse.DRAWS, GeneratorUse.DRAWS, True),
        (GeneratorUse.REWINDS, GeneratorUse.REWINDS, True),
        (GeneratorUse.DRAWS, GeneratorUse.REWINDS, False),
        (GeneratorUse.ALONE, GeneratorUse.ALONE, False),
        (GeneratorUse.DRAWS, GeneratorUse.ALONE, False),
    ],
)
def test_those_of_one_use_are_in_together_and_others_wait_until_they_have_left(first, second, together):
    turns, inside = Turns(), threading.Event()
    turns.begin(first)

    def other():
        turns.begin(second)
        inside.set()
        turns.end()

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(WAIT_S if together else 0.05) is together
    turns.end()
    assert inside.wait(WAIT_S)
    thread.join(WAIT_S)


class Watched(Checkpointed):
    """Notes the mask of every run by its input."""

    masks: dict[tuple[float, ...], list[torch.Tensor]] = {}  # noqa: RUF012 - of all copies

    def inner(self, x):
        mask = F.dropout(torch.ones_like(x), 0.5)
        Watched.masks.setdefault(tuple(x[0].tolist()), []).append(mask)
        return self.linear(x) * mask


class Draws(nn.Linear):
    def forward(self, x):
        for _ in range(20):
            x = F.dropout(torch.tanh(super().forward(x)), 0.1)
        return x


def test_a_checkpoint_gives_its_masks_again_while_other_workers_draw():
    """It rewinds the generator of the process, under the feet of the others."""
    Watched.masks = {}
    network = ak.Network([ak.Gate(part, sgd) for part in (Watched(0.5), Draws(6, 6), nn.Linear(6, 4))])
    with ak.run(network, engine=ak.Threads(2)) as session:
        batches = batches_of(300, size=64)
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=4)).wait(WAIT_S)
    assert len(Watched.masks) == 300
    assert all(len(masks) == 2 and torch.equal(*masks) for masks in Watched.masks.values())


def test_a_profiler_that_is_at_work_is_left_alone_and_the_backward_taken_to_rewind():
    observer, profile = GeneratorObserver(), cProfile.Profile()
    profile.enable()
    try:
        assert observer.backward(lambda: 7) == 7
        assert sys.getprofile() is profile
    finally:
        profile.disable()
    assert observer.use is GeneratorUse.REWINDS
