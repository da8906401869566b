"""What activations and gradients are narrowed to between hosts. Without a cluster."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import Ghost, Link, Wire
from akkordeon.engines.wire import carried, narrowed, widened

BATCH = Batch("sentinel/t#1", 0)
NARROW = [torch.bfloat16, torch.int8]


def through(tensor: torch.Tensor, wire_dtype: torch.dtype = torch.int8) -> torch.Tensor:
    return widened(narrowed(tensor, wire_dtype), tuple(tensor.shape), tensor.dtype)


@pytest.mark.parametrize("shape", [(1, 4), (7, 30), (3, 5, 8), (2, 3, 4, 4)])
def test_int8_is_wrong_by_half_a_unit_of_its_sample_at_most(shape):
    """Samples that differ by orders of magnitude have each a unit of their own."""
    x = torch.randn(shape) * 10.0 ** torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).sub(3)
    found = through(x)
    units = x.flatten(1).abs().amax(1) / 127
    errors = (found - x).flatten(1).abs().amax(1)
    assert found.shape == x.shape
    assert found.dtype is torch.float32
    assert bool((errors <= units * 0.5001).all())
    assert narrowed(x, torch.int8).nbytes == x.numel() + 4 * len(x)


def test_int8_rounds_alike_every_time_and_draws_no_random_numbers():
    x, before = torch.randn(20, 30), torch.get_rng_state()
    assert torch.equal(through(x), through(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_are_not_finite_stay_so_and_leave_other_samples_alone():
    x = torch.ones(4, 5)
    x[1, 2], x[2, 0], x[3] = math.nan, -math.inf, 0.0
    assert through(x).isfinite().all(1).tolist() == [True, False, False, True]
    assert through(x)[[0, 3]].tolist() == [[1.0] * 5, [0.0] * 5]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12).reshape(3, 4),
        torch.ones(3, 4, dtype=torch.int8),
        torch.randn(3, 4).double(),
        torch.randn(3, 4).bfloat16(),
        torch.randn(100),
        torch.tensor(0.3),
        torch.randn(100, 3),
        torch.empty(0, 9),
        torch.empty(9, 0),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_other_dtypes_and_samples_of_few_numbers_travel_as_they_are(tensor):
    assert narrowed(tensor, torch.int8) is tensor
    assert torch.equal(through(tensor), tensor)


def test_a_tensor_that_does_not_lie_in_order_arrives_with_its_numbers():
    x = torch.randn(6, 4).t()
    assert torch.equal(through(x), through(x.contiguous()))


def test_what_is_carried_has_the_form_and_the_bytes_of_what_is_sent():
    x, number = torch.randn(3, 8, requires_grad=True), torch.arange(5)
    message, size = carried(Forward(BATCH, {"x": x, "n": number, "none": None}), torch.int8)
    assert size == 3 * (4 + 8) + number.nbytes
    assert torch.equal(message.payload["x"], through(x.detach()))
    assert message.payload["x"].requires_grad
    assert message.payload["n"] is number
    assert message.payload["none"] is None


@pytest.mark.parametrize("message", [Backward(BATCH, None), Forward(BATCH, Ghost(1234))], ids=str)
def test_what_has_no_numbers_goes_over_a_wire_as_it_is(message):
    wire = Wire(Link(), Random(0), wire_dtype=torch.int8)
    assert wire.ship(None, message, 0.0).message is message


# ── in a session ─────────────────────────────────────────────────────────────────────────────────────


def problem() -> ak.Batches:
    torch.manual_seed(1)
    x = torch.randn(320, 6)
    return ak.Batches(x, (x @ torch.randn(6, 3)).argmax(1), batch_size=8)


def row() -> ak.Network:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 12), nn.Tanh())
    return ak.Network(
        [ak.Gate(layer, lambda p: torch.optim.SGD(p, lr=0.1)) for layer in (*layers, nn.Linear(12, 3))]
    )


def trained(engine: ak.Simulator) -> tuple[ak.Training, dict[tuple[str, str], int]]:
    """What training came to, and the bytes from host to host."""
    with ak.run(row(), engine) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=3)).wait()
        return training, {(here, there): wire.bytes for here, there, wire in engine.wires()}


def test_the_simulator_counts_the_bytes_that_are_sent():
    (whole, wide), (_, narrow) = (
        trained(ak.Simulator(links=Link(0.001), wire_dtype=dtype)) for dtype in (None, torch.int8)
    )
    batches = whole.batches.trained
    assert wide["gate/0", "gate/1"] == batches * 8 * 16 * 4
    assert narrow["gate/0", "gate/1"] == batches * 8 * (16 + 4)
    assert narrow["gate/1", "gate/0"] == batches * 8 * (16 + 4)
    assert narrow["gate/2", "sentinel/train#1"] == batches * 8 * 3 * 4


@pytest.mark.parametrize("wire_dtype", NARROW)
def test_a_row_in_the_simulator_learns_from_what_arrives(wire_dtype):
    (exact, _), (rounded, _) = (trained(ak.Simulator(wire_dtype=dtype)) for dtype in (None, wire_dtype))
    assert rounded.batches.trained == 120
    assert rounded.epochs[-1].loss != exact.epochs[-1].loss
    assert rounded.epochs[-1].loss == pytest.approx(exact.epochs[-1].loss, rel=0.02)


def test_a_row_on_one_host_is_not_rounded():
    everybody = ak.Simulator(wire_dtype=torch.int8, hosts=[Host("here", ["*"])])
    assert trained(everybody)[0].epochs[-1].loss == trained(ak.Simulator())[0].epochs[-1].loss


@pytest.mark.parametrize("wrong", [torch.int16, "bf16", 8])
def test_a_wire_dtype_of_another_kind_is_refused(wrong):
    with pytest.raises(RecipeError, match=rf"torch.float16 or torch.int8, got {wrong!r}"):
        ak.Simulator(wire_dtype=wrong)
