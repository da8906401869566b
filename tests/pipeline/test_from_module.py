"""Any module as a row of gates: what it computes stays what it was, and so do the names of its weights."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from tests.support.costs import operations
from tests.support.modules import SmallGPT
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError, SharedParameterError
from akkordeon.pipeline.splitting import cost


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2)


class Block(nn.Module):
    """A block with a skip connection and statistics."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(width), nn.Linear(width, 20), nn.Linear(20, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Blocks(nn.Module):
    """Blocks of equal cost, in a list."""

    def __init__(self, count=6, width=10):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(count)])
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Ladder(nn.Module):
    """What goes down goes up again, past what is between, as in a U-Net; a scale comes late."""

    def __init__(self):
        super().__init__()
        self.down, self.deep, self.up = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(12, 8)
        self.last, self.head = nn.Linear(16, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x, late):
        a = torch.relu(self.down(x))
        b = torch.relu(self.deep(a)) * self.scale
        c = self.up(torch.cat([a, b], dim=1))
        d = self.last(torch.cat([x, c], dim=1)) * late
        return self.head(d)


class TiedGPT(nn.Module):
    """The table of its embedding is the matrix of its head."""

    def __init__(self, words=11, width=8):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(7, width))
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(4)]
        )
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words):
        _, length = words.shape
        x = self.embed(words) + self.position[:length]
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(1)


@pytest.fixture(autouse=True)
def cuts_are_the_same_on_a_busy_machine(monkeypatch):
    """Where cuts are within blocks that follow each other, gradients may be summed up in another order."""
    monkeypatch.setattr(cost, "_seconds", operations)


def features(*shape):
    return [(torch.randn(5, *shape), torch.randint(3, (5,))) for _ in range(12)]


def late_inputs():
    return [((x, torch.rand(5, 1)), y) for x, y in features(8)]


def words():
    return [(torch.randint(11, (5, 7)), torch.randint(11, (5,))) for _ in range(12)]


MODELS = {
    "blocks in a list": (Blocks, lambda: features(10)),
    "skip connections and a late input": (Ladder, late_inputs),
    "tied weights": (TiedGPT, words),
    "a Sequential in a Sequential": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(10, 9), nn.Tanh(), nn.Linear(9, 9)),
            nn.Sequential(nn.Tanh(), nn.Linear(9, 3)),
        ),
        lambda: features(10),
    ),
}


def plainly(model, batches):
    """The loop that everybody writes."""
    model = copy.deepcopy(model).train()
    optimizer = adamw(model.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
        F.cross_entropy(model(*args, **kwargs), y).backward()
        optimizer.step()
    return model


def in_gates(network, batches, engine="simulator"):
    with ak.run(network, engine) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        session.wait(timeout=60)
        return session.module()


def assert_same(module, expected):
    state, wanted = module.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name


@pytest.mark.parametrize("gates", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_with_one_batch_in_flight_gates_give_the_bits_of_the_plain_loop(name, gates):
    torch.manual_seed(3)
    make, data = MODELS[name]
    model, batches = make(), data()
    network = ak.Network.from_module(model, gates, adamw, example=batches[0][0], tie=True)
    assert len(network.gates) == gates
    trained = in_gates(network, batches)
    assert type(trained) is type(model)
    assert_same(trained, plainly(model, batches))


def test_threads_give_these_bits_too():
    torch.manual_seed(3)
    model, batches = TiedGPT(), words()
    network = ak.Network.from_module(model, 3, adamw, example=batches[0][0], tie=True)
    assert_same(in_gates(network, batches, ak.Threads(2)), plainly(model, batches))


def test_a_tied_weight_is_tied_in_the_module_that_comes_back():
    network = ak.Network.from_module(TiedGPT(), 3, adamw, example=words()[0][0], tie=True)
    module = in_gates(network, words()[:2])
    assert module.head.weight is module.embed.weight


def test_a_module_is_cut_where_it_is_told_to():
    model = Blocks()
    network = ak.Network.from_module(
        model, optimizer=adamw, example=torch.randn(5, 10), cut_before=["blocks.1", "head"]
    )
    weights = [[name for name, _ in gate.module.named_parameters()] for gate in network.gates]
    assert {name.split(".")[2] for name in weights[1]} == {"1", "2", "3", "4", "5"}
    assert weights[2] == ["whole.head.weight", "whole.head.bias"]


def test_a_sequential_is_cut_before_named_children_without_an_example():
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1))
    network = ak.Network.from_module(layers, optimizer=adamw, cut_before=["2", "3"])
    assert [list(gate.module.state_dict()) for gate in network.gates] == [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
        ["3.weight", "3.bias"],
    ]
    for names in (["0"], ["3", "2"], ["2", "2"]):
        with pytest.raises(RecipeError, match="in the order of their calls"):
            ak.Network.from_module(layers, optimizer=adamw, cut_before=names)


def test_equal_blocks_are_dealt_out_evenly():
    network = ak.Network.from_module(Blocks(16), 4, adamw, example=torch.randn(500, 10))
    assert beginnings(network) == [f"blocks.{i}.norm.weight" for i in (0, 4, 8, 12)]


def beginnings(network):
    return [next(gate.module.named_parameters())[0].removeprefix("whole.") for gate in network.gates]


def test_what_no_cut_lies_in_is_one_block_again():
    """To find even cuts two blocks in a row were opened, and the terms of the sum through both travelled."""
    x = torch.randn(5, 10)
    network = ak.Network.from_module(Blocks(6), 4, adamw, example=x)
    assert beginnings(network)[1:3] == ["blocks.1.down.weight", "blocks.3.up.weight"]
    for gate in network.gates[:-1]:
        x = gate.module(x)
        assert len([tensor for tensor in x if tensor.is_floating_point()]) <= 2


def test_blocks_before_the_heaviest_gate_are_opened_where_opening_its_own_does_not_help():
    """The search ended there: of a ResNet in four gates the first had the stem alone, the last a third."""
    network = ak.Network.from_module(Blocks(5), 4, adamw, example=torch.randn(5, 10))
    assert beginnings(network)[1:] == ["blocks.1.up.weight", "blocks.2.down.weight", "blocks.4.norm.weight"]


class Planned(nn.Module):
    """A model that says what pipelines are made of, as those of Hugging Face's transformers do."""

    _pp_plan: ClassVar = {"inner.blocks": (["x"], ["x"]), "inner.head": (["x"], ["y"])}

    def __init__(self):
        super().__init__()
        self.inner = Blocks(4)

    def forward(self, x):
        return self.inner(x)


def test_a_module_is_cut_between_the_parts_that_its_plan_names():
    """Four blocks for three gates: without the plan one is opened, so that gates are more even."""
    x = torch.randn(500, 10)
    names = [f"inner.blocks.{i}.norm.weight" for i in range(4)]
    for model in (Planned(), nn.Sequential(Planned())):
        found = [
            name.removeprefix("0.") for name in beginnings(ak.Network.from_module(model, 3, adamw, example=x))
        ]
        assert found[0] == names[0]
        assert set(found[1:]) < set(names)


def test_for_more_gates_than_its_plan_has_parts_a_module_is_cut_within_them():
    network = ak.Network.from_module(Planned(), 7, adamw, example=torch.randn(5, 10))
    assert len(network.gates) == 7


def test_batches_of_any_size_go_through_gates_that_were_cut_on_another():
    model = TiedGPT()
    network = ak.Network.from_module(model, 3, adamw, example=torch.randint(11, (2, 7)), tie=True)
    batches = [
        (torch.randint(11, (n, length)), torch.randint(11, (n,))) for n, length in ((1, 7), (9, 3), (4, 5))
    ]
    assert_same(in_gates(network, batches), plainly(model, batches))


def test_a_dict_is_keyword_arguments_and_a_tuple_positional_ones():
    model, x, late = Ladder(), torch.randn(5, 8), torch.rand(5, 1)
    y = torch.randint(3, (5,))
    for inputs in ((x, late), {"late": late, "x": x}):
        network = ak.Network.from_module(model, 3, adamw, example=inputs)
        assert_same(in_gates(network, [(inputs, y)]), plainly(model, [((x, late), y)]))


def test_a_validator_sees_the_whole_module_in_evaluation():
    model, x = Blocks(), torch.randn(40, 10)
    for _ in range(3):
        model(x)
    network = ak.Network.from_module(model, 3, adamw, example=x[:4])
    with ak.run(network, "simulator") as session:
        given = session.attach(ak.Sentinel.predict(x, batch_size=8)).wait().result
    assert torch.equal(given, torch.cat([model.eval()(part) for part in x.split(8)]))


def test_gates_travel_as_bytes():
    network = ak.Network.from_module(TiedGPT(), 3, adamw, example=words()[0][0], tie=True)
    batches = words()
    assert_same(in_gates(pickle.loads(pickle.dumps(network)), batches), in_gates(network, batches))


def test_a_network_starts_from_another_module_of_its_class():
    network = ak.Network.from_module(TiedGPT(), 3, adamw, example=words()[0][0], tie=True)
    other = TiedGPT()
    assert_same(network.starting_from(other).module(), other)
    batches = words()
    assert_same(in_gates(network.starting_from(other), batches), plainly(other, batches))


def test_frozen_weights_stay_frozen():
    model = Blocks()
    model.blocks[2].requires_grad_(False)
    network = ak.Network.from_module(model, 3, adamw, example=torch.randn(5, 10))
    trained = in_gates(network, features(10))
    assert torch.equal(trained.blocks[2].up.weight, model.blocks[2].up.weight)
    assert not trained.blocks[2].up.weight.requires_grad
    assert not torch.equal(trained.blocks[1].up.weight, model.blocks[1].up.weight)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


def test_tied_weights_are_refused_without_tie():
    with pytest.raises(
        SharedParameterError, match=r"'embed.weight' is used before and after a cut .* tie=True"
    ):
        ak.Network.from_module(TiedGPT(), 3, adamw, example=words()[0][0])


def test_a_module_that_is_no_sequential_asks_for_an_example():
    with pytest.raises(RecipeError, match=r"to cut Blocks, from_module needs a batch of inputs: .*example=x"):
        ak.Network.from_module(Blocks(), 3, adamw)


def test_more_gates_than_there_are_parts_are_refused():
    with pytest.raises(RecipeError, match="cannot be cut into 30 gates: its forward calls"):
        ak.Network.from_module(Ladder(), 30, adamw, example=late_inputs()[0][0])


def test_names_that_cannot_be_cut_at_are_refused():
    for names, why in (
        (["blocks.9"], "no module 'blocks.9'; there are blocks"),
        (["blocks.0"], "'blocks.0': it is the first to be called"),
        (["head", "blocks.1"], "in the order of their calls"),
        ("head", "a list of names, got 'head'"),
    ):
        with pytest.raises(RecipeError, match=why):
            ak.Network.from_module(Blocks(), optimizer=adamw, example=torch.randn(5, 10), cut_before=names)


class DropsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


def test_random_numbers_between_blocks_are_refused():
    """Each gate would have drawn its own."""
    with pytest.raises(
        RecipeError, match=r"random numbers are drawn, .* as nn\.Dropout instead of F\.dropout"
    ):
        ak.Network.from_module(DropsItself(), 2, adamw, example=torch.randn(5, 4))


class CallsAsItLikes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(self.a(self.b(x)) if x.sum() > 0 else self.b(self.a(x)))


def test_another_order_of_calls_is_refused_with_its_batch():
    network = ak.Network.from_module(CallsAsItLikes(), 2, adamw, example=torch.ones(5, 4))
    batches = [(sign * torch.ones(5, 4), torch.randint(3, (5,))) for sign in (1.0, -1.0, 1.0)]
    with ak.run(network, "simulator") as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        session.wait(timeout=60)
    assert (trainer.batches.trained, trainer.batches.refused) == (2, 1)


class Caches(Blocks):
    """It gives what it remembers along, as language models do."""

    def forward(self, x):
        return {"logits": super().forward(x), "cache": object()}


def test_outputs_that_cannot_be_sent_are_refused_before_anything_is_trained():
    with pytest.raises(
        RecipeError,
        match=r"what Caches gives cannot be sent to a sentinel: .* got object inside it; .*use_cache",
    ):
        ak.Network.from_module(Caches(), 3, adamw, example=torch.randn(5, 10))


def test_a_small_gpt_is_cut():
    model = SmallGPT()
    x = torch.randint(5, (4, 5))
    assert len(ak.Network.from_module(model, 2, adamw, example=x, tie=True).gates) == 2
