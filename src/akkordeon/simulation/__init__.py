"""The world a simulation happens in: links, hosts, costs and faults, and what can be seen of it."""

from akkordeon.simulation.compute import Compute, Cost, Slowdown
from akkordeon.simulation.distributions import Constant, Exponential, LogNormal, Uniform
from akkordeon.simulation.faults import Crash, Freeze, Partition
from akkordeon.simulation.hosts import Host
from akkordeon.simulation.links import PRESETS, Link, Links
from akkordeon.simulation.timeline import Timeline

__all__ = [
    "PRESETS",
    "Compute",
    "Constant",
    "Cost",
    "Crash",
    "Exponential",
    "Freeze",
    "Host",
    "Link",
    "Links",
    "LogNormal",
    "Partition",
    "Slowdown",
    "Timeline",
    "Uniform",
]
