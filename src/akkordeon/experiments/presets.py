"""Staleness rules and optimizers that go by a name, and networks that are told to use them.

An entry of a table here is all that a new optimizer needs: commands offer what the tables have. The rules
stand beside their classes, in ``pipeline/staleness/``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from akkordeon.core.errors import RecipeError
from akkordeon.core.schedules import ASYNC, Flush, Schedule, TwoBuffers
from akkordeon.downpour.compression import COMPRESSIONS
from akkordeon.downpour.delayed_nesterov import DelayedNesterov
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.optimizers.basis_rotation import basis_rotation
from akkordeon.pipeline.optimizers.error_feedback import ErrorFeedback
from akkordeon.pipeline.optimizers.muon import muon
from akkordeon.pipeline.optimizers.ordered_momentum import OrderedMomentum
from akkordeon.pipeline.staleness.named import RULES
from akkordeon.pipeline.staleness.rule import Rule

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "SERVER_OPTIMIZERS",
    "SERVER_RULES",
    "CompressionName",
    "OptimizerName",
    "RuleName",
    "ScheduleName",
    "ServerOptimizerName",
    "ServerRuleName",
    "optimizer_named",
    "rule_named",
    "schedule_named",
    "server_optimizer_named",
    "server_rule_named",
    "with_lr",
]

Preset = tuple[Callable[..., Optimizer], float]
"""What makes the optimizer, and the learning rate it has if none is given."""

FUSED_ON = frozenset({"cpu", "cuda"})
"""Types of devices where PyTorch has fused kernels."""


def _fused(make: Callable[..., Optimizer], parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    """The optimizer, with one kernel for all of its step where PyTorch has one for such parameters.

    Only for those that take no sparse gradients in any case, as fused kernels take none.
    """
    given = list(parameters)
    fits = all(p.is_floating_point() and p.device.type in FUSED_ON for p in given)
    return make(given, lr=lr, fused=fits or None)


def _adamw_ef(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    return ErrorFeedback(_fused(torch.optim.AdamW, parameters, lr))


def _muon_ef(named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float) -> Optimizer:
    return ErrorFeedback(muon(named_parameters, lr))


OPTIMIZERS: dict[str, Preset] = {
    "sgd": (torch.optim.SGD, 0.05),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 0.01),
    "adam": (partial(_fused, torch.optim.Adam), 1e-3),
    "adamw": (partial(_fused, torch.optim.AdamW), 1e-3),
    "nadam": (partial(torch.optim.NAdam, betas=(0.99, 0.999), momentum_decay=0.04), 1e-3),
    "muon": (muon, 1e-3),
    "ormo": (partial(OrderedMomentum, workers=4), 0.01),
    "basis-rotation": (basis_rotation, 1e-3),
    "adamw-ef": (_adamw_ef, 1e-3),
    "muon-ef": (_muon_ef, 1e-3),
}
"""``nadam`` is Nesterov's momentum for asynchronous pipelines (Ajanthan et al. 2025, arXiv:2505.01099), with
a ``momentum_decay`` for runs of some thousand updates; its authors have 0.004 for 50,000. ``-ef`` is with
:class:`ErrorFeedback`. ``ormo`` is for four batches in flight."""

SCHEDULES: dict[str, type[Flush] | None] = {"async": None, "flush": Flush, "2bw": TwoBuffers}
"""Those in which updates are waited for, and the one in which they are not."""

SERVER_OPTIMIZERS: dict[str, Preset] = {
    "adagrad": (torch.optim.Adagrad, 0.01),
    "sgd": (torch.optim.SGD, 0.05),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 0.01),
    "nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 0.07),
    "delayed-nesterov": (DelayedNesterov, 0.7),
    "ormo": (OrderedMomentum, 0.01),
    "adam": OPTIMIZERS["adam"],
}
"""Of parameter shards. 0.07 because 0.7, DiLoCo's, is too much where pushes are not averaged."""

SERVER_RULES = {
    name: rule
    for name, rule in RULES.items()
    if rule.keeps_weights and not rule.looks_ahead and not rule.is_vertical
}
"""Of parameter shards: a shard lends weights and runs no forward and no backward."""

if TYPE_CHECKING:
    RuleName: TypeAlias = str
    ServerRuleName: TypeAlias = str
    OptimizerName: TypeAlias = str
    ServerOptimizerName: TypeAlias = str
    CompressionName: TypeAlias = str
    ScheduleName: TypeAlias = str
else:  # so that a command offers, and a file may say, what the tables have
    RuleName = Literal[tuple(RULES)]
    ServerRuleName = Literal[tuple(SERVER_RULES)]
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    ServerOptimizerName = Literal[tuple(SERVER_OPTIMIZERS)]
    CompressionName = Literal[tuple(name or "none" for name in COMPRESSIONS)]
    ScheduleName = Literal[tuple(SCHEDULES)]

T = TypeVar("T")


def rule_named(name: str) -> Rule:
    """The staleness rule of that name.

    Raises:
        RecipeError: there is none.
    """
    return _entry(RULES, name, "there is no staleness rule")


def server_rule_named(name: str) -> Rule:
    """The staleness rule for shards of that name.

    Raises:
        RecipeError: there is none.
    """
    return _entry(SERVER_RULES, name, "shards have no staleness rule")


def optimizer_named(name: str, lr: float | None = None) -> OptimizerFactory:
    """What makes an optimizer of that name for each gate.

    Args:
        name: a key of ``OPTIMIZERS``.
        lr: learning rate; its usual one if not given.

    Raises:
        RecipeError: there is none.
    """
    make, usual_lr = _entry(OPTIMIZERS, name, "there is no optimizer")
    return partial(make, lr=usual_lr if lr is None else lr)


def schedule_named(name: str, micro_batches: int | None) -> Schedule:
    """The schedule of that name.

    Args:
        name: a key of ``SCHEDULES``.
        micro_batches: that an update is made of.

    Raises:
        RecipeError: there is none, or nobody has said of how many batches an update is made.
    """
    kind = _entry(SCHEDULES, name, "there is no schedule")
    if kind is None:
        return ASYNC
    if micro_batches is None:
        raise RecipeError(
            f"the schedule {name!r} needs to know of how many batches an update is made: accumulate"
        )
    return kind(micro_batches)


def server_optimizer_named(name: str, lr: float | None, replicas: int) -> OptimizerFactory:
    """What makes an optimizer of that name for each shard.

    Args:
        name: a key of ``SERVER_OPTIMIZERS``.
        lr: learning rate; its usual one if not given.
        replicas: that push to it, which delayed Nesterov and ordered momentum go by.

    Raises:
        RecipeError: there is none.
    """
    make, usual_lr = _entry(SERVER_OPTIMIZERS, name, "there is no server optimizer")
    made = partial(make, lr=usual_lr if lr is None else lr)
    if make is DelayedNesterov:
        return partial(made, buffer=replicas)
    return partial(made, workers=replicas) if make is OrderedMomentum else made


def _entry(table: Mapping[str, T], name: str, there_is_no: str) -> T:
    if name not in table:
        raise RecipeError(f"{there_is_no} {name!r}; there are {', '.join(table)}")
    return table[name]


def with_lr(network: Network, lr: float) -> Network:
    """The same network, all its optimizers with another learning rate.

    Running it raises ``RecipeError`` where an optimizer comes with a scheduler, which has its own idea.
    """
    gates = [
        gate if gate.optimizer is None else replace(gate, optimizer=_with_lr(gate.optimizer, lr))
        for gate in network.gates
    ]
    return replace(network, gates=gates)


def _with_lr(factory: OptimizerFactory, lr: float) -> OptimizerFactory:
    """The same function with another learning rate, which asks for what that one asks for, as names."""
    return update_wrapper(partial(_set_lr, factory, lr), factory, updated=())


def _set_lr(factory: OptimizerFactory, lr: float, parameters: Iterable[Any]) -> Optimizer:
    optimizer = factory(parameters)
    if isinstance(optimizer, tuple):
        raise RecipeError(
            f"the learning rate cannot be set to {lr:g}: the task's optimizers come with a scheduler, "
            "which sets it; choose an optimizer as well"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer
