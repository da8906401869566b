"""Measures what the blocks of a model cost here: the real actors at work, one message after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Actor
from akkordeon.core.addresses import shard_address
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Attach, Message
from akkordeon.core.numerics.autocast import autocast_here
from akkordeon.core.payload import Payload, itself, map_tensors, nbytes, samples, tensors
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.interpreter import Cell
from akkordeon.engines.simulator.links import size_bytes
from akkordeon.engines.threads import Threads
from akkordeon.engines.threads.allocator import keep_freed_memory
from akkordeon.engines.wire import carried
from akkordeon.experiments.planning.blocks import Blocks, averaging
from akkordeon.experiments.planning.costs import BlockCost, Compression, ModelCosts, PushCost, Sent
from akkordeon.experiments.run import run
from akkordeon.experiments.schedules.measure_costs import Stopwatch
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Weights
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.reader import Reader
from akkordeon.sentinels.recipes import Sentinel
from akkordeon.sentinels.training.trainer import Trainer

__all__ = ["measured"]

WARM = 3
"""Batches that nobody takes the time of."""

MEASURED_S = 0.5
"""How long each measurement lasts, about, as far as there are batches for it."""

FEWEST = 5
"""Batches that are measured however long they take."""

Pairs = Sequence[tuple[Payload, Any]]


class _Measurement(Stopwatch):
    """One batch after the other through a row, by a real trainer and its reader.

    Args:
        model: the row, or a replica of it with its shards.
        batches: to train on; the first few count for nothing.
        loss: of the trainer.

    Attributes:
        row: the addresses of the gates.
        sent: the last message of each kind, by sender.
    """

    def __init__(self, model: Network | Downpour, batches: Pairs, loss: Loss) -> None:
        recipe = Sentinel.train(batches, loss, in_flight=1)
        self.row = model.row() if isinstance(model, Network) else model.replica_row(0)
        self.sent: dict[tuple[str, str], Message] = {}
        self._batches = len(batches)
        self._autocast = autocast_here()
        actors: list[Actor] = [spawn.make() for spawn in model.spawns(0)]
        trainer = Trainer("sentinel/x", "x", self.row, "reader/x", recipe)
        reader = Reader("reader/x", "sentinel/x", lambda epoch: batches, 1, may_block=False)
        super().__init__([*actors, trainer, reader])

    def _send(self, sender: Cell, to: str, message: Message) -> None:
        super()._send(sender, to, message)
        self.sent[sender.actor.address, type(message).__name__] = message

    def bytes_of(self, address: str, name: str) -> int:
        """Of the last message of that name that an actor sent."""
        return size_bytes(self.sent[address, name])

    def take(self) -> _Measurement:
        """Measure, on a thread as workers are: memory that is freed there is found again otherwise."""
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._autocast.call, self.run, "sentinel/x", Attach()).result()
        return self

    def seconds(self, address: str, name: str) -> tuple[float, float]:
        """The median (before, after) the first message that an actor sends, of messages of that name."""
        times = self.times[address, name]
        before_s, after_s = zip(*(times[WARM:] or times), strict=True)
        return median(before_s), median(after_s)

    @property
    def sentinel_s(self) -> tuple[float, float]:
        """Of the trainer and its reader for a batch: the loss, and all else."""
        loss_s = sum(self.seconds("sentinel/x", "Forward"))
        others = [
            sum(median(column) for column in zip(*times, strict=True)) * len(times)
            for (address, name), times in self.times.items()
            if address in ("sentinel/x", "reader/x") and name not in ("Attach", "Forward")
        ]
        return loss_s, sum(others) / self._batches

    @property
    def messages_of_sentinel(self) -> float:
        """That a trainer and its reader handle for a batch."""
        return sum(len(each) for (to, _), each in self.times.items() if to not in self.row) / self._batches

    @property
    def batch_s(self) -> float:
        """Of the gates for a batch, all together."""
        return sum(sum(self.seconds(gate, name)) for gate in self.row for name in ("Forward", "Backward"))


def measured(
    blocks: Blocks, batches: Pairs, loss: Loss, workers: int, compressions: Sequence[Compression]
) -> ModelCosts:
    """The costs of a model's blocks on this machine, with one intra-op thread for each worker.

    Args:
        blocks: the model.
        batches: a few more than are to be measured.
        loss: from (outputs, y) to one number.
        workers: that will be at work at once.
        compressions: of pushes, if there are to be any.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the engine does that will run it
    try:
        with torch.random.fork_rng():  # how often modules draw depends on the time that they take
            network = blocks.apart
            batches = batches[: _enough(_Measurement(network, batches[: WARM + 2], loss).take())]
            alone = _Measurement(network, batches, loss).take()
            crowding = _crowding(lambda: _Measurement(network, batches, loss), workers, alone)
            payload = max(alone.bytes_of(gate, "Forward") for gate in alone.row)
            gate_s = _empty_gate_s(payload, len(batches))
            message_s = _message_s(network, batches, loss, workers, alone)
            memory = list(_memory(network.gates, batches[0][0]))
            pushes = _pushes(network, batches, loss, alone, compressions)
            apart, threaded_s = 1.0, None
            if blocks.may_merge:
                one_gate = blocks.cut((len(blocks),))
                apart = _apart(_Measurement(one_gate, batches, loss).take(), alone, gate_s)
                threaded_s = _threaded_s(_Measurement(one_gate, batches, loss), workers)
    finally:
        torch.set_num_threads(threads)
    loss_s, rest_s = alone.sentinel_s
    return ModelCosts(
        blocks=tuple(
            replace(_block_cost(alone, gate, gate_s, kept, apart), pushes=its)
            for gate, kept, its in zip(alone.row, memory, pushes, strict=True)
        ),
        gate_s=(gate_s[0] + message_s, gate_s[1] + message_s),
        sentinel_s=(loss_s + message_s, rest_s + (alone.messages_of_sentinel - 1) * message_s),
        inputs=_sent(alone.sent["sentinel/x", "Forward"]),
        samples=samples(batches[0][0]),
        workers=workers,
        crowding=crowding,
        threaded_s=threaded_s,
        cuts=blocks.cuts,
    )


def _enough(first: _Measurement) -> int:
    """How many batches to measure."""
    batch_s = first.batch_s + sum(first.sentinel_s)
    return WARM + max(FEWEST, round(MEASURED_S / batch_s))


def _block_cost(
    taken: _Measurement,
    gate: str,
    gate_s: tuple[float, float],
    memory: tuple[int, int, int],
    apart: float,
) -> BlockCost:
    forward_s, (backward_s, update_s) = sum(taken.seconds(gate, "Forward")), taken.seconds(gate, "Backward")
    saved, weights, state = memory
    return BlockCost(
        forward_s=max(0.0, forward_s - gate_s[0]) / apart,
        backward_s=max(0.0, backward_s - gate_s[1]) / apart,
        update_s=update_s / apart,
        output=_sent(taken.sent[gate, "Forward"]),
        gradient=_sent(taken.sent[gate, "Backward"]),
        saved_bytes=saved,
        weight_bytes=weights,
        state_bytes=state,
    )


def _sent(message: Any) -> Sent:
    """What it is on a link."""
    if message.payload is None:
        return Sent(bytes=0, int8_bytes=0, int8_s=0.0)
    times = []
    for _ in range(FEWEST):
        began_s = time.perf_counter()
        _, int8_bytes = carried(message, torch.int8)
        times.append(time.perf_counter() - began_s)
    return Sent(bytes=size_bytes(message), int8_bytes=int8_bytes, int8_s=median(times))


def _apart(whole: _Measurement, alone: _Measurement, gate_s: tuple[float, float]) -> float:
    """How many times longer the blocks take than the same in one gate, which computes nothing twice.

    What lies between blocks, such as sums of what was skipped, each gate computes again.
    """
    return max(1.0, (alone.batch_s - len(alone.row) * sum(gate_s)) / (whole.batch_s - sum(gate_s)))


def _threaded_s(one_gate: _Measurement, workers: int) -> float | None:
    """What a batch takes where one worker has the cores of all, for each operation."""
    if workers == 1:
        return None
    torch.set_num_threads(workers)
    try:
        taken = one_gate.take()
    finally:
        torch.set_num_threads(1)
    return taken.batch_s + sum(taken.sentinel_s)


def _empty_gate_s(payload_bytes: int, batches: int) -> tuple[float, float]:
    """What a gate between two others takes for a (forward, backward) if its module does nothing."""
    row = Network([Gate(nn.Identity()), Gate(nn.Identity()), Gate(nn.Identity())])
    x = torch.zeros(1, max(1, payload_bytes // 4))
    taken = _Measurement(row, [(x, x)] * batches, lambda outputs, y: outputs.sum()).take()
    return sum(taken.seconds("gate/1", "Forward")), sum(taken.seconds("gate/1", "Backward"))


def _message_s(network: Network, batches: Pairs, loss: Loss, workers: int, alone: _Measurement) -> float:
    """What threads take for each message beside the actors, where one batch follows the other.

    Mailboxes and turns are the least of it: a worker must wake up, and finds nothing in its core's caches.
    """
    recipe = Sentinel.train(batches, loss, in_flight=1, epochs=3)
    with run(network, Threads(workers)) as session:
        epochs = session.attach(recipe).wait().epochs
    batch_s = min(epoch.seconds for epoch in epochs) / len(batches)
    messages = 2 * len(alone.row) + alone.messages_of_sentinel
    return max(0.0, batch_s - alone.batch_s - sum(alone.sentinel_s)) / messages


def _crowding(make: Callable[[], _Measurement], workers: int, alone: _Measurement) -> float:
    """How many times longer a batch takes where as many rows as workers are at work."""
    if workers == 1:
        return 1.0
    with ThreadPoolExecutor(workers) as pool:
        together = list(pool.map(_Measurement.take, [make() for _ in range(workers)]))
    return max(1.0, median(each.batch_s for each in together) / alone.batch_s)


def _pushes(
    network: Network,
    batches: Pairs,
    loss: Loss,
    alone: _Measurement,
    compressions: Sequence[Compression],
) -> list[dict[str, PushCost]]:
    """What each gate costs as a replica's besides, by compression; nothing where it cannot be one."""
    found: list[dict[str, PushCost]] = [{} for _ in network.gates]
    for compression in compressions:
        try:
            replicated = averaging(network, 1, 1, compression)
        except RecipeError:
            return found
        taken = _Measurement(replicated, batches, loss).take()
        for i, (gate, replica) in enumerate(zip(alone.row, taken.row, strict=True)):
            if (shard_address(i), "Push") in taken.times:
                more_s = taken.seconds(replica, "Backward")[1] - alone.seconds(gate, "Backward")[1]
                found[i][compression or "none"] = PushCost(
                    push_s=max(0.0, more_s),
                    apply_s=sum(taken.seconds(shard_address(i), "Push")),
                    fetch_s=sum(taken.seconds(replica, "Parameters")),
                    push_bytes=taken.bytes_of(replica, "Push"),
                )
            else:  # nothing in it learns
                found[i][compression or "none"] = PushCost(push_s=0.0, apply_s=0.0, fetch_s=0.0, push_bytes=0)
    return found


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────


def _memory(gates: Iterable[Gate], x: Payload) -> Iterable[tuple[int, int, int]]:
    """Bytes that each gate keeps: from a forward to its backward, of weights, and of its optimizer."""
    for gate in gates:
        module = copied(gate.module).train()
        weights = {_memory_of(parameter)[0] for parameter in module.parameters()}
        saved = dict(map(_memory_of, tensors(x)))
        keep = partial(_kept, saved)
        with torch.autograd.graph.saved_tensors_hooks(keep, itself):
            y = module(x)
        if gate.recompute:
            saved = dict(map(_memory_of, (*tensors(x), *tensors(y))))
        kept = sum(size for place, size in saved.items() if place not in weights)
        yield kept, _bytes(gate.module.parameters()), _state_bytes(gate)
        x = map_tensors(_needing_gradient, y)


def _kept(saved: dict[int, int], tensor: Tensor) -> Tensor:
    saved.update([_memory_of(tensor)])
    return tensor


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    """Where the memory of a tensor is, and how large."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _needing_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _state_bytes(gate: Gate) -> int:
    """What the optimizer and the rule of a gate keep after a first update."""
    weights = Weights(copied(gate.module))
    updater = Updater(weights, gate.optimizer, gate.staleness, None, "a gate")
    updater.update([torch.zeros_like(weight) for weight in weights.now], weights.now, 0)
    state = updater.state()
    optimizer = state["optimizer"] or {"state": {}}
    of_optimizer = [value for each in optimizer["state"].values() for value in each.values()]
    return _bytes(t for t in (*of_optimizer, *state["rule"].values()) if isinstance(t, Tensor))


def _bytes(some: Iterable[Tensor]) -> int:
    return sum(map(nbytes, some))
