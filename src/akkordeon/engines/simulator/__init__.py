"""The world a simulation happens in: links, hosts, costs and faults, and what can be seen of it."""

from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.distributions import Constant, Exponential, LogNormal, Uniform
from akkordeon.engines.simulator.faults import Crash, Freeze, Partition
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import PRESETS, Link, Links
from akkordeon.engines.timeline import Timeline

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
