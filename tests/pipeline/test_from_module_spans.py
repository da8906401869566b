"""Cuts within modules that follow each other: to be measured, those that are over stand aside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import tensors
from akkordeon.experiments.planning.blocks import blocks_of_module
from akkordeon.pipeline.splitting.layout import Layout
from akkordeon.pipeline.splitting.split import split


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


class Block(nn.Module):
    """A skip connection, a function between its layers, and a weight that only its glue uses, at its end."""

    def __init__(self, width=6):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 9), nn.Linear(9, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x + self.scale * self.down(F.gelu(self.up(self.norm(x))))


class Keeps(Block):
    """Keeps what is within it for whoever asks later."""

    def forward(self, x):
        self.kept = self.up(self.norm(x))
        return x + self.down(F.gelu(self.kept))


class PassesOn(Block):
    """Gives what it was given, too."""

    def forward(self, x):
        return x, super().forward(x)


class Blocks(nn.Module):
    """Blocks of one kind, one after the other."""

    def __init__(self, kind=Block, count=5):
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(count))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class LooksBack(Blocks):
    """What its first block has kept is used at the end."""

    def __init__(self):
        super().__init__(Keeps)
        self.side = nn.Linear(9, 3)

    def forward(self, x):
        return super().forward(x) + self.side(self.blocks[0].kept)


class Twice(Blocks):
    """Its first block is called again at once."""

    def forward(self, x):
        return super().forward(self.blocks[0](x))


class Pairs(Blocks):
    """Blocks that give a pair, of which the first is what they were given."""

    def __init__(self):
        super().__init__(PassesOn)

    def forward(self, x):
        for block in self.blocks:
            before, x = block(x)
            x = (x + before) / 2
        return self.head(x)


class Nested(nn.Module):
    """Blocks within blocks, that end together."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Blocks(count=2), Blocks(count=2)
        self.second.head = nn.Linear(6, 6)
        self.widen, self.head = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = x + self.widen(self.first(x))
        return self.head(x + self.second(x))


WITHIN = tuple(f"blocks.{i}.{layer}" for i in range(1, 4) for layer in ("up", "down"))
MODELS = {
    "blocks": (Blocks, WITHIN),
    "what is within is used later": (LooksBack, ("blocks.0.down", *WITHIN)),
    "one is called twice": (Twice, WITHIN[2:]),
    "pairs": (Pairs, WITHIN),
    "nested": (Nested, ("first.blocks.1.up", "widen", "second.blocks.0.down", "second.blocks.1.up", "head")),
}


def batches(count=8):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 6, generator=generator), torch.randint(3, (4,))) for _ in range(count)]


def in_gates(model, cuts):
    """Not how they are trained, but how they are measured."""
    parts = split(model, None, torch.randn(4, 6), cut_before=cuts, stand_aside=True)
    return ak.Network([ak.Gate(part, sgd) for part in parts], whole=model)


@pytest.mark.parametrize("name", MODELS)
def test_cuts_within_blocks_train_the_plain_loop_to_the_bit(name):
    torch.manual_seed(0)
    make, cuts = MODELS[name]
    model = make()
    plain, seen = copy.deepcopy(model), batches()
    optimizer = sgd(plain.parameters())
    for x, y in seen:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    with ak.run(in_gates(model, cuts), ak.Threads(workers=1)) as session:
        session.attach(ak.Sentinel.train(seen, F.cross_entropy)).wait()
        trained = session.module()
        x = torch.randn(7, 6)  # of another size than the example
        assert torch.equal(session.predict(x), plain.eval()(x))
    for weight, expected in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_what_a_block_gave_travels_and_not_what_it_is_made_of():
    row, payload, floats = in_gates(Blocks(), WITHIN), torch.randn(4, 6), []
    for gate in row.gates[:-1]:
        payload = gate.module(payload)
        floats.append([tuple(t.shape) for t in tensors(payload) if t.is_floating_point()])
    assert floats == [[(4, 6), (4, 6)], [(4, 6), (4, 9)]] * 3


def test_gates_compute_nothing_between_the_layers_of_blocks_that_are_over(monkeypatch):
    row, counts, payload = in_gates(Blocks(), WITHIN), [], torch.randn(4, 6)
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: counts.append(1) or gelu(x))
    computed = []
    for gate in row.gates:
        counts.clear()
        payload = gate.module(payload)
        computed.append(len(counts))
    assert computed == [1, 0, 1, 0, 1, 0, 2]


def test_a_weight_of_what_follows_the_last_layer_of_a_block_is_its_gates():
    row = in_gates(Blocks(), ("blocks.1.norm", "blocks.3.up"))
    names = [
        {name.removeprefix("whole.") for name, _ in gate.module.named_parameters()} for gate in row.gates
    ]
    assert [[f"blocks.{i}.scale" in own for i in range(5)] for own in names] == [
        [True, False, False, False, False],
        [False, True, True, False, False],
        [False, False, False, True, True],
    ]


@pytest.mark.parametrize(
    ("make", "aside"),
    [(Blocks, {0, 1, 2, 3, 4}), (LooksBack, {1, 2, 3, 4}), (Twice, {1, 2, 3, 4}), (Pairs, {0, 1, 2, 3, 4})],
)
def test_who_is_called_once_and_keeps_nothing_for_others_may_stand_aside(make, aside):
    opened = {"", *(f"blocks.{i}" for i in range(5))}
    layout = Layout(make(), opened, torch.randn(4, 6), stand_aside=True)
    assert {span.module for span in layout.spans} == {f"blocks.{i}" for i in aside}


def test_another_order_of_blocks_that_are_over_is_refused():
    class Swaps(Blocks):
        swaps = False

        def forward(self, x):
            first, second, *others = self.blocks
            for block in (second, first, *others) if self.swaps else self.blocks:
                x = block(x)
            return self.head(x)

    last = in_gates(Swaps(), WITHIN).gates[-1].module
    payload = torch.randn(4, 6)
    for gate in in_gates(Swaps(), WITHIN).gates[:-1]:
        payload = gate.module(payload)
    last.whole.swaps = True
    with pytest.raises(RecipeError, match=r"the module calls 'blocks\.1' where on the example it called"):
        last(payload)


def test_the_planner_measures_blocks_so_and_trains_none(monkeypatch):
    blocks = blocks_of_module(Blocks(count=4), torch.randn(4, 6), sgd)
    counts, gelu = [], F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: counts.append(1) or gelu(x))

    def computed_last(network):
        payload = torch.randn(4, 6)
        for gate in network.gates:
            counts.clear()
            payload = gate.module(payload)
        return len(counts)

    assert len(blocks) > 4
    assert computed_last(blocks.apart) < computed_last(blocks.network)
    assert blocks.cut((1, len(blocks))).gates[1].module._piece.spans == ()


def test_what_a_plan_has_travel_is_what_blocks_give_and_not_what_that_is_made_of():
    x, y = batches(1)[0]
    plan = ak.plan(Blocks(count=4), example=x, targets=y, loss=F.cross_entropy, optimizer=sgd)
    payload, travels = x, []
    for gate in plan.blocks.apart.gates[:-1]:
        payload = gate.module(payload)
        travels.append(sum(tensor.nbytes for tensor in tensors(payload)))
    assert len(travels) > 4
    assert [block.output.bytes for block in plan.costs.blocks[:-1]] == travels


# ── gates that are trained ───────────────────────────────────────────────────────────────────────────


class KeepsLength(Block):
    """What it keeps beside what it gives is a number."""

    def forward(self, x):
        self.is_large = len(x) > 5
        return super().forward(x)


class KeepsSigns(Block):
    """What it keeps is made of its input."""

    def forward(self, x):
        self.signs = x.detach().sign()
        return super().forward(x)


class Clamps(Block):
    """Writes to what it was given, where that is large."""

    def forward(self, x):
        if x.detach().abs().max() > 3:
            x.detach().clamp_(-1, 1)
        return super().forward(x)


class LooksAtFirst(Blocks):
    """What its first block has kept decides at the end."""

    def forward(self, x):
        first = self.blocks[0]
        x = x * 1.0
        gave = super().forward(x) + x[:, :3]
        if getattr(first, "is_large", False):
            gave = gave * 2
        return gave * first.signs[:, :3] if hasattr(first, "signs") else gave


@pytest.mark.parametrize("kind", [KeepsLength, KeepsSigns, Clamps])
def test_what_a_module_does_beside_what_it_gives_is_done_in_later_gates_too(kind):
    torch.manual_seed(0)
    model = LooksAtFirst(kind).eval()
    model(torch.randn(4, 6))  # so that it has something from before
    cuts = ("blocks.0.up", "blocks.1.up", "head")
    row = ak.Network.from_module(model, optimizer=sgd, example=torch.randn(4, 6), cut_before=cuts, tie=True)
    others = [torch.randn(9, 6), 4 * torch.randn(4, 6), torch.randn(2, 6)]
    with ak.run(row, "simulator") as session:
        for x in others:
            assert torch.equal(session.predict(x.clone()), copy.deepcopy(model)(x.clone()))


def test_a_cut_before_the_first_layer_of_a_block_is_one_before_the_block():
    cuts = ("blocks.1.norm", "blocks.2.norm", "blocks.3.norm")
    row = ak.Network.from_module(Blocks(), optimizer=sgd, example=torch.randn(4, 6), cut_before=cuts)
    payload = torch.randn(4, 6)
    for gate in row.gates[:-1]:
        payload = gate.module(payload)
        assert isinstance(payload, torch.Tensor)
