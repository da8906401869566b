"""What benchmarks/delays/seconds.py computes with."""

import importlib
import math
import sys
from pathlib import Path

import pytest

from akkordeon.engines.timeline import Span

FOLDER = Path(__file__).parents[3] / "benchmarks" / "delays"
OWN = ("emulated", "hosts", "kept", "ways")


@pytest.fixture
def module(monkeypatch):
    """Modules of the folder by name; other tests see none of them."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in OWN:
        sys.modules.pop(name, None)


def test_a_loss_is_reached_on_the_line_between_two_points(module):
    reached = module("emulated").reached
    points = [[10, 3.0], [20, 2.0], [30, 2.5], [40, 1.0]]

    assert [reached(points, target) for target in (3.5, 2.25, 1.0)] == [10, 17.5, 40]
    assert reached(points, 0.5) == math.inf
    assert reached([], 0.5) == math.inf


def test_what_was_found_is_not_looked_for_again_and_a_broken_line_is(module, tmp_path):
    file, looked = tmp_path / "found.jsonl", []

    def study():
        kept = module("kept").Kept(file)
        return [kept(lambda way=way: looked.append(way) or len(way), way=way) for way in ("flush", "2bw")]

    assert study() == study() == [5, 3]
    assert looked == ["flush", "2bw"]

    file.write_text(file.read_text()[:-4])
    assert study() == [5, 3]
    assert looked == ["flush", "2bw", "2bw"]


def test_a_backward_is_late_by_the_forwards_after_its_own(module):
    """Batches 0 and 1 go in together; 2 follows when 0 is back.

    F0 F1 B0 F2 B1 B2
    """
    order = [
        ("forward", 0),
        ("forward", 1),
        ("backward", 0),
        ("forward", 2),
        ("backward", 1),
        ("backward", 2),
    ]
    spans = [Span("gate/0", what, batch, at, at + 1) for at, (what, batch) in enumerate(order)]
    others = [Span("gate/1", "forward", 0, 1.5, 2), Span("gate/0", "other", None, 1.5, 2)]

    assert module("hosts")._late([*others, *spans], "gate/0") == [1, 1, 0]
