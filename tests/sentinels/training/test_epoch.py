"""The sums of an epoch of training."""

from __future__ import annotations

from akkordeon.core.reports import BatchCount
from akkordeon.sentinels.training.epoch import Epoch, Tally


def test_a_tally_has_mean_and_maximum():
    tally = Tally()
    assert (tally.mean, tally.largest) == (0.0, 0)
    for number in (1, 4, 1):
        tally.add(number)
    assert (tally.count, tally.mean, tally.largest) == (3, 2.0, 4)


def test_an_epoch_is_over_when_all_of_it_is_sent_and_back_or_refused():
    epoch = Epoch(1, {}, endless=False)
    epoch.under_way = 2
    epoch.count_trained(8, (0, 2))
    epoch.all_sent = True
    assert not epoch.is_over
    epoch.count_refused()
    assert epoch.is_over


def test_an_epoch_has_the_sums_of_the_windows_that_were_reported_and_of_the_last():
    epoch = Epoch(3, {}, endless=False)
    epoch.count_trained(8, (0, 2))
    progress = epoch.progress("tdp", 1.0)
    assert (progress.batches, progress.samples, progress.staleness_max) == (1, 8, 2)
    epoch.count_trained(4, (1, 1))
    epoch.count_refused()
    assert epoch.samples == 12
    done = epoch.done("tdp", 2.0, BatchCount(3, 2, 1))
    assert (done.epoch, done.samples, done.refused, done.samples_per_s) == (3, 12, 1, 6.0)
    assert (done.staleness_mean, done.staleness_max) == (1.0, 2)
