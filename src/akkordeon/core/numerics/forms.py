"""Forms of payloads, shapes and dtypes: in words, compared, and those that a module has worked on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from akkordeon.core.payload import Payload, tensors

__all__ = ["Forms", "form", "same_form", "signature"]

FORMS_MAX = 64
"""Kinds of payloads that :class:`Forms` remembers: dtypes and numbers of dimensions."""


def same_form(gradient: Payload | None, output: Payload | None) -> bool:
    """Whether ``gradient`` can be a gradient of ``output``: same form, shapes and dtypes, or None."""
    if gradient is None:
        return True
    if isinstance(gradient, Tensor):
        return (
            isinstance(output, Tensor) and gradient.shape == output.shape and gradient.dtype == output.dtype
        )
    if isinstance(gradient, dict):
        return (
            isinstance(output, dict)
            and gradient.keys() == output.keys()
            and all(same_form(part, output[name]) for name, part in gradient.items())
        )
    return (
        isinstance(output, tuple | list)
        and isinstance(gradient, tuple | list)
        and len(gradient) == len(output)
        and all(same_form(g, o) for g, o in zip(gradient, output, strict=True))
    )


def signature(payload: Payload | None) -> str:
    """Shape and dtype of a payload in words, as in ``float32 (128, 784)``."""
    if isinstance(payload, Tensor):
        return f"{str(payload.dtype).removeprefix('torch.')} {tuple(payload.shape)}"
    if isinstance(payload, dict):
        return f"{{{', '.join(f'{name}: {signature(part)}' for name, part in payload.items())}}}"
    if isinstance(payload, tuple | list):
        return f"({', '.join(map(signature, payload))})"
    return "None" if payload is None else type(payload).__name__


def form(payload: Payload) -> str:
    """Shape without the batch dimension, and dtype, of every tensor, as in ``float32 (*, 784)``."""
    return ", ".join(_form(t.dtype, map(str, t.shape[1:])) for t in tensors(payload))


def _form(dtype: torch.dtype, sizes: Iterable[str]) -> str:
    return f"{str(dtype).removeprefix('torch.')} ({', '.join(['*', *sizes])})"


class Forms:
    """The forms of payloads that a module has worked on, few whatever their number.

    A dimension that was not always the same counts as any: images of a thousand sizes are one form,
    ``float32 (*, 3, *, *)``.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[tuple[torch.dtype, int], ...], list[list[int | None]]] = {}

    def add(self, payload: Payload) -> None:
        """The module has worked on this one."""
        some = list(tensors(payload))
        kind = tuple((t.dtype, t.dim()) for t in some)
        known = self._sizes.get(kind)
        if known is None:
            if len(self._sizes) < FORMS_MAX:
                self._sizes[kind] = [list(t.shape[1:]) for t in some]
            return
        for sizes, tensor in zip(known, some, strict=True):
            for i, size in enumerate(tensor.shape[1:]):
                if sizes[i] != size:
                    sizes[i] = None

    def __contains__(self, payload: Payload) -> bool:
        some = list(tensors(payload))
        known = self._sizes.get(tuple((t.dtype, t.dim()) for t in some))
        return known is not None and all(
            size is None or size == there
            for sizes, tensor in zip(known, some, strict=True)
            for size, there in zip(sizes, tensor.shape[1:], strict=True)
        )

    def __len__(self) -> int:
        return len(self._sizes)

    def __str__(self) -> str:
        """The first of them, in words."""
        forms = [
            ", ".join(
                _form(dtype, ["*" if size is None else str(size) for size in sizes])
                for (dtype, _), sizes in zip(kind, of_kind, strict=True)
            )
            for kind, of_kind in self._sizes.items()
        ]
        return " and ".join(sorted(forms)[:3])
