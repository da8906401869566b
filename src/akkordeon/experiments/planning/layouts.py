"""Layouts worth a dry run: few enough that all are run, and each there for a reason.

- Rows on the host that does most: one gate, and more as long as one more makes the heaviest lighter. Or one
  gate, of which each operation uses several cores.
- Rows over all hosts, where there are several: as many gates on each as it has cores, or one. What they send
  is as it is, or int8.
- Where they are asked for, the same rows with a schedule in which updates are waited for: with as many
  batches in flight as fill the row, and with all that it allows.
- Replicas: one for each core of a single host, or on each of several hosts, with shards on all of them. Links
  make it worth to push seldom, and less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from akkordeon.core.schedules import Schedule
from akkordeon.experiments.planning.costs import Compression, ModelCosts
from akkordeon.experiments.planning.machines import Machine, Machines
from akkordeon.experiments.presets import ScheduleName, schedule_named
from akkordeon.pipeline.splitting.balance import balanced

__all__ = ["RunLayout", "proposed"]

PAYS = 0.95
"""One gate more is proposed if the heaviest is then less than this share of the heaviest before."""

MICRO_BATCHES = 4
"""For each gate, in an update that is waited for: in a flush gates are then idle for a fifth of the time."""

PUSH_EVERY = (1, 16, 64)
"""Steps between pushes, where they go over links."""


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """How a model is laid out on machines.

    Args:
        ends: the number of the block after the last of each gate.
        in_flight: batches that each trainer has under way.
        placement: the hosts of the gates of each row: one row, or as many as there are replicas.
        push_every: steps of a replica between pushes; None for one row without shards.
        compression: of pushes.
        int8: whether activations and gradients are sent so, by ``wire_dtype=torch.int8``.
        intra_op_threads: for each operation. With several there is one worker.
        schedule: by name; who waits for updates.
        micro_batches: batches of an update, where they are waited for.
    """

    ends: tuple[int, ...]
    in_flight: int
    placement: tuple[tuple[str, ...], ...]
    push_every: int | None = None
    compression: Compression = None
    int8: bool = False
    intra_op_threads: int = 1
    schedule: ScheduleName = "async"
    micro_batches: int = 1

    @property
    def gates(self) -> int:
        """How many, in a row."""
        return len(self.ends)

    @property
    def starts(self) -> tuple[int, ...]:
        """The number of the first block of each gate."""
        return (0, *self.ends[:-1])

    @property
    def waits(self) -> Schedule:
        """The schedule."""
        return schedule_named(self.schedule, self.micro_batches)

    @property
    def replicas(self) -> int:
        """How many; 0 for one row without shards."""
        return 0 if self.push_every is None else len(self.placement)

    @property
    def hosts(self) -> list[str]:
        """Those that it uses, each once."""
        return list(dict.fromkeys(host for row in self.placement for host in row))

    @property
    def gates_by_host(self) -> list[list[int]]:
        """The numbers of the gates of the first row on each host: a placement for Ray."""
        row = self.placement[0]
        return [[i for i, host in enumerate(row) if host == name] for name in dict.fromkeys(row)]

    @property
    def shard_hosts(self) -> list[str]:
        """The host of each shard, dealt out one after the other."""
        return [self.hosts[i % len(self.hosts)] for i in range(self.gates if self.replicas else 0)]

    def __str__(self) -> str:
        """In a few words."""
        gates, threads = _count(self.gates, "gate"), self.intra_op_threads
        if threads > 1:
            gates += f" with {threads} intra-op threads"
        batches = f"{_count(self.in_flight, 'batch')} in flight"
        hosts = f" on {_count(len(self.hosts), 'host')}" if len(self.hosts) > 1 else ""
        if not self.replicas:
            waits = f", {self.schedule} of {self.micro_batches}" if self.schedule != "async" else ""
            return f"{gates}{hosts}{' in int8' if self.int8 else ''}, {batches}{waits}"
        packed = "" if self.compression is None else f" in {self.compression}"
        every = f"pushes every {_count(self.push_every or 1, 'step')}{packed}"
        return f"{_count(self.replicas, 'replica')} of {gates}{hosts}, {batches}, {every}"


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what}es" if what.endswith("ch") else f"{number} {what}s"


def proposed(
    costs: ModelCosts,
    machines: Machines,
    may_merge: bool = True,
    schedules: Sequence[ScheduleName] = ("async",),
    micro_batches: int | None = None,
) -> list[RunLayout]:
    """The layouts to run dry.

    Args:
        costs: of the model.
        machines: where it is to run.
        may_merge: whether gates may have several blocks.
        schedules: of rows, by name; replicas have none but ``async``.
        micro_batches: of an update, where it is waited for; by the number of gates if not given.
    """
    proposals = _Proposals(costs, machines, may_merge)
    rows = [*proposals.rows_on_one(), *proposals.one_gate_on_all_cores(), *proposals.rows_over_all()]
    found: list[RunLayout] = []
    for name in schedules:
        if name == "async":
            found += [*rows, *proposals.replicas()]
        else:
            found += dict.fromkeys(each for row in rows for each in _waiting(row, name, micro_batches))
    return found


def _waiting(row: RunLayout, name: ScheduleName, micro_batches: int | None) -> Iterator[RunLayout]:
    """The row with a schedule in which updates are waited for; one worker alone waits for nobody."""
    if row.intra_op_threads > 1 and micro_batches is None:
        return
    each = replace(row, schedule=name, micro_batches=micro_batches or MICRO_BATCHES * row.gates)
    for in_flight in (row.gates + 1, 2 * each.micro_batches):
        yield replace(each, in_flight=each.waits.room(in_flight, trained=0))


class _Proposals:
    """See the head of this file; arguments as of :func:`proposed`."""

    def __init__(self, costs: ModelCosts, machines: Machines, may_merge: bool) -> None:
        self._costs, self._machines, self._may_merge = costs, machines, may_merge

    def rows_on_one(self) -> Iterator[RunLayout]:
        """Up to twice as many gates as the host has cores."""
        host = self._machines.fastest
        for ends in self._growing([host.name] * 2 * host.cores):
            for in_flight in _in_flight(len(ends)):
                yield RunLayout(ends=ends, in_flight=in_flight, placement=((host.name,) * len(ends),))

    def one_gate_on_all_cores(self) -> Iterator[RunLayout]:
        """By operations that use so many as were measured."""
        host, threads = self._machines.fastest, self._costs.workers
        if self._costs.threaded_s is not None and threads <= host.cores:
            ends, placement = (len(self._costs.blocks),), ((host.name,),)
            yield RunLayout(ends=ends, in_flight=1, placement=placement, intra_op_threads=threads)

    def rows_over_all(self) -> Iterator[RunLayout]:
        """Faster hosts have more blocks; with more batches in flight than gates, links are hidden."""
        hosts = self._machines.hosts
        for each in sorted({1, min(host.cores for host in hosts)}) if len(hosts) > 1 else ():
            names = tuple(host.name for host in hosts for _ in range(each))
            ends = self._ends(names)
            if ends is not None:
                for factor, int8 in product((1, 2, 4, 8), (False, True)):
                    in_flight = factor * len(ends)
                    yield RunLayout(ends=ends, in_flight=in_flight, placement=(names,), int8=int8)

    def replicas(self) -> Iterator[RunLayout]:
        """A row for each host, or for each core of the only one."""
        hosts = self._machines.hosts
        if not self._costs.compressions:
            return
        if len(hosts) == 1:
            yield from self._replicas([hosts[0]] * hosts[0].cores, 1, [(1, None)])
        else:
            over_links = list(product(PUSH_EVERY, self._costs.compressions))
            for each in sorted({1, min(len(self._costs.blocks), *(host.cores for host in hosts))}):
                yield from self._replicas(hosts, each, over_links)

    def _replicas(
        self, hosts: Sequence[Machine], gates: int, pushes: Sequence[tuple[int, Compression]]
    ) -> Iterator[RunLayout]:
        ends = self._ends((hosts[0].name,) * gates)
        if len(hosts) > 1 and ends is not None:
            for push_every, compression in pushes:
                yield RunLayout(
                    ends=ends,
                    in_flight=1 if gates == 1 else gates + 1,
                    placement=tuple((host.name,) * gates for host in hosts),
                    push_every=push_every,
                    compression=compression,
                )

    def _growing(self, hosts: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """Where rows of more and more gates end, as long as one more makes the heaviest lighter."""
        heaviest_s = float("inf")
        for count in range(1, len(hosts) + 1):
            ends = self._ends(hosts[:count])
            if ends is not None:
                starts = (0, *ends)
                block_s = self._costs.block_s
                now_s = max(sum(block_s[start:end]) for start, end in zip(starts, ends, strict=False))
                if now_s < PAYS * heaviest_s:
                    heaviest_s = now_s
                    yield ends

    def _ends(self, hosts: Sequence[str]) -> tuple[int, ...] | None:
        """Where gates on these hosts end, so that they take about equally long; None if there are none."""
        blocks, speeds = self._costs.blocks, {host.name: host.speed for host in self._machines.hosts}
        if len(hosts) > len(blocks) or not (self._may_merge or len(hosts) == len(blocks)):
            return None

        def sent(place: int) -> float:
            return blocks[place - 1].output.bytes

        return tuple(balanced(self._costs.block_s, len(hosts), sent, [speeds[host] for host in hosts]))


def _in_flight(gates: int) -> list[int]:
    """One, which is never stale, and so many that gates need not wait for each other."""
    return [1, 2] if gates == 1 else sorted({1, 2, gates, gates + 1, 2 * gates})
