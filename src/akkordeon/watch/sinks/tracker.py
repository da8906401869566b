"""A sink that logs to trackio or wandb, or to whatever else has their interface."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any

from akkordeon.core.errors import RecipeError, explain
from akkordeon.watch.sinks.points import Point
from akkordeon.watch.sinks.sink import Sink, flat, require_extra

__all__ = ["Tracker"]

EXTRAS = ("trackio", "wandb")


class Tracker(Sink):
    """Logs a run: ``service.init(project=…)`` makes it, ``log(numbers, step=…)`` and ``finish()`` are its.

    trackio keeps runs on this machine and needs no account; wandb sends them to a server. What they print
    goes to stderr.

    Args:
        project: what the run is of.
        name: of the run; the service makes one if not given.
        settings: are kept with the run.
        service: the name of the module, ``"trackio"`` or ``"wandb"`` or another that is like them.
        options: further arguments for its ``init``.

    Raises:
        RecipeError: the module is not installed, or does not begin a run.
    """

    def __init__(
        self,
        project: str,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        service: str = "trackio",
        **options: Any,
    ) -> None:
        super().__init__()
        require_extra(service, f"logging to {service}", service if service in EXTRAS else None)
        self._service = import_module(service)
        try:
            with redirect_stdout(sys.stderr):
                self._run = _alone(
                    self._service.init, project=project, name=name, config=flat(settings or {}), **options
                )
        except Exception as error:  # whatever the service raises
            raise RecipeError(
                f"{service} begins no run in the project {project!r}: {explain(error)}"
            ) from error

    def write(self, point: Point) -> None:
        """Log all numbers of a moment at once."""
        numbers: dict[str, Any] = dict(point.tagged())
        if point.staleness:
            numbers[f"{point.of}/staleness"] = self._service.Histogram(np_histogram=point.histogram())
        self._run.log(numbers, step=point.step)

    def end(self) -> None:
        """Finish the run."""
        with redirect_stdout(sys.stderr):
            self._run.finish()


def _alone(begin: Callable[..., Any], **given: Any) -> Any:
    """Begin a run that is not the current one here: trackio ends that when another begins, and at exit."""
    return copy_context().run(partial(begin, **given))
