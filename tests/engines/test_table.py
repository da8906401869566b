"""The table of engines: what ``ak.run(engine="…")`` finds, and what it says of a name that is none."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from torch import nn

import akkordeon as ak
from akkordeon import engines
from akkordeon.core.errors import RecipeError


def test_every_name_is_an_engine_with_its_defaults():
    assert {name: type(engines.engine_named(name)) for name in engines.ENGINES} == {
        "threads": ak.Threads,
        "simulator": ak.Simulator,
        "ray": ak.Ray,
    }


def test_an_unknown_name_is_refused_and_the_known_ones_are_named():
    sentence = "there is no engine 'fibers'; there are 'threads', 'simulator' and 'ray'"
    with pytest.raises(RecipeError, match=sentence):
        ak.run(ak.Network([ak.Gate(nn.Identity())]), engine="fibers")


def test_a_line_in_the_table_is_all_that_a_new_engine_needs(monkeypatch):
    class Fibers(ak.Threads):
        pass

    module = ModuleType("fibers")
    module.Fibers = Fibers
    monkeypatch.setitem(engines.ENGINES, "fibers", "fibers:Fibers")
    with pytest.raises(ModuleNotFoundError):  # it is imported when somebody asks for it, and not before
        engines.engine_named("fibers")
    monkeypatch.setitem(sys.modules, "fibers", module)
    with ak.run(ak.Network([ak.Gate(nn.Identity())]), engine="fibers") as session:
        assert isinstance(session._engine, Fibers)


@pytest.mark.parametrize(
    ("engine", "is_repeatable"),
    [(ak.Threads(1), True), (ak.Threads(2), False), (ak.Simulator(), True), (ak.Ray(workers=1), False)],
)
def test_an_engine_says_whether_equal_seeds_give_equal_runs(engine, is_repeatable):
    assert engine.is_repeatable == is_repeatable
