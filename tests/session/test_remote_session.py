"""A session that joined a network: names and gates are the network's. The network itself is made up here."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.session.remote_session import JoinedRegistry, JoinedTopology


class Registrar:
    """What a network knows of its sentinels."""

    def __init__(self, network):
        self.network = network
        self.row = network.row()
        self.registered = []

    def register_sentinel(self, name, role, answers):
        name = name or f"{role}-7"
        self.registered.append(f"sentinel/{name}#3")
        return name, 3

    def unregister_sentinel(self, address):
        if address in self.registered:
            self.registered.remove(address)


@pytest.fixture
def network():
    return ak.Network([ak.Gate(nn.Linear(2, 2))], max_in_flight=4)


def test_a_sentinel_has_the_name_and_the_number_that_the_network_gives_it(network):
    registrar = Registrar(network)
    attachment = JoinedRegistry(registrar).register(ak.Sentinel.train([], F.cross_entropy), ("gate/0",), None)
    assert (attachment.name, attachment.address) == ("train-7", "sentinel/train-7#3")
    assert registrar.registered == ["sentinel/train-7#3"]


def test_a_sentinel_that_is_restarted_has_a_number_of_the_network_too(network):
    registrar = Registrar(network)
    registry = JoinedRegistry(registrar)
    attachment = registry.register(ak.Sentinel.train([], F.cross_entropy), ("gate/0",), None)
    registry.mark_ended(attachment)
    registrar.unregister_sentinel(attachment.address)
    registry.restore(attachment)
    assert registry.at_work() == [attachment]
    assert registrar.registered == [attachment.address]


def test_a_name_is_given_back_where_the_sentinel_is_refused_or_does_not_come(network):
    registrar = Registrar(network)
    registry = JoinedRegistry(registrar)
    with pytest.raises(RecipeError, match="up to 9 batches would be in flight"):
        registry.register(ak.Sentinel.train([], F.cross_entropy, in_flight=9), ("gate/0",), None)
    assert registrar.registered == []
    registry.withdraw(registry.register(ak.Sentinel.train([], F.cross_entropy), ("gate/0",), None))
    assert registrar.registered == []
    assert registry.attachments == []


def test_the_gates_of_a_network_that_goes_on_do_not_end_with_a_session(network):
    topology = JoinedTopology(network)
    assert topology.row == ("gate/0",)
    assert topology.owned == ()
