"""Buffers of many replicas: statistics count by batches, counts add up, one replica keeps its bits."""

from __future__ import annotations

import torch

from akkordeon.downpour.buffer_merger import BufferMerger


def buffers(mean: float, batches: int):
    return {"mean": torch.full((2,), mean), "batches": torch.tensor(batches)}


def named(*tensors):
    return {str(i): tensor for i, tensor in enumerate(tensors)}


def test_those_of_one_replica_are_taken_as_they_are():
    start = buffers(0.1, 0)
    merger = BufferMerger(start)
    merger.lend("r", start)
    mine = start
    for n in range(1, 6):
        theirs = {"mean": torch.rand(2), "batches": torch.tensor(n)}
        mine = merger.merge("r", mine, theirs, steps=1)
        assert all(mine[name] is theirs[name] for name in theirs)


def test_statistics_count_by_the_batches_they_bring_and_counts_add_up():
    start = buffers(0.0, 10)
    merger = BufferMerger(start)
    merger.lend("a", start)
    merger.lend("b", start)
    mine = merger.merge("a", start, buffers(8.0, 13), steps=3)
    mine = merger.merge("b", mine, buffers(4.0, 11), steps=1)  # 1 of the 4 since it was lent to
    assert mine["mean"].tolist() == [7.0, 7.0]
    assert mine["batches"].item() == 14
    mine = merger.merge("a", mine, buffers(8.0, 14), steps=1)  # 1 of the 2 since it pushed
    assert mine["mean"].tolist() == [7.5, 7.5]
    assert mine["batches"].item() == 15


def test_a_late_replica_goes_on_from_what_it_was_lent():
    start = buffers(0.0, 0)
    merger = BufferMerger(start)
    merger.lend("a", start)
    mine = merger.merge("a", start, buffers(100.0, 360), steps=360)
    merger.lend("late", mine)
    mine = merger.merge("late", mine, buffers(99.0, 363), steps=3)
    assert mine["mean"].tolist() == [99.0, 99.0]
    assert mine["batches"].item() == 363


def test_what_is_no_statistic_is_that_of_the_last_push_and_equal_elements_stay():
    start = named(
        torch.tensor([0.0, -torch.inf, 2.0]), torch.tensor([True, False]), torch.tensor([5]), torch.zeros(2),
        torch.tensor([torch.nan, 1.0]), torch.tensor(9), None, "one",
    )  # fmt: skip
    merger = BufferMerger(start)
    merger.lend("a", start)
    merger.lend("b", start)
    mine = merger.merge("a", start, start, steps=1)
    theirs = named(
        torch.tensor([4.0, -torch.inf, 2.0]), torch.tensor([False, True]), torch.tensor([3]), torch.ones(3),
        torch.tensor([1.0, torch.inf]), torch.tensor(2), torch.tensor(7), "other",
    )  # fmt: skip
    merged = merger.merge("b", mine, theirs, steps=1)
    expected = ([2.0, -torch.inf, 2.0], [False, True], [3], [1.0, 1.0, 1.0], [1.0, 1.0], 2, 7, "other")
    assert [b.tolist() if isinstance(b, torch.Tensor) else b for b in merged.values()] == list(expected)


def test_nothing_that_is_merged_is_written_to_and_who_left_is_not_remembered():
    start = buffers(0.0, 0)
    merger = BufferMerger(start)
    merger.lend("a", start)
    merger.lend("b", start)
    mine = merger.merge("a", start, buffers(1.0, 1), steps=1)
    merger.merge("b", mine, buffers(3.0, 1), steps=1)
    assert (mine["mean"].tolist(), mine["batches"].item(), start["mean"].tolist()) == (
        [1.0, 1.0],
        1,
        [0.0, 0.0],
    )
    assert merger.knows("b")
    merger.remove("b")
    assert not merger.knows("b")
