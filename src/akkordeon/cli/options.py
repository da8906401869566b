"""Options and arguments that several commands have, and those that are made of settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import wraps
from inspect import Parameter, signature
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from typer.core import TyperCommand

from akkordeon.core.errors import RecipeError
from akkordeon.experiments.config import Settings, settings_of
from akkordeon.experiments.report.watching import TRACE
from akkordeon.session.http.access import LOOPBACK
from akkordeon.session.page.watch import PORT

__all__ = [
    "Address",
    "AsJson",
    "OfBest",
    "Out",
    "PageCommand",
    "Patience",
    "RecordTo",
    "RunDir",
    "Target",
    "TraceTo",
    "Trust",
    "Web",
    "page_address",
    "with_settings",
]

WEB = re.compile(r"(?:(?P<host>\S+):)?(?P<port>[0-9]{1,9})")

AsJson = Annotated[bool, typer.Option("--json", help="End with the outcome as one JSON object on a line.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep weights, report and task in this folder.")
]
RecordTo = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep what every actor did, for `akkordeon replay`.")
]

TraceTo = Annotated[Path | None, TRACE]

RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="What `akkordeon train --out` was given.")]
OfBest = Annotated[bool, typer.Option("--best", help="Use the best weights instead of the last.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python file that the task is from, if it is from one.")
]

Web = Annotated[
    str | None,
    typer.Option(
        metavar="[[HOST:]PORT]",
        help=f"Show the run on a page in a browser, at port {PORT} of this machine if nothing else is said.",
    ),
]

Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the cluster's head listens.")]
Target = Annotated[str, typer.Argument(metavar="HOST:PORT/NAME", help="Which network.")]
Patience = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for what went away, to go on there."),
]


class PageCommand(TyperCommand):
    """A command with the option ``--web``, which may be given without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; where ``--web`` has no port after it, it is the usual one."""
        given: list[str] = []
        for word, after in zip_longest(args, args[1:], fillvalue=""):
            given.append(word)
            if word == "--web" and not WEB.fullmatch(after):
                given.append(str(PORT))
        return super().parse_args(ctx, given)


def page_address(text: str | None) -> tuple[str, int] | None:
    """The host and port of ``--web``.

    Raises:
        RecipeError: it is neither a port, nor a host and a port.
    """
    if text is None:
        return None
    found = WEB.fullmatch(text)
    if found is None or not int(found["port"]) < 2**16:
        raise RecipeError(f"--web is a port below 65536, or HOST:PORT, got {text!r}")
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])


def with_settings(
    *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting of its parameters that are :class:`Settings`.

    ::

        @app.command()
        @with_settings(only=("task", "epochs"))
        def train(config: TrainConfig, json: AsJson = False) -> None: ...

    is a command with an argument TASK and the options ``--epochs`` and ``--json``. Of two settings with one
    name, the first is the option, and the other has its default.

    Args:
        only: the settings that are wanted; all that have an option if not given.
        without: settings that are not.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: dict[str, Parameter] = {}
        settings: dict[str, tuple[type[Settings], list[str]]] = {}
        for parameter in signature(command, eval_str=True).parameters.values():
            if not (isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Settings)):
                parameters[parameter.name] = parameter
                continue
            options = [
                option
                for option in _options_of(parameter.annotation)
                if option.name not in {*parameters, *without} and (only is None or option.name in only)
            ]
            parameters |= {option.name: option for option in options}
            settings[parameter.name] = parameter.annotation, [option.name for option in options]

        @wraps(command)
        def run(**given: Any) -> None:
            made = {
                name: config(**{option: given.pop(option) for option in options})
                for name, (config, options) in settings.items()
            }
            command(**made, **given)

        run.__signature__ = signature(command).replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return run

    return decorate


def _options_of(config: type[Settings]) -> list[Parameter]:
    """The parameters of a command that takes these settings."""
    defaults = {field.name: field.default for field in fields(config)}
    return [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=defaults[name], annotation=hint)
        for name, hint in settings_of(config).items()
        if get_origin(hint) is Annotated
    ]
