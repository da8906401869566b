"""What a module gave, as what can travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from akkordeon.core.errors import ProtocolError
from akkordeon.core.payload import Payload, map_tensors, tensors

__all__ = ["DETACHED", "OutputError", "output_of"]

DETACHED = (
    "no gradient can come back through the output of its module; does it detach its result, work under "
    "no_grad, or give whole numbers?"
)
"""Where PyTorch says that a loss does not require grad."""


class OutputError(ProtocolError):
    """A module gave something that cannot travel."""


def output_of(y: Any, function: Callable[[Tensor], Tensor]) -> Payload:
    """What a module gave, as a payload of its own with ``function`` applied to every tensor.

    Raises:
        ProtocolError: it is no payload, or there is no tensor in it.
    """
    try:
        payload = map_tensors(function, y)
    except ProtocolError as error:
        raise OutputError(str(error)) from None
    if not isinstance(payload, Tensor) and next(tensors(payload), None) is None:
        raise OutputError("there is no tensor in it")
    return payload
