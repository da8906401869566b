"""Serialization: what comes out is what went in, whatever it is, and no storage of torch is pickled."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import namedtuple
from pickle import UnpicklingError
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("cloudpickle", reason="Ray is not installed: pip install '.[ray]'")

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.messages import Backward, Batch, CutId, Evaluate, Forget, Forward, Item, SourceFailed
from akkordeon.core.reports import ActorFailed
from akkordeon.core.shard_messages import Push
from akkordeon.engines.ray.placement import check_row, host_of, sum_of_resources
from akkordeon.engines.ray.serialization import Envelope, deserialize, serialize, serialize_message
from akkordeon.engines.wire import carried

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip

BATCH = Batch("sentinel/t#1", 7)


def through(thing, writable=True, **options):
    head, buffers = serialize(thing, **options)
    for buffer in buffers:
        buffer.flags.writeable = False  # as Ray hands them out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return deserialize((head, buffers), writable)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (4, 0, 2)])
def test_a_tensor_of_any_dtype_and_shape_arrives(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    found = through(tensor)
    assert found.dtype is dtype
    assert found.shape == shape
    assert torch.equal(found.to(torch.complex64), tensor.to(torch.complex64))


@given(st.lists(st.integers(0, 4), max_size=3), st.booleans())
def test_a_view_arrives_without_the_rest_of_its_storage(shape, turned):
    whole = torch.randn(1000, *shape)
    view = whole[3:5].transpose(0, -1) if turned else whole[3:5]
    head, buffers = serialize(view)
    assert sum(buffer.nbytes for buffer in buffers) == view.numel() * 4
    assert torch.equal(deserialize((head, buffers), writable=True), view)


def test_payloads_keep_their_form_and_their_none():
    for payload in (torch.ones(2), (torch.ones(2), None), {"a": torch.ones(2), "b": None}, None):
        found = through(Backward(BATCH, payload, (1, 2)))
        assert found.batch == BATCH
        assert found.staleness == (1, 2)
        assert type(found.payload) is type(payload)
        assert str(found.payload) == str(payload)


def test_a_module_and_its_optimizer_arrive_and_can_learn():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found, factory = through((module, lambda parameters: torch.optim.SGD(parameters, lr=1.0)))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), found.parameters(), strict=True))
    optimizer = factory(found.parameters())
    found(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert found[0].bias.requires_grad


def test_what_is_unpacked_writable_is_memory_of_its_own():
    tensor = torch.ones(3)
    found = through(tensor)
    found.add_(1)
    assert tensor.tolist() == [1, 1, 1]


def test_activations_and_gradients_are_narrowed_where_that_is_asked_and_come_back_wide():
    x = torch.randn(100)
    for message in (Forward(BATCH, x), Backward(BATCH, x)):
        head, buffers = serialize(message, torch.bfloat16)
        assert buffers[0].nbytes == 200
        found = deserialize((head, buffers), writable=True).payload
        assert found.dtype is torch.float32
        assert torch.equal(found, x.bfloat16().float())
    evaluation = Evaluate(BATCH, x, CutId("sentinel/v#1", 1))
    assert torch.equal(through(evaluation, wire_dtype=torch.bfloat16).payload, x)
    whole = Forward(BATCH, torch.arange(5))
    assert torch.equal(through(whole, wire_dtype=torch.bfloat16).payload, whole.payload)


class AwkwardError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def test_errors_arrive_with_their_class_if_they_can_and_with_their_words_always():
    found = through(DataError("no batches"))
    assert type(found) is DataError
    assert str(found) == "no batches"
    assert str(through(AwkwardError(1, 2))) == "AwkwardError: 1 and 2"


def test_an_error_that_was_raised_brings_where_it_was_raised():
    try:
        raise DataError("here")
    except DataError as error:
        found = through(error)
    assert "tests/engines/test_serialization.py" in found.__notes__[0]


def test_an_error_of_a_class_that_the_receiver_lacks_arrives_as_its_words(monkeypatch):
    module = ModuleType("only_here")
    exec("class RareError(Exception): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    serialized = serialize(ActorFailed("gate/0", "Forward", module.RareError("no luck")))
    monkeypatch.delitem(sys.modules, "only_here")
    found = deserialize(serialized)
    assert found.address == "gate/0"
    assert str(found.error) == "RareError: no luck"


def test_what_cannot_travel_is_refused():
    for thing in ((i for i in range(3)), threading.Lock()):
        with pytest.raises(TypeError):
            serialize(thing)


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────

Pair = namedtuple("Pair", "x y")

MESSAGES = [
    Forward(BATCH, torch.randn(3, 4)),
    Forward(BATCH, torch.randn(64, 100)),
    Forward(BATCH, (torch.ones(2, dtype=torch.bfloat16), torch.randn(200_000), None)),
    Backward(BATCH, None, (1, 2)),
    Backward(BATCH, {"a": torch.randn(4, 5).t(), "b": None}),
    Push("replica/0/gate/0", 3, 1, (torch.eye(4).to_sparse(), torch.randn(200_000))),
    Item(torch.randn(2), Pair(torch.randn(2), 3)),
    SourceFailed(ValueError("no more")),
    Forget("sentinel/t#1", None),
]


def opened(serialized):
    for buffer in () if isinstance(serialized, bytes) else serialized[1]:
        buffer.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Envelope(serialized)
        return found.to, found.message()


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_was_serialized(message):
    to, found = opened(serialize_message("gate/1", message))
    assert to == "gate/1"
    assert type(found) is type(message)
    assert str(found) == str(message)


def test_a_small_message_is_plain_bytes_and_a_large_tensor_is_not_copied_into_it():
    assert type(serialize_message("gate/0", Forward(BATCH, torch.randn(128, 512)))) is bytes
    head, buffers = serialize_message("gate/0", Forward(BATCH, torch.randn(1024, 512)))
    assert len(head) < 300
    assert [buffer.nbytes for buffer in buffers] == [1024 * 512 * 4]


def test_messages_are_narrowed_where_that_is_asked():
    x = torch.randn(1000, 1000)
    _, found = opened(serialize_message("gate/0", Forward(BATCH, x), torch.bfloat16))
    assert torch.equal(found.payload, x.bfloat16().float())
    evaluation = Evaluate(BATCH, x, CutId("sentinel/v#1", 1))
    assert torch.equal(opened(serialize_message("gate/0", evaluation, torch.bfloat16))[1].payload, x)


@pytest.mark.parametrize("samples", [10, 1000])
def test_int8_takes_a_quarter_and_arrives_as_it_does_in_the_simulator(samples):
    message = Backward(BATCH, (torch.randn(samples, 1000), torch.arange(samples), None))
    serialized = serialize_message("gate/0", message, torch.int8)
    head, buffers = (serialized, []) if isinstance(serialized, bytes) else serialized
    assert len(head) + sum(buffer.nbytes for buffer in buffers) < samples * (1000 + 4 + 8) + 400
    _, found = opened(serialized)
    expected, _ = carried(message, torch.int8)
    assert all(map(torch.equal, found.payload[:2], expected.payload[:2]))


def test_a_message_that_cannot_be_read_still_says_for_whom_it_is():
    envelope = Envelope(serialize_message("gate/0", Forward(BATCH, torch.ones(2)))[:40])
    assert envelope.to == "gate/0"
    with pytest.raises((EOFError, UnpicklingError)):
        envelope.message()


# ── placement ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("placement", "hosts"),
    [
        ("spread", ["gate/0", "gate/1", "gate/2"]),
        ("pack", ["gates", "gates", "gates"]),
        ([[0, 1], [2]], ["gates/0+1", "gates/0+1", "gates/2"]),
        ([(2, 0), (1,)], ["gates/2+0", "gates/1", "gates/2+0"]),
    ],
)
def test_gates_share_hosts_as_they_are_told_to(placement, hosts):
    assert [host_of(f"gate/{i}", placement) for i in range(3)] == hosts


def test_a_replica_is_a_host_and_a_shard_is_one():
    assert host_of("replica/3/gate/0", "spread") == host_of("replica/3/gate/1", "spread") == "replica/3"
    assert host_of("shard/1", "pack") == "shard/1"


def test_a_gate_that_came_later_than_the_placement_has_a_host_of_its_own():
    assert host_of("gate/3", [[0, 1], [2]]) == "gate/3"


@pytest.mark.parametrize("placement", ["everywhere", [[0], [0, 1]], [[0, 0]]])
def test_a_placement_that_names_a_gate_twice_is_refused(placement):
    with pytest.raises(RecipeError):
        host_of("gate/0", placement)


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        ([[0]], "names every gate once; gate/1 is not so"),
        ([[0, 1], [1]], "names every gate once; gate/1 is not so"),
        ([[0, 5], [1]], "the network has no gate/5"),
        ([[0, -1], [1]], "the network has no gate/-1"),
    ],
)
def test_a_placement_of_another_network_is_refused(placement, sentence):
    """One that named a gate too many was taken in silence."""
    with pytest.raises(RecipeError, match=sentence):
        check_row(["gate/0", "gate/1"], placement)


def test_a_placement_of_the_network_is_taken_and_says_nothing_of_shards():
    for placement in ("spread", "pack", [[0, 1]], [{1}, (0,)], [range(2)]):
        check_row(["gate/0", "gate/1"], placement)
    check_row(["shard/0", "shard/1"], [[0, 5]])


def test_a_host_needs_what_its_gates_need_together():
    assert sum_of_resources([{"num_cpus": 1, "fast": 0.5}, None, {"num_cpus": 1}]) == {
        "num_cpus": 2,
        "fast": 0.5,
    }
