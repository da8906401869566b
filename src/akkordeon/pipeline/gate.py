"""The recipe of a gate: a module, its optimizer and its staleness rule, checked as it is written down."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, TypedDict

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from akkordeon.core.checks import is_number, require_above, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.staleness.kept_weights import Stash
from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["Gate", "GateSettings"]


class GateSettings(TypedDict, total=False):
    """What all gates of a network may be told at once; see :class:`Gate`."""

    clip_norm: float | None
    accumulate: int
    recompute: bool
    compile: bool | Mapping[str, Any]
    autocast: torch.dtype | None
    ema: float | None
    schedule_by: Literal["updates", "samples"]
    diagnose_every: int | None


@dataclass(frozen=True)
class Gate:
    """The recipe of a gate.

    Args:
        module: called as ``module(payload)`` with a tensor, or a tuple, list or dict of tensors.
        optimizer: from parameters to a ``torch.optim.Optimizer``, or to (optimizer, scheduler); a function of
            ``named_parameters`` gets (name, parameter) pairs. None for a gate without parameters, or one
            whose parameters stay as they are.
        staleness: the rule for stale gradients.
        clip_norm: largest norm of this gate's gradient; larger ones are scaled down to it.
        accumulate: batches for one update, with the mean of their gradients.
        recompute: keep of a batch in flight its input and output alone, and run the module again for its
            backward.
        autocast: ``torch.bfloat16`` or ``torch.float16``, to run the module under ``torch.autocast``; None
            leaves it under that of whoever runs the network.
        compile: True, or arguments of ``torch.compile``, to have it compile the module's forward.
        ema: the decay of an average of the weights that the gate keeps beside them, as in 0.999; that of
            ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn``, renewed by each update.
        schedule_by: what its scheduler counts: ``"updates"``, or the ``"samples"`` learned from.
        diagnose_every: measure with one batch in so many how stale its gradient is; ``session.status()`` has
            the figures. None measures nothing.
        name: for reports; the position if not given.
        device: where the module and its work live, as in ``"cuda:0"``.
        resources: what a host must offer, for engines that place gates on hosts.
        on_failure: whether it comes back when it raises or is lost, in a network with ``recovery``;
            ``"fail"`` ends the session.

    Raises:
        RecipeError: the module is no ``nn.Module``, there is no such device, or another argument is of
            another kind or out of range.
    """

    module: nn.Module
    optimizer: OptimizerFactory | None = None
    staleness: Rule = field(default_factory=Stash)
    clip_norm: float | None = None
    name: str | None = None
    device: str | torch.device | None = None
    resources: Mapping[str, float] | None = None
    on_failure: Literal["restart", "fail"] = "restart"
    accumulate: int = 1
    recompute: bool = False
    compile: bool | Mapping[str, Any] = False
    autocast: torch.dtype | None = None
    ema: float | None = None
    schedule_by: Literal["updates", "samples"] = "updates"
    diagnose_every: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not isinstance(self.module, nn.Module):
            raise RecipeError(f"a gate holds an nn.Module, got {type(self.module).__name__}")
        if any(map(is_lazy, (*self.module.parameters(), *self.module.buffers()))):
            raise RecipeError("a gate's module has lazy parameters; send one batch through it first")
        _refuse_late_hooks(self.module)
        _check_parts(self.module)
        if self.optimizer is not None and not callable(self.optimizer):
            raise RecipeError(
                "a gate's optimizer is a function from parameters to an optimizer, as in "
                f"lambda params: torch.optim.SGD(params, lr=0.1); got {type(self.optimizer).__name__}"
            )
        if not isinstance(self.staleness, Rule):
            raise RecipeError(f"a gate's staleness is a rule such as Stash(), got {self.staleness!r}")
        require_above("clip_norm", self.clip_norm, optional=True)
        require_whole("accumulate", self.accumulate)
        require_whole("diagnose_every", self.diagnose_every, optional=True)
        if not isinstance(self.recompute, bool):
            raise RecipeError(f"a gate's recompute is True or False, got {self.recompute!r}")
        if not isinstance(self.compile, bool | Mapping):
            raise RecipeError(
                f"a gate's compile is True, False or arguments of torch.compile, got {self.compile!r}"
            )
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise RecipeError(
                f"a gate's autocast is torch.bfloat16, torch.float16 or None, got {self.autocast!r}"
            )
        if self.ema is not None and not (is_number(self.ema) and 0 <= self.ema < 1):
            raise RecipeError(f"a gate's ema is at least 0 and below 1, as in 0.999, got {self.ema!r}")
        if self.schedule_by not in ("updates", "samples"):
            raise RecipeError(f"a gate's schedule_by is 'updates' or 'samples', got {self.schedule_by!r}")
        if self.name is not None and not (isinstance(self.name, str) and self.name):
            raise RecipeError(f"a gate's name is a string and not empty, got {self.name!r}")
        if self.device is not None:
            _check_device(self.device)
        if self.resources is not None:
            _check_resources(self.resources)
        if self.on_failure not in ("restart", "fail"):
            raise RecipeError(f"a gate's on_failure is 'restart' or 'fail', got {self.on_failure!r}")

    @property
    def lives_on(self) -> torch.device | None:
        """Its device, or the one on which all of its module is; None for a CPU that nobody has named."""
        if self.device is not None:
            return torch.device(self.device)
        there = {tensor.device for tensor in chain(self.module.parameters(), self.module.buffers())}
        return there.pop() if len(there) == 1 and torch.device("cpu") not in there else None


def _check_device(device: object) -> None:
    """Refuse what names no device; whether this one is there is found out where the gate is made."""
    try:
        parsed = torch.device(device)  # type: ignore[call-overload]  # that is the question
    except Exception as error:
        raise RecipeError(f"a gate's device is one of PyTorch's, as in 'cuda:0', got {device!r}") from error
    if parsed.type == "meta":
        raise RecipeError("a gate's device cannot be 'meta', where tensors have no values")


def _check_resources(resources: object) -> None:
    """Refuse what no engine could look for."""
    if not isinstance(resources, Mapping) or not all(
        isinstance(name, str) and is_number(amount) and amount >= 0 for name, amount in resources.items()
    ):
        raise RecipeError(
            f"a gate's resources are amounts of at least 0 by name, as in {{'num_cpus': 1}}, "
            f"got {resources!r}"
        )


def _refuse_late_hooks(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter._post_accumulate_grad_hooks:
            raise RecipeError(
                f"the parameter {name!r} has a hook for after its gradient is accumulated, and a gate "
                "accumulates none; use register_hook"
            )


def _check_parts(module: nn.Module) -> None:
    """Refuse parts that keep their weights to themselves, and warn of those that a copy makes slower."""
    for name, part in module.named_modules():
        which = f"the part {name!r} of a gate's module" if name else "a gate's module"
        if isinstance(part, torch.jit.ScriptModule):
            raise RecipeError(
                f"{which} is TorchScript, which holds its weights where a gate cannot give it versions of "
                "them; use the Python module that it was made from"
            )
        if getattr(part, "_compiled_call_impl", None) is not None:
            warnings.warn(
                f"{which} was compiled in place by compile(), which no copy keeps: it will run as it was; "
                "give the gate torch.compile(module) instead",
                stacklevel=4,
            )
