"""Checkpoints on their way to the disk: akkordeon.session.recovery.checkpoint_writer."""

from __future__ import annotations

import threading

from tests.support.checkpoints import numbered
from tests.support.harness import WAIT_S

from akkordeon.core.errors import DataError
from akkordeon.session.recovery.checkpoint_writer import CheckpointWriter


def test_while_one_is_written_the_latest_alone_waits():
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(checkpoint):
        begun.set()
        assert go_on.wait(WAIT_S)
        written.append(checkpoint.number)

    writer = CheckpointWriter(write)
    writer.tell(numbered(1))
    assert begun.wait(WAIT_S)
    for number in (2, 3, 4):
        writer.tell(numbered(number))
    go_on.set()
    writer.close()
    writer.close()
    assert written == [1, 4]


def test_one_that_cannot_be_written_is_no_reason_not_to_try_the_next():
    def write(checkpoint):
        written.append(checkpoint.number)
        if checkpoint.number == 1:
            raise DataError("the disk is full")
        done.set()

    written, done = [], threading.Event()
    writer = CheckpointWriter(write)
    writer.tell(numbered(1))
    writer.tell("another record")
    writer.close()
    assert writer.failure == "the disk is full"

    writer = CheckpointWriter(write)
    writer.tell(numbered(1))
    while written != [1, 1]:
        done.wait(0.001)
    writer.tell(numbered(2))
    writer.close()
    assert written == [1, 1, 2]
    assert writer.failure is None
