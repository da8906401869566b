"""Every error that Akkordeon raises on purpose.

AkkordeonError
├── RecipeError (ValueError)          a network, gate or sentinel that cannot be run as described
│   ├── SharedParameterError          one parameter belongs to two gates
│   ├── ForeignParameterError         an optimizer holds parameters of somebody else
│   ├── ScenarioError                 a scenario cannot be read
│   └── TaskError                     FILE.py:FUNCTION does not lead to a task
├── DataError (ValueError)            a source of batches is missing, truncated, empty or of the wrong form
├── RecordError (ValueError)          a record that cannot be read
│   └── ReplayError                   a replay that does not lead where the run led
├── ProtocolError (ValueError)        a message that must not exist was about to be made
├── SessionError (RuntimeError)       the session cannot do what was asked of it
│   ├── NameTakenError                two sentinels with one name
│   ├── NoSuchSentinelError           no sentinel of that name
│   ├── SessionClosedError            the session has ended
│   └── StalledError                  a simulation in which nothing is left that could happen
├── ClusterError (RuntimeError)       no Ray cluster there, none that lets us in, or no such network in it
├── ActorFailedError (RuntimeError)   an actor raised; the original error is its __cause__
│   ├── GateFailedError               the module or the optimizer of a gate
│   └── SentinelFailedError           the loss, a score or the data source of a sentinel
└── WaitTimeoutError (TimeoutError)   nothing came within the time allowed
"""

from __future__ import annotations

import copy
from typing import TypeVar

__all__ = [
    "ActorFailedError",
    "AkkordeonError",
    "ClusterError",
    "DataError",
    "ForeignParameterError",
    "GateFailedError",
    "NameTakenError",
    "NoSuchSentinelError",
    "ProtocolError",
    "RecipeError",
    "RecordError",
    "ReplayError",
    "ScenarioError",
    "SentinelFailedError",
    "SessionClosedError",
    "SessionError",
    "SharedParameterError",
    "StalledError",
    "TaskError",
    "WaitTimeoutError",
    "again",
    "explain",
    "raised_in_actor",
]


class AkkordeonError(Exception):
    """The root: ``except AkkordeonError`` catches whatever the package raises on purpose."""


class RecipeError(AkkordeonError, ValueError):
    """A network, gate or sentinel that cannot be run as described."""


class SharedParameterError(RecipeError):
    """One parameter belongs to two gates; each gate must own its parameters alone."""


class ForeignParameterError(RecipeError):
    """An optimizer holds parameters that are not those of its gate."""


class ScenarioError(RecipeError):
    """A scenario is missing, no TOML, or has something in it that nobody knows."""


class TaskError(RecipeError):
    """``FILE.py:FUNCTION`` does not lead to a task."""


class DataError(AkkordeonError, ValueError):
    """A source of batches is missing, truncated, empty or of the wrong form."""


class RecordError(AkkordeonError, ValueError):
    """A file that is no record of a run, or not a whole one."""


class ReplayError(RecordError):
    """A replay does not lead where the run led; names the first message that shows it."""


class ProtocolError(AkkordeonError, ValueError):
    """A message that must not exist was about to be made."""


class SessionError(AkkordeonError, RuntimeError):
    """The session cannot do what was asked of it."""


class NameTakenError(SessionError):
    """A sentinel of that name is attached already."""


class NoSuchSentinelError(SessionError):
    """No sentinel of that name was ever attached."""


class SessionClosedError(SessionError):
    """The session has ended; nothing can be attached to it any more."""


class StalledError(SessionError):
    """Somebody waits in a simulation for what will never come: nothing is left that could happen."""


class ClusterError(AkkordeonError, RuntimeError):
    """There is no Ray cluster, or none that lets us in, or no network of that name in it."""


class ActorFailedError(AkkordeonError, RuntimeError):
    """An actor raised while it handled a message; the original error is ``__cause__``."""


class GateFailedError(ActorFailedError):
    """The module or the optimizer of a gate raised."""


class SentinelFailedError(ActorFailedError):
    """The loss, a score or the data source of a sentinel raised."""


class WaitTimeoutError(AkkordeonError, TimeoutError):
    """Nothing came within the time allowed; what was waited for goes on."""


E = TypeVar("E", bound=AkkordeonError)


def again(error: E) -> E:
    """An error like this one with the same cause, to be raised to one more of those who ask."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    return fresh


def raised_in_actor(error: BaseException) -> BaseException:
    """What was raised in an actor: out of its generator a StopIteration comes as a RuntimeError (PEP 479)."""
    cause = error.__cause__
    hidden = isinstance(cause, StopIteration) and str(error) == "generator raised StopIteration"
    return cause if hidden and cause is not None else error


def explain(error: BaseException) -> str:
    """An error in one line: its text if it is ours, with its class before it if it is not."""
    try:
        text = _in_one_line(str(error))
    except Exception as unsaid:  # a user's class may be broken as well
        text = f"its text cannot be had: {type(unsaid).__name__}"
    if isinstance(error, AkkordeonError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _in_one_line(text: str) -> str:
    """The text without line breaks; of an error in a DataLoader's worker only where and what it was.

    PyTorch puts the whole traceback into the text of such an error.
    """
    where, of_worker, trace = text.partition("Original Traceback (most recent call last):")
    if of_worker and trace.strip():
        text = f"{trace.strip().splitlines()[-1].strip()} ({where.strip().rstrip('.')})"
    return " ".join(text.split())
