"""The live view's rows of shards."""

from __future__ import annotations

import pytest
from rich.console import Console

from akkordeon.core.reports import ShardStatus
from akkordeon.engines.base import Load
from akkordeon.session.status import Status
from akkordeon.watch.shard_table import ShardTable, histogram


def status(now_s: float, pushes: int) -> Status:
    shard = ShardStatus(
        probe=1, address="shard/0", name="first", index=0, version=pushes - 3, stashed=0, pinned=0,
        staleness={0: 1, 1: 8, 3: 4}, refused={"too_stale": 3}, pushes=pushes, fetches=2 * pushes,
        bytes_in=pushes * 10**6, bytes_out=pushes * 2 * 10**6, waiting=0,
    )  # fmt: skip
    return Status([shard], [], {"shard/0": Load(1, pushes, now_s / 2)}, now_s)


def test_a_shard_shows_versions_staleness_and_rates():
    console, table = Console(width=120), ShardTable()
    table.table(status(0.0, 100))
    with console.capture() as capture:
        console.print(table.table(status(2.0, 200)))
    words = capture.get().splitlines()[2].split()
    assert words == ["first", "▁█▄", "197", "3", "3", "50", "100", "50.0", "100.0", "50%"]


def test_the_shards_fit_a_terminal_of_80_columns():
    console, table = Console(width=80), ShardTable()
    with console.capture() as capture:
        console.print(table.table(status(0.0, 100)))
    assert len(capture.get().splitlines()) == 3
    assert "…" not in capture.get().replace("4–7 …", "")


@pytest.mark.parametrize(
    ("seen", "drawn"),
    [({}, " "), ({0: 5}, "█"), ({1: 100, 200: 1}, " █      ▁"), ({0: 1, 1: 2, 2: 2, 3: 2}, "▂▄█")],
)
def test_classes_of_staleness_double_and_nothing_seen_is_blank(seen, drawn):
    assert histogram(seen) == drawn
