"""Many worlds of crashes with return: what recovery promises holds in all; broken recoveries are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.chaos import Seen, violations

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.messages import Backward, Forward
from akkordeon.core.recovery.messages import ForgetBefore
from akkordeon.engines.simulator.links import Wire
from akkordeon.sentinels.training.trainer import Trainer
from akkordeon.session.recovery import gates as recovery

FAST, WORLDS, SLOW = 60, 100, 10_000
"""Worlds in the fast suite, those in which a broken recovery is found, and those of the slow study."""


def check(seeds, **kind):
    seen = Seen()
    for seed in seeds:
        assert violations(seed, seen, **kind) == [], f"world {seed}"
    print(f"{len(seeds)} worlds: {seen}")
    assert seen.repeated > len(seeds)
    return seen


def test_recovery_keeps_its_promises_in_sixty_worlds():
    seen = check(range(FAST))
    assert seen.restarts > FAST
    for who in ("gate", "shard", "replica", "sentinel", "reader"):
        assert seen.faults[f"lost: {who}"] > FAST / 10, who


def test_recovery_keeps_its_promises_in_rows_with_a_schedule():
    seen = check(range(FAST // 3), scheduled=True)
    assert seen.restarts > FAST / 3


def test_a_shard_that_was_made_anew_answers_a_push_that_asks_for_weights():
    """It had lent nothing yet, and dropped the push and the question with it: the gate waited on."""
    assert violations(6359) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recovery_keeps_its_promises_in_ten_thousand_worlds():
    check(range(SLOW))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recovery_keeps_its_promises_in_a_thousand_rows_with_a_schedule():
    check(range(SLOW // 10), scheduled=True)


def test_no_call_on_ray_is_tried_again_but_of_whom_a_network_has():
    """One that fails may have been carried out, and messages are to arrive once; these two may come twice."""
    files = [file.read_text() for file in (Path(ak.__file__).parent / "engines/ray").rglob("*.py")]
    assert any("max_restarts" in text for text in files)
    assert not any("retry_exceptions" in text for text in files)
    tried_again = [name for text in files for name in re.findall(r"max_task_retries.*\n    def (\w+)", text)]
    assert sorted(tried_again) == ["begin_sentinel", "unregister_sentinel"]
    assert sum(text.count("max_task_retries") for text in files) == 2


# ── ways to get it wrong ─────────────────────────────────────────────────────────────────────────────


def a_batch_that_may_have_been_learned_from_is_sent_again(patch):
    right = Trainer._came_back

    def came_back(self, message, now_s):
        flight = self._flights.get(message.batch)
        x = None if flight is None else flight.x
        for effect in right(self, message, now_s):
            yield effect
            if isinstance(effect.message, Backward):
                flight.x = x

    patch.setattr(Trainer, "_came_back", came_back)


def versions_begin_again_at_the_snapshot(patch):
    right = recovery.replace

    def replace(what, **changes):
        if "version" in changes:
            return what
        return right(what, **changes)

    patch.setattr(recovery, "replace", replace)


def gates_are_not_told_what_to_forget(patch):
    right = Trainer._restarted

    def restarted(self, message, now_s):
        for effect in right(self, message, now_s):
            if not (isinstance(effect, Send) and isinstance(effect.message, ForgetBefore)):
                yield effect

    patch.setattr(Trainer, "_restarted", restarted)


def nothing_is_sent_again(patch):
    right = Trainer._restarted

    def restarted(self, message, now_s):
        for effect in right(self, message, now_s):
            if not (isinstance(effect, Send) and isinstance(effect.message, Forward)):
                yield effect

    patch.setattr(Trainer, "_restarted", restarted)


def what_arrives_again_is_handled_again(patch):
    patch.setattr(Wire, "is_new", lambda wire, shipment: True)


MUTANTS = {
    a_batch_that_may_have_been_learned_from_is_sent_again: "learned twice",
    versions_begin_again_at_the_snapshot: "went back",
    gates_are_not_told_what_to_forget: "keeps",
    nothing_is_sent_again: "hangs",
    what_arrives_again_is_handled_again: "keeps",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_chaos_finds(mutant, monkeypatch):
    mutant(monkeypatch)
    assert any(MUTANTS[mutant] in violation for seed in range(WORLDS) for violation in violations(seed))
