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

import torch
from torch import Tensor, nn

from akkordeon.payload import all_finite

__all__ = ["Snapshot", "Weights"]

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
        self.keep = keep
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
        self._pinned: set[int] = set()  # places whose memory a cut may hold
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # of an update in place: rows, and what they were
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
        self._pinned.update(self.trainable)
        return self.now if self.keep else tuple(weight.detach().clone() for weight in self.now)

    def adopt(self, weights: Sequence[Tensor], places: Sequence[int]) -> None:
        """Make these the current version of the weights at some places, without ever writing to them."""
        for i, weight in zip(places, weights, strict=True):
            self.masters[i].data = weight if self.keep else weight.clone()
        self.now = self._aliases()
        self.install(self.now)

    def prepare_update(self, gradients: Sequence[Tensor | None]) -> None:
        """Give the masters fresh memory, so that the update leaves this version as it is.

        A table whose gradient is sparse is looked up alone, and the backward of a lookup needs no weights:
        it is updated in place, rather than copied as a whole for a few rows, unless a cut holds it.
        """
        for i in self.trainable:
            master, gradient = self.masters[i], gradients[i]
            if gradient is not None and gradient.is_sparse and i not in self._pinned:
                rows = torch.unique(gradient._indices()[0])
                self._rows[i] = rows, master.data.index_select(0, rows)
            elif self.keep:
                master.data = master.data.clone()
                self._pinned.discard(i)

    def are_finite(self) -> bool:
        """Whether no NaN and no infinity is in what was updated."""
        return all_finite(self._updated(i) for i in self.trainable)

    def _updated(self, i: int) -> Tensor:
        weight = self.masters[i].data
        return weight.index_select(0, self._rows[i][0]) if i in self._rows else weight

    def publish(self) -> None:
        """Make the updated masters the current version."""
        self._rows.clear()
        if self.keep or self._have_moved():
            self.now = self._aliases()
            self.install(self.now)

    def _have_moved(self) -> bool:
        """Whether the optimizer gave a master other memory (``p.data = …``), which aliases do not follow."""
        return any(m.data_ptr() != w.data_ptr() for m, w in zip(self.masters, self.now, strict=True))

    def roll_back(self) -> None:
        """Forget an update that failed half way, where every version has memory of its own."""
        for i, (rows, before) in self._rows.items():
            self.masters[i].data.index_copy_(0, rows, before)
        self._rows.clear()
        if self.keep:
            for master, weight in zip(self.masters, self.now, strict=True):
                master.data = weight.detach()
