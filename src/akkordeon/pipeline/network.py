"""The recipe of a row of gates, and how its actors are wired."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from akkordeon.core.actor import Spawn
from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError, SharedParameterError, explain
from akkordeon.core.plain_state import StageState
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.module_state import tensors_of, write
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.staleness import Rule, Stash
from akkordeon.pipeline.updater import OptimizerFactory

__all__ = ["Network"]

NAMED_MAX = 6
"""Gates that a network names in one line."""


@dataclass(frozen=True, repr=False)
class Network:
    """A row of gates, head first. It can be run many times and starts equal each time.

    Args:
        gates: at least one.
        max_staleness: a gradient older than so many updates is refused; None takes any.
        max_in_flight: batches a gate holds at most, of all sentinels together.
        flat: each gate's module is a Sequential, and :meth:`module` is one Sequential of all their children
            under the names these have: for gates that were cut from one.
        recovery: how gates that raise or are lost come back; None lets any such gate end the session.
        max_payload_bytes: that a gate takes at most of a batch: inputs, and outputs of the gate before.

    Raises:
        RecipeError: no gates, something that is no gate, or a number out of range.
        SharedParameterError: a parameter belongs to two gates.
    """

    gates: Sequence[Gate]
    max_staleness: int | None = None
    max_in_flight: int = 256
    flat: bool = False
    recovery: Recovery | None = None
    max_payload_bytes: int = 2**32

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
        if self.recovery is not None and not isinstance(self.recovery, Recovery):
            raise RecipeError(f"recovery is a Recovery(…) or None, got {self.recovery!r}")
        if self.flat and not all(isinstance(gate.module, nn.Sequential) for gate in self.gates):
            raise RecipeError("a flat network has gates of nn.Sequential alone; leave flat=False")
        for i, gate in enumerate(self.gates):
            _refuse_uncopyable(i, gate)
        _refuse_shared(self.gates)

    def __repr__(self) -> str:
        """The gates by name or module, and how large they are."""
        gates = [gate.name or type(gate.module).__name__ for gate in self.gates]
        if len(gates) > NAMED_MAX:
            gates[NAMED_MAX - 1 : -1] = ["…"]
        weights = sum(p.numel() for gate in self.gates for p in gate.module.parameters())
        return f"<Network of {len(self.gates)} gates ({', '.join(gates)}), {weights:,} weights>"

    @classmethod
    def from_module(
        cls,
        module: nn.Sequential,
        gates: int,
        optimizer: OptimizerFactory,
        staleness: Rule | None = None,
        max_staleness: int | None = None,
    ) -> Network:
        """Cut an ``nn.Sequential`` into gates with about equally many parameters.

        The names of weights stay those of ``module``: it can load what ``session.module()`` has.

        Args:
            module: its children are the smallest pieces.
            gates: how many.
            optimizer: each gate makes its own.
            staleness: the rule of every gate; :class:`Stash` if not given.
            max_staleness: see :class:`Network`.

        Raises:
            RecipeError: not a Sequential, or fewer children than gates.
        """
        if not isinstance(module, nn.Sequential):
            raise RecipeError(
                f"from_module cuts an nn.Sequential, got {type(module).__name__}; "
                "another module is one gate: Network([Gate(module, optimizer)])"
            )
        require_whole("gates", gates)
        if gates > len(module):
            raise RecipeError(f"{len(module)} layers cannot be cut into {gates} gates")
        rule = staleness or Stash()
        return cls(
            [Gate(_row_of(part, module), optimizer, rule) for part in _parts(module, gates)],
            max_staleness=max_staleness,
            flat=True,
        )

    def replacing(self, staleness: Rule | None = None, optimizer: OptimizerFactory | None = None) -> Network:
        """The same network with another rule or optimizer in every gate that learns."""
        gates = [
            replace(gate, staleness=staleness or gate.staleness, optimizer=optimizer or gate.optimizer)
            if gate.optimizer is not None
            else gate
            for gate in self.gates
        ]
        return replace(self, gates=gates)

    def row(self, prefix: str = "") -> tuple[str, ...]:
        """The addresses of the gates, head first."""
        return tuple(f"{prefix}gate/{i}" for i in range(len(self.gates)))

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
            restore = partial(GateActor, gate, position, anew=True) if self.brings_back(gate) else None
            make = partial(GateActor, gate, position, restored)
            yield Spawn(position.address, make, gate.resources, restore)

    def brings_back(self, gate: Gate) -> bool:
        """Whether a gate comes back when it is gone."""
        return self.recovery is not None and gate.on_failure == "restart"

    def positions(self, seed: int, prefix: str = "") -> Iterator[Position]:
        """Where each gate stands, head first."""
        row = self.row(prefix)
        for i, (address, gate) in enumerate(zip(row, self.gates, strict=True)):
            yield Position(
                address=address,
                index=i,
                previous=row[i - 1] if i else None,
                next=row[i + 1] if i + 1 < len(row) else None,
                seed=seed,
                max_staleness=self.max_staleness,
                max_in_flight=self.max_in_flight,
                max_payload_bytes=self.max_payload_bytes,
                snapshot_every=self.snapshot_every(gate),
            )

    def snapshot_every(self, gate: Gate) -> int | float | None:
        """The updates, or seconds, between two snapshots of a gate; None where there are none."""
        return self.recovery.snapshot_every if self.recovery is not None and self.brings_back(gate) else None

    def module(self, states: Mapping[str, Mapping[str, Tensor]] | None = None) -> nn.Sequential:
        """The gates' modules as one plain ``nn.Sequential``, copied.

        Its children are the gates' modules; those of a :attr:`flat` network are the children of these, under
        their own names. These names are what people see and files have; :meth:`starting_from` leads back.

        Args:
            states: weights and buffers by gate address and name in the module; the recipe's if not given.
        """
        modules = [copied(gate.module) for gate in self.gates]
        for address, module in zip(self.row(), modules, strict=True):
            if states is not None:
                write(states[address], module)
        if self.flat:
            return _row_of([child for module in modules for child in _children(module)], modules[0])
        return nn.Sequential(*modules)

    def starting_from(self, module: nn.Sequential) -> Network:
        """The same network with the parts of such a module as :meth:`module` gives."""
        if self.flat:
            children = iter(_children(module))
            sizes = [len(_children(gate.module)) for gate in self.gates]
            modules: list[nn.Module] = [_row_of(itertools.islice(children, size), module) for size in sizes]
        else:
            modules = list(module)
        gates = [replace(gate, module=part) for gate, part in zip(self.gates, modules, strict=True)]
        return replace(self, gates=gates)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children by name, one with two names twice."""
    return list(module._modules.items())  # type: ignore[arg-type]  # a Sequential has no None


def _row_of(children: Iterable[tuple[str, nn.Module]], like: nn.Module) -> nn.Sequential:
    """A Sequential of these, in training or evaluation mode itself as another is; they stay as they are."""
    row = nn.Sequential(OrderedDict(children))
    row.training = like.training
    return row


def _parts(module: nn.Sequential, gates: int) -> Iterator[list[tuple[str, nn.Module]]]:
    """The children of each gate by their names."""
    children = iter(_children(module))
    for part in _cut(list(module), gates):
        yield list(itertools.islice(children, len(part)))


def _refuse_uncopyable(i: int, gate: Gate) -> None:
    """Refuse a module that no gate could have a copy of, or that could not be handed out again."""
    try:
        copied(gate.module, structure_only=True)
    except Exception as error:  # whatever its own copying raises
        raise RecipeError(
            f"the module of gate {i} ({type(gate.module).__name__}) cannot be copied: {explain(error)}; keep "
            "what cannot be copied out of its attributes"
        ) from error
    tensors_of(gate.module)


def _refuse_shared(gates: Sequence[Gate]) -> None:
    owners: dict[int, tuple[int, str]] = {}
    norms: dict[int, int] = {}
    for i, gate in enumerate(gates):
        for name, part in gate.module.named_modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                j = norms.setdefault(id(part), i)
                if j != i:
                    raise SharedParameterError(
                        f"the statistics of {name!r} of gate {i} are also those of gate {j}; copy the layer, "
                        "or put both uses into one gate"
                    )
        for name, parameter in gate.module.named_parameters():
            j, other = owners.setdefault(id(parameter), (i, name))
            if j != i:
                raise SharedParameterError(
                    f"the parameter {name!r} of gate {i} is also {other!r} of gate {j}; a gate owns its "
                    "parameters alone: copy it, or put both layers into one gate"
                )


def _cut(layers: list[nn.Module], parts: int) -> list[list[nn.Module]]:
    """Contiguous parts, none empty, the largest as small as can be (by parameters, each layer at least 1)."""
    sizes = [1 + sum(p.numel() for p in layer.parameters()) for layer in layers]
    best: dict[tuple[int, int], tuple[int, list[int]]] = {}

    def largest(start: int, left: int) -> tuple[int, list[int]]:
        if left == 1:
            return sum(sizes[start:]), [len(layers)]
        if (start, left) not in best:
            options = []
            for end in range(start + 1, len(layers) - left + 2):
                rest, ends = largest(end, left - 1)
                options.append((max(sum(sizes[start:end]), rest), [end, *ends]))
            best[start, left] = min(options)
        return best[start, left]

    _, ends = largest(0, parts)
    starts = [0, *ends[:-1]]
    return [layers[start:end] for start, end in zip(starts, ends, strict=True)]
