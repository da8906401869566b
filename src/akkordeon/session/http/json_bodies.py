"""JSON as it comes over HTTP, and numbers that it has none for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from akkordeon.core.errors import DataError

__all__ = ["finite", "json_object", "kind_in_words"]


def json_object(content: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        DataError: it is none.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"the body is a JSON object, got {kind_in_words(value)}")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def kind_in_words(value: Any) -> str:
    """What a value of JSON is, for a sentence about it."""
    if isinstance(value, dict):
        return f"one with {', '.join(value) or 'nothing'}"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__


def finite(thing: Any) -> Any:
    """The same, with null for what JSON has no number for: NaN, infinity."""
    if isinstance(thing, Mapping):
        return {str(key): finite(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [finite(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
