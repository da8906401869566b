"""What carries messages: a file or a folder for each engine, and a line for it in the table here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from akkordeon.core.errors import RecipeError

if TYPE_CHECKING:
    from akkordeon.engines.base import Engine

__all__ = ["ENGINES", "engine_named"]

ENGINES = {
    "threads": "akkordeon.engines.threads:Threads",
    "simulator": "akkordeon.engines.simulator.engine:Simulator",
    "ray": "akkordeon.engines.ray:Ray",
}
"""Module and class of every engine by its name; imported when somebody asks for it."""


def engine_named(name: str) -> Engine:
    """The engine of that name with its defaults.

    Raises:
        RecipeError: there is none.
    """
    if name not in ENGINES:
        *others, last = map(repr, ENGINES)
        raise RecipeError(f"there is no engine {name!r}; there are {', '.join(others)} and {last}")
    module, _, made_by = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), made_by)()
    return engine
