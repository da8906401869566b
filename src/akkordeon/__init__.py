"""Trains PyTorch models with actors: a row of gates, each with its own optimizer; nobody waits."""

from akkordeon import nn
from akkordeon.attachment import Attachment
from akkordeon.data import Batches
from akkordeon.downpour import Downpour
from akkordeon.engines.ray import Ray
from akkordeon.engines.simulator import Simulator
from akkordeon.engines.threads import Threads
from akkordeon.errors import AkkordeonError
from akkordeon.gate import Gate
from akkordeon.joining import connect
from akkordeon.metrics import accuracy
from akkordeon.network import Network
from akkordeon.outer import DelayedNesterov
from akkordeon.replay import replay
from akkordeon.replicas import Attachments, DownpourSession
from akkordeon.running import run
from akkordeon.sentinel import Best, Sentinel
from akkordeon.session import Session
from akkordeon.staleness import DelayCompensation, InverseStaleness, Latest, Rule, Stash
from akkordeon.tasks import Task

__all__ = [
    "AkkordeonError",
    "Attachment",
    "Attachments",
    "Batches",
    "Best",
    "DelayCompensation",
    "DelayedNesterov",
    "Downpour",
    "DownpourSession",
    "Gate",
    "InverseStaleness",
    "Latest",
    "Network",
    "Ray",
    "Rule",
    "Sentinel",
    "Session",
    "Simulator",
    "Stash",
    "Task",
    "Threads",
    "accuracy",
    "connect",
    "nn",
    "replay",
    "run",
]
