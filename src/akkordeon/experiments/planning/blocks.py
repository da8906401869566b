"""What is planned: a model as a row of blocks, of which the gates of every layout are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import Payload
from akkordeon.core.schedules import ASYNC
from akkordeon.downpour.recipe import Downpour
from akkordeon.experiments.planning.costs import Compression
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.optimizer import OptimizerFactory, built
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.optimizers.composed import Composed
from akkordeon.pipeline.splitting.split import split, split_finely
from akkordeon.pipeline.weights import Weights

__all__ = ["Blocks", "averaging", "blocks_of_module", "blocks_of_network", "recut"]

BLOCKS_MAX = 12
"""Into so many a module is cut; 2, 3, 4 and 6 gates of them are even."""


@dataclass(frozen=True)
class Blocks:
    """A model as a row of blocks.

    Args:
        network: with a gate for each block.
        cuts: the names that the blocks but the first begin with, for ``cut_before``.
        example: that cuts need; None where they need none.
        may_merge: whether gates may have several blocks.
    """

    network: Network
    cuts: tuple[str, ...]
    example: Payload | None
    may_merge: bool

    def __len__(self) -> int:
        """How many."""
        return len(self.network.gates)

    @property
    def updating_at_once(self) -> Blocks:
        """The same where each batch is an update: so an update is measured."""
        if not self.network.schedule.is_exact:
            return self
        network = replace(self.network.replacing(accumulate=1), schedule=ASYNC)
        return replace(self, network=network)

    @property
    def apart(self) -> Network:
        """The network whose gates run nothing of the blocks before them, to measure what each costs.

        It is not for training; see :mod:`akkordeon.pipeline.splitting.spans`.
        """
        if self.example is None or not self.cuts or self.network.whole is None:
            return self.network
        try:
            whole, cuts = self.network.whole, self.cuts
            parts = split(whole, None, self.example, cut_before=cuts, tie=True, stand_aside=True)
        except RecipeError:  # there are modules that cannot stand aside
            return self.network
        gates = zip(self.network.gates, parts, strict=True)
        return replace(self.network, gates=[replace(gate, module=part) for gate, part in gates])

    def cuts_after(self, ends: Sequence[int]) -> tuple[str, ...]:
        """The names to cut at for gates that end with these numbers of blocks."""
        return tuple(self.cuts[end - 1] for end in ends[:-1])

    def cut(self, ends: Sequence[int]) -> Network:
        """The network whose gates end with these numbers of blocks, the last with all."""
        if len(ends) == len(self):
            return self.network
        return recut(self.network, self.cuts_after(ends), self.example)


def recut(network: Network, cuts: Sequence[str], example: Payload | None = None) -> Network:
    """The same network in other gates; weights keep the names that they have in ``network.module()``.

    Args:
        network: its gates learn alike.
        cuts: the names of the modules that gates begin with, all but the first; none for one gate.
        example: a batch of inputs, where the network was cut with one.

    Raises:
        RecipeError: its gates do not learn alike, or it cannot be cut so.
    """
    if not learn_alike(network.gates):
        raise RecipeError(
            "the gates of this network have optimizers, rules or settings of their own, so they cannot be "
            "made into others; leave them as they are"
        )
    like = _typical(network.gates)
    made = Network.from_module(
        network.module() if network.whole is None else network.whole,
        None if cuts else 1,
        example=example,
        cut_before=cuts,
        tie=True,
    )
    gates = [replace(like, module=gate.module, name=None) for gate in made.gates]
    return replace(network, gates=gates, whole=made.whole)


def blocks_of_network(network: Network, example: Payload, cuts: Sequence[str] | None = None) -> Blocks:
    """The blocks of a network: the gates of one written by hand, smaller ones of one that was cut.

    Args:
        network: the recipe.
        example: a batch of inputs.
        cuts: the names that blocks but the first begin with, where they are known.
    """
    if not learn_alike(network.gates):
        return Blocks(network, (), None, may_merge=False)
    if network.whole is None:
        own = tuple(str(number) for number in range(1, len(network.gates)))
        return Blocks(network, own, None, may_merge=True)
    if cuts is None:
        cuts = _fine_cuts(network.whole, example, _typical(network.gates).optimizer)
    return Blocks(recut(network, cuts, example), tuple(cuts), example, may_merge=True)


def blocks_of_module(
    module: nn.Module,
    example: Payload,
    optimizer: OptimizerFactory | None,
    cuts: Sequence[str] | None = None,
    tie: bool = True,
) -> Blocks:
    """The blocks of a module: as many that take about equally long as it can be cut into.

    Args:
        module: any that :meth:`Network.from_module` can cut.
        example: a batch of inputs.
        optimizer: of the gates.
        cuts: the names that blocks but the first begin with, where they are known.
        tie: whether blocks may use one weight.

    Raises:
        RecipeError: it cannot work on the example, or cannot be cut so.
    """
    if cuts is None:
        cuts = _fine_cuts(module, example, optimizer, tie)
    gates = None if cuts else 1
    network = Network.from_module(module, gates, optimizer, example=example, cut_before=cuts, tie=tie)
    return Blocks(network, tuple(cuts), example, may_merge=True)


def _fine_cuts(
    module: nn.Module, example: Payload, optimizer: OptimizerFactory | None, tie: bool = True
) -> tuple[str, ...]:
    parts = split_finely(module, BLOCKS_MAX, example, optimizer, tie)
    return tuple(name for name in (part.cut_name for part in parts[1:]) if name is not None)


def averaging(network: Network, replicas: int, push_every: int, compression: Compression) -> Downpour:
    """Replicas that push how far their weights have come, of which shards take an equal share each."""
    server = partial(torch.optim.SGD, lr=1 / replicas)
    return Downpour(
        network,
        replicas=replicas,
        push="differences",
        push_every=push_every,
        compression=compression,
        server_optimizer=server,
    )


# ── whether gates can be made into others ────────────────────────────────────────────────────────────


def learn_alike(gates: Sequence[Gate]) -> bool:
    """Whether gates with weights have the same kind of optimizer, and the same rule and settings."""
    its = [gate for gate in gates if _learns(gate)]
    frozen = any(gate.optimizer is None and any(gate.module.parameters()) for gate in gates)
    return not frozen and all(_settings(gate) == _settings(its[0]) for gate in its[1:])


def _learns(gate: Gate) -> bool:
    return gate.optimizer is not None and next(gate.module.parameters(), None) is not None


def _typical(gates: Sequence[Gate]) -> Gate:
    """One that learns, if any does."""
    return next(filter(_learns, gates), gates[0])


def _settings(gate: Gate) -> tuple[object, ...]:
    own = ("module", "name", "optimizer")
    its = {each.name: getattr(gate, each.name) for each in fields(gate) if each.name not in own}
    return its, _optimizer_settings(gate)


def _optimizer_settings(gate: Gate) -> tuple[object, ...]:
    """Of what kind an optimizer is; one with a schedule, groups or parts of its own is like itself alone."""
    assert gate.optimizer is not None, "it learns"
    optimizer, scheduler = built(gate.optimizer, Weights(gate.module), "a gate")
    if scheduler is not None or len(optimizer.param_groups) > 1 or isinstance(optimizer, Composed):
        return (gate.optimizer,)
    return type(optimizer), tuple(sorted(optimizer.defaults.items(), key=str))
