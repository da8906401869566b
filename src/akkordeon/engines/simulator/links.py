"""Links between hosts: latency, bandwidth and loss, and which link joins which hosts.

    sender ──▶ [waits for the link] ──▶ [bytes / bandwidth] ──▶ latency ──▶ mailbox
                 one message at a time                          never overtaking

Where a host has a bandwidth, a message also waits for what its host sends to others, and for what others send
to the host that it is for.

A lost packet is sent again after a round trip, as TCP does: it costs time and no message. What the
messages behind it must wait for it, they wait. A link that broke sends again what was not acknowledged; the
messages of a wire have numbers, by which the receiver knows what it has already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import Any, NamedTuple

import torch

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Forward
from akkordeon.core.payload import nbytes, tensors
from akkordeon.engines.simulator.distributions import Distribution, LogNormal, as_distribution
from akkordeon.engines.wire import carried

__all__ = ["HERE", "PRESETS", "Ghost", "Link", "Links", "Port", "Shipment", "Wire", "size_bytes"]

PACKET_BYTES = 1460
"""Payload of a TCP segment on Ethernet."""


@dataclass(frozen=True)
class Link:
    """How messages get from one host to another.

    Args:
        latency_s: one way; a number or a distribution.
        bytes_per_s: bandwidth; None does not count bytes.
        loss: probability that a packet is lost, and sent again a round trip later.

    Raises:
        RecipeError: a number out of range.
    """

    latency_s: float | Distribution = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no link."""
        as_distribution(self.latency_s)
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise RecipeError(f"a link's bandwidth is above 0, got {self.bytes_per_s}")
        if not 0 <= self.loss < 1:
            raise RecipeError(f"a link's loss is in [0, 1), got {self.loss}")


HERE = Link()
"""Within a process: nothing is sent at all."""

PRESETS: Mapping[str, Link] = {
    "host": Link(LogNormal(25e-6, 75e-6), 5e9),
    "zone": Link(LogNormal(150e-6, 500e-6), 1.25e9),
    "region": Link(LogNormal(250e-6, 750e-6), 1.25e9),
    "country": Link(LogNormal(22.5e-3, 40e-3), 12.5e6, loss=1e-4),
    "internet": Link(LogNormal(45e-3, 90e-3), 12.5e6, loss=1e-3),
}
"""Links by name: ``host`` (two processes), ``zone`` (a rack or hall), ``region`` (two halls), ``country``
(the backbone of a large one), ``internet`` (across an ocean).

``host``, ``zone``, ``region``: half the round trips that Evan Jones measured in Google's cloud over 70
hours (evanjones.ca/network-latencies-2021.html: "500 us is still a good estimate", the 80th percentile),
rounded. ``country`` and ``internet``: half the round trips that Verizon promises for its backbone (45 ms
within the United States, 90 ms New York to London). The tails, the loss and the bandwidths (100 Mbit/s
at home, 10 Gbit/s in a hall) are plain assumptions.
"""


@dataclass(frozen=True)
class Links:
    """Which link joins which hosts.

    Args:
        default: between any two hosts.
        between: exceptions as (one, other, link), both ways; one and other are names of hosts or of zones,
            with ``*`` as in file names. The first that fits counts.
    """

    default: Link = HERE
    between: Sequence[tuple[str, str, Link]] = field(default_factory=tuple)

    def find(self, one: tuple[str, str], other: tuple[str, str]) -> Link:
        """The link between two hosts, each given as (name, zone)."""
        for a, b, link in self.between:
            if (_fits(a, one) and _fits(b, other)) or (_fits(a, other) and _fits(b, one)):
                return link
        return self.default


class Shipment(NamedTuple):
    """A message on a wire: its number there, when it arrives, for whom it is, and its bytes."""

    number: int
    arrival_s: float
    cell: Any
    message: Any
    size: int


class Port:
    """What a host sends to all others, or is sent by all: one message at a time.

    Args:
        bytes_per_s: of them together.
    """

    __slots__ = ("_bytes_per_s", "_free_s")

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0

    def pass_on(self, size: int, first_s: float, last_s: float) -> tuple[float, float]:
        """When the first and the last of so many bytes are through, which come from and to these times."""
        first_s = max(first_s, self._free_s)
        self._free_s = max(last_s, first_s + size / self._bytes_per_s)
        return first_s, self._free_s


class Wire:
    """A link at work, in one direction.

    Args:
        link: what it is made of.
        rng: for its latencies and losses alone.
        keep_s: how long what has arrived is kept, as it may have to be sent again.
        ports: that it goes through, in their order.
        wire_dtype: what float32 activations and gradients are narrowed to on the way.

    Attributes:
        repeated: messages that came again, and were dropped.
    """

    __slots__ = (
        "_again",
        "_bytes_per_s",
        "_free_s",
        "_keep_s",
        "_kept",
        "_last_s",
        "_latency",
        "_latest",
        "_ports",
        "_rng",
        "_wire_dtype",
        "busy_s",
        "bytes",
        "messages",
        "repeated",
    )

    def __init__(
        self,
        link: Link,
        rng: Random,
        keep_s: float = 0.0,
        ports: Sequence[Port] = (),
        wire_dtype: torch.dtype | None = None,
    ) -> None:
        self._latency = as_distribution(link.latency_s)
        self._bytes_per_s = link.bytes_per_s
        self._again = link.loss
        self._rng = rng
        self._wire_dtype = wire_dtype
        self._free_s = 0.0  # when the link can take the next message
        self._last_s = 0.0  # when the last message arrives
        self._ports = tuple(ports)
        self._keep_s = keep_s
        self._kept: deque[Shipment] = deque()
        self._latest = 0  # number of the message that arrived last
        self.repeated = 0
        self.bytes = 0
        self.messages = 0
        self.busy_s = 0.0

    def arrival_s(self, size: int, now_s: float) -> float:
        """Send so many bytes now; when they arrive."""
        self.bytes += size
        self.messages += 1
        begin_s = now_s if now_s > self._free_s else self._free_s
        if self._bytes_per_s is not None:
            sending_s = size / self._bytes_per_s
            self.busy_s += sending_s
            begin_s += sending_s
            self._free_s = begin_s
        if self._ports:
            begin_s = self._through_ports(size, now_s, begin_s)
        latency_s = self._latency.draw(self._rng)
        arrival_s = begin_s + latency_s
        if self._again:
            arrival_s += 2 * latency_s * self._rounds_again(size)
        if arrival_s < self._last_s:
            arrival_s = self._last_s
        self._last_s = arrival_s
        return arrival_s

    def _through_ports(self, size: int, first_s: float, last_s: float) -> float:
        for port in self._ports:
            first_s, last_s = port.pass_on(size, first_s, last_s)
        return last_s

    def ship(self, cell: Any, message: Any, now_s: float) -> Shipment:
        """Send a message now."""
        message, size = self._sent(message)
        arrival_s = self.arrival_s(size, now_s)
        shipment = Shipment(self.messages, arrival_s, cell, message, size)
        if self._keep_s:
            while self._kept and self._kept[0].arrival_s < now_s - self._keep_s:
                self._kept.popleft()
            self._kept.append(shipment)
        return shipment

    def _sent(self, message: Any) -> tuple[Any, int]:
        """The message as it arrives, and its bytes."""
        narrows = self._wire_dtype is not None and isinstance(message, Forward | Backward)
        if not narrows or message.payload is None or type(message.payload) is Ghost:
            return message, size_bytes(message)
        return carried(message, self._wire_dtype)

    def ship_again(self, since_s: float, now_s: float, healed_s: float) -> Iterator[Shipment]:
        """Send again, once healed, what has arrived since then."""
        for shipment in tuple(self._kept):
            if since_s <= shipment.arrival_s <= now_s:
                yield shipment._replace(arrival_s=self.arrival_s(shipment.size, healed_s))

    def is_new(self, shipment: Shipment) -> bool:
        """Whether what arrives has not arrived before."""
        if shipment.number <= self._latest:
            self.repeated += 1
            return False
        self._latest = shipment.number
        return True

    def _rounds_again(self, size: int) -> int:
        """How often something of a message must be sent again: each round the packets lost in the last."""
        rounds, packets = 0, max(1, -(-size // PACKET_BYTES))
        while packets:
            packets = sum(self._rng.random() < self._again for _ in range(min(packets, 1000)))
            rounds += packets > 0
        return rounds


@dataclass(frozen=True, slots=True)
class Ghost:
    """A payload that is only as heavy as one: what dry actors send."""

    nbytes: int


def size_bytes(message: Any) -> int:
    """Bytes of a message that count: those of the tensors in it."""
    payload = getattr(message, "payload", None)
    if payload is None:
        payload = getattr(message, "state", None)
        if payload is None:
            return 0
    if type(payload) is Ghost:
        return payload.nbytes
    return sum(map(nbytes, tensors(payload)))


def _fits(pattern: str, host: tuple[str, str]) -> bool:
    return fnmatchcase(host[0], pattern) or fnmatchcase(host[1], pattern)
