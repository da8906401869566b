"""The weights of a gate through its versions: an update writes new memory, whoever holds the old keeps it.

    version        7          8          9
    memory       ██████     ██████     ██████ ◀── masters, what the optimizer holds
    held by     batch 12    batch 13   the module
                batch 13'   a cut

PyTorch refuses a backward after the weights it needs were changed in place, and writing through
``p.data`` silences that without making it right. So the module computes on *aliases*: leaf tensors
that share a master's memory but not its version counter. Before an update the masters move to fresh
memory; the old aliases, and every graph built on them, stay whole until nobody holds them.
The same move makes an update all or nothing: if the optimizer raises, the old memory is still there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Buffers", "Snapshot", "Weights"]

Snapshot = tuple[Tensor, ...]


class Weights:
    """The parameters of one module, and the version of them that it computes with.

    Args:
        module: its parameters become the masters; from here on it computes on aliases of them.
        keep: give every version memory of its own. Without it updates happen in place, under the feet
            of batches in flight.
    """

    def __init__(self, module: nn.Module, keep: bool = True) -> None:
        self.masters: list[nn.Parameter] = list(module.parameters())
        self.names: list[str] = [name for name, _ in module.named_parameters()]
        self.trainable: list[int] = [i for i, p in enumerate(self.masters) if p.requires_grad]
        self._keep = keep
        place = {id(master): i for i, master in enumerate(self.masters)}
        self._slots: list[tuple[dict[str, nn.Parameter | None], str, int]] = [
            (owner._parameters, name, place[id(parameter)])
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        # Recurrent modules keep a second list of their weights, which must follow.
        self._recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
        self._installed: Snapshot | None = None
        self.now: Snapshot = self._aliases()
        self.install(self.now)

    def _aliases(self) -> Snapshot:
        return tuple(master.data.requires_grad_(master.requires_grad) for master in self.masters)

    def install(self, snapshot: Snapshot) -> None:
        """Make the module compute with these weights."""
        if snapshot is self._installed:
            return
        for parameters, name, i in self._slots:
            parameters[name] = snapshot[i]  # type: ignore[assignment]  # aliases are plain leaf tensors
        for module in self._recurrent:
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        self._installed = snapshot

    def pin(self) -> Snapshot:
        """The weights as they are now, safe from any later update."""
        return self.now if self._keep else tuple(weight.detach().clone() for weight in self.now)

    def adopt(self, weights: Sequence[Tensor], places: Sequence[int]) -> None:
        """Make these the current version of the weights at some places, without ever writing to them."""
        for i, weight in zip(places, weights, strict=True):
            self.masters[i].data = weight if self._keep else weight.clone()
        self.now = self._aliases()
        self.install(self.now)

    def prepare_update(self) -> None:
        """Give the masters fresh memory, so that the update leaves this version as it is."""
        if self._keep:
            for i in self.trainable:
                master = self.masters[i]
                master.data = master.data.clone()

    def publish(self) -> None:
        """Make the updated masters the current version."""
        if self._keep or self._have_moved():
            self.now = self._aliases()
            self.install(self.now)

    def _have_moved(self) -> bool:
        """Whether the optimizer gave a master other memory (``p.data = …``), which aliases do not follow."""
        return any(m.data_ptr() != w.data_ptr() for m, w in zip(self.masters, self.now, strict=True))

    def roll_back(self) -> None:
        """Forget an update that failed half way."""
        if self._keep:
            for master, weight in zip(self.masters, self.now, strict=True):
                master.data = weight.detach()


class Buffers:
    """A module's buffers; every training forward writes to new ones, so the old can be kept or put back."""

    def __init__(self, module: nn.Module) -> None:
        self.names = [name for name, _ in module.named_buffers()]
        tensors_now = list(module.buffers())
        place = {id(buffer): i for i, buffer in enumerate(tensors_now)}
        self._slots = [
            (owner._buffers, name, place[id(buffer)])
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self._before: tuple[Tensor, ...] = tuple(tensors_now)

    @property
    def now(self) -> tuple[Tensor, ...]:
        """The buffers the module has."""
        found: dict[int, Tensor] = {i: owner[name] for owner, name, i in self._slots}  # type: ignore[misc]
        return tuple(found[i] for i in range(len(found)))

    def install(self, buffers: tuple[Tensor, ...]) -> None:
        """Make the module use these buffers."""
        for owner, name, i in self._slots:
            owner[name] = buffers[i]

    def renew(self) -> None:
        """Give the module copies to write to."""
        if self._slots:
            self._before = self.now
            self.install(tuple(buffer.clone() for buffer in self._before))

    def roll_back(self) -> None:
        """Put back what was there before :meth:`renew`."""
        self.install(self._before)
