"""Modules that gates once computed something else of than the plain loop, or refused without a reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tests.pipeline.test_from_module import adamw, assert_same, features, in_gates, plainly
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.errors import RecipeError

WIDTH = 8


class Four(nn.Module):
    """Four blocks; what is between them differs from test to test."""

    def __init__(self, first=None, shared=None):
        super().__init__()
        self.a = first or nn.Linear(WIDTH, WIDTH)
        self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.d = nn.Linear(WIDTH, 3)
        self.shared = shared
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.table = nn.Parameter(torch.randn(5, WIDTH))

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x)).relu()).relu())


class Inner(nn.Module):
    """A block around a layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)


def pairs(*more):
    return [((torch.randn(5, WIDTH), *(make() for make in more)), torch.randint(3, (5,))) for _ in range(5)]


def four_gates(model, example):
    return ak.Network.from_module(model, optimizer=adamw, example=example, cut_before=["b", "c", "d"])


def assert_four_gates_are_the_plain_loop(model, batches):
    assert_same(in_gates(four_gates(model, batches[0][0]), batches), plainly(model, batches))


# ── what a module keeps from batch to batch ──────────────────────────────────────────────────────────


class KeepsStatistics(Four):
    def forward(self, x):
        h = self.a(x)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.d(self.c(self.b(h)).relu())


def test_statistics_kept_between_blocks_are_those_of_the_plain_loop():
    """Gates that did not need the activations behind them wrote NaNs to the buffer, and the last one won."""
    model, batches = KeepsStatistics(), features(WIDTH)
    trained = in_gates(four_gates(model, batches[0][0]), batches)
    assert trained.mean.abs().sum() > 0
    assert_same(trained, plainly(model, batches))


class KeepsTheLast(Four):
    last = None

    def forward(self, x):
        y = self.b(self.a(x) if self.last is None else self.a(x) + self.last)
        self.last = y.detach()
        return self.d(self.c(y))


def test_what_a_gate_leaves_the_forward_too_early_to_keep_is_refused():
    """The first batch is the same everywhere, so the gates were let through, and trained something else."""
    with pytest.raises(RecipeError, match=r"for the second batch, its gates give something else .* keeps"):
        ak.Network.from_module(
            KeepsTheLast(), optimizer=adamw, example=torch.randn(5, WIDTH), cut_before=["c"]
        )


# ── what travels ─────────────────────────────────────────────────────────────────────────────────────


class GivesNumber(Inner):
    def forward(self, x):
        return self.inner(x), len(x)


class TakesNumber(Four):
    def __init__(self):
        super().__init__(GivesNumber())

    def forward(self, x):
        h, count = self.a(x)
        return self.d(self.c(self.b(h) * count))


def test_a_number_from_a_block_that_is_another_in_a_batch_is_refused_with_it():
    """Later gates went on with the number of the example."""
    sizes = (5, 5, 2, 5)
    batches = [(torch.randn(n, WIDTH), torch.randint(3, (n,))) for n in sizes]
    with ak.run(four_gates(TakesNumber(), batches[0][0]), "simulator") as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        session.wait(timeout=60)
    assert (trainer.batches.trained, trainer.batches.refused) == (3, 1)


class TakesTwo(Four):
    def forward(self, x, late):
        return self.d(self.c(self.b(self.a(x))) + late)


def test_a_batch_whose_names_come_in_another_order_is_refused():
    """Inputs were told apart by their place: later gates took one for another."""
    batches = [({"x": x, "late": x + 1}, y) for x, y in features(WIDTH)[:3]]
    batches[1] = {"late": batches[1][0]["late"], "x": batches[1][0]["x"]}, batches[1][1]
    with ak.run(four_gates(TakesTwo(), batches[0][0]), "simulator") as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        session.wait(timeout=60)
    assert (trainer.batches.trained, trainer.batches.refused) == (2, 1)


class OwnDict(dict):
    pass


def test_an_example_in_a_dict_of_a_class_of_its_own_is_refused():
    """Nobody looked into it, so that later gates took the tensors of the example for those of a batch."""
    x = torch.randn(5, WIDTH)
    with pytest.raises(RecipeError, match="tuple, list or dict of such, got OwnDict"):
        four_gates(TakesTwo(), OwnDict(x=x, late=x))


@dataclass
class Pair:
    values: torch.Tensor
    mask: torch.Tensor


class GivesPair(Inner):
    def forward(self, x):
        return Pair(self.inner(x), x > 0)


class TakesPair(Inner):
    def forward(self, pair):
        return self.inner(pair.values) * pair.mask


class PairBetween(Four):
    def __init__(self):
        super().__init__(GivesPair())
        self.c = TakesPair()

    def forward(self, x):
        pair = self.a(x)
        return self.d(self.c(Pair(self.b(pair.values), pair.mask)))


def test_tensors_in_an_object_between_blocks_are_seen():
    """Those of the example were taken for those of every batch. Now its block is opened, to see inside."""
    model, batches = PairBetween(), features(WIDTH)
    with pytest.raises(RecipeError, match="'a' gives tensors in a Pair"):
        four_gates(model, batches[0][0])
    network = ak.Network.from_module(model, 3, adamw, example=batches[0][0])
    assert_same(in_gates(network, batches), plainly(model, batches))


class TakesThree(Four):
    def forward(self, q, k, v):
        return self.d(self.c(self.b(self.a(q) + k) * v) + q)


def test_inputs_that_are_one_tensor_in_the_example_may_be_several():
    """They were taken for the last of them."""
    batches = pairs(lambda: torch.randn(5, WIDTH), lambda: torch.randn(5, WIDTH))
    x = batches[0][0][0]
    assert_four_gates_are_the_plain_loop(TakesThree(), [((x, x, x), batches[0][1]), *batches[1:]])


class ShortCut(Four):
    def forward(self, x):
        h = self.a(x)
        same = self.shared(h)
        return self.d(self.c(self.b(h)) + same + h)


def test_a_block_that_gives_what_it_is_given_gives_the_same_tensor():
    """It was taken for another one, and what it was given for NaNs."""
    assert_four_gates_are_the_plain_loop(ShortCut(shared=nn.Identity()), features(WIDTH))


class GivesMean(Inner):
    def forward(self, x):
        y = self.inner(x)
        return y, y.square().mean()


class LooksAtMean(Four):
    def __init__(self):
        super().__init__(GivesMean())

    def forward(self, x):
        h, mean = self.a(x)
        mean * 2
        return self.d(self.c(self.b(h)))


def test_a_number_that_nobody_needs_has_no_dimensions_in_any_gate():
    assert_four_gates_are_the_plain_loop(LooksAtMean(), features(WIDTH))


# ── what decides ─────────────────────────────────────────────────────────────────────────────────────


class AtStep(Four):
    def forward(self, x, step):
        return self.d(self.c(self.b(self.a(x + self.table[step]))))


def test_what_is_used_as_an_index_is_there_wherever_the_forward_runs():
    """Gates that did not need it had the least of all integers there, which is no index."""
    batches = pairs(lambda: torch.randint(5, (5,)))
    assert_four_gates_are_the_plain_loop(AtStep(), batches)


class Packed(Four):
    def __init__(self):
        super().__init__()
        self.b = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.c = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(self.a(x), lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.c(self.b(packed)[0])[0], batch_first=True)
        return self.d(y.sum(1))


def test_sequences_of_different_lengths_are_packed():
    batches = [
        ((torch.randn(5, 4, WIDTH), torch.randint(1, 5, (5,))), torch.randint(3, (5,))) for _ in range(3)
    ]
    assert_four_gates_are_the_plain_loop(Packed(), batches)


# ── how blocks are called ────────────────────────────────────────────────────────────────────────────


class SharesOne(Four):
    def forward(self, x):
        return self.d(self.shared(self.c(self.shared(self.b(self.shared(self.a(x)))))))


@pytest.mark.parametrize("shared", [nn.ReLU(), nn.ReLU(inplace=True), nn.Dropout(0.0)], ids=str)
def test_one_activation_for_all_layers_keeps_none_of_them_together(shared):
    """There was no cut between two calls of one module, whether it has weights or not."""
    assert_four_gates_are_the_plain_loop(SharesOne(shared=shared), features(WIDTH))


class Layer(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.inner, self.shared = nn.Linear(WIDTH, WIDTH), shared

    def forward(self, x):
        return x + self.shared(self.inner(x))


class Layers(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.layers = nn.ModuleList([Layer(shared) for _ in range(3)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("shared", [nn.GELU(), nn.Linear(WIDTH, WIDTH)], ids=str)
def test_a_module_in_several_layers_runs_inside_of_those_that_are_not_cut(shared):
    """It stood aside in the whole gate as soon as one of the layers was cut right before or after it."""
    model, batches = Layers(shared), features(WIDTH)
    network = ak.Network.from_module(
        model, optimizer=adamw, example=batches[0][0], cut_before=["layers.2.inner"], tie=True
    )
    assert_same(in_gates(network, batches), plainly(model, batches))


class CallsForward(Four):
    def forward(self, x):
        return self.d(self.c(self.b.forward(self.a(x)).relu()).relu())


def test_a_block_whose_forward_is_called_by_its_name_belongs_to_what_is_around():
    """It stood aside in all gates but the first."""
    model, batches = CallsForward(), features(WIDTH)
    network = ak.Network.from_module(model, optimizer=adamw, example=batches[0][0], cut_before=["c", "d"])
    assert_same(in_gates(network, batches), plainly(model, batches))


class Checkpointed(Four):
    def forward(self, x):
        for block in (self.a, self.b, self.c):
            x = checkpoint(block, x, use_reentrant=False).relu()
        return self.d(x)


def test_blocks_run_again_in_the_backward():
    """They were refused there, as if another batch had called them in another order."""
    assert_four_gates_are_the_plain_loop(Checkpointed(), features(WIDTH))


class ChecksTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def _both(self, x):
        return self.b(self.a(x).relu())

    def forward(self, x):
        return checkpoint(self._both, x, use_reentrant=False)


def test_a_block_that_cannot_be_cut_into_stays_whole():
    """It was opened, as it costs most, and then all was refused."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), ChecksTwo(), nn.Linear(WIDTH, 3))
    batches = features(WIDTH)
    network = ak.Network.from_module(model, 2, adamw, example=batches[0][0])
    assert_same(in_gates(network, batches), plainly(model, batches))


class Rotates(nn.Module):
    """Has no weights, and a buffer that stays as it is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        return x * torch.cos(self.angles)


def test_a_block_with_a_buffer_that_stays_may_be_called_in_several_gates():
    """It was refused, as if the buffer had other values there: no gate had it for its own."""
    assert_four_gates_are_the_plain_loop(SharesOne(shared=Rotates()), features(WIDTH))


class ThreeTimes(nn.Module):
    """A block with a skip connection that is called again and again."""

    def __init__(self):
        super().__init__()
        self.a, self.again, self.d = nn.Linear(WIDTH, WIDTH), Layer(nn.LayerNorm(WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.a(x)
        for _ in range(3):
            x = self.again(x)
        return self.d(x)


def test_a_block_that_is_called_again_and_again_is_closed_when_no_cut_lies_in_it():
    """It stayed open, as it costs most: all terms of its sum travelled, and their gradients were rounded
    in another order.
    """
    model, batches = ThreeTimes(), features(WIDTH)
    network = ak.Network.from_module(model, 3, adamw, example=batches[0][0])
    assert_same(in_gates(network, batches), plainly(model, batches))


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 2000), nn.Linear(2000, WIDTH))

    def forward(self, x, kept):
        kept.append(self.inner(x))
        return sum(kept)


class OneListForAll(Four):
    def __init__(self):
        super().__init__(shared=nn.Tanh())
        self.b, self.c = Remembers(), Remembers()

    def forward(self, x):
        kept = []
        y = self.b(self.shared(self.a(x)), kept)
        return self.d(self.shared(self.c(y, kept)))


def test_where_a_cut_between_two_calls_of_one_activation_fails_there_is_none():
    """Before there were such cuts, this one was cut, as T5 was, whose layers write to one cache."""
    model, batches = OneListForAll(), features(WIDTH)
    with pytest.raises(RecipeError, match="cannot be cut so"):
        ak.Network.from_module(model, optimizer=adamw, example=batches[0][0], cut_before=["c"])
    network = ak.Network.from_module(model, 2, adamw, example=batches[0][0])
    assert_same(in_gates(network, batches), plainly(model, batches))


class Autocast(Four):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


def test_under_autocast_blocks_are_measured_and_cut():
    """Measured without it, they failed on the types of their inputs."""
    model, batches = Autocast(), features(WIDTH)
    network = ak.Network.from_module(model, 3, adamw, example=batches[0][0])
    assert_same(in_gates(network, batches), plainly(model, batches))


class Stars(Four):
    def forward(self, *inputs, **named):
        x, late = inputs or (named["x"], named["late"])
        return self.d(self.c(self.b(self.a(x)))) + late


@pytest.mark.parametrize("form", [tuple, lambda inputs: dict(zip(("x", "late"), inputs, strict=True))])
def test_a_forward_of_any_arguments_gets_them(form):
    batches = [(form(inputs), y) for inputs, y in pairs(lambda: torch.randn(5, 3))]
    assert_four_gates_are_the_plain_loop(Stars(), batches)


class WritesToInputs(Four):
    def forward(self, x):
        return super().forward(x.mul_(2))


def test_an_example_stays_as_it_is():
    example = torch.randn(5, WIDTH)
    before = example.clone()
    four_gates(WritesToInputs(), example)
    assert torch.equal(example, before)


def test_measuring_blocks_leaves_the_generator_where_it_was():
    """Dropout drew as often as there was time for, so that all that was drawn later differed each time."""
    model, x = nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(), nn.Linear(8, 3)), torch.randn(5, WIDTH)
    drawn = torch.get_rng_state()
    ak.Network.from_module(model, 2, adamw, example=x)
    assert torch.equal(drawn, torch.get_rng_state())


def test_a_schedule_of_a_few_steps_is_not_used_up_by_measuring():
    """``OneCycleLR`` raises after its last step, and measuring an update takes hundreds of them."""

    def one_cycle(named_parameters):
        optimizer = torch.optim.AdamW((weight for _, weight in named_parameters), lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=20)

    network = ak.Network.from_module(Four(), 2, one_cycle, example=torch.randn(5, WIDTH))
    with ak.run(network, "simulator") as session:
        trainer = session.attach(ak.Sentinel.train(features(WIDTH), F.cross_entropy))
        session.wait(timeout=60)
    assert trainer.batches.as_tuple() == (12, 12, 0, 0)


@pytest.mark.parametrize("cuts", [["b", "d"], []], ids=["cuts", "even"])
def test_an_optimizer_function_gets_the_names_of_the_whole_module(cuts):
    """They began with ``whole.``, so that groups by how names begin were others than in the plain loop; where
    blocks were measured, they were those in the block.
    """
    rates = {"a": 0.1, "b": 0.01, "c": 0.2, "d": 0.02, "table": 0.1}

    def by_name(named_parameters):
        groups = [{"params": [p], "lr": rates[name.split(".")[0]]} for name, p in named_parameters]
        return torch.optim.SGD(groups)

    model, batches = Four(), features(WIDTH)
    gates = None if cuts else 3
    network = ak.Network.from_module(model, gates, by_name, example=batches[0][0], cut_before=cuts)
    ours, optimizer = in_gates(network, batches), by_name(model.named_parameters())
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_same(ours, model)
