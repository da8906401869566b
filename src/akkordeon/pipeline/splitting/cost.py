"""What the calls of blocks cost: seconds for a forward, a backward and an update, measured on an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.splitting.walk import Call, leaves_in
from akkordeon.pipeline.staleness.kept_weights import Stash
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Weights

__all__ = ["BlockCosts"]

MEASURED_S = 0.02
"""How long each block is measured."""


class BlockCosts:
    """Measures the calls of blocks.

    Blocks that are built alike and called alike are measured once, so that equal ones count as equal.

    Args:
        optimizer: of the gates; None leaves updates out.
    """

    def __init__(self, optimizer: OptimizerFactory | None) -> None:
        self._optimizer = optimizer
        self._known: dict[object, float] = {}

    def costs_s(self, calls: Iterable[Call], blocks: Mapping[str, nn.Module]) -> list[float]:
        """Seconds that each call takes, with the update of its block in the block's first one."""
        costs, updated = [], set[str]()
        for call in calls:
            costs.append(self._call_s(call, blocks[call.block]))
            if call.block not in updated:
                updated.add(call.block)
                costs[-1] += self._update_s(call.block, blocks[call.block])
        return costs

    def _call_s(self, call: Call, block: nn.Module) -> float:
        return self._once(
            ("call", _built(block), _forms((call.args, call.kwargs)), tuple(call.autocast.items())),
            lambda: _call_s(block, call),
        )

    def _update_s(self, name: str, block: nn.Module) -> float:
        optimizer = self._optimizer
        if optimizer is None or not any(weight.requires_grad for weight in block.parameters()):
            return 0.0
        return self._once(("update", _built(block)), lambda: _seconds(_update(name, block, optimizer)))

    def _once(self, key: object, measure: Callable[[], float]) -> float:
        if key not in self._known:
            with torch.random.fork_rng():  # how often it draws depends on the time that it takes
                self._known[key] = measure()
        return self._known[key]


def _built(block: nn.Module) -> tuple[object, ...]:
    return repr(block), _forms(list(block.parameters()))


def _forms(some: Any) -> tuple[object, ...]:
    return tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in leaves_in(some))


def _seconds(work: Callable[[], object]) -> float:
    from torch.utils.benchmark import Timer  # only who cuts by time pays for the import

    work()
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return float(min(timer.blocked_autorange(min_run_time=MEASURED_S).times))  # the least disturbed


def _call_s(block: nn.Module, call: Call) -> float:
    """A forward and a backward; of a block that cannot be called again with a graph, three forwards.

    So it is where one argument is an object that keeps results of the forward, as a cache does.
    """
    with ExitStack() as around:
        for device, dtype in call.autocast.items():
            around.enter_context(torch.autocast(device, dtype))
        try:
            return _seconds(_training(block, call))
        except Exception:
            twin = copied(block)
            with torch.no_grad():
                return 3 * _seconds(lambda: twin(*call.args, **call.kwargs))


def _training(block: nn.Module, call: Call) -> Callable[[], object]:
    """A forward and a backward of a copy."""
    twin = copied(block)
    weights: list[Tensor] = [weight for weight in twin.parameters() if weight.requires_grad]

    def fresh(leaf: Any) -> Any:
        return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf

    def to_write(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    given = tree_map(fresh, (call.args, call.kwargs))
    inputs = [tensor for tensor in leaves_in(given) if tensor.requires_grad]

    def work() -> None:
        args, kwargs = tree_map(to_write, given)
        outputs = [tensor for tensor in leaves_in(twin(*args, **kwargs)) if tensor.requires_grad]
        if outputs:
            ones = [torch.ones_like(output) for output in outputs]
            torch.autograd.grad(outputs, inputs + weights, ones, allow_unused=True)

    return work


def _update(name: str, block: nn.Module, optimizer: OptimizerFactory) -> Callable[[], object]:
    """An update of the weights of a copy, by the names that they have in the whole."""
    weights = Weights(copied(block))
    weights.known_as = [f"{name}.{own}" for own in weights.names]
    updater = Updater(weights, _without_scheduler(optimizer), Stash(), None, "a block")

    def work() -> None:
        updater.update([torch.zeros_like(weight) for weight in weights.now], weights.now, 0)

    return work


def _without_scheduler(optimizer: OptimizerFactory) -> OptimizerFactory:
    """The optimizer alone: a schedule may be made for fewer steps than are measured."""

    @wraps(optimizer)
    def made(params: Iterable[Any]) -> Any:
        gave = optimizer(params)
        return gave[0] if isinstance(gave, tuple) else gave

    return made
