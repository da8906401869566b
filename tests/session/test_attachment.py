"""What a user holds of a sentinel."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import BatchCount, EpochDone
from akkordeon.sentinels.roles import TRAIN
from akkordeon.session.attachment import Attachment


def test_of_a_sentinel_that_is_lost_the_counts_of_its_last_epoch_are_known():
    recipe = ak.Sentinel.train([], cross_entropy)
    lost = Attachment("tdp", TRAIN, "sentinel/tdp#1", recipe, ("gate/0",), _session=None)
    counts = BatchCount(sent=7, trained=5, refused=1)
    lost._note(EpochDone("tdp", 1, 0.5, {}, 40, 1.0, 0.0, 0, batches_so_far=counts))
    lost._end()
    assert lost.batches == BatchCount(sent=7, trained=5, refused=1, lost=1)
    assert counts == BatchCount(sent=7, trained=5, refused=1)
