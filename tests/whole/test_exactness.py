"""One batch in flight is the plain PyTorch loop, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.experiments.presets import optimizer_named

STEPS = 200
SIZE = 8


def plain_loop(parts, factories, batches, loss, clip_norm=None):
    """The loop everybody writes, with one optimizer and one clipped norm per part."""
    parts = [copy.deepcopy(part).train() for part in parts]
    made = [
        factory(list(part.parameters())) if factory else None
        for part, factory in zip(parts, factories, strict=False)
    ]
    made = [m if isinstance(m, tuple) else (m, None) for m in made]
    for x, y in batches:
        for optimizer, _ in made:
            if optimizer:
                optimizer.zero_grad()
        out = x
        for part in parts:
            out = part(out)
        loss(out, y).backward()
        for part, (optimizer, scheduler) in zip(parts, made, strict=False):
            if clip_norm is not None and optimizer:
                nn.utils.clip_grad_norm_(part.parameters(), clip_norm)
            if optimizer:
                optimizer.step()
            if scheduler:
                scheduler.step()
    return nn.Sequential(*parts)


def ours(parts, factories, batches, loss, clip_norm=None, workers=2, in_flight=1, validators=0):
    gates = [
        ak.Gate(part, factory, clip_norm=clip_norm) for part, factory in zip(parts, factories, strict=False)
    ]
    with ak.run(ak.Network(gates), engine=ak.Threads(workers)) as session:
        for _ in range(validators):
            session.attach(ak.Sentinel.validate(batches[:3], loss, every_updates=7))
        session.attach(ak.Sentinel.train(batches, loss, in_flight=in_flight))
        session.wait(timeout=60)
        return session.module()


def assert_equal_bits(module: nn.Module, expected: nn.Module) -> None:
    state, wanted = module.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name


def regression(steps=STEPS):
    return [(torch.randn(SIZE, 6), torch.randint(4, (SIZE,))) for _ in range(steps)]


def mlp(*between):
    return [
        nn.Sequential(nn.Linear(6, 9), *between, nn.ReLU()),
        nn.Sequential(nn.Linear(9, 7), nn.Tanh()),
        nn.Linear(7, 4),
    ]


def adamw_with_scheduler(params):
    optimizer = torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.5)


OPTIMIZERS = {
    "sgd": (lambda params: torch.optim.SGD(params, lr=0.1), None),
    "momentum and weight decay": (
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
        None,
    ),
    "adam": (lambda params: torch.optim.Adam(params, lr=1e-2), None),
    "adam of the presets, which is fused": (optimizer_named("adam"), None),
    "adamw with clipping and a scheduler": (adamw_with_scheduler, 0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_batch_in_flight_equals_the_plain_loop(name):
    factory, clip_norm = OPTIMIZERS[name]
    parts, batches = mlp(), regression()
    expected = plain_loop(parts, [factory] * 3, batches, F.cross_entropy, clip_norm)
    assert_equal_bits(ours(parts, [factory] * 3, batches, F.cross_entropy, clip_norm), expected)


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def test_it_does_with_batch_norm_and_its_running_statistics():
    parts, batches = mlp(nn.BatchNorm1d(9)), regression()
    expected = plain_loop(parts, [sgd] * 3, batches, F.cross_entropy)
    assert_equal_bits(ours(parts, [sgd] * 3, batches, F.cross_entropy), expected)


def test_it_does_with_an_embedding():
    parts = [nn.Sequential(nn.Embedding(11, 5), nn.Flatten()), nn.Linear(15, 4)]
    batches = [(torch.randint(11, (SIZE, 3)), torch.randint(4, (SIZE,))) for _ in range(STEPS)]
    expected = plain_loop(parts, [sgd] * 2, batches, F.cross_entropy)
    assert_equal_bits(ours(parts, [sgd] * 2, batches, F.cross_entropy), expected)


class WithUnused(nn.Module):
    """A parameter that never gets a gradient, and one that only sometimes does."""

    def __init__(self):
        super().__init__()
        self.linear, self.unused = nn.Linear(6, 7), nn.Linear(6, 7)
        self.sometimes = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y + self.sometimes if x[0, 0] > 0 else y


def test_it_does_with_an_unused_parameter_under_momentum_and_weight_decay():
    def factory(params):
        return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1)

    parts, batches = [WithUnused(), nn.Linear(7, 4)], regression()
    expected = plain_loop(parts, [factory] * 2, batches, F.cross_entropy)
    assert_equal_bits(ours(parts, [factory] * 2, batches, F.cross_entropy), expected)


def test_it_does_with_one_gate_and_with_gates_that_have_no_parameters():
    parts, batches = [nn.Flatten(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)], regression()
    factories = [None, sgd, None, sgd]
    expected = plain_loop(parts, factories, batches, F.cross_entropy)
    assert_equal_bits(ours(parts, factories, batches, F.cross_entropy), expected)
    one = [nn.Sequential(*parts)]
    assert_equal_bits(
        ours(one, [sgd], batches, F.cross_entropy), plain_loop(one, [sgd], batches, F.cross_entropy)
    )


def test_it_does_with_recurrent_weights():
    class Last(nn.Module):
        def forward(self, x):
            return x[0][:, -1]

    parts = [nn.LSTM(6, 5, batch_first=True), nn.Sequential(Last(), nn.Linear(5, 4))]
    batches = [(torch.randn(SIZE, 3, 6), torch.randint(4, (SIZE,))) for _ in range(50)]

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = copy.deepcopy(parts)

        def forward(self, x):
            return self.head(self.lstm(x))

    one = [Whole()]
    assert_equal_bits(
        ours(one, [sgd], batches, F.cross_entropy), plain_loop(one, [sgd], batches, F.cross_entropy)
    )


def test_validators_change_no_bit_of_one_trainer_with_one_batch_in_flight():
    parts, batches = mlp(nn.BatchNorm1d(9), ak.nn.Dropout(0.3)), regression()
    alone = ours(parts, [sgd] * 3, batches, F.cross_entropy)
    validated = ours(parts, [sgd] * 3, batches, F.cross_entropy, validators=2)
    assert_equal_bits(validated, alone)


def test_many_in_flight_on_one_worker_is_repeatable_to_the_bit():
    parts, batches = mlp(ak.nn.Dropout(0.3)), regression()
    runs = [ours(parts, [sgd] * 3, batches, F.cross_entropy, workers=1, in_flight=5) for _ in range(2)]
    assert_equal_bits(runs[0], runs[1])


def test_a_recipe_starts_equal_each_time_it_is_run():
    parts, batches = mlp(), regression(20)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    ours(parts, [sgd] * 3, batches, F.cross_entropy)
    for part, state in zip(parts, before, strict=False):
        assert all(torch.equal(part.state_dict()[name], state[name]) for name in state)


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────


class Named(nn.Module):
    """Gives a dict, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": self.inside(x)}


def overwrites(outputs, y):
    outputs["logits"] = outputs["logits"] / 10.0
    return F.cross_entropy(outputs["logits"], y)


def adds_a_key(outputs, y):
    outputs["p"] = outputs["logits"].softmax(1)
    return F.nll_loss(outputs["p"].log(), y)


def takes_a_key_out(outputs, y):
    return F.cross_entropy(outputs.pop("logits"), y)


def clamps(outputs, y):
    return F.cross_entropy(outputs.clamp_(-0.3, 0.3), y)


def sums(outputs, y):
    return F.cross_entropy(outputs, y, reduction="sum")


def of_shape_one(outputs, y):
    return F.cross_entropy(outputs, y)[None]


def in_double(outputs, y):
    return F.cross_entropy(outputs.double(), y)


class InPart(nn.Linear):
    """Gives a part of what it computed, whose rows do not lie one after the other."""

    def forward(self, x):
        return super().forward(x)[:, :33]


class Spread(nn.Linear):
    """Gives one column as many, which lie in one place."""

    def forward(self, x):
        return super().forward(x).expand(-1, 33)


def length(outputs, y):
    return outputs.norm() + (outputs.std() - y.sum()) ** 2


LOSSES = [
    (lambda: InPart(6, 64), length),
    (lambda: Spread(6, 1), length),
    (Named, overwrites),
    (Named, adds_a_key),
    (Named, takes_a_key_out),
    *((lambda: nn.Linear(6, 4), loss) for loss in (clamps, sums, of_shape_one, in_double)),
]


@pytest.mark.parametrize(("part", "loss"), LOSSES, ids=[loss.__name__ for _, loss in LOSSES])
def test_a_loss_may_do_with_its_outputs_what_it_may_in_a_plain_loop(part, loss):
    parts, batches = [part()], regression()
    expected = plain_loop(copy.deepcopy(parts), [sgd], batches, loss)
    assert_equal_bits(ours(parts, [sgd], batches, loss, validators=1), expected)


@pytest.mark.parametrize("engine", [lambda: ak.Threads(1), ak.Simulator])
def test_scores_see_outputs_that_no_loss_has_written_into(engine):
    seen = []

    def spy(outputs, y):
        seen.append(outputs)
        return 0.0

    x, y = torch.randn(8, 6), torch.randint(4, (8,))
    with ak.run(ak.Network([ak.Gate(nn.Linear(6, 4), sgd)]), engine=engine()) as session:
        before = session.predict(x)
        session.attach(ak.Sentinel.train([(x, y)], clamps, scores={"spy": spy})).wait(60)
        after = session.predict(x)
        session.attach(ak.Sentinel.test([(x, y)], clamps, scores={"spy": spy})).wait(60)
    assert before.abs().max() > 0.3
    assert torch.equal(seen[0], before)
    assert torch.equal(seen[1], after)
