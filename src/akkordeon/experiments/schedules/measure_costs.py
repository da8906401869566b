"""What work costs: measured on this machine, actor by actor, or from operations and bytes.

Measured in isolation: one thread takes one batch after the other through the row, and a stopwatch stands
beside every actor. Nothing runs at the same time, nothing is fitted to a run.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from akkordeon.core.actor import Actor
from akkordeon.core.messages import Attach, Batch, Message
from akkordeon.core.payload import Payload, tensors
from akkordeon.engines.interpreter import Cell, Interpreter
from akkordeon.engines.simulator.compute import Cost
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.reader import Reader
from akkordeon.sentinels.recipes import Sentinel
from akkordeon.sentinels.training.trainer import Trainer

__all__ = ["Stopwatch", "from_operations", "measure_costs"]


class Stopwatch(Interpreter[Cell]):
    """Carries messages between actors in one thread and takes the time of everything.

    Args:
        actors: all there are.
    """

    def __init__(self, actors: Iterable[Actor]) -> None:
        self._cells = {actor.address: Cell(actor) for actor in actors}
        self._queue: deque[tuple[str, Message]] = deque()
        self._sent_s: float | None = None  # when the message under way led to another
        self.times: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        """(before, after) the first message sent, by address and name of the message handled."""

    def run(self, to: str, message: Message) -> None:
        """Deliver a message and all that comes of it."""
        self._queue.append((to, message))
        while self._queue:
            to, message = self._queue.popleft()
            if to in self._cells:
                self._time(self._cells[to], message)

    def _time(self, cell: Cell, message: Message) -> None:
        self._sent_s = None
        began_s = time.perf_counter()
        self._handle(cell, message, began_s)
        ended_s = time.perf_counter()
        sent_s = ended_s if self._sent_s is None else self._sent_s
        self.times[cell.actor.address, type(message).__name__].append((sent_s - began_s, ended_s - sent_s))

    def _send(self, sender: Cell, to: str, message: Message) -> None:
        if self._sent_s is None:
            self._sent_s = time.perf_counter()
        self._queue.append((to, message))

    def _report(self, record: Any) -> None:
        """Nobody watches."""

    def _after(self, cell: Cell, seconds: float, message: Message) -> None:
        """Nothing is late here."""

    def _remove(self, cell: Cell) -> None:
        del self._cells[cell.actor.address]

    def _fail(self, cell: Cell, doing: str, error: BaseException, batch: Batch | None = None) -> None:
        raise error

    def costs(self, warm: int, message_s: float) -> dict[str, Cost]:
        """The median cost of every actor, without its first ``warm`` messages of each kind."""
        tables: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
        for (address, name), times in self.times.items():
            kept = times[warm:] or times
            before_s, after_s = (median(column) for column in zip(*kept, strict=True))
            tables[address][name] = (before_s + message_s, after_s)
        return {address: Cost(message_s=message_s, table=table) for address, table in tables.items()}


def measure_costs(
    network: Network,
    batches: Sequence[tuple[Payload, Any]],
    loss: Loss,
    warm: int = 5,
    message_s: float = 0.0,
) -> dict[str, Cost]:
    """The costs of a network's gates, of a trainer and of its reader, by address pattern.

    Args:
        network: the recipe.
        batches: as many as are to be measured, and ``warm`` more that are not.
        loss: of the trainer.
        warm: batches that nobody takes the time of.
        message_s: what an engine does beside it for every message.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        actors = [spawn.make() for spawn in network.spawns(0)]
        recipe = Sentinel.train(batches, loss, in_flight=1)
        trainer = Trainer("sentinel/x", "x", network.row(), "reader/x", recipe)
        reader = Reader("reader/x", "sentinel/x", lambda epoch: batches, 1, may_block=False)
        stopwatch = Stopwatch([*actors, trainer, reader])
        stopwatch.run("sentinel/x", Attach())
    finally:
        torch.set_num_threads(threads)
    costs = stopwatch.costs(warm, message_s)
    costs["sentinel/*"], costs["reader/*"] = costs.pop("sentinel/x"), costs.pop("reader/x")
    return costs


def from_operations(
    network: Network, x: Payload, flops_per_s: float, bytes_per_s: float, message_s: float = 0.0
) -> dict[str, Cost]:
    """The costs of gates from what they compute and move: the larger of the two is what takes the time.

    A forward's operations are counted by PyTorch; it moves its weights, its input and its output. A
    backward is twice a forward, an update reads and writes every weight three times (SGD with momentum).

    Args:
        network: the recipe.
        x: an input of the first gate.
        flops_per_s: operations a core does in a second.
        bytes_per_s: bytes it moves.
        message_s: what an engine does beside it for every message.
    """
    costs: dict[str, Cost] = {}
    for address, gate in zip(network.row(), network.gates, strict=True):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            y = gate.module(x)
        weights = sum(p.nbytes for p in gate.module.parameters())
        moved = weights + sum(t.nbytes for t in (*tensors(x), *tensors(y)))
        forward_s = max(counter.get_total_flops() / flops_per_s, moved / bytes_per_s)
        costs[address] = Cost(
            forward_s=forward_s,
            backward_s=2 * forward_s,
            update_s=6 * weights / bytes_per_s,
            evaluate_s=forward_s,
            message_s=message_s,
        )
        x = y
    return costs
