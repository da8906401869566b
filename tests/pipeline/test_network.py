"""The recipe of a row: how a module is cut, what is refused, how the gates are wired."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.support.harness import batches_of, same_bits, sgd, small_network
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError, SharedParameterError
from akkordeon.pipeline.splitting.balance import balanced


def layers(sizes) -> list[nn.Module]:
    return [nn.Linear(size, 1, bias=False) if size else nn.ReLU() for size in sizes]


def weight(part) -> int:
    return sum(1 + sum(p.numel() for p in layer.parameters()) for layer in part)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.data())
def test_a_module_is_cut_so_that_the_largest_part_is_as_small_as_can_be(sizes, data):
    parts = data.draw(st.integers(1, len(sizes)))
    row = layers(sizes)
    ends = balanced([weight([layer]) for layer in row], parts)
    cut = [row[a:b] for a, b in itertools.pairwise([0, *ends])]
    assert [layer for part in cut for layer in part] == row
    assert len(cut) == parts
    assert all(cut)
    ways = itertools.combinations(range(1, len(row)), parts - 1)
    best = min(max(weight(row[a:b]) for a, b in itertools.pairwise([0, *ends, len(row)])) for ends in ways)
    assert max(map(weight, cut)) == best


def test_from_module_gives_a_network_that_computes_what_the_module_does():
    module = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 4))
    network = ak.Network.from_module(module, 3, sgd, ak.Latest(), max_staleness=9)
    assert [len(gate.module) for gate in network.gates] == [2, 1, 2]
    assert all(gate.staleness == ak.Latest() for gate in network.gates)
    assert network.max_staleness == 9
    x = torch.randn(5, 6)
    assert torch.equal(network.module()(x), module(x))


def test_a_module_in_place_of_gates_is_refused_with_the_way_to_make_gates_of_it():
    with pytest.raises(RecipeError, match=r"module Sequential; cut it into gates: Network\.from_module"):
        ak.Network(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(RecipeError, match=r"to cut Bilinear, from_module needs a batch of inputs"):
        ak.Network.from_module(nn.Bilinear(2, 2, 2), 1, sgd)


def test_from_module_refuses_what_it_cannot_cut():
    with pytest.raises(RecipeError, match=r"to cut Linear, from_module needs a batch of inputs"):
        ak.Network.from_module(nn.Linear(2, 2), 1, sgd)
    two_layers = nn.Sequential(nn.ReLU(), nn.ReLU())
    with pytest.raises(RecipeError, match="2 layers cannot be cut into 3 gates"):
        ak.Network.from_module(two_layers, 3, sgd)
    with pytest.raises(RecipeError, match="gates is at least 1, got 0"):
        ak.Network.from_module(two_layers, 0, sgd)


def test_a_parameter_shared_between_gates_is_refused_by_its_names():
    embed, head = nn.Embedding(5, 3), nn.Sequential(nn.Linear(3, 5, bias=False))
    head[0].weight = embed.weight
    sentence = "the parameter '0.weight' of gate 1 is also 'weight' of gate 0"
    with pytest.raises(SharedParameterError, match=sentence):
        ak.Network([ak.Gate(embed, sgd), ak.Gate(head, sgd)])


def test_a_parameter_shared_within_a_gate_is_nobodys_business():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    ak.Network([ak.Gate(module, sgd), ak.Gate(nn.Linear(3, 3), sgd)])


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"gates": []}, "at least one gate, got none"),
        ({"gates": [nn.Linear(1, 1)]}, "is made of gates, got Linear; wrap it"),
        ({"max_staleness": -1}, "max_staleness is at least 0, got -1"),
        ({"max_in_flight": 0}, "max_in_flight is at least 1, got 0"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(recipe, sentence):
    with pytest.raises(RecipeError, match=sentence):
        ak.Network(**({"gates": [ak.Gate(nn.ReLU())]} | recipe))


def test_what_is_no_row_of_gates_at_all_is_refused():
    with pytest.raises(RecipeError, match="a network is made of gates, got int; give it a list"):
        ak.Network(5)
    with pytest.raises(RecipeError, match="a network is made of gates, got Gate; give it a list"):
        ak.Network(ak.Gate(nn.Linear(2, 2)))


def test_a_module_in_evaluation_mode_is_trained_in_one_gate_or_cut_into_many_but_its_parts_stay():
    """Its children stayed in evaluation mode where it was cut, and were trained so."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    def modes() -> list[list[bool]]:
        cut = ak.Network.from_module(module, 2, sgd)
        return [
            [part.training for part in spawn.make().module.modules()]
            for network in (cut, cut.starting_from(cut.module()), ak.Network([ak.Gate(module, sgd)]))
            for spawn in network.spawns(seed=0)
        ]

    module.eval()
    assert all(all(gate) for gate in modes())
    module.train()[1].eval()
    assert sum(not training for gate in modes() for training in gate) == 3


def test_gates_are_wired_to_their_neighbours():
    network = small_network(max_staleness=5, max_in_flight=7)
    spawns = list(network.spawns(seed=3, prefix="replica/2/"))
    addresses = [f"replica/2/gate/{i}" for i in range(3)]
    assert [spawn.address for spawn in spawns] == addresses
    positions = [spawn.make().position for spawn in spawns]
    assert [position.address for position in positions] == addresses
    assert [position.previous for position in positions] == [None, *addresses[:2]]
    assert [position.next for position in positions] == [*addresses[1:], None]
    assert [(p.index, p.seed, p.max_staleness, p.max_in_flight) for p in positions] == [
        (i, 3, 5, 7) for i in range(3)
    ]


def test_every_spawn_makes_a_gate_of_its_own_from_the_same_weights():
    (spawn, *_) = small_network().spawns(seed=0)
    one, other = spawn.make(), spawn.make()
    assert same_bits(one.module, other.module)
    one.weights.masters[0].data.zero_()
    assert not same_bits(one.module, other.module)


def test_replacing_touches_only_the_gates_that_learn():
    def adam(params):
        return torch.optim.Adam(params)

    network = ak.Network([ak.Gate(nn.Linear(2, 2), sgd), ak.Gate(nn.ReLU())], max_staleness=4)
    replaced = network.replacing(staleness=ak.Latest(), optimizer=adam)
    assert (replaced.gates[0].optimizer, replaced.gates[0].staleness) == (adam, ak.Latest())
    assert replaced.gates[1] == network.gates[1]
    assert replaced.max_staleness == 4
    assert network.gates[0].optimizer is sgd
    assert network.replacing(optimizer=adam).gates[0].staleness == ak.Stash()


def test_the_module_of_a_network_is_a_copy_with_the_weights_given():
    network = ak.Network([ak.Gate(nn.Linear(2, 2), sgd), ak.Gate(nn.BatchNorm1d(2), sgd)])
    states = {f"gate/{i}": copy.deepcopy(gate.module.state_dict()) for i, gate in enumerate(network.gates)}
    states["gate/0"]["weight"] += 1
    states["gate/1"]["running_mean"] += 1
    module = network.module(states)
    assert torch.equal(module[0].weight, network.gates[0].module.weight + 1)
    assert torch.equal(module[1].running_mean, torch.ones(2))
    assert torch.equal(network.module()[0].weight, network.gates[0].module.weight)
    assert network.module()[0] is not network.gates[0].module


@pytest.mark.parametrize("names", [None, ["embed", "act", "mid", "again", "head"]])
def test_weights_of_a_cut_module_keep_the_names_they_have_there(names):
    layers = [nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 4)]
    model = (
        nn.Sequential(*layers)
        if names is None
        else nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    )
    network = ak.Network.from_module(model, gates=3, optimizer=sgd)
    with ak.run(network, "simulator") as session:
        session.attach(ak.Sentinel.train(batches_of(5), cross_entropy)).wait()
        trained = session.module()
    assert list(trained.state_dict()) == list(model.state_dict())
    model.load_state_dict(trained.state_dict())
    again = network.starting_from(model)
    assert same_bits(again.module(), trained)
    assert [list(gate.module.state_dict()) for gate in again.gates] == [
        list(gate.module.state_dict()) for gate in network.gates
    ]


def test_a_network_written_by_hand_starts_from_what_its_module_gave():
    network = small_network()
    module = network.module()
    module[0][0].weight.data.zero_()
    assert same_bits(network.starting_from(module).module(), module)


def test_a_module_that_a_sequential_has_twice_is_there_twice():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    network = ak.Network.from_module(model, gates=2, optimizer=sgd)
    x = torch.randn(2, 3)
    assert len(network.module()) == 4
    assert torch.equal(network.module()(x), model(x))


def test_a_network_says_what_it_is_in_a_line():
    """It was a page with every layer and option."""
    assert repr(small_network()) == ("<Network of 3 gates (Sequential, Sequential, Linear), 165 weights>")
    many = ak.Network([ak.Gate(nn.Linear(6, 6), name=f"g{i}") for i in range(40)])
    assert repr(many) == "<Network of 40 gates (g0, g1, g2, g3, g4, …, g39), 1,680 weights>"


def test_a_module_that_cannot_be_copied_is_refused_with_its_gate_and_the_reason():
    locked = nn.Linear(2, 2)
    locked.lock = threading.Lock()
    with pytest.raises(ak.errors.RecipeError, match=r"of gate 1 \(Linear\) cannot be copied: TypeError"):
        ak.Network([ak.Gate(nn.Linear(2, 2)), ak.Gate(locked)])


def test_lazy_buffers_are_refused_too():
    with pytest.raises(ak.errors.RecipeError, match="lazy"):
        ak.Gate(nn.LazyBatchNorm1d(affine=False))


def test_statistics_of_one_layer_in_two_gates_are_refused():
    norm = nn.BatchNorm1d(2, affine=False)
    with pytest.raises(ak.errors.SharedParameterError, match="the statistics of '0' of gate 1"):
        ak.Network([ak.Gate(nn.Sequential(norm)), ak.Gate(nn.Sequential(norm))])
