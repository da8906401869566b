"""Costs of blocks that are the same on every machine, however busy it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["operations"]


class _Counts(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> float:
    """The operations of PyTorch in some work: in a test they stand for its seconds."""
    with _Counts() as counts:
        work()
    return float(counts.count)
