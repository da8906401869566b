"""The module of a gate that has some of the calls of a whole module: it runs the whole one's own forward.

    forward of the whole    embed ─▶ h.0 ─▶ h.1 ─▶ h.2 ─▶ h.3 ─▶ norm ─▶ head
    in gate 1 of 3          ▒▒▒▒▒ ─▶ ▒▒▒ ─▶ h.1 ─▶ h.2 ┊ it ends here

Blocks that were called in gates before stand aside and give what these have sent, or, where nobody needs it,
NaNs of the right shape. After its last call a gate leaves the forward, and sends what later gates need.
So a gate computes nothing else than the whole module does, whatever Python there is between its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from akkordeon.core.payload import Payload
from akkordeon.pipeline.splitting.calling import call
from akkordeon.pipeline.splitting.form import Piece, nothing_like
from akkordeon.pipeline.splitting.run import Begins, Ends, Given, LeftError, Passed, Run, SpanEnds
from akkordeon.pipeline.splitting.walk import INPUTS, Source, leaves_in

__all__ = ["WHOLE", "Part"]

WHOLE = "whole."
"""What the names of a part's weights begin with, before those that they have in the whole."""


class Part(nn.Module):
    """See above.

    Args:
        whole: a copy, which becomes this part's own.
        blocks: all blocks of the whole by name.
        own: the names of the blocks that no other gate calls.
        everywhere: the names of those that any gate may call.
        parameters: the names in the whole of the parameters that are this gate's.
        piece: what it does.

    Attributes:
        weights_begin_with: what is before the names that its weights have in the whole.
    """

    weights_begin_with = WHOLE

    def __init__(
        self,
        whole: nn.Module,
        blocks: Mapping[str, nn.Module],
        own: Iterable[str],
        everywhere: Collection[str],
        parameters: Iterable[str],
        piece: Piece,
    ) -> None:
        super().__init__()
        self.whole = whole
        self.training = whole.training
        self._piece = piece
        self._run = Run(piece)
        own = set(own)
        self._absent = tuple(name for name in blocks if name not in own)
        present = {id(part) for name in own for part in blocks[name].modules()}
        self._others: list[tuple[nn.Module, str]] = []
        """Where a weight or buffer is that another gate has."""
        self._borrowed: list[tuple[nn.Module, str, Source]] = []
        """Where a weight is put that comes with the batch."""
        self._leave_out_weights(
            set(parameters),
            {id(part) for name in self._absent for part in blocks[name].modules()} - present,
        )
        for name, block in blocks.items():
            if name in self._absent:
                before = vars(block).get("forward")
                _replace_forward(block, Given(self._run, name, block, before, name in everywhere))
            else:
                block.register_forward_pre_hook(Begins(self._run, name))
                block.register_forward_hook(Ends(self._run))
        for span in piece.passed:
            _replace_forward(whole.get_submodule(span.module), Passed(self._run, span))
        for span in piece.ending:
            whole.get_submodule(span.module).register_forward_hook(SpanEnds(self._run, span))

    def _leave_out_weights(self, own: set[str], absent: set[int]) -> None:
        """Make plain attributes of what this gate does not have: NaNs of weights, buffers as they are."""
        names = {id(parameter): name for name, parameter in self.whole.named_parameters()}
        taken = () if self._piece.takes is None else self._piece.takes.values
        for part in self.whole.modules():
            for last, parameter in list(part._parameters.items()):
                if parameter is not None and (id(part) in absent or names[id(parameter)] not in own):
                    self._set_aside(part._parameters, part, last, nothing_like(parameter.detach()))
                    source = Source(names[id(parameter)])
                    if source in taken:
                        self._borrowed.append((part, last, source))
            if id(part) in absent:
                for last, buffer in list(part._buffers.items()):
                    self._set_aside(part._buffers, part, last, buffer)

    def _set_aside(self, table: dict[str, Any], part: nn.Module, last: str, value: Tensor | None) -> None:
        del table[last]
        vars(part)[last] = value
        self._others.append((part, last))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Part:
        """Move what this gate does not have along with what it has."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part, last in self._others:
            if vars(part)[last] is not None:
                vars(part)[last] = fn(vars(part)[last])
        return self

    # ── names ────────────────────────────────────────────────────────────────────────────────────────

    def of_whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of this part by the names that it has in the whole module."""
        named = {name.removeprefix(WHOLE): tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in named.items() if self._has(name)}

    def of_part(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a state of the whole module what is this part's, by the names that it has here."""
        return {WHOLE + name: tensor for name, tensor in state.items() if self._has(name)}

    def _has(self, name: str) -> bool:
        owner, _, last = name.rpartition(".")
        is_absent = any(f"{owner}.".startswith(f"{block}.") for block in self._absent)
        return not is_absent and last not in vars(self.whole.get_submodule(owner))

    @property
    def cut_name(self) -> str | None:
        """The block to name for a cut before this part; None where one before it calls that block as well."""
        names, first = self._piece.names, self._piece.first
        return names[first] if names.index(names[first]) == first else None

    def forward(self, payload: Payload) -> Any:
        """What the next gate gets; what the whole module gives, in the last one."""
        piece = self._piece
        values, shapes, batch = self._unpacked(payload)
        self._run.begin(values, shapes, self.training)
        before = [vars(part)[last] for part, last, _ in self._borrowed]
        for part, last, source in self._borrowed:
            vars(part)[last] = values[source]
        try:
            return call(self.whole, batch)
        except LeftError:
            assert piece.gives is not None, "the last gate does not leave"
            known = dict(self._run.values)
        finally:
            self._run.end()
            for (part, last, _), nothing in zip(self._borrowed, before, strict=True):
                vars(part)[last] = nothing
        for source in piece.gives.values:
            if isinstance(source.of, str) and source not in known:  # a weight that is this gate's
                known[source] = self.whole.get_parameter(source.of).clone()
        return piece.gives.packed(known, shapes)

    def _unpacked(self, payload: Payload) -> tuple[dict[Source, Tensor], dict[Source, Tensor], Payload]:
        """Values and shapes by their sources, and the batch; of what nobody needs here, as NaNs."""
        piece = self._piece
        if piece.takes is None:
            if piece.gives is not None:
                piece.inputs.refuse_other(payload, "a batch")
            inputs = {Source(INPUTS, place): tensor for place, tensor in enumerate(leaves_in(payload))}
            return inputs, {}, payload
        values, shapes = piece.takes.unpacked(payload)
        return values, shapes, piece.inputs.filled(values, shapes, INPUTS)


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Have a module give something else, without what its hooks did."""
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    vars(module)["forward"] = forward
