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

A forward may write to weights too (``max_norm``, clipping, codebooks). The first one runs on fresh memory,
and shows which; from then on those have fresh memory for every forward. Evaluations go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import all_finite
from akkordeon.pipeline.learning.average import Average
from akkordeon.pipeline.module_copy import in_fresh_memory, overlapping

__all__ = ["Snapshot", "Weights"]

Snapshot = tuple[Tensor, ...]


class Weights:
    """The parameters of one module, and the version of them that it computes with.

    Args:
        module: its parameters become the masters; from here on it computes on aliases of them.
        keep: give every version memory of its own. Without it updates happen in place, also for
            batches in flight.

    Attributes:
        names: in the module.
        known_as: the names by which an optimizer function knows them: in the whole module, for a part of one.
        average: of the versions that updates have made, where one is kept.
    """

    def __init__(self, module: nn.Module, keep: bool = True) -> None:
        self.masters: list[nn.Parameter] = list(module.parameters())
        self.names: list[str] = [name for name, _ in module.named_parameters()]
        prefix: Any = getattr(module, "weights_begin_with", "")
        self.known_as = [name.removeprefix(prefix) for name in self.names]
        self.trainable: list[int] = [i for i, p in enumerate(self.masters) if p.requires_grad]
        self.keep = keep
        self.average: Average | None = None
        place = {id(master): i for i, master in enumerate(self.masters)}
        self._slots: list[tuple[dict[str, nn.Parameter | None], str, int]] = [
            (owner._parameters, name, place[id(parameter)])
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        self._lists = list(_lists_with(module, place))
        self._tied = overlapping(self.masters)
        self._marked = [i for i, m in enumerate(self.masters) if vars(m) or m._backward_hooks]
        # Recurrent modules keep a second list of their weights, which must follow.
        self._recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
        self._installed: Snapshot | None = None
        self._pinned: set[int] = set()  # places whose memory a cut may hold
        self._written: set[int] | None = None  # places that forwards write to; None before the first one
        self._reads_alone = not any(map(_may_write, module.modules()))
        self._written_in_evaluation = set(place.values()) if _may_write_in_evaluation(module) else None
        self._before: Snapshot | None = None  # during a forward, the weights when it began
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # of an update in place: rows, and what they were
        self.now: Snapshot = self._aliases()
        self.install(self.now)

    def _aliases(self) -> Snapshot:
        return self.as_weights(master.data for master in self.masters)

    def as_weights(self, memories: Iterable[Tensor]) -> Snapshot:
        """Tensors as the module's weights: leaves that pass for parameters, with attributes and hooks."""
        aliases = []
        for master, alias in zip(self.masters, memories, strict=True):
            if type(master) is not nn.Parameter:
                alias = alias.as_subclass(type(master))
            if master.requires_grad:
                alias.requires_grad_()
            alias._is_param = True  # what isinstance(…, nn.Parameter) asks for
            aliases.append(alias)
        for i in self._marked:
            vars(aliases[i]).update(vars(self.masters[i]))
            aliases[i]._backward_hooks = self.masters[i]._backward_hooks
        return tuple(aliases)

    def install(self, snapshot: Snapshot) -> None:
        """Make the module compute with these weights."""
        if snapshot is self._installed:
            return
        for parameters, name, i in self._slots:
            parameters[name] = snapshot[i]  # type: ignore[assignment]  # aliases are plain leaf tensors
        for things, key, i in self._lists:
            things[key] = snapshot[i]
        for module in self._recurrent:
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        self._installed = snapshot

    def like_now(self, tensors: Mapping[str, Tensor]) -> Snapshot:
        """Tensors by name as a version of these weights, in memory of their own."""
        return self.as_weights(tensors[name].detach().clone() for name in self.names)

    @contextmanager
    def computing_on(self, snapshot: Snapshot) -> Iterator[None]:
        """Have the module compute with another version, to which it is not to write.

        Raises:
            RecipeError: it has written to it.
        """
        self.install(snapshot)
        before = [weight._version for weight in snapshot]
        try:
            yield
        finally:
            self._installed = None  # it may have put others in their places
            self.install(self.now)
        if [weight._version for weight in snapshot] != before:
            raise RecipeError("its forward writes to its weights, which by its schedule or rule are to stay")

    def pin(self, averaged: bool = False) -> Snapshot:
        """The weights as they are now, or their average where one is kept, safe from any later update."""
        if averaged and self.average is not None:
            return self.as_weights(self.average.pin())
        self._pinned.update(self.trainable)
        return self.now if self.keep else tuple(weight.detach().clone() for weight in self.now)

    def keep_versions(self, keep: bool) -> None:
        """Give every version memory of its own from now on, or none; those there are stay whole."""
        if self.keep and not keep:
            self._move(range(len(self.masters)))
        self.keep = keep

    def at_all_places(self, of_trainable: list[Tensor | None]) -> list[Tensor | None]:
        """What there is for each trainable weight, at its place among all; None at the others."""
        if len(of_trainable) == len(self.masters):
            return of_trainable
        by_place = dict(zip(self.trainable, of_trainable, strict=True))
        return [by_place.get(i) for i in range(len(self.masters))]

    def can_adopt(self, weights: Sequence[Tensor], places: Sequence[int]) -> bool:
        """Whether these are of the form of the weights at some places."""
        now = [self.now[i] for i in places]
        return len(weights) == len(now) and all(
            came.shape == weight.shape and came.dtype == weight.dtype and came.layout == weight.layout
            for came, weight in zip(weights, now, strict=True)
        )

    def adopt(self, weights: Sequence[Tensor], places: Sequence[int]) -> None:
        """Make these the current version of the weights at some places, without ever writing to them."""
        for i, weight in zip(places, weights, strict=True):
            self.masters[i].data = weight if self.keep else weight.clone()
        for group in self._tied:
            if not set(group).isdisjoint(places):  # what came has memory of its own for each
                came = [self.masters[i].data for i in group]
                self._renew(group, [self.now[i].detach() for i in group])
                for i, weight in zip(group, came, strict=True):
                    self.masters[i].data.copy_(weight)
        self.now = self._aliases()
        self.install(self.now)

    def prepare_update(self, gradients: Sequence[Tensor | None], by_rows: bool = True) -> None:
        """Give the masters fresh memory, so that the update leaves this version as it is.

        A table whose gradient is sparse is looked up alone, and the backward of a lookup needs no weights:
        it is updated in place, rather than copied as a whole for a few rows, unless a cut holds it.

        Args:
            gradients: one for each weight, or None.
            by_rows: the update writes to no other rows of such a table, so that it can be taken back.
        """
        tied = {i for group in self._tied for i in group} if self._tied else ()
        for i in self.trainable:
            master, gradient = self.masters[i], gradients[i]
            may_stay = by_rows and i not in self._pinned and i not in tied
            if may_stay and gradient is not None and gradient.is_sparse:
                rows = torch.unique(gradient._indices()[0])
                self._rows[i] = rows, master.data.index_select(0, rows)
            elif self.keep:
                if i not in tied:
                    master.data = master.data.clone()
                self._pinned.discard(i)
        if self.keep:
            for group in self._tied:
                self._renew(group)

    def _renew(self, places: Sequence[int], like: Sequence[Tensor] | None = None) -> None:
        """Move masters that share memory to fresh memory that they share alike."""
        like = [self.masters[i].data for i in places] if like is None else like
        for i, fresh in zip(places, in_fresh_memory(like), strict=True):
            self.masters[i].data = fresh

    def are_finite(self) -> bool:
        """Whether no NaN and no infinity is in what was updated."""
        rows = self._rows
        updated = [self.masters[i].data for i in self.trainable]
        if rows:
            updated = [
                weight.index_select(0, rows[i][0]) if i in rows else weight
                for i, weight in zip(self.trainable, updated, strict=True)
            ]
        return all_finite(updated)

    def publish(self) -> None:
        """Make the updated masters the current version."""
        self._rows.clear()
        if self.keep or self._have_moved():
            self.now = self._aliases()
            self.install(self.now)
        if self.average is not None:
            self.average.add(self.now)

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

    # ── writes of the module itself ──────────────────────────────────────────────────────────────────

    def begin_forward(self) -> None:
        """Give fresh memory to what the module may write to; all of it, the first time."""
        if self._reads_alone and not (_global_forward_hooks or _global_forward_pre_hooks):
            return
        self._before = self.now
        if self._written is None or self._written:
            self._move(range(len(self.masters)) if self._written is None else self._written)

    def _move(self, places: Iterable[int]) -> None:
        tied = {i for group in self._tied for i in group}
        chosen = set(places)
        for i in chosen - tied:
            self.masters[i].data = self.masters[i].data.clone()
        for group in self._tied:
            if not chosen.isdisjoint(group):
                self._renew(group)
        self.now = self._aliases()
        self.install(self.now)

    def end_forward(self) -> None:
        """Take in what the module wrote to its weights, and what it put in their place.

        A parameter that was put in place of another is computed with, and not learned any more: the optimizer
        of a plain loop does not know it either.

        Raises:
            RecipeError: a weight is gone, another of the module's own is in its place, or it is frozen now.
        """
        before = self._before
        if before is None:  # it is not watched
            return
        now = self.now
        put = {i: p.get(name) for p, name, i in self._slots if p.get(name) is not now[i]}
        self._refuse_what_cannot_be_followed(put)
        self._before = None
        for i, found in put.items():
            self._take(found, i)  # type: ignore[arg-type]  # None was refused
        written = self._written
        if written is None:
            written = {i for i, was in enumerate(before) if not _same(was, now[i])}
        for i, (weight, master) in enumerate(zip(now, self.masters, strict=True)):
            if weight._version:
                written.add(i)
            if weight.data_ptr() != master.data_ptr() and i not in put:  # by ``p.data = …``
                written.add(i)
                master.data = weight.detach()
        self._written = written
        if put:
            self._installed = None  # all else the batch's graph was built on
            fresh = self._aliases()
            self.now = tuple(fresh[i] if i in put else weight for i, weight in enumerate(now))
            self.install(self.now)

    @property
    def written(self) -> list[str]:
        """Names of those that a forward has written to."""
        return [self.names[i] for i in sorted(self._written or ())]

    def _refuse_what_cannot_be_followed(self, put: Mapping[int, Tensor | None]) -> None:
        """Raise before anything is taken in, so that all of the forward can be undone."""
        for i, found in put.items():
            if found is None:
                raise RecipeError(f"the forward took its parameter {self.names[i]!r} away; leave it there")
            for name, weight in zip(self.names, self.now, strict=True):
                if found is weight:  # a plain loop's optimizer still has both
                    raise RecipeError(
                        f"the forward put its parameter {name!r} in the place of {self.names[i]!r}; exchange "
                        "what is in them, or choose between them in the forward"
                    )
        for name, weight, master in zip(self.names, self.now, self.masters, strict=True):
            if weight.requires_grad is not master.requires_grad:
                raise RecipeError(
                    f"the forward changed whether its parameter {name!r} requires a gradient, which "
                    "is decided when a gate is made; to freeze it for a while, set its learning rate to 0"
                )

    def _take(self, found: Tensor, i: int) -> None:
        self.masters[i].data = found.detach().clone()
        if i in self.trainable:
            self.trainable.remove(i)

    def undo_forward(self) -> None:
        """Go back to the weights as they were when a forward began."""
        before, self._before = self._before, None
        if before is not None:
            for master, weight in zip(self.masters, before, strict=True):
                master.data = weight.detach()
            self.now, self._installed = before, None
            self.install(before)

    @contextmanager
    def evaluated_on(self, snapshot: Snapshot) -> Iterator[None]:
        """Have the module compute with these weights, and whatever it writes to them be forgotten."""
        known = self._written_in_evaluation
        given = snapshot
        if known is None or known:
            given = self.as_weights(
                weight.detach().clone() if known is None or i in known else weight.detach()
                for i, weight in enumerate(snapshot)
            )
        self.install(given)
        versions = [weight._version for weight in given]
        try:
            yield
        finally:
            wrote = {i for i, weight in enumerate(given) if weight._version != versions[i]}
            if known is None:
                wrote |= {i for i, weight in enumerate(given) if not _same(weight, snapshot[i])}
            self._written_in_evaluation = wrote if known is None else known | wrote
            self._installed = None  # it may have put others in their places
            self.install(self.now)


def _lists_with(module: nn.Module, place: dict[int, int]) -> Iterator[tuple[Any, Any, int]]:
    """Where lists and dicts that a module keeps beside its parameters hold some of them."""
    for owner in module.modules():
        for name, things in vars(owner).items():
            if name in ("_parameters", "_buffers", "_modules", "_flat_weights"):
                continue
            items: Iterable[tuple[Any, Any]] = ()
            if isinstance(things, list):
                items = enumerate(things)
            elif isinstance(things, dict):
                items = things.items()
            for key, thing in list(items):
                if id(thing) in place:
                    yield things, key, place[id(thing)]


def _may_write(part: nn.Module) -> bool:
    """Whether a forward of this part may write to weights; PyTorch's own layers do for ``max_norm`` alone."""
    kind = type(part)
    whose = (kind.__module__, _module_of(kind.forward), _module_of(kind.__call__))
    return (
        not all(name.startswith("torch.nn.modules.") for name in whose)
        or "forward" in vars(part)
        or bool(part._forward_pre_hooks or part._forward_hooks)
        or getattr(part, "max_norm", None) is not None
    )


def _module_of(function: Callable[..., Any]) -> str:
    """The name of the Python module that a function was written in; functools.wraps claims another's."""
    return str(getattr(function, "__globals__", {}).get("__name__", ""))


def _may_write_in_evaluation(module: nn.Module) -> bool:
    """Whether a part may write to weights in evaluation mode, as merged adapters and ``max_norm`` do."""
    return any(
        type(part).train is not nn.Module.train
        or type(part).eval is not nn.Module.eval
        or getattr(part, "max_norm", None) is not None
        for part in module.modules()
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
