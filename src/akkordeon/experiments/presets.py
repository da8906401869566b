"""Staleness rules and optimizers that go by a name, and networks that are told to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from akkordeon.core.errors import RecipeError
from akkordeon.downpour.delayed_nesterov import DelayedNesterov
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.staleness import DelayCompensation, InverseStaleness, Latest, Rule, Stash
from akkordeon.pipeline.updater import OptimizerFactory

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "SERVER_OPTIMIZERS",
    "SERVER_RULES",
    "downpour_of",
    "optimizer_named",
    "rule_named",
    "with_lr",
]

RULES: dict[str, Rule] = {
    "latest": Latest(),
    "stash": Stash(),
    "dc-constant": DelayCompensation("constant"),
    "dc-adaptive": DelayCompensation("adaptive"),
}

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "sgd": (torch.optim.SGD, 0.05),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 0.01),
    "adam": (torch.optim.Adam, 1e-3),
    "adamw": (torch.optim.AdamW, 1e-3),
}
"""Each with the learning rate it has if none is given."""

SERVER_OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "adagrad": (torch.optim.Adagrad, 0.01),
    "sgd": (torch.optim.SGD, 0.05),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 0.01),
    "nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 0.07),
    "delayed-nesterov": (DelayedNesterov, 0.7),
    "adam": (torch.optim.Adam, 1e-3),
}
"""Of parameter shards, likewise. 0.07 because 0.7, DiLoCo's, is too much where pushes are not averaged."""

SERVER_RULES: dict[str, Rule] = {
    "stash": Stash(),
    "inverse": InverseStaleness(),
    "dc-constant": RULES["dc-constant"],
    "dc-adaptive": RULES["dc-adaptive"],
}


def rule_named(name: str) -> Rule:
    """The staleness rule of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in RULES:
        raise RecipeError(f"there is no staleness rule {name!r}; there are {', '.join(RULES)}")
    return RULES[name]


def optimizer_named(name: str, lr: float | None = None) -> OptimizerFactory:
    """What makes an optimizer of that name for each gate.

    Args:
        name: a key of ``OPTIMIZERS``.
        lr: learning rate; its usual one if not given.

    Raises:
        RecipeError: there is none.
    """
    if name not in OPTIMIZERS:
        raise RecipeError(f"there is no optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
    make, usual_lr = OPTIMIZERS[name]
    return partial(make, lr=usual_lr if lr is None else lr)


def with_lr(network: Network, lr: float) -> Network:
    """The same network, all its optimizers with another learning rate.

    Running it raises ``RecipeError`` where an optimizer comes with a scheduler, which has its own idea.
    """
    gates = [
        gate if gate.optimizer is None else replace(gate, optimizer=partial(_set_lr, gate.optimizer, lr))
        for gate in network.gates
    ]
    return replace(network, gates=gates)


def _set_lr(factory: OptimizerFactory, lr: float, parameters: Iterable[nn.Parameter]) -> Optimizer:
    optimizer = factory(parameters)
    if isinstance(optimizer, tuple):
        raise RecipeError(
            f"the learning rate cannot be set to {lr:g}: the task's optimizers come with a scheduler, "
            "which sets it; choose an optimizer as well"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


def downpour_of(
    network: Network,
    replicas: int,
    server_optimizer: str = "adagrad",
    server_lr: float | None = None,
    staleness: str = "stash",
    **settings: Any,
) -> Downpour:
    """A Downpour told by names and numbers alone.

    Args:
        network: what is replicated.
        replicas: how many.
        server_optimizer: a key of ``SERVER_OPTIMIZERS``.
        server_lr: its learning rate; its usual one if not given.
        staleness: a key of ``SERVER_RULES``.
        settings: others of :class:`Downpour`.

    Raises:
        RecipeError: there is no such name, or the settings contradict each other.
    """
    if server_optimizer not in SERVER_OPTIMIZERS:
        known = ", ".join(SERVER_OPTIMIZERS)
        raise RecipeError(f"there is no server optimizer {server_optimizer!r}; there are {known}")
    if staleness not in SERVER_RULES:
        known = ", ".join(SERVER_RULES)
        raise RecipeError(f"shards have no staleness rule {staleness!r}; there are {known}")
    make, usual_lr = SERVER_OPTIMIZERS[server_optimizer]
    made = partial(make, lr=usual_lr if server_lr is None else server_lr)
    if make is DelayedNesterov:
        made = partial(made, buffer=replicas)
    rule = SERVER_RULES[staleness]
    return Downpour(network, replicas=replicas, server_optimizer=made, staleness=rule, **settings)
