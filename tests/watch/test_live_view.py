"""The live view on a terminal."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import BatchCount, EpochDone, GateStatus, SentinelStatus
from akkordeon.engines.base import Load
from akkordeon.sentinels.roles import TRAIN
from akkordeon.session.attachment import Attachment
from akkordeon.session.status import Status
from akkordeon.watch.live_view import LiveView

EPOCH = EpochDone("tdp", 3, 0.5, {"accuracy": 0.875}, 6000, 0.25, 1.5, 4)


def attachment(times: int | None = 7, batches: object = None, **changes) -> SimpleNamespace:
    """What the view reads of an attachment."""
    batches = batches if batches is not None else batches_of(10)
    recipe = ak.Sentinel.train(batches, cross_entropy, epochs=times, seconds=None if times else 9.0)
    known = {"name": "tdp", "role": TRAIN, "address": "sentinel/tdp#1", "epochs": [], "ended": False}
    found = SimpleNamespace(recipe=recipe, **{**known, **changes})
    found.samples_wanted = Attachment.samples_wanted.fget(found)
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
