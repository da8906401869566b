"""Forms of payloads: compared, told in words, remembered."""

from __future__ import annotations

import pytest
import torch

from akkordeon.core.numerics.forms import FORMS_MAX, Forms, form, same_form, signature

A, B, N = torch.ones(3, 2), torch.ones(3, 5, dtype=torch.float64), torch.arange(3)

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


def test_a_dimension_that_was_not_always_the_same_counts_as_any():
    forms = Forms()
    assert str(forms) == ""
    for height in range(1, 2000):
        forms.add(torch.empty(2, 3, height, 4))
    assert str(forms) == "float32 (*, 3, *, 4)"
    assert torch.empty(1, 3, 5000, 4) in forms
    assert torch.empty(1, 2, 5, 4) not in forms
    assert torch.empty(1, 3, 5) not in forms
    assert torch.empty(1, 3, 5, 4).double() not in forms


def test_forms_are_bounded():
    forms = Forms()
    for tensors_in_it in range(1, 2 * FORMS_MAX):
        forms.add((A,) * tensors_in_it)
    assert (A,) in forms
    assert (A,) * FORMS_MAX in forms
    assert (A,) * (FORMS_MAX + 1) not in forms
    assert len(forms) == FORMS_MAX
