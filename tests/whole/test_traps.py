"""What PyTorch does to the unwary, and what must not happen because of it.

Each test has been seen to fail: without the line of the package that it guards, it does.
"""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext

import pytest
import torch
from tests.support.harness import breaking
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import akkordeon as ak
from akkordeon.core.errors import ForeignParameterError, GateFailedError, SentinelFailedError
from akkordeon.core.messages import Backward, Batch, Cut, CutId, Evaluate, Forward
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.updater import clipped

SIZE = 8


def sgd(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1)


def batches_of(n, features=6, classes=4):
    return [(torch.randn(SIZE, features), torch.randint(classes, (SIZE,))) for _ in range(n)]


def trained(parts, batches, in_flight=1, optimizer=sgd, loss=F.cross_entropy, validate=None):
    """Train a row for one epoch; its modules, and what became of the batches."""
    network = ak.Network([ak.Gate(part, optimizer) for part in parts])
    with ak.run(network, engine=ak.Threads(workers=1)) as session:
        if validate is not None:
            session.attach(ak.Sentinel.validate(validate, loss, every_updates=1))
        training = session.attach(ak.Sentinel.train(batches, loss, in_flight=in_flight))
        session.wait(timeout=60)
        return session.module(), training


def plainly(parts, batches, optimizer=sgd, loss=F.cross_entropy):
    """The same in the loop everybody writes."""
    parts = [copy.deepcopy(part).train() for part in parts]
    optimizers = [optimizer(part.parameters()) for part in parts]
    for x, y in batches:
        for each in optimizers:
            each.zero_grad()
        out = x
        for part in parts:
            out = part(out)
        loss(out, y).backward()
        for each in optimizers:
            each.step()
    return nn.Sequential(*parts)


def same_bits(module, expected):
    state, wanted = module.state_dict(), expected.state_dict()
    return all(torch.equal(state[name], wanted[name]) for name in wanted)


def bits(module):
    return copy.deepcopy(module.state_dict())


# ── gradients that are the same tensor as a message ──────────────────────────────────────────────────


class Shift(nn.Module):
    """x + p + q: the gradient of the input, of p and of q are one and the same tensor."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(SIZE, 5)), nn.Parameter(torch.randn(SIZE, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p + self.q


class Twins(nn.Module):
    """x · (p + q): the gradients of p and q are one tensor, which is sent to nobody."""

    def __init__(self):
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(SIZE, 5)), nn.Parameter(torch.randn(SIZE, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.p + self.q)


class Vandal(torch.optim.SGD):
    """Plain SGD that leaves nothing of the gradients it was given."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
                    parameter.grad.fill_(1e6)


def test_an_optimizer_that_works_in_place_on_its_gradients_corrupts_no_message():
    parts, batches = [nn.Linear(6, 5), Shift(), Twins(), nn.Linear(5, 4)], batches_of(20)
    module, _ = trained(parts, batches, optimizer=lambda params: Vandal(params, lr=0.05))
    assert same_bits(module, plainly(parts, batches, lambda params: torch.optim.SGD(params, lr=0.05)))


RULES = {
    "stash": ak.Stash(),
    "latest": ak.Latest(),
    "constant delay compensation": ak.DelayCompensation("constant"),
    "adaptive delay compensation": ak.DelayCompensation("adaptive"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("staleness", [0, 2])
def test_a_rule_writes_to_nothing_that_it_is_given(rule, staleness):
    gradient, now, then = (torch.randn(5, 3) for _ in range(3))
    was = [tensor.clone() for tensor in (gradient, now, then)]
    RULES[rule].correct([gradient], [now], [then], staleness, RULES[rule].initial([now]))
    assert all(torch.equal(tensor, before) for tensor, before in zip((gradient, now, then), was, strict=True))


def test_clipping_writes_to_no_gradient():
    gradient = torch.randn(5, 3)
    was = gradient.clone()
    (shorter,) = clipped([gradient], 0.1)
    assert shorter.norm() < 0.11
    assert torch.equal(gradient, was)


@pytest.mark.parametrize("previous", ["gate/0", None])
def test_no_update_writes_to_a_gradient_received_or_sent(previous):
    actor = GateActor(
        ak.Gate(Shift(), lambda params: Vandal(params, lr=0.1)), Position("gate/1", 1, previous)
    )
    list(actor.receive(Forward(Batch("s", 0), torch.randn(SIZE, 5)), 0.0))
    received = torch.randn(SIZE, 5)
    was = received.clone()
    effects = list(actor.receive(Backward(Batch("s", 0), received), 0.0))
    assert actor.version == 1
    assert torch.equal(received, was)
    assert previous is None or torch.equal(effects[0].message.payload, was)


# ── modules that work in place on their input ────────────────────────────────────────────────────────


class Trampling(nn.Module):
    """Leaves zeros where its input was."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        x.zero_()
        return y


IN_PLACE = {"relu": lambda: nn.ReLU(inplace=True), "trampling": Trampling}


@pytest.mark.parametrize("first", IN_PLACE)
def test_an_in_place_first_layer_leaves_the_users_data_as_it_is(first):
    x, y = torch.randn(5 * SIZE, 6), torch.randint(4, (5 * SIZE,))
    was = x.clone()
    data = ak.Batches(x, y, batch_size=SIZE)  # without shuffle its batches are views of x
    network = ak.Network([ak.Gate(nn.Sequential(IN_PLACE[first](), nn.Linear(6, 4)), sgd)])
    with ak.run(network) as session:
        session.predict(x, timeout=60)  # before the first training batch, and after
        session.attach(ak.Sentinel.train(data, F.cross_entropy, in_flight=3))
        session.attach(ak.Sentinel.validate(data, F.cross_entropy, every_updates=1))
        session.wait(timeout=60)
        session.predict(x, timeout=60)
    assert torch.equal(x, was)


def test_an_in_place_layer_at_the_head_and_in_the_middle_trains_as_one_out_of_place():
    def parts(inplace):
        torch.manual_seed(1)
        return [
            nn.Sequential(nn.ReLU(inplace), nn.Linear(6, 9), nn.Tanh()),
            nn.Sequential(nn.ReLU(inplace), nn.Linear(9, 7), nn.Sigmoid()),
            nn.Sequential(nn.LeakyReLU(inplace=inplace), nn.Linear(7, 4)),
        ]

    batches = batches_of(20)
    module, training = trained(parts(True), batches)
    assert training.batches.trained == 20
    assert same_bits(module, plainly(parts(False), batches))


# ── batches that are not finite ──────────────────────────────────────────────────────────────────────


def test_a_nan_batch_does_not_poison_the_statistics_of_batch_norm():
    parts = [nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU()), nn.Linear(9, 4)]
    good = batches_of(10)
    bad = [(torch.full((SIZE, 6), float("nan")), good[0][1]), (torch.full((SIZE, 6), 3e38), good[0][1])]
    module, training = trained(parts, [*good[:5], *bad, *good[5:]])
    assert training.batches.as_tuple() == (12, 10, 2, 0)
    assert same_bits(module, plainly(parts, good))


def test_a_nan_in_evaluation_touches_no_statistics():
    actor = GateActor(ak.Gate(nn.BatchNorm1d(6), sgd), Position("gate/0", 0))
    was, cut = bits(actor.module), CutId("v", 0)
    list(actor.receive(Cut(cut), 0.0))
    list(actor.receive(Evaluate(Batch("v", 0), torch.full((SIZE, 6), float("nan")), cut), 0.0))
    assert all(torch.equal(tensor, was[name]) for name, tensor in actor.module.state_dict().items())
    assert actor.module.training


# ── gradients that are not there ─────────────────────────────────────────────────────────────────────


class Fork(nn.Module):
    """Two outputs, of which the gate behind may use one."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 6)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.frozen(x)
        return self.used(x), self.unused(x)


class FirstOfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(both[0])


def test_a_missing_gradient_moves_no_weight_under_momentum_and_weight_decay():
    parts, batches = [Fork(), FirstOfTwo()], batches_of(10)
    module, training = trained(parts, batches)
    assert training.batches.trained == 10
    assert same_bits(module[0].unused, parts[0].unused)
    assert same_bits(module[0].frozen, parts[0].frozen)
    assert same_bits(module, plainly(parts, batches))


def test_a_gate_behind_which_nothing_is_learned_stays_as_it_is():
    class Wall(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.detach())

    parts = [nn.Linear(6, 5), Wall()]
    module, training = trained(parts, batches_of(10))
    assert training.batches.trained == 10
    assert same_bits(module[0], parts[0])
    assert not same_bits(module[1], parts[1])


# ── integers ─────────────────────────────────────────────────────────────────────────────────────────


def test_integers_at_the_head_in_the_middle_and_at_the_tail_need_no_gradient():
    class Embed(nn.Module):
        """(N, 3) numbers of words to their vectors (N, 3, 5), with the numbers sent along."""

        def __init__(self):
            super().__init__()
            self.vectors = nn.Embedding(11, 5)

        def forward(self, words: Tensor) -> dict[str, Tensor]:
            return {"words": words, "vectors": self.vectors(words)}

    class Pool(nn.Module):
        """Classes from the sum over the words that are not 0, and how many they are."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, 4)

        def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            there = x["words"] > 0
            return self.head((x["vectors"] * there.unsqueeze(-1)).sum(1)), there.sum(1)

    def loss(outputs, y):
        return F.cross_entropy(outputs[0], y)

    parts = [Embed(), Pool()]
    batches = [(torch.randint(11, (SIZE, 3)), torch.randint(4, (SIZE,))) for _ in range(10)]
    module, training = trained(parts, batches, loss=loss)
    assert training.batches.trained == 10
    assert same_bits(module, plainly(parts, batches, loss=loss))


# ── the one random generator of the process ──────────────────────────────────────────────────────────


def test_a_data_loader_draws_nothing_from_the_generator_that_dropout_draws_from():
    x, y = torch.randn(10 * SIZE, 6), torch.randint(4, (10 * SIZE,))
    loader = DataLoader(TensorDataset(x, y), batch_size=SIZE)
    parts = [nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5)), nn.Linear(9, 4)]
    from_list, _ = trained(parts, list(zip(x.split(SIZE), y.split(SIZE), strict=True)))
    from_loader, _ = trained(parts, loader)
    assert same_bits(from_loader, from_list)
    validated, _ = trained(parts, loader, validate=loader)
    assert same_bits(validated, from_list)


def test_masks_depend_on_the_seed_the_gate_and_the_batch_and_on_no_order():
    dropout = ak.nn.Dropout(0.5)

    def masks(address, seed, numbers):
        actor = GateActor(ak.Gate(dropout), Position(address, 0, seed=seed))
        forwards = {n: actor.receive(Forward(Batch("s", n), torch.ones(50)), 0.0) for n in numbers}
        return {n: next(effects).message.payload for n, effects in forwards.items()}

    ordered, reversed_ = masks("gate/0", 0, [0, 1, 2]), masks("gate/0", 0, [2, 1, 0])
    assert all(torch.equal(ordered[n], reversed_[n]) for n in ordered)
    assert not torch.equal(ordered[0], ordered[1])
    assert not torch.equal(ordered[0], masks("replica/1/gate/0", 0, [0])[0])
    assert not torch.equal(ordered[0], masks("gate/0", 1, [0])[0])


class Breaks(nn.Module):
    """Works three times, then raises in the backward."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x + torch.rand(4)  # draws from torch's generator
        return y if self.calls <= 3 else breaking(y, ZeroDivisionError("the module broke"))


def random_loss(outputs, targets):
    return F.cross_entropy(outputs, targets) * torch.rand(())


def no_number(outputs, targets):
    return torch.rand(3)


def foreign(params):
    return sgd(nn.Linear(2, 2).parameters())


RUNS = {
    "it ends well": (nn.Dropout(0.5), sgd, random_loss, None),
    "a gate fails": (Breaks(), sgd, random_loss, GateFailedError),
    "a sentinel fails": (nn.Dropout(0.5), sgd, no_number, SentinelFailedError),
    "it cannot start": (nn.Dropout(0.5), foreign, random_loss, ForeignParameterError),
    "the user leaves": (nn.Dropout(0.5), sgd, random_loss, KeyboardInterrupt),
}


@pytest.mark.parametrize("name", RUNS)
def test_threads_and_random_state_of_the_process_are_as_they_were_after(name):
    module, optimizer, loss, error = RUNS[name]
    network = ak.Network(
        [ak.Gate(nn.Linear(6, 4), sgd), ak.Gate(nn.Sequential(module, nn.Linear(4, 4)), optimizer)]
    )
    batches = batches_of(20)

    def run():
        with ak.run(network) as session:
            training = session.attach(ak.Sentinel.train(batches, loss, name="tdp"))
            if error is KeyboardInterrupt:
                raise error
            training.wait(timeout=60)

    def process():
        """What a run might change: intra-op threads here and in a new thread, all threads, random state."""
        seen = [torch.get_num_threads()]
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return seen, threading.active_count(), torch.get_rng_state().tolist()

    torch.set_num_threads(3)
    before = process()
    with pytest.raises(error) if error else nullcontext():
        run()
    assert process() == before


# ── buffers ──────────────────────────────────────────────────────────────────────────────────────────


def test_buffers_are_shared_with_no_recipe_no_evaluation_and_no_module_given_away():
    parts, batches = [nn.BatchNorm1d(6), nn.Linear(6, 4)], batches_of(10)
    was = bits(parts[0])
    network = ak.Network([ak.Gate(part, sgd) for part in parts])
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=3))
        session.attach(ak.Sentinel.validate(batches, F.cross_entropy, every_updates=1))
        session.wait(timeout=60)
        given = session.module()
        given(torch.randn(SIZE, 6))  # in training mode: it moves its own statistics
        module = session.module()
    assert all(torch.equal(tensor, was[name]) for name, tensor in parts[0].state_dict().items())
    assert module[0].num_batches_tracked == 10
    assert given[0].num_batches_tracked == 11


class Fading(nn.Module):
    """Its backward needs the buffer that every forward writes to in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(0.9)
        return self.linear(x) * self.scale


def test_a_buffer_written_in_place_breaks_no_batch_in_flight():
    module, training = trained([Fading()], batches_of(10), in_flight=5)
    assert training.batches.trained == 10
    assert torch.allclose(module[0].scale, torch.full((4,), 0.9**10))


# ── optimizers that update in place, under batches in flight ─────────────────────────────────────────

OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.1),
    "adam, all at once": lambda params: torch.optim.Adam(params, lr=0.1, foreach=True),
    "adamw, fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.1),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stale_gradient_is_the_one_at_the_weights_of_its_forward(name):
    recipe = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    inputs, upstream = torch.randn(3, SIZE, 6), torch.randn(3, SIZE, 4)

    actor = GateActor(ak.Gate(recipe, OPTIMIZERS[name]), Position("gate/0", 0))
    for number in range(3):
        list(actor.receive(Forward(Batch("s", number), inputs[number]), 0.0))
    for number in range(3):
        list(actor.receive(Backward(Batch("s", number), upstream[number]), 0.0))

    plain = copy.deepcopy(recipe)
    weights = list(plain.parameters())
    optimizer = OPTIMIZERS[name](weights)
    all_at_the_start = [
        torch.autograd.grad(plain(x), weights, g) for x, g in zip(inputs, upstream, strict=True)
    ]
    for gradients in all_at_the_start:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()

    assert actor.version == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actor.weights.now, weights, strict=True))


def test_without_stashing_no_update_breaks_a_backward_either():
    network = ak.Network([ak.Gate(part, sgd, ak.Latest()) for part in (nn.Linear(6, 9), nn.Linear(9, 4))])
    with ak.run(network) as session:
        training = session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy, in_flight=5))
        session.wait(timeout=60)
    assert training.batches.trained == 20
