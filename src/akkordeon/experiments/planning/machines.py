"""The machines that a plan is made for, and the links between them: this one, or those in a TOML file.

::

    [[host]]
    name = "left"
    cores = 4            # actors at work at the same time
    speed = 0.5          # of one of its cores, beside one of those that the costs are from
    memory_gb = 16       # layouts that need more are not taken; not asked if not given
    mbit_per_s = 1000    # to all others together, and from them; not asked if not given

    [link]               # between any two hosts: mbit_per_s or bytes_per_s, latency_ms, loss
    mbit_per_s = 100
    latency_ms = 20

    [[between]]          # where another link joins two hosts: one, other, and the same as [link]

    [message]            # what one between processes costs each of them, where there are several hosts
    ms = 1               # of a small one, on a core that the costs are from
    ms_per_mb = 7        # of one for which that is more
"""

from __future__ import annotations

import inspect
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from akkordeon.core.checks import is_number, require_above, require_whole
from akkordeon.core.errors import RecipeError, ScenarioError
from akkordeon.engines.simulator.links import Link, Links

__all__ = ["Machine", "Machines", "MessageCost", "load_machines"]

MEGABIT = 1e6 / 8

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine.

    Args:
        name: for links, and where gates are placed.
        cores: actors that work at the same time.
        speed: of a core, as a multiple of one of those that costs are measured on.
        memory_gb: that it has; None does not count it.
        mbit_per_s: what it can send to all others together, and be sent by them; None for any number.

    Raises:
        RecipeError: a number out of range.
    """

    name: str
    cores: int
    speed: float = 1.0
    memory_gb: float | None = None
    mbit_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no machine."""
        require_whole(f"the cores of the host {self.name!r}", self.cores)
        require_above(f"the speed of the host {self.name!r}", self.speed)
        require_above(f"the memory_gb of the host {self.name!r}", self.memory_gb, optional=True)
        require_above(f"the mbit_per_s of the host {self.name!r}", self.mbit_per_s, optional=True)

    @property
    def bytes_per_s(self) -> float | None:
        """What it can send to all others together."""
        return None if self.mbit_per_s is None else MEGABIT * self.mbit_per_s


@dataclass(frozen=True, kw_only=True)
class MessageCost:
    """What a message costs each of the two processes that it goes between, on a core of speed 1.

    If nothing else is given, it is what Ray and all else in such a process came to for each message, where
    every machine had a part of one core (benchmarks/links): on hosts with cores to spare it is less.

    Args:
        ms: of a small one.
        ms_per_mb: of one for which that is more.

    Raises:
        RecipeError: a number below 0.
    """

    ms: float = 1.0
    ms_per_mb: float = 7.0

    def __post_init__(self) -> None:
        """Refuse what is below 0: these are times."""
        for name, value in vars(self).items():
            if not (is_number(value) and 0 <= value < math.inf):
                raise RecipeError(f"the {name} of a message is at least 0, got {value!r}")

    def ends_s(self, *sizes: float) -> float:
        """Of one end each of messages of so many bytes."""
        return sum(max(self.ms, self.ms_per_mb * size / 1e6) for size in sizes) / 1e3


@dataclass(frozen=True)
class Machines:
    """Machines and what joins them.

    Args:
        hosts: at least one, each with a name of its own.
        links: between them.
        message: what a message from process to process costs where there are several.

    Raises:
        RecipeError: no hosts, or two of one name.
    """

    hosts: Sequence[Machine]
    links: Links = field(default_factory=Links)
    message: MessageCost = field(default_factory=MessageCost)

    def __post_init__(self) -> None:
        """Refuse what nothing could be placed on."""
        names = [host.name for host in self.hosts]
        if not names:
            raise RecipeError("a plan needs at least one host, got none")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise RecipeError(f"hosts have names of their own, got two of {twice[0]!r}")

    @classmethod
    def here(cls, workers: int | None = None) -> Machines:
        """This machine, with as many workers as it has cores if not given."""
        return cls((Machine(name="here", cores=workers or os.cpu_count() or 1),))

    @property
    def fastest(self) -> Machine:
        """The one that does most at once; the first of several."""
        return max(self.hosts, key=lambda host: (host.speed * host.cores, host.speed))


def load_machines(path: str | Path) -> Machines:
    """Read machines from a TOML file.

    Raises:
        ScenarioError: there is no such file, it is no TOML, or something in it is unknown or out of range.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        hosts = tuple(_made(Machine, "host", host) for host in table.pop("host", []))
        default = _link(table.pop("link", {}))
        message = _made(MessageCost, "message", table.pop("message", {}))
        between = [(each.pop("one"), each.pop("other"), _link(each)) for each in table.pop("between", [])]
        if table:
            raise ScenarioError(
                f"nothing is known of {', '.join(sorted(table))}; see [[host]], [link] and [message]"
            )
        return Machines(hosts, Links(default, between), message)
    except OSError as error:
        raise ScenarioError(f"{path} cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise ScenarioError(f"{path}: [[between]] has no {error}") from error
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"{path}: {error}") from error


def _made(kind: Callable[..., Made], what: str, table: Any) -> Made:
    known = list(inspect.signature(kind).parameters)
    got = ", ".join(sorted(table)) if isinstance(table, Mapping) else repr(table)
    if not isinstance(table, Mapping) or not table.keys() <= set(known):
        raise ScenarioError(f"a {what} is a table of {', '.join(known)}, got {got}")
    return kind(**table)


def _link(table: Mapping[str, Any]) -> Link:
    unknown = table.keys() - {"mbit_per_s", "bytes_per_s", "latency_ms", "loss"}
    if unknown or {"mbit_per_s", "bytes_per_s"} <= table.keys():
        raise ScenarioError(
            f"a link has mbit_per_s or bytes_per_s, latency_ms and loss, got {', '.join(sorted(table))}"
        )
    bytes_per_s = table.get("bytes_per_s")
    if "mbit_per_s" in table:
        bytes_per_s = MEGABIT * table["mbit_per_s"]
    return Link(table.get("latency_ms", 0.0) / 1e3, bytes_per_s, table.get("loss", 0.0))
