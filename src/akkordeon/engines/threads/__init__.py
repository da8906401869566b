"""The threads engine."""

from akkordeon.engines.threads.engine import Threads

__all__ = ["Threads"]
