"""Streams of gates on a GPU: what waits for what, told by a device that only notes what it is told."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.actor import Actor, Report
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Batch, Forward, Probe
from akkordeon.engines.threads import device_streams
from akkordeon.engines.threads.device_streams import DeviceStreams, complete
from akkordeon.engines.threads.workers import WorkerPool

GPU = torch.device("cuda:0")


class Stream:
    """Notes what it is told."""

    def __init__(self, device=None) -> None:
        self.told: list = []

    def wait_stream(self, other) -> None:
        self.told.append(("after", other))

    def wait_event(self, event) -> None:
        self.told.append(("after", event))

    def synchronize(self) -> None:
        self.told.append("all")


class Event:
    def record(self, stream) -> None:
        self.of = stream


class Cuda:
    """As much of ``torch.cuda`` as is used."""

    Event, Stream = Event, Stream

    def __init__(self) -> None:
        self.default = self.current = Stream()

    def current_stream(self, device=None) -> Stream:
        return self.current

    def default_stream(self, device=None) -> Stream:
        return self.default

    def stream(self, stream):
        cuda, before = self, self.current

        class Within:
            def __enter__(self) -> None:
                cuda.current = stream or before

            def __exit__(self, *_) -> None:
                cuda.current = before

        return Within()


class OnGpu(Tensor):
    """A tensor that says it is there."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: GPU)

    def record_stream(self, stream) -> None:
        self.kept_for = stream


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    fake = Cuda()
    monkeypatch.setattr(device_streams, "torch", SimpleNamespace(cuda=fake, device=torch.device))
    return fake


def actor(address: str, device: torch.device | None = GPU):
    module = nn.Linear(2, 2)
    module.register_parameter("weight", nn.Parameter(module.weight.detach().as_subclass(OnGpu)))
    return SimpleNamespace(address=address, device=device, module=module)


def message() -> Forward:
    return Forward(Batch("s", 0), torch.zeros(2).as_subclass(OnGpu))


def test_a_gate_works_on_its_stream_after_what_made_its_input_and_the_memory_stays_so_long(cuda):
    streams, first, second = DeviceStreams(), actor("gate/0"), actor("gate/1")
    streams.admit(first)
    streams.admit(second)
    with streams.handling(first, message()):
        of_first, sent = cuda.current, message()
        streams.sent(sent)
    with streams.handling(second, sent):
        of_second = cuda.current
    assert of_first is not of_second
    (_, moved), (_, made) = of_second.told
    assert moved is cuda.default  # where its weights were moved
    assert made.of is of_first
    assert sent.payload.kept_for is of_second
    assert cuda.current is cuda.default


def test_the_memory_of_the_first_weights_stays_until_the_stream_is_done_with_them(cuda):
    streams, gate = DeviceStreams(), actor("gate/0")
    weight = gate.module.weight
    streams.admit(gate)
    with streams.handling(gate, message()):
        assert weight.kept_for is cuda.current


def test_what_a_gate_leaves_behind_it_makes_on_its_stream(cuda):
    told = []

    class Leaving(Actor):
        address, device = "gate/0", GPU

        def receive(self, message, now_s):
            yield from ()

        def last_words(self):
            told.append(cuda.current)
            yield Report(message())

    pool = WorkerPool(told.append, threading.Condition(), lambda to, message: False, None, True)
    leaving = Leaving()
    pool.admit("gate/0", leaving, on_its_own=False)
    pool._leave(pool.cells["gate/0"])
    of_gate, record = told
    assert of_gate is not cuda.default
    assert of_gate.told[-1] == "all"
    assert isinstance(record, Forward)


def test_a_sentinel_works_on_the_default_stream_after_the_gate(cuda):
    streams, gate, sentinel = DeviceStreams(), actor("gate/0"), actor("sentinel", None)
    streams.admit(gate)
    streams.admit(sentinel)
    with streams.handling(gate, message()):
        of_gate, sent = cuda.current, message()
        streams.sent(sent)
    with streams.handling(sentinel, sent):
        assert cuda.current is cuda.default
    ((_, made),) = cuda.default.told
    assert made.of is of_gate


def test_what_is_no_payload_is_complete_before_it_goes(cuda):
    streams, gate = DeviceStreams(), actor("gate/0")
    streams.admit(gate)
    with streams.handling(gate, Probe("asker")):
        of_gate = cuda.current
        streams.sent(Probe("other"))
        assert of_gate.told.count("all") == 1
        complete()  # as for a report
    assert of_gate.told.count("all") == 2
    complete()
    assert "all" not in cuda.default.told


def test_nothing_is_kept_of_what_nobody_will_handle_and_of_payloads_that_are_elsewhere(cuda):
    streams = DeviceStreams()
    lost = message()
    streams.sent(lost)
    assert len(streams._made) == 1
    streams.dropped(lost)
    streams.sent(Forward(Batch("s", 1), torch.zeros(2)))
    assert not streams._made


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_streams_without_a_gpu_are_refused():
    with pytest.raises(RecipeError, match="knows none here"):
        ak.Threads(device_streams=True)
