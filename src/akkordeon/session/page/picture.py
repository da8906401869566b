"""How a session is, as plain data for a browser: numbers that only grow are told as they are.

What a number grows by in a second, as busy time and pushes, is worked out where it is looked at.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch

from akkordeon.core.errors import explain
from akkordeon.core.reports import GateStatus, SentinelStatus, ShardStatus
from akkordeon.engines.base import Load
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.roles import STREAM, TRAIN
from akkordeon.session.attachment import Attachment
from akkordeon.session.page.chronicle import state_of
from akkordeon.session.status import Status, staleness_classes

__all__ = [
    "edges_of",
    "gates_of",
    "hosts_of",
    "process_of",
    "sentinel_elsewhere",
    "sentinels_of",
    "weights_bytes",
]

Plain = dict[str, Any]

NO_LOAD = Load(0, 0, 0.0)


def gates_of(row: Iterable[str], status: Status, sizes: Mapping[str, int]) -> dict[str, Plain]:
    """Every gate or shard of a row by its address.

    Args:
        row: addresses, head first.
        status: how they are; those who were not heard of yet have a load alone.
        sizes: bytes of their weights, where that is known.
    """
    heard = {gate.address: gate for gate in status.gates}
    found: dict[str, Plain] = {}
    for address in row:
        load = status.loads.get(address, NO_LOAD)
        found[address] = {
            "name": address,
            "queued": load.queued,
            "handled": load.handled,
            "busy_s": round(load.busy_s, 3),
            "restarts": status.restarts.get(address, 0),
            "weights_bytes": sizes.get(address),
            **(_gate(heard[address]) if address in heard else {}),
        }
    return found


def _gate(gate: GateStatus) -> Plain:
    plain: Plain = {
        "name": gate.name,
        "version": gate.version,
        "stashed": gate.stashed,
        "pinned": gate.pinned,
        "staleness": staleness_classes(gate.staleness),
        "staleness_mean": round(gate.staleness_mean, 2),
        "staleness_max": gate.staleness_max,
        "refused": dict(gate.refused),
    }
    if gate.diagnosis is not None:
        plain["copies"], plain["copies_bytes"] = gate.diagnosis.copies, gate.diagnosis.bytes
    if isinstance(gate, ShardStatus):
        plain["shard"] = {
            what: getattr(gate, what) for what in ("pushes", "fetches", "bytes_in", "bytes_out", "waiting")
        }
    return plain


def edges_of(row: Iterable[str], status: Status) -> list[int]:
    """Batches under way before each gate of a row, and after the last.

    A gate keeps a batch from its forward to its backward. So what one has and the next has not is between
    the two, on its way forward or back. Gates are not asked at one moment: it may be off by a few.
    """
    kept = {gate.address: gate.stashed for gate in status.gates}
    sent = sum(s.in_flight for s in status.sentinels if s.role in (TRAIN, STREAM))
    counts = [sent, *(kept.get(address, 0) for address in row)]
    after = [max(0, there - beyond) for there, beyond in pairwise(counts)]
    return [*after, counts[-1]]


def sentinels_of(attachments: Iterable[Attachment], status: Status) -> dict[str, Plain]:
    """Every sentinel by its name, those that have ended too, but for questions to the network."""
    heard = {sentinel.address: sentinel for sentinel in status.sentinels}
    return {a.name: _sentinel(a, heard.get(a.address)) for a in attachments if not a.role.answers}


def _sentinel(attachment: Attachment, heard: SentinelStatus | None) -> Plain:
    batches = attachment._batches if heard is None else heard.batches
    done = attachment.epochs_done if attachment.role.trains else attachment.rounds_done
    return {
        "role": str(attachment.role),
        "trains": attachment.role.trains,
        "address": attachment.address,
        "state": state_of(attachment),
        "why": None if attachment.error is None else explain(attachment.error),
        "rounds": done,
        "rounds_wanted": getattr(attachment.recipe, "epochs", None),
        "samples": max(attachment.samples, 0 if heard is None else heard.samples),
        "samples_wanted": attachment.samples_wanted,
        "seconds": round(attachment.seconds, 3),
        "in_flight": 0 if heard is None else heard.in_flight,
        "sent": batches.sent,
        "trained": batches.trained,
        "refused": batches.refused,
        "lost": batches.lost,
    }


def sentinel_elsewhere(entry: Any) -> Plain:
    """A sentinel of another session, by what the network's registrar has of it."""
    last = entry.last
    batches = getattr(last, "batches_so_far", None)
    return {
        "role": entry.role,
        "trains": entry.role in (TRAIN, STREAM),
        "address": entry.address,
        "state": "at work",
        "where": f"{entry.node} {entry.pid}",
        "rounds": 0 if last is None else getattr(last, "epoch", None) or getattr(last, "round", 0),
        "trained": None if batches is None else batches.trained,
        "refused": None if batches is None else batches.refused,
    }


def weights_bytes(network: Any, row: Iterable[str]) -> dict[str, int]:
    """Bytes of each gate's parameters and buffers, by address; none for shards, which have parts of them."""
    if not isinstance(network, Network):
        return {}
    return {
        address: sum(
            tensor.numel() * tensor.element_size()
            for tensor in (*gate.module.parameters(), *gate.module.buffers())
        )
        for address, gate in zip(row, network.gates, strict=False)
    }


def hosts_of(locations: Mapping[str, tuple[str, int]]) -> dict[str, Plain]:
    """The processes of a network, and the actors in each."""
    hosts: dict[str, Plain] = {}
    for actor, (node, pid) in sorted(locations.items()):
        host = hosts.setdefault(f"{node} {pid}", {"node": node, "pid": pid, "actors": []})
        host["actors"].append(actor)
    return hosts


def process_of() -> Plain:
    """This process: where it is, and the memory that it takes."""
    plain: Plain = {"node": socket.gethostname(), "pid": os.getpid()}
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as statm:
        plain["memory_bytes"] = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        plain["gpu_bytes"] = sum(map(torch.cuda.memory_allocated, range(torch.cuda.device_count())))
    return plain
