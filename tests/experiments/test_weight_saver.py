"""Weights are written as they come, whatever the disk says."""

from __future__ import annotations

import pytest

import akkordeon as ak
from akkordeon.core.reports import BestKept, EpochDone, LastKept
from akkordeon.experiments.weight_saver import ASK_EVERY_S, WeightSaver


class Disk:
    """A folder in memory, which may be full."""

    def __init__(self):
        self.saved, self.full = [], False

    def save(self, name, module):
        if self.full:
            raise ak.errors.DataError("the disk is full")
        self.saved.append((name, module))


class Weighed:
    """A session whose modules are the states themselves."""

    def __init__(self):
        self.network, self.asked = self, 0

    def module(self, states=None, ema=False):
        return states or ("averaged" if ema else "last")

    def best_states(self):
        return "best"

    def states(self, timeout, ema=False):
        self.asked += 1
        return f"{'averaged' if ema else 'asked'} {self.asked}"


@pytest.fixture
def saving():
    """A saver with its disk, session, clock, whether to stop, and what it warned of."""

    class Saving:
        disk, session, now_s, stopping, warned = Disk(), Weighed(), 0.0, False, []

        def saver(self, asks=True) -> WeightSaver:
            return WeightSaver(
                self.disk, self.session, lambda: self.stopping, asks, self.warned.append, lambda: self.now_s
            )

    return Saving()


def test_weights_are_written_as_they_come_and_at_most_once_a_second(saving):
    saver = saving.saver()
    saver.tell(BestKept("vdp", 1, 0.5, "best 1"))
    saver.tell(LastKept("vdp", 1, "last 1"))
    saver.tell(EpochDone("tdp", 1, 0.5, {}, 100, 2.0, 1.5, 4))
    saver.look(saving.session)
    assert saving.disk.saved == [("best.safetensors", "best 1"), ("weights.safetensors", "last 1")]
    for number in (2, 3):
        saver.tell(LastKept("vdp", number, f"last {number}"))
        saver.look(saving.session)
    assert len(saving.disk.saved) == 2
    saving.now_s = 1.0
    saver.look(saving.session)
    assert saving.disk.saved[2:] == [("weights.safetensors", "last 3")]
    saver.finish()
    assert saving.disk.saved[3:] == [("weights.safetensors", "last"), ("best.safetensors", "best")]


def test_a_full_disk_is_told_once_and_tried_again(saving):
    saver = saving.saver()
    saving.disk.full = True
    for number in range(3):
        saving.now_s += 2.0
        saver.tell(LastKept("vdp", number, f"last {number}"))
        saver.look(saving.session)
    assert len(saving.warned) == 1
    assert saving.warned[0].startswith("the disk is full; training goes on")
    saving.disk.full, saving.now_s = False, 8.0
    saver.tell(LastKept("vdp", 3, "last 3"))
    saver.look(saving.session)
    assert saving.disk.saved == [("weights.safetensors", "last 3")]


def test_a_session_without_rounds_is_asked_for_its_weights_unless_the_run_is_to_be_repeated(saving):
    asking, silent = saving.saver(), saving.saver(asks=False)
    saving.now_s = ASK_EVERY_S + 1
    silent.look(saving.session)
    assert saving.disk.saved == []
    asking.look(saving.session)
    assert saving.disk.saved == [("weights.safetensors", "asked 1")]
    saving.stopping = True
    silent.look(saving.session)
    silent.look(saving.session)
    assert saving.disk.saved[1:] == [("weights.safetensors", "asked 2")]


def test_where_weights_are_averaged_it_is_the_average_that_is_kept(saving):
    saver = WeightSaver(saving.disk, saving.session, lambda: True, False, print, lambda: 0.0, ema=True)
    saver.look(saving.session)
    saver.finish()
    averaged = [("weights.safetensors", "averaged 1"), ("weights.safetensors", "averaged")]
    assert saving.disk.saved[:2] == averaged
