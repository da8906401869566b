"""The recipe of a row of gates, and how its actors are wired."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

from torch import Tensor, nn

from akkordeon.core.actor import Spawn
from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.core.notebook.html import card, table
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import StageState
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.pipeline.gate import Gate, GateSettings
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.module_state import tensors_of, write
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.pipeline.refusals.recipes import (
    refuse_off_schedule,
    refuse_shared,
    refuse_to_compile,
    refuse_uncopyable,
)
from akkordeon.pipeline.splitting.balance import balanced
from akkordeon.pipeline.splitting.part import Part
from akkordeon.pipeline.splitting.split import split
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.staleness.kept_weights import Stash
from akkordeon.pipeline.staleness.rule import Rule
from akkordeon.pipeline.surgery.change import recipe_with

__all__ = ["Network"]

ChooseCuts = Callable[[nn.Module, Payload, OptimizerFactory | None, bool], Sequence[str]]
"""Names where to cut a module: from (module, example, optimizer, tie) to the names for ``cut_before``."""

NAMED_MAX = 6
"""Gates that a network names in one line."""


@dataclass(frozen=True, repr=False)
class Network:
    """A row of gates, head first. It can be run many times and starts equal each time.

    Args:
        gates: at least one.
        max_staleness: a gradient older than so many updates is refused; None takes any.
        max_in_flight: batches a gate holds at most, of all sentinels together.
        whole: the module that the gates were cut from, see :meth:`from_module`; :meth:`module` is one of its
            class, with the names that it has.
        recovery: how gates that raise or are lost come back; None lets any such gate end the session.
        max_payload_bytes: that a gate takes at most of a batch: inputs, and outputs of the gate before.
        addresses: of the gates, where they are not ``gate/0``, ``gate/1`` and so on.
        clip_whole_norm: largest norm of the gradient of all gates together; larger ones are scaled down to
            it by the norm that is known by then, of the batch before; see :class:`ClippingGate`.
        schedule: of how many batches an update is made, and how old their gradients are: ``Async()``,
            ``Flush(m)`` or ``TwoBuffers(m)``.

    Raises:
        RecipeError: no gates, something that is no gate, or a number out of range.
        SharedParameterError: a parameter belongs to two gates.
    """

    gates: Sequence[Gate]
    max_staleness: int | None = None
    max_in_flight: int = 256
    whole: nn.Module | None = None
    recovery: Recovery | None = None
    max_payload_bytes: int = 2**32
    addresses: Sequence[str] | None = None
    clip_whole_norm: float | None = None
    schedule: Schedule = ASYNC

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if isinstance(self.gates, nn.Module):
            raise RecipeError(
                f"a network is made of gates, got the module {type(self.gates).__name__}; "
                "cut it into gates: Network.from_module(module, gates=…, optimizer=…)"
            )
        if not isinstance(self.gates, Iterable):
            raise RecipeError(
                f"a network is made of gates, got {type(self.gates).__name__}; give it a list of them: "
                "Network([Gate(…)])"
            )
        object.__setattr__(self, "gates", tuple(self.gates))
        if not self.gates:
            raise RecipeError("a network needs at least one gate, got none")
        for gate in self.gates:
            if not isinstance(gate, Gate):
                raise RecipeError(f"a network is made of gates, got {type(gate).__name__}; wrap it: Gate(…)")
        require_whole("max_staleness", self.max_staleness, 0, optional=True)
        require_whole("max_in_flight", self.max_in_flight)
        require_whole("max_payload_bytes", self.max_payload_bytes)
        require_above("clip_whole_norm", self.clip_whole_norm, optional=True)
        if self.recovery is not None and not isinstance(self.recovery, Recovery):
            raise RecipeError(f"recovery is a Recovery(…) or None, got {self.recovery!r}")
        for i, gate in enumerate(self.gates):
            refuse_uncopyable(i, gate)
            refuse_to_compile(i, gate)
        refuse_shared(self.gates)
        refuse_off_schedule(self.schedule, self.gates, self.clip_whole_norm, self.max_staleness)

    def __repr__(self) -> str:
        """The gates by name or module, and how large they are."""
        gates = [gate.name or type(gate.module).__name__ for gate in self.gates]
        if len(gates) > NAMED_MAX:
            gates[NAMED_MAX - 1 : -1] = ["…"]
        weights = sum(map(_size, self.gates))
        return f"<Network of {len(self.gates)} gates ({', '.join(gates)}), {weights:,} weights>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each gate."""
        rows = [
            (
                address,
                gate.name or "",
                type(gate.module).__name__,
                f"{_size(gate):,}",
                type(gate.staleness).__name__,
            )
            for address, gate in zip(self.row(), self.gates, strict=True)
        ]
        return card(repr(self).strip("<>"), table(("gate", "name", "module", "weights", "rule"), rows))

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        gates: int | ChooseCuts | None = None,
        optimizer: OptimizerFactory | None = None,
        staleness: Rule | None = None,
        max_staleness: int | None = None,
        *,
        example: Payload | None = None,
        cut_before: Sequence[str] = (),
        tie: bool = False,
        clip_whole_norm: float | None = None,
        schedule: Schedule = ASYNC,
        **settings: Unpack[GateSettings],
    ) -> Network:
        """Cut a module into gates; the names of its weights stay what they are.

        With an example any module can be cut whose forward calls its parts in the same order for every batch.
        Each gate then runs that forward for its own part, so that skip connections, several inputs and
        whatever Python is between the parts are what they were. The gates take about equally long on the
        example; a module with a ``_pp_plan`` is cut between the parts which that names. An ``nn.Sequential``
        can be cut without an example: before children that are named, or into gates with about equally many
        weights.

        Args:
            module: it stays as it is; the gates begin with its weights.
            gates: how many; not asked where ``cut_before`` says where they begin. Or a function that chooses,
                from (module, example, optimizer, tie), the names for ``cut_before``, as ``ak.auto`` does.
            optimizer: each gate makes its own.
            staleness: the rule of every gate; :class:`Stash` if not given.
            max_staleness: see :class:`Network`.
            example: a batch of inputs, as sentinels send them: ``x`` for ``module(x)``, a tuple for
                ``module(*x)``, a dict for ``module(**x)``.
            cut_before: names of the parts that gates begin with, all but the first, as in
                ``["transformer.h.4", "transformer.h.8"]``.
            tie: a weight that several gates use is the first one's, which sends it along with every batch and
                gets its gradient back. Without it such cuts are refused.
            clip_whole_norm: see :class:`Network`.
            schedule: see :class:`Network`.
            settings: of every gate, such as ``accumulate``; see :class:`GateSettings`.

        Raises:
            RecipeError: it cannot be cut so; the message says why and what to do.
            SharedParameterError: several gates would use one weight, and ``tie`` does not allow it.
        """
        if not isinstance(module, nn.Module):
            raise RecipeError(f"from_module cuts an nn.Module, got {type(module).__name__}")
        if callable(gates):
            cut_before = _chosen_cuts(gates, module, example, optimizer, cut_before, tie)
            gates = None if cut_before else 1
        _check_cuts(module, gates, example, cut_before)
        rule = staleness or Stash()
        if example is None:
            assert isinstance(module, nn.Sequential), "checked"
            parts: Iterable[nn.Module] = (_row_of(p, module) for p in _parts(module, gates, cut_before))
        else:
            parts = split(module, gates, example, optimizer, cut_before, tie)
        its = [Gate(part, optimizer, rule, **settings) for part in parts]
        return cls(its, max_staleness, whole=module, clip_whole_norm=clip_whole_norm, schedule=schedule)

    def replacing(
        self,
        staleness: Rule | None = None,
        optimizer: OptimizerFactory | None = None,
        **settings: Unpack[GateSettings],
    ) -> Network:
        """The same network with another rule, optimizer or setting in every gate that learns."""
        its = {"staleness": staleness, "optimizer": optimizer}
        others: dict[str, Any] = {name: each for name, each in its.items() if each is not None} | settings
        gates = [replace(gate, **others) if gate.optimizer is not None else gate for gate in self.gates]
        return replace(self, gates=gates)

    def changed(self, address: str, settings: Mapping[str, Any]) -> Network:
        """The same network where a gate was set to learn otherwise; see :meth:`LiveGate.set`."""
        its = zip(self.row(), self.gates, strict=True)
        gates = [recipe_with(gate, settings) if each == address else gate for each, gate in its]
        return replace(self, gates=gates)

    def row(self, prefix: str = "") -> tuple[str, ...]:
        """The addresses of the gates, head first."""
        addresses = self.addresses or [f"gate/{i}" for i in range(len(self.gates))]
        return tuple(f"{prefix}{address}" for address in addresses)

    def spawns(
        self, seed: int, prefix: str = "", states: Mapping[str, StageState] | None = None
    ) -> Iterator[Spawn]:
        """What an engine needs to make the gates, wired to each other.

        Args:
            seed: of the session.
            prefix: of the addresses.
            states: what gates go on from, by address; those not named begin with the recipe's weights.
        """
        for position, gate in zip(self.positions(seed, prefix), self.gates, strict=True):
            restored = (states or {}).get(position.address)
            restore = partial(gate_actor, gate, position, anew=True) if self.brings_back(gate) else None
            make = partial(gate_actor, gate, position, restored)
            yield Spawn(position.address, make, gate.resources, restore)

    def brings_back(self, gate: Gate) -> bool:
        """Whether a gate comes back when it is gone."""
        return self.recovery is not None and gate.on_failure == "restart"

    def positions(self, seed: int, prefix: str = "") -> Iterator[Position]:
        """Where each gate stands, head first."""
        row = self.row(prefix)
        for address, gate in zip(row, self.gates, strict=True):
            position = Position(
                address=address,
                index=0,
                seed=seed,
                max_staleness=self.max_staleness,
                max_in_flight=self.max_in_flight,
                max_payload_bytes=self.max_payload_bytes,
                snapshot_every=self.snapshot_every(gate),
                clip_norm=self.clip_whole_norm,
                schedule=self.schedule,
            )
            yield position.within(row)

    def snapshot_every(self, gate: Gate) -> int | float | None:
        """The updates, or seconds, between two snapshots of a gate; None where there are none."""
        return self.recovery.snapshot_every if self.recovery is not None and self.brings_back(gate) else None

    def module(self, states: Mapping[str, Mapping[str, Tensor]] | None = None) -> nn.Module:
        """The network as one plain module, copied: that which it was cut from, or a Sequential of its gates.

        The names in it are what people see and files have; :meth:`starting_from` leads back.

        Args:
            states: weights and buffers by gate address and name in the module; the recipe's if not given.
        """
        if self.whole is None:
            modules = [copied(gate.module) for gate in self.gates]
            for address, module in zip(self.row(), modules, strict=True):
                if states is not None:
                    write(states[address], module)
            return nn.Sequential(*modules)
        whole = copied(self.whole)
        for address, gate in zip(self.row(), self.gates, strict=True):
            state = tensors_of(gate.module) if states is None else states[address]
            write(gate.module.of_whole(state) if isinstance(gate.module, Part) else state, whole)
        return whole

    def starting_from(self, module: nn.Module) -> Network:
        """The same network with the weights and buffers of such a module as :meth:`module` gives."""
        if self.whole is None:
            assert isinstance(module, nn.Sequential), "what module() gives"
            modules = list(module)
        else:
            modules = [_starting_from(gate.module, module) for gate in self.gates]
        gates = [replace(gate, module=part) for gate, part in zip(self.gates, modules, strict=True)]
        return replace(self, gates=gates, whole=None if self.whole is None else module)


def _size(gate: Gate) -> int:
    """How many weights it has."""
    return sum(p.numel() for p in gate.module.parameters())


def _chosen_cuts(
    choose: ChooseCuts,
    module: nn.Module,
    example: Payload | None,
    optimizer: OptimizerFactory | None,
    cut_before: Sequence[str],
    tie: bool,
) -> Sequence[str]:
    if example is None or cut_before:
        raise RecipeError(
            "a function that chooses where to cut needs a batch of inputs, example=x, and no cut_before"
        )
    return choose(module, example, optimizer, tie)


def _check_cuts(
    module: nn.Module, gates: int | None, example: Payload | None, cut_before: Sequence[str]
) -> None:
    """Refuse what says too little, or too much, of where a module is to be cut."""
    if cut_before and gates not in (None, len(cut_before) + 1):
        raise RecipeError(f"cut_before makes {len(cut_before) + 1} gates, got gates={gates}")
    if isinstance(cut_before, str):
        raise RecipeError(f"cut_before is a list of names, got {cut_before!r}")
    if isinstance(gates, str):
        raise RecipeError(
            f"gates is a number, or a function that names where to cut, as ak.auto; got {gates!r}"
        )
    if not cut_before:
        require_whole("gates", gates)
    if example is not None:
        return
    if not isinstance(module, nn.Sequential) or not set(cut_before) <= module._modules.keys():
        raise RecipeError(
            f"to cut {type(module).__name__}, from_module needs a batch of inputs: "
            "Network.from_module(module, …, example=x)"
        )
    if not cut_before and gates > len(module):  # type: ignore[operator]  # it is a number by now
        raise RecipeError(
            f"{len(module)} layers cannot be cut into {gates} gates; with example=x, a batch of inputs, "
            "what is in them is cut as well"
        )


def _starting_from(part: nn.Module, whole: nn.Module) -> nn.Module:
    """The module of a gate with the state of another whole one."""
    if not isinstance(part, Part):
        return _row_of(((name, getattr(whole, name)) for name, _ in _children(part)), whole)
    twin = copied(part)
    write(part.of_part(tensors_of(whole)), twin)
    return twin


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children by name, one with two names twice."""
    return list(module._modules.items())  # type: ignore[arg-type]  # a Sequential has no None


def _row_of(children: Iterable[tuple[str, nn.Module]], like: nn.Module) -> nn.Sequential:
    """A Sequential of these, in training or evaluation mode itself as another is; they stay as they are."""
    row = nn.Sequential(OrderedDict(children))
    row.training = like.training
    return row


def _parts(
    module: nn.Sequential, gates: int | None, cut_before: Sequence[str]
) -> Iterator[list[tuple[str, nn.Module]]]:
    """The children of each gate by their names."""
    children = iter(_children(module))
    start = 0
    for end in _named_ends(module, cut_before) if cut_before else _even_ends(module, gates):
        yield list(itertools.islice(children, end - start))
        start = end


def _even_ends(module: nn.Sequential, gates: int | None) -> list[int]:
    assert gates is not None, "checked"
    return balanced([1 + sum(p.numel() for p in layer.parameters()) for layer in module], gates)


def _named_ends(module: nn.Sequential, cut_before: Sequence[str]) -> list[int]:
    order = list(module._modules)
    ends = [*map(order.index, cut_before), len(order)]
    if ends != sorted({*ends} - {0}):
        raise RecipeError(
            f"cut_before has names in the order of their calls, not that of the first, got {list(cut_before)}"
        )
    return ends
