"""A gate that goes on before it knows, on a CPU that passes for a device that is behind."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

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
    same_bits,
    sends,
    small_network,
)
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError, SentinelFailedError
from akkordeon.core.messages import Backward, Batch, Fault, Forget, Forward, Probe, Refused
from akkordeon.core.numerics import later
from akkordeon.core.numerics.later import Later, found_not_finite
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.surgery.messages import Change
from akkordeon.pipeline.devices import ahead_gate
from akkordeon.pipeline.devices.ahead_gate import AheadGate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning import kinds
from akkordeon.pipeline.stage import Position
from akkordeon.sentinels import loss
from akkordeon.sentinels.scores import COMING_MAX, ScoreBoard
from akkordeon.session.streams.live_row import LiveRow

WHERE = Position("gate/1", 1, "gate/0", "gate/2")
FUSED = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.05, fused=True),
}


@pytest.fixture(params=FUSED)
def make(request):
    return FUSED[request.param]


class NotYet(Later):
    """A number that the device has not computed, until somebody lets it."""

    held = True

    @property
    def is_here(self) -> bool:
        return not self.held


@pytest.fixture
def _behind(monkeypatch):
    monkeypatch.setattr(ahead_gate, "is_behind", lambda tensor: True)
    monkeypatch.setattr(NotYet, "held", True)
    monkeypatch.setattr(ahead_gate, "Later", NotYet)


def of_both(make, **recipe) -> tuple[AheadGate, GateActor]:
    torch.manual_seed(0)
    gate = ak.Gate(nn.Linear(6, 4), make, **recipe)
    return AheadGate(gate, WHERE), GateActor(gate, WHERE)


def trained(gate: GateActor, *numbers: int, bad: tuple[int, ...] = ()) -> list:
    """What it answers to whole batches, of which some have gradients that are not finite."""
    effects = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        x, g = torch.randn(SIZE, 6, generator=generator), torch.randn(SIZE, 4, generator=generator)
        if number in bad:
            g[0, 0] = float("nan")
        effects += do(gate, forward(number, x), backward(number, g))
    return effects


@pytest.mark.usefixtures("_behind")
def test_it_learns_to_the_bit_what_a_gate_on_a_cpu_learns(make):
    ahead, gate = of_both(make)
    for one in (ahead, gate):
        trained(one, 0, 1, 2, 3)
    assert same_bits(ahead.module, gate.module)
    assert ahead.version == gate.version == 4


@pytest.mark.usefixtures("_behind")
def test_a_batch_whose_gradient_is_not_finite_changes_nothing_and_is_refused_when_that_is_known(make):
    ahead, gate = of_both(make)
    effects = trained(ahead, 0, 1, 2, 3, bad=(2,))
    trained(gate, 0, 1, 3)
    assert sends(effects, Refused) == []
    assert [m.batch.number for m in sends(effects, Backward)] == [0, 1, 2, 3]
    assert same_bits(ahead.module, gate.module)
    NotYet.held = False
    (refused,) = sends(trained(ahead, 4), Refused)
    assert (refused.batch, refused.fault) == (Batch("s", 2), Fault.NOT_FINITE)
    trained(gate, 4)
    assert same_bits(ahead.module, gate.module)


@pytest.mark.usefixtures("_behind")
def test_whoever_asks_something_else_of_it_finds_all_known(make):
    ahead, _ = of_both(make)
    trained(ahead, 0, 1, bad=(1,))
    assert [m.batch.number for m in sends(do(ahead, Probe("asker")), Refused)] == [1]


@pytest.mark.usefixtures("_behind")
def test_a_snapshot_is_left_when_all_is_known_that_it_counts_as_learned(make):
    gate = ak.Gate(nn.Linear(6, 4), make)
    ahead = AheadGate(gate, replace(WHERE, snapshot_every=2))
    trained(ahead, 0)
    _, passed, refused, saved = trained(ahead, 1, bad=(1,))
    assert isinstance(passed.message, Backward)
    assert refused.message.batch == Batch("s", 1)
    assert isinstance(saved.record, StageSaved)


@pytest.mark.usefixtures("_behind")
def test_the_first_update_is_waited_for(make):
    ahead, _ = of_both(make)
    was = bits(ahead.module)
    (refused,) = sends(trained(ahead, 0, bad=(0,)), Refused)
    assert refused.fault is Fault.NOT_FINITE
    assert same_bits(ahead.module, was)
    assert ahead.version == 0


@pytest.mark.usefixtures("_behind")
@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (partial(torch.optim.SGD, lr=0.05), {}),
        (FUSED["adamw"], {"ema": 0.9}),
        (FUSED["adamw"], {"staleness": ak.DelayCompensation("adaptive")}),
    ],
)
def test_where_more_than_a_fused_optimizer_takes_part_every_update_is_waited_for(make, recipe):
    ahead, _ = of_both(make, **recipe)
    assert [m.batch.number for m in sends(trained(ahead, 0, 1, 2, bad=(1,)), Refused)] == [1]
    assert ahead.version == 2


def test_inputs_of_the_host_are_looked_at_before_they_go_to_the_device(make):
    ahead, _ = of_both(make)
    trained(ahead, 0)
    effects = do(ahead, forward(1, torch.full((SIZE, 6), float("inf"))))
    (refused,) = sends(effects, Refused)
    assert (refused.fault, sends(effects, Forward)) == (Fault.NOT_FINITE, [])
    assert not ahead.stash


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_finite_is_found_in_tensors_of_several_dtypes_which_stay_as_they_are(value, dtype):
    some = [torch.randn(3, 2), None, torch.randn(5).to(dtype)]
    was = [None if t is None else t.clone() for t in some]
    assert found_not_finite(some).item() == 0
    assert all(t is None or torch.equal(t, w) for t, w in zip(some, was, strict=True))
    some[2][3] = value
    assert found_not_finite(some).item() == 1
    assert found_not_finite([None]) is None


def test_what_is_not_finite_is_found_in_complex_gradients():
    assert found_not_finite([torch.ones(2, dtype=torch.complex64)]).item() == 0
    assert found_not_finite([torch.tensor([1, complex(0, float("nan"))])]).item() == 1


class OnSecondGpu(torch.Tensor):
    """A number that says it is there."""

    device = property(lambda self: torch.device("cuda:1"))


def test_a_number_has_come_when_the_device_is_past_it_that_computes_it(monkeypatch):
    recorded = []
    event = SimpleNamespace(record=lambda *stream: recorded.extend(stream), synchronize=lambda: None)
    cuda = SimpleNamespace(Event=lambda: event, current_stream=lambda device=None: f"stream of {device}")
    memory = SimpleNamespace(cuda=cuda, empty=lambda *size, pin_memory, **how: torch.empty(*size, **how))
    monkeypatch.setattr(later, "torch", memory)
    monkeypatch.setattr(later, "is_behind", lambda tensor: True)
    assert Later(torch.tensor(3.0).as_subclass(OnSecondGpu)).get() == 3
    assert recorded == ["stream of cuda:1"]


def test_all_that_is_dense_can_be_copied_to_where_a_device_fetches_it(monkeypatch):
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, pin_memory: empty_like(tensor))
    spread, part = torch.arange(3).expand(4, 3), torch.randn(6, 5)[:, 1:3]
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for some in (spread, part, images, torch.tensor(2.0), torch.empty(0, 3)):
        assert torch.equal(later._pinned(some), some)
    assert later._pinned(images).stride() == images.stride()


def test_a_module_on_several_devices_stays_where_it_is():
    there = nn.Linear(2, 2, device="meta")
    assert ak.Gate(there, None).lives_on == torch.device("meta")
    for parts in ((there, nn.Linear(2, 2)), (nn.Linear(2, 2), there), (nn.Linear(2, 2),), ()):
        assert ak.Gate(nn.Sequential(*parts), None).lives_on is None


def test_a_loss_that_comes_later_counts_when_somebody_asks_and_is_left_out_if_it_is_not_finite(monkeypatch):
    board = ScoreBoard({"half": lambda outputs, y: outputs / 2}, finite_only=True)
    for number in (1.0, float("nan"), 3.0):
        board.add(torch.tensor(number), torch.tensor(number), None, 2)
    assert (board.samples, board.loss, board.scores()) == (4, 2.0, {"half": 1.0})
    for _ in range(3 * COMING_MAX):
        board.add(torch.tensor(5.0), torch.tensor(4.0), None, 1)
        assert len(board._coming) < COMING_MAX
    assert board.window()[0] == pytest.approx((8.0 + 15 * COMING_MAX) / (4 + 3 * COMING_MAX))


def test_what_was_read_counts_once_though_a_score_after_it_is_no_number():
    board = ScoreBoard({"itself": lambda outputs, y: outputs}, finite_only=True)
    board.add(torch.tensor(1.0), torch.tensor(1.0), None, 2)
    board.add(torch.tensor(1.0), torch.ones(2), None, 2)
    with pytest.raises(RecipeError, match="must be one number"):
        board.sums()
    assert board.samples == 4


def test_on_a_cpu_nothing_is_behind():
    assert not later.is_behind(torch.zeros(2))
    assert later.now_or_later(torch.tensor(2.5, requires_grad=True)) == 2.5


def two_groups(params):
    first, second = list(params)[:2], list(params)[2:]
    return torch.optim.SGD([{"params": first}, {"params": second}], lr=0.05, momentum=0.9, fused=True)


class Branches(nn.Module):
    """Two layers, of which the second is for inputs above zero alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        return self.first(x) + self.second(x) if bool(x.min() > 0) else self.first(x)


@pytest.mark.usefixtures("_behind")
def test_the_first_update_of_each_parameter_is_waited_for():
    ahead = AheadGate(ak.Gate(Branches(), two_groups), WHERE)
    trained(ahead, 0, 1)
    nan = torch.full((SIZE, 4), float("nan"))
    effects = do(ahead, forward(2, torch.rand(SIZE, 6) + 1), backward(2, nan))
    assert [m.batch.number for m in sends(effects, Refused)] == [2]


@pytest.mark.usefixtures("_behind")
def test_an_optimizer_that_begins_again_is_waited_for():
    ahead = AheadGate(ak.Gate(nn.Linear(6, 4), FUSED["sgd"]), WHERE)
    trained(ahead, 0, 1)
    effects = do(ahead, Change({"reset_optimizer": True})) + trained(ahead, 2, bad=(2,))
    assert [m.batch.number for m in sends(effects, Refused)] == [2]


@pytest.mark.usefixtures("_behind")
def test_a_rule_that_may_have_gradients_run_over_is_waited_for(make):
    ahead, _ = of_both(make, staleness=ak.DelayCompensation("constant"))
    trained(ahead, 0)
    huge = torch.full((SIZE, 4), 1e25)
    do(ahead, forward(1, torch.ones(SIZE, 6)), forward(2, torch.ones(SIZE, 6)), backward(1, huge / 1e25))
    effects = do(ahead, backward(2, huge))
    assert [m.batch.number for m in sends(effects, Refused)] == [2]
    assert all(weight.isfinite().all() for weight in ahead.module.parameters())


def test_what_is_no_batch_is_refused_as_on_a_cpu_and_what_is_forgotten_is_dropped(make):
    ahead, gate = of_both(make)
    nan = torch.full((SIZE, 6), float("nan"))
    for message in (Forward(None, nan), Forward(Batch("s", 0), 3), Forward(Batch("s", 0), [nan, 3])):
        assert len(do(ahead, message)) == len(do(gate, message)) == 1
    assert do(ahead, Forget("s", 7), forward(7, nan)) == []


@pytest.mark.usefixtures("_behind")
@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_sentinel_hears_of_its_last_batches_too_before_it_ends(monkeypatch, in_flight):
    monkeypatch.setattr(kinds, "GateActor", AheadGate)
    monkeypatch.setattr(loss, "now_or_later", torch.Tensor.detach)
    batches = batches_of(12)
    batches[-1][1].fill_(3)

    def judged(outputs, y):
        return nn.functional.cross_entropy(outputs, y) * (float("nan") if bool((y == 3).all()) else 1.0)

    network = small_network().replacing(optimizer=FUSED["sgd"])
    with ak.run(network, engine=ak.Simulator(seed=1)) as session:
        attachment = session.attach(ak.Sentinel.train(batches, judged, in_flight=in_flight))
        ended = attachment.wait(timeout=WAIT_S)
    assert (ended.batches.trained, ended.batches.refused) == (11, 1)


@pytest.mark.usefixtures("_behind")
def test_a_row_that_learns_by_the_call_refuses_the_batch_itself_and_learns_all_of_the_next(monkeypatch):
    batches, network = batches_of(6), small_network().replacing(optimizer=FUSED["sgd"])

    def learned():
        row, refused = LiveRow(network), []
        for number, (x, y) in enumerate(batches):
            factor = float("nan") if number == 3 else 1.0
            try:
                row.learn(x, y, lambda outputs, y, by=factor: by * nn.functional.cross_entropy(outputs, y))
            except DataError:
                refused.append(number)
        return refused, row.module()

    on_cpu = learned()
    monkeypatch.setattr(kinds, "GateActor", AheadGate)
    refused, module = learned()
    assert refused == on_cpu[0] == [3]
    assert same_bits(module, on_cpu[1])


class InBursts(Later):
    """A number that comes with 19 others."""

    made = 0

    def __init__(self, number) -> None:
        super().__init__(number)
        InBursts.made += 1
        self._burst = self.made // 20

    @property
    def is_here(self) -> bool:
        return self.made // 20 > self._burst


@pytest.mark.usefixtures("_behind")
def test_training_that_diverges_ends_early_though_many_batches_are_refused_at_a_time(monkeypatch):
    """Two that came back in between were taken for trained, and it went on to the end of the data."""
    monkeypatch.setattr(ahead_gate, "Later", InBursts)
    monkeypatch.setattr(kinds, "GateActor", AheadGate)
    monkeypatch.setattr(loss, "now_or_later", torch.Tensor.detach)
    judged_so_far = itertools.count()

    def judged(outputs, y):
        return nn.functional.cross_entropy(outputs, y) * (1.0 if next(judged_so_far) < 20 else float("nan"))

    network = small_network().replacing(optimizer=FUSED["sgd"])
    with ak.run(network, engine=ak.Simulator(seed=1)) as session:
        attachment = session.attach(ak.Sentinel.train(batches_of(1000), judged, in_flight=4))
        with pytest.raises(SentinelFailedError, match="in a row were refused"):
            attachment.wait(timeout=WAIT_S)
    assert next(judged_so_far) < 100
