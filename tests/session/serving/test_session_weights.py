"""The weights of a session, one version after the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.session.serving.session_weights import SessionWeights


def test_weights_that_stay_keep_their_version_and_newer_ones_have_a_larger_one():
    with ak.run(small_network()) as session:
        source = SessionWeights(session, ema=False)
        first = source.fetch(None)
        assert first.version == 0
        again = source.fetch(first)
        assert again.module is first.module
        assert (again.version, again.taken_s > first.taken_s) == (0, True)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
        newer = source.fetch(again)
        assert newer.version == source.batches_trained() == 3
        assert same_bits(newer.module, session.module())
        assert not newer.module.training


def test_other_weights_have_a_larger_version_though_gates_that_were_made_anew_count_from_an_earlier_one():
    with ak.run(small_network()) as session:
        source = SessionWeights(session, ema=False)
        first = replace(source.fetch(None), version=100)
        with torch.no_grad():
            next(first.module.parameters()).add_(1.0)
        assert source.fetch(first).version == 101
