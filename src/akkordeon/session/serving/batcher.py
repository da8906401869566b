"""Requests that come within a few milliseconds are computed as one batch, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from akkordeon.core.errors import DataError, explain
from akkordeon.core.numerics.forms import form, signature
from akkordeon.core.payload import Payload, map_tensors, samples, tensors
from akkordeon.session.serving.weights import ServedWeights

__all__ = ["Batcher", "ServedOutputs"]


@dataclass(frozen=True, slots=True)
class ServedOutputs:
    """What a request is answered with: outputs, and the version of the weights that all of them are of."""

    outputs: Payload
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    x: Payload
    check: Callable[[Payload], None] | None
    came_s: float = field(default_factory=time.monotonic)
    answer: Future[ServedOutputs] = field(default_factory=Future)

    @property
    def kind(self) -> str:
        """Equal for those that can be in one batch."""
        names = ",".join(map(repr, self.x)) if isinstance(self.x, dict) else ""
        return f"{names}: {form(self.x)}"


class Batcher:
    """Computes requests, as many together as have come.

    Args:
        weights: gives the latest.
        rows_max: once there are so many in a batch it waits for no more.
        wait_s: how long the first of a batch waits for others.

    Attributes:
        batches: that were computed.
        rows: in them.
    """

    def __init__(self, weights: Callable[[], ServedWeights], rows_max: int, wait_s: float) -> None:
        self._weights = weights
        self._rows_max = rows_max
        self._wait_s = wait_s
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self.batches = self.rows = 0
        self._thread = threading.Thread(target=self._run, name="akkordeon predictions", daemon=True)
        self._thread.start()

    def submit(self, x: Payload, check: Callable[[Payload], None] | None = None) -> Future[ServedOutputs]:
        """Have a request computed.

        Args:
            x: a batch of at least one row.
            check: is given the outputs before they are; what it raises is the answer then.

        Returns:
            Its answer, or a :class:`DataError` that says why there is none.
        """
        request = _Request(x, check)
        self._requests.put(request)
        return request.answer

    def close(self) -> None:
        """Compute what has come, and end."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(1)
        while (first := self._requests.get()) is not None:
            weights, groups = self._weights(), _by_kind(self._gathered(first))
            for group in groups:
                self._answer(weights, group)

    def _gathered(self, first: _Request) -> list[_Request]:
        """A request, and those that come while it may wait."""
        together, rows, until_s = [first], samples(first.x), first.came_s + self._wait_s
        while rows < self._rows_max:
            try:
                request = self._requests.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            if request is None:
                self._requests.put(None)
                break
            together.append(request)
            rows += samples(request.x)
        return [request for request in together if request.answer.set_running_or_notify_cancel()]

    def _answer(self, weights: ServedWeights, group: Sequence[_Request]) -> None:
        """Compute them together, or each alone where that is not possible."""
        try:
            outputs = _split(weights.outputs(_joined([request.x for request in group])), group)
        except Exception as error:  # whatever a module raises
            if len(group) > 1:
                for request in group:
                    self._answer(weights, [request])
            else:
                why = f"the network cannot work on {signature(group[0].x)}: {explain(error)}"
                group[0].answer.set_exception(DataError(why))
            return
        self.batches += 1
        for request, its in zip(group, outputs, strict=True):
            self.rows += samples(request.x)
            _settle(request, ServedOutputs(its, weights.version))


def _settle(request: _Request, served: ServedOutputs) -> None:
    try:
        if request.check is not None:
            request.check(served.outputs)
    except Exception as error:  # whatever a loss raises
        request.answer.set_exception(DataError(explain(error)))
    else:
        request.answer.set_result(served)


def _by_kind(requests: Sequence[_Request]) -> Iterable[list[_Request]]:
    groups: dict[str, list[_Request]] = {}
    for request in requests:
        groups.setdefault(request.kind, []).append(request)
    return groups.values()


def _joined(inputs: Sequence[Payload]) -> Payload:
    """Several batches as one, in memory of its own: a module may write to what it is given."""
    leaves = iter([torch.cat(together) for together in zip(*map(tensors, inputs), strict=True)])
    return map_tensors(lambda _: next(leaves), inputs[0])


def _split(outputs: Payload, group: Sequence[_Request]) -> list[Payload]:
    """The outputs of each request.

    Raises:
        DataError: they do not have a row for each row of the inputs.
    """
    if len(group) == 1:
        return [outputs]
    sizes = [samples(request.x) for request in group]
    parts: list[Payload] = []
    for output in tensors(outputs):
        if not output.dim() or len(output) != sum(sizes):
            raise DataError(f"its outputs are {signature(outputs)}, for {sum(sizes)} rows")
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        parts.append(map_tensors(partial(_rows, end - size, end), outputs))
    return parts


def _rows(start: int, end: int, tensor: Tensor) -> Tensor:
    return tensor[start:end]
