"""Every error that Akkordeon raises on purpose.

AkkordeonError
├── RecipeError (ValueError)          a network, gate or sentinel that cannot be run as described
│   ├── SharedParameterError          one parameter belongs to two gates
│   ├── ForeignParameterError         an optimizer holds parameters of somebody else
│   └── TaskError                     FILE.py:FUNCTION does not lead to a task
├── DataError (ValueError)            a source of batches is missing, truncated, empty or of the wrong form
├── ProtocolError (ValueError)        a message that must not exist was about to be made
├── SessionError (RuntimeError)       the session cannot do what was asked of it
│   ├── NameTakenError                two sentinels with one name
│   ├── NoSuchSentinelError           no sentinel of that name
│   └── SessionClosedError            the session has ended
├── ActorFailedError (RuntimeError)   an actor raised; the original error is its __cause__
│   ├── GateFailedError               the module or the optimizer of a gate
│   └── SentinelFailedError           the loss, a score or the data source of a sentinel
└── WaitTimeoutError (TimeoutError)   nothing came within the time allowed
"""

from __future__ import annotations

__all__ = [
    "ActorFailedError",
    "AkkordeonError",
    "DataError",
    "ForeignParameterError",
    "GateFailedError",
    "NameTakenError",
    "NoSuchSentinelError",
    "ProtocolError",
    "RecipeError",
    "SentinelFailedError",
    "SessionClosedError",
    "SessionError",
    "SharedParameterError",
    "TaskError",
    "WaitTimeoutError",
]


class AkkordeonError(Exception):
    """The root: ``except AkkordeonError`` catches whatever the package raises on purpose."""


class RecipeError(AkkordeonError, ValueError):
    """A network, gate or sentinel that cannot be run as described."""


class SharedParameterError(RecipeError):
    """One parameter belongs to two gates; each gate must own its parameters alone."""


class ForeignParameterError(RecipeError):
    """An optimizer holds parameters that are not those of its gate."""


class TaskError(RecipeError):
    """``FILE.py:FUNCTION`` does not lead to a task."""


class DataError(AkkordeonError, ValueError):
    """A source of batches is missing, truncated, empty or of the wrong form."""


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


class ActorFailedError(AkkordeonError, RuntimeError):
    """An actor raised while it handled a message; the original error is ``__cause__``."""


class GateFailedError(ActorFailedError):
    """The module or the optimizer of a gate raised."""


class SentinelFailedError(ActorFailedError):
    """The loss, a score or the data source of a sentinel raised."""


class WaitTimeoutError(AkkordeonError, TimeoutError):
    """Nothing came within the time allowed; what was waited for goes on."""
