"""Payloads: a tensor, or a tuple or dict of tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from akkordeon.errors import ProtocolError
from akkordeon.payload import (
    all_finite,
    form,
    is_floating,
    map_tensors,
    memory,
    same_form,
    samples,
    signature,
    tensors,
)

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


def test_a_list_becomes_a_tuple():
    assert isinstance(map_tensors(lambda t: t, [A, N]), tuple)


@pytest.mark.parametrize(
    ("payload", "got"),
    [("text", "got str"), (None, "got NoneType"), (3.0, "got float"), ((A, "x"), "got str inside")],
)
def test_anything_else_is_refused_by_its_type(payload, got):
    with pytest.raises(ProtocolError, match=got):
        map_tensors(lambda t: t, payload)


FITS = [
    (A, torch.zeros(3, 2)),
    (None, A),
    ((None, N), (A, N)),
    ((A, None), (A, N)),
    ({"x": None, "y": A}, {"x": B, "y": A}),
]
FITS_NOT = [
    (A, torch.ones(2, 3)),
    (A, A.double()),
    (A, (A,)),
    ((A,), A),
    ((A,), (A, A)),
    ((A, A), (A, B)),
    ({"x": A}, {"y": A}),
    ({"x": A}, {"x": A, "y": A}),
    ({"x": A}, (A,)),
    ({"x": A}, {"x": B}),
]


@pytest.mark.parametrize(("gradient", "output"), FITS)
def test_a_gradient_fits_an_output_of_its_form_and_none_fits_anything(gradient, output):
    assert same_form(gradient, output)


@pytest.mark.parametrize(("gradient", "output"), FITS_NOT)
def test_a_gradient_of_another_form_shape_or_dtype_does_not_fit(gradient, output):
    assert not same_form(gradient, output)


def test_signature_and_form_tell_shapes_and_dtypes_in_words():
    assert signature(A) == "float32 (3, 2)"
    assert signature((A, None)) == "(float32 (3, 2), None)"
    assert signature({"x": N, "y": None}) == "{x: int64 (3,), y: None}"
    assert form(A) == "float32 (*, 2)"
    assert form(N) == "int64 (*)"
    assert form((A, B)) == "float32 (*, 2), float64 (*, 5)"


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
