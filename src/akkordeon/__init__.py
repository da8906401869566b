"""Trains PyTorch models with actors: a row of gates, each with its own optimizer; nobody waits."""

from akkordeon import nn
from akkordeon.data import Batches
from akkordeon.engines.threads import Threads
from akkordeon.errors import AkkordeonError
from akkordeon.gate import Gate
from akkordeon.metrics import accuracy
from akkordeon.network import Network
from akkordeon.sentinel import Best, Sentinel
from akkordeon.session import Attachment, Session, run
from akkordeon.staleness import DelayCompensation, Latest, Rule, Stash

__all__ = [
    "AkkordeonError",
    "Attachment",
    "Batches",
    "Best",
    "DelayCompensation",
    "Gate",
    "Latest",
    "Network",
    "Rule",
    "Sentinel",
    "Session",
    "Stash",
    "Threads",
    "accuracy",
    "nn",
    "run",
]
