"""What has changed between two pictures, as a JSON Merge Patch (RFC 7396)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["merge_patch"]


def merge_patch(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What makes ``before`` into ``now``: objects are merged, null takes away, anything else is put there.

    As null takes away, a value of None and none are the same in what comes of it.
    """
    patch: dict[str, Any] = {key: None for key in before if key not in now}
    for key, value in now.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if changed := merge_patch(old, value):
                patch[key] = changed
        elif key not in before or value != old:
            patch[key] = value
    return patch
