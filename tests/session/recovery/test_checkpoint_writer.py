"""Checkpoints on their way to the disk: akkordeon.session.recovery.checkpoint_writer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
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


def test_who_asked_for_one_is_told_once_it_is_written_or_why_it_is_not():
    def write(checkpoint):
        begun.set()
        assert go_on.wait(WAIT_S)
        if checkpoint.number == 2:
            raise DataError("the disk is full")
        written.append(checkpoint.number)

    written, begun, go_on = [], threading.Event(), threading.Event()
    writer = CheckpointWriter(write)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(writer.write, numbered(1))
        assert begun.wait(WAIT_S)
        assert not first.done()
        go_on.set()
        first.result(WAIT_S)
    assert written == [1]
    with pytest.raises(DataError, match="the disk is full"):
        writer.write(numbered(2))
    writer.close()
    with pytest.raises(DataError, match="the run has ended"):
        writer.write(numbered(3))
    assert written == [1]
