"""The rules that go by a name: each file of this folder says which of its own do, in ``NAMED``.

So a rule is one file, and nothing that is there has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from akkordeon.pipeline import staleness
from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["RULES"]


def _named() -> Iterator[tuple[str, Rule]]:
    files = [f"{staleness.__name__}.{found.name}" for found in iter_modules(staleness.__path__)]
    for file in files:
        if file != __name__:
            yield from getattr(import_module(file), "NAMED", {}).items()


RULES: dict[str, Rule] = dict(sorted(_named()))
"""Each rule by its name, on the command line and in files; to shards, those that keep weights are offered."""
