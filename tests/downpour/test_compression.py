"""Pushes made smaller: what arrives, how far off it is, and that nothing is lost for good."""

from __future__ import annotations

import pytest
import torch

from akkordeon.core.errors import RecipeError
from akkordeon.downpour.compression import Compressor, unpacked
from akkordeon.downpour.sync_policy import SyncPolicy


def travelled(kind, tensors, compressor=None):
    compressor = compressor or Compressor(kind)
    return unpacked(compressor.pack(tensors), tensors)


def test_without_compression_tensors_travel_as_they_are():
    x = torch.randn(3, 2)
    (packed,), scales = Compressor(None).pack([x])
    assert packed is x
    assert scales is None


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("int8", torch.int8)])
def test_what_travels_is_small(kind, dtype):
    (packed,), _ = Compressor(kind).pack([torch.randn(3, 2)])
    assert packed.dtype == dtype


def test_int8_is_off_by_half_a_step_at_most_and_keeps_the_largest():
    x = torch.randn(1000)
    (y,) = travelled("int8", [x])
    step = x.abs().max() / 127
    assert (x - y).abs().max() <= step / 2 * (1 + 1e-5)
    torch.testing.assert_close(y.abs().max(), x.abs().max())


def test_bf16_keeps_eight_bits_of_every_element():
    x = torch.randn(1000)
    (y,) = travelled("bf16", [x])
    assert ((x - y).abs() <= x.abs() / 256).all()


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_what_was_lost_comes_with_the_next_push(kind):
    compressor = Compressor(kind)
    pushes = [torch.randn(50) * 10.0**-i for i in range(4)]
    arrived = sum(travelled(kind, [x], compressor)[0] for x in pushes)
    left = compressor._errors[0]
    torch.testing.assert_close(arrived + left, sum(pushes), rtol=0, atol=1e-5)
    for _ in range(20):
        arrived = arrived + travelled(kind, [torch.zeros(50)], compressor)[0]
    torch.testing.assert_close(arrived, sum(pushes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "bf16", "int8"])
def test_nothing_stays_nothing_and_zero_stays_zero(kind):
    assert travelled(kind, [None, torch.zeros(2)])[0] is None
    assert travelled(kind, [None, torch.zeros(2)])[1].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_push_that_is_not_finite_arrives_as_such_and_leaves_no_trace_in_later_ones(kind, bad):
    """The error fed back was NaN for ever after, and so was every push."""
    compressor, clean = Compressor(kind), Compressor(kind)
    first, later = torch.randn(3), torch.randn(3)
    for each in (compressor, clean):
        travelled(kind, [first], each)
    (arrived,) = travelled(kind, [torch.tensor([1.0, bad, 2.0])], compressor)
    assert not arrived.isfinite().all()
    assert torch.equal(travelled(kind, [later], compressor)[0], travelled(kind, [later], clean)[0])


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_the_largest_and_the_smallest_finite_numbers_stay_finite(kind):
    compressor = Compressor(kind)
    x = torch.tensor([torch.finfo(torch.float32).max, 1.0])
    (arrived,) = travelled(kind, [x], compressor)
    assert arrived.isfinite().all()
    assert compressor._errors[0].isfinite().all()
    (arrived,) = travelled(kind, [torch.tensor([1e-45, 0.0])])
    assert arrived.isfinite().all()


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_complex_numbers_travel_whole(kind):
    x = torch.randn(5, dtype=torch.complex64)
    assert torch.equal(travelled(kind, [x])[0], x)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_where_there_is_no_gradient_what_was_lost_before_waits(kind):
    compressor, x = Compressor(kind), torch.randn(50)
    (first,) = travelled(kind, [x], compressor)
    assert compressor.pack([None])[0] == (None,)
    torch.testing.assert_close(first + compressor._errors[0], x)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_tensors_of_any_size_travel(kind, shape):
    (arrived,) = travelled(kind, [torch.ones(shape)])
    assert torch.allclose(arrived, torch.ones(shape))


def test_dtypes_come_back():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert travelled("int8", [torch.ones(2, dtype=dtype)])[0].dtype == dtype


def test_another_kind_is_refused():
    with pytest.raises(RecipeError, match=r"None, 'bf16' or 'int8', got 'fp4'"):
        SyncPolicy(compression="fp4")
