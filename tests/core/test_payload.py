"""Payloads: a tensor, or a tuple or dict of tensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from akkordeon.core.errors import ProtocolError
from akkordeon.core.payload import all_finite, bytes_of, is_floating, map_tensors, memory, samples, tensors

A, B, N = torch.ones(3, 2), torch.ones(3, 5, dtype=torch.float64), torch.arange(3)


def test_the_tensors_come_in_the_payloads_own_order_without_none():
    assert list(tensors(A)) == [A]
    assert [id(t) for t in tensors((A, None, N))] == [id(A), id(N)]
    assert [id(t) for t in tensors({"b": N, "none": None, "a": A})] == [id(N), id(A)]
    assert list(tensors(None)) == []


def test_mapping_keeps_the_form_and_every_none():
    assert torch.equal(map_tensors(lambda t: t + 1, A), A + 1)
    doubled = map_tensors(lambda t: t * 2, (A, None))
    assert isinstance(doubled, tuple)
    assert torch.equal(doubled[0], A * 2)
    assert doubled[1] is None
    named = map_tensors(lambda t: t * 2, {"x": A, "y": None})
    assert list(named) == ["x", "y"]
    assert torch.equal(named["x"], A * 2)
    assert named["y"] is None


class Pair(NamedTuple):
    left: Tensor
    right: Tensor | None


@pytest.mark.parametrize(
    "payload",
    [
        (A, None),
        [A, N],
        {"x": A},
        Pair(A, None),
        OrderedDict(x=A, y=N),
        torch.max(A, dim=0),
        (A, (N, [B, None]), {"deep": A}),
        nn.utils.rnn.pack_sequence([A, A[:2]]),
    ],
    ids=lambda payload: type(payload).__name__,
)
def test_a_container_stays_what_it_is_and_is_another_one(payload):
    mapped = map_tensors(lambda t: t, payload)
    assert mapped is not payload
    assert type(mapped) is type(payload)
    assert str(mapped) == str(payload)
    assert [id(t) for t in tensors(mapped)] == [id(t) for t in tensors(payload)]


@pytest.mark.parametrize(
    ("payload", "got"),
    [("text", "got str"), (None, "got NoneType"), (3.0, "got float"), ((A, "x"), "got str inside")],
)
def test_anything_else_is_refused_by_its_type(payload, got):
    with pytest.raises(ProtocolError, match=got):
        map_tensors(lambda t: t, payload)


def test_samples_are_the_length_of_the_first_tensor():
    assert samples((A, N)) == samples({"x": N}) == 3
    assert samples(torch.tensor(1.0)) == 1


def test_floats_and_complex_numbers_can_have_a_gradient_and_integers_cannot():
    assert is_floating(A)
    assert is_floating(torch.ones(1, dtype=torch.complex64))
    assert not is_floating(N)
    assert not is_floating(N > 0)


def test_views_share_memory_and_copies_do_not():
    assert memory(A[1:]) == memory(A.T) == memory(A.detach())
    assert memory(A.clone()) != memory(A)


def test_tensors_without_elements_share_nothing():
    """All of them lie at address 0."""
    one, other = torch.empty(0), torch.empty(0, 3)
    assert memory(one) != memory(other)


def test_a_dict_that_makes_its_tensors_when_it_is_asked_keeps_them_apart():
    """They were known by their ids, and a tensor that is gone leaves its id to the next."""

    class Loading(dict):
        def values(self):
            return (torch.full((2,), float(i)) for i in range(len(self)))

    seen = []
    map_tensors(lambda tensor: seen.append(tensor.tolist()), Loading.fromkeys(range(9)))
    assert seen == [[i, i] for i in range(9)]


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), max_size=20), st.sampled_from(DTYPES)
)
def test_all_finite_is_what_looking_at_every_element_says(values, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    assert all_finite([None, tensor]) == bool(tensor.isfinite().all())


def test_a_sum_that_overflows_is_no_reason_to_refuse():
    assert all_finite([torch.full((100,), 3e38), torch.tensor([3e38, -3e38] * 7), N])
    assert not all_finite([A, torch.tensor([float("inf"), float("-inf")])])


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_looked_at_as_well(value, layout):
    tensor = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to_sparse(layout=layout)
    (tensor._values() if layout is torch.sparse_coo else tensor.values())[0] = value
    assert all_finite([tensor]) is (value in (0.0, 1.0))


# The gradient of a sum is one number, spread over the outputs. Where there is one output, PyTorch calls that
# contiguous though its strides are 0, and its bytes could not be had: a regressor that had one example at a
# time failed on Ray, and its run could not be recorded.
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_number_that_is_spread_over_a_shape_has_its_bytes(shape, dtype):
    spread = torch.ones((), dtype=dtype).expand(shape)
    assert torch.equal(bytes_of(spread).view(dtype), torch.ones(spread.numel(), dtype=dtype))
