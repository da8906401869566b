"""What people see: lines, the live view and the summary."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import (
    ActorFailed,
    BatchCount,
    BatchRefused,
    EpochDone,
    GateStatus,
    RoundDone,
    SentinelStatus,
    TrainingProgress,
    Undelivered,
)
from akkordeon.engines.base import Load
from akkordeon.sentinels.roles import TRAIN
from akkordeon.session.session import Status
from akkordeon.watch.lines import WARNINGS_MAX, Lines, line_of
from akkordeon.watch.live_view import LiveView
from akkordeon.watch.summary import summary

EPOCH = EpochDone("tdp", 3, 0.5, {"accuracy": 0.875}, 6000, 0.25, 1.5, 4)
ROUND = RoundDone("vdp", "validate", 2, 0.25, {"accuracy": 0.9375}, 1000, 0.5, 135)

# ── lines ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_epoch_is_a_line_with_all_that_matters():
    assert line_of(EPOCH) == (
        "tdp        epoch    3  loss 0.5000  accuracy 0.8750    0.25 s    24,000 samples/s  τ mean 1.5 max 4"
    )


def test_a_round_is_a_line_with_the_version_it_saw():
    assert line_of(ROUND) == (
        "vdp        round    2  loss 0.2500  accuracy 0.9375    0.50 s     2,000 samples/s  version 135"
    )


def test_refused_batches_and_the_best_round_are_told_in_their_lines():
    assert line_of(EpochDone("tdp", 1, 0.5, {}, 10, 1.0, 0.0, 0, refused=2)).endswith("max 0  refused 2")
    assert line_of(RoundDone("vdp", "validate", 1, 0.5, {}, 10, 1.0, 3, best=True)).endswith("best so far")


def test_progress_within_an_epoch_is_a_line_with_the_batches_it_is_of():
    progress = TrainingProgress("tdp", 3, 0.5, {"accuracy": 0.875}, 1200, 240_000, 10.0, 1.5, 4)
    line = (
        "tdp        epoch    3  loss 0.5000  accuracy 0.8750   10.00 s    24,000 samples/s  "
        "τ mean 1.5 max 4  last 1,200 batches"
    )
    assert line_of(progress) == line
    written = []
    Lines(written.append).tell(progress)
    assert written == [line]


def test_lines_are_written_for_epochs_and_rounds_alone():
    written, warned = [], []
    with Lines(written.append, warned.append) as lines:
        for record in (EPOCH, Undelivered("nobody", None), ROUND, BatchCount()):
            lines.tell(record)
        lines.note("by the way")
    assert written == [line_of(EPOCH), line_of(ROUND)]
    assert warned == ["by the way"]


def test_a_handful_of_refused_batches_is_told_and_the_others_are_counted():
    warned = []
    with Lines(print, warned.append) as lines:
        for number in range(WARNINGS_MAX + 20):
            lines.tell(BatchRefused("tdp", number, "gate/1", "not_finite", "its output is not finite"))
    assert warned[0] == "warning: gate/1 refused batch 0 of tdp: its output is not finite"
    assert warned[WARNINGS_MAX:] == [
        "warning: further refused batches are only counted",
        f"warning: {WARNINGS_MAX + 20} batches were refused in all",
    ]


def test_a_sentinel_that_fails_while_others_go_on_is_told_at_once():
    warned = []
    lines = Lines(print, warned.append)
    lines.tell(ActorFailed("sentinel/tdp#1", "a batch", ValueError("no such label")))
    lines.tell(ActorFailed("gate/1", "a batch", ValueError("ends the session, which says so")))
    assert warned == ["warning: sentinel/tdp#1 has failed; why is told when the others have ended"]


# ── the live view ────────────────────────────────────────────────────────────────────────────────────


def attachment(times: int | None = 7, batches: object = None, **changes) -> SimpleNamespace:
    """What the view reads of an attachment."""
    batches = batches if batches is not None else batches_of(10)
    recipe = ak.Sentinel.train(batches, cross_entropy, epochs=times, seconds=None if times else 9.0)
    known = {"name": "tdp", "role": TRAIN, "address": "sentinel/tdp#1", "epochs": [], "ended": False}
    found = SimpleNamespace(recipe=recipe, **{**known, **changes})
    found.epochs_done = len(found.epochs)
    found.samples = sum(epoch.samples for epoch in found.epochs)
    found.seconds = sum(epoch.seconds for epoch in found.epochs)
    return found


def status(now_s: float, samples: int, busy_s: float = 0.0) -> Status:
    gate = GateStatus(1, "gate/0", "first", 0, 1208, 5, 0, {1: 50, 3: 50}, {})
    sentinel = SentinelStatus(1, "sentinel/tdp#1", "tdp", "train", 2, 5, samples, 0, BatchCount())
    return Status([gate], [sentinel], {"gate/0": Load(3, 100, busy_s)}, now_s)


def drawn(*looks: tuple[list[SimpleNamespace], Status], width: int = 100) -> str:
    """What is on a terminal after some looks."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=30, record=True)
    view = LiveView(console)
    for attachments, found in looks:
        picture = view._picture(attachments, found)
    console.print(picture)
    return console.export_text()


def test_a_training_sentinel_is_a_bar_with_its_epoch_share_rate_and_time_left():
    trainer = attachment(epochs=[EPOCH, EPOCH])
    text = drawn(([trainer], status(10.0, 180)), ([trainer], status(12.0, 280)))
    (line,) = [line for line in text.splitlines() if line.startswith("tdp")]
    assert "epoch 3/7" in line
    assert "50%" in line
    assert "50 samples/s" in line
    assert "0:00:06 left" in line


def test_the_live_view_says_what_more_batches_in_flight_cost_and_buy():
    several = attachment()
    several.recipe = dataclasses.replace(several.recipe, in_flight=3)
    told = "3 batches in flight: gates work side by side, with gradients τ updates old; 1 is the plain loop"
    assert told in drawn(([several], status(10.0, 180)), width=120)
    assert "in flight" not in drawn(([attachment()], status(10.0, 180)), width=120)


def test_a_gate_is_a_row_with_version_staleness_queue_and_busy_share():
    text = drawn(([], status(10.0, 0, busy_s=1.0)), ([], status(12.0, 0, busy_s=2.5)))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert lines[0] == ["gate", "version", "τ", "mean", "τ", "max", "queue", "busy"]
    assert lines[1] == ["first", "1,208", "2.0", "3", "3", "75%", "███████▌"]


def test_a_sentinel_that_has_ended_shows_what_it_took():
    text = drawn(([attachment(epochs=[EPOCH, EPOCH], ended=True)], status(10.0, 0)))
    assert "24,000 samples/s" in text
    assert "0:00:00 taken" in text


def test_without_a_known_end_there_is_no_share_and_no_time_left():
    text = drawn(*[([attachment(None, iter(()))], status(10.0 + i, 100 * i)) for i in range(3)])
    (line,) = [line for line in text.splitlines() if line.startswith("tdp")]
    assert "epoch 1 " in line
    assert "100 samples/s" in line
    assert "%" not in line
    assert "left" not in line


def test_a_source_of_unknown_length_has_an_end_after_the_first_epoch():
    trainer = attachment(2, iter(()), epochs=[EPOCH])
    assert "50%" in drawn(([trainer], status(10.0, 6000)))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_it_fits_terminals_of_any_width(width):
    text = drawn(([attachment()], status(10.0, 280)), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith(("tdp", "first"))]
    assert len(rows) == 2


def test_it_draws_a_session_at_work_with_the_lines_above():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    with LiveView(console, now_s=iter(range(1000)).__next__) as view, ak.run(small_network()) as session:
        trainer = session.attach(ak.Sentinel.train(batches_of(20), cross_entropy, epochs=2, name="tdp"))
        view.look(session)
        trainer.wait(WAIT_S)
        for record in trainer.epochs:
            view.tell(record)
        view.note("nearly there")
        view.look(session, at_once=True)
    text = console.export_text()
    assert text.count("epoch    1  loss") == text.count("epoch    2  loss") == 1
    assert "nearly there" in text
    last = text[text.rindex("gate    version") :]
    assert [line.split()[:2] for line in last.splitlines()[1:4]] == [[f"gate/{i}", "40"] for i in range(3)]


# ── the summary ──────────────────────────────────────────────────────────────────────────────────────


def test_the_summary_has_every_sentinel_gate_and_batch():
    scores = {"accuracy": ak.accuracy}
    with ak.run(small_network()) as session:
        for name in ("one", "two"):
            session.attach(
                ak.Sentinel.train(batches_of(10), cross_entropy, epochs=2, scores=scores, name=name)
            )
        session.attach(ak.Sentinel.validate(batches_of(3), cross_entropy, scores=scores, name="vdp"))
        session.wait(WAIT_S)
    found = summary(session, seconds=2.0)
    assert found.keys() == {"sentinels", "gates", "batches", "seconds", "samples_per_s"}
    assert {name: (s["role"], s["rounds"], s["samples"]) for name, s in found["sentinels"].items()} == {
        "one": ("train", 2, 160),
        "two": ("train", 2, 160),
        "vdp": ("validate", 1, 24),
    }
    last = session.attachments[0].epochs[-1]
    assert found["sentinels"]["one"]["loss"] == last.loss
    assert found["sentinels"]["one"]["scores"] == last.scores
    assert found["batches"] == {"sent": 40, "trained": 40, "refused": 0, "lost": 0}
    assert [(g["name"], g["version"]) for g in found["gates"]] == [(f"gate/{i}", 40) for i in range(3)]
    assert found["seconds"] == 2.0
    assert found["samples_per_s"] > 0


def test_the_summary_of_a_session_in_which_nothing_happened_is_empty():
    with ak.run(small_network()) as session:
        pass
    found = summary(session, seconds=0.0)
    assert found["sentinels"] == {}
    assert found["samples_per_s"] == 0.0
    assert [gate["version"] for gate in found["gates"]] == [0, 0, 0]
