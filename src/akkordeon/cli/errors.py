"""What goes wrong, and what is said at the end: in sentences, to whoever still listens."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from akkordeon.core.errors import AkkordeonError

__all__ = ["ENDED_BY", "SentenceGroup", "Signalled", "complain", "say"]

ENDED_BY = 128
"""Exit code after a signal, as shells have it: this and its number, so 130 after Ctrl-C."""


class Signalled(BaseException):
    """A signal ends the command. No ``Exception``: whoever catches those goes on.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SentenceGroup(TyperGroup):
    """Commands of which every error that is raised on purpose is told as one sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 1 after an error, and as after a signal after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except AkkordeonError as error:
            complain(str(error))
            raise typer.Exit(1) from error
        except Signalled as signalled:
            say(f"ended by {signal.Signals(signalled.number).name}", err=True)
            raise typer.Exit(ENDED_BY + signalled.number) from None
        except KeyboardInterrupt:
            say("interrupted", err=True)
            raise typer.Exit(ENDED_BY + signal.SIGINT) from None


def complain(sentence: str) -> None:
    """Say on one line what is wrong."""
    say(f"akkordeon: {' '.join(sentence.split())}", err=True)


def say(line: str, err: bool = False) -> None:
    """Write a line to whoever still listens: a pipe or a terminal that is gone is no reason to fail."""
    stream = sys.stderr if err else sys.stdout
    try:
        typer.echo(line, err=err)
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
