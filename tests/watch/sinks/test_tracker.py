"""Logging to whatever is like wandb: a stand-in, and trackio itself."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tests.support.forks import python
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.reports import BatchCount, EpochDone, GateStatus, RoundDone


class Service(ModuleType):
    """What we use of wandb."""

    def __init__(self):
        super().__init__("stand_in")
        self.__spec__ = sys.__spec__
        self.logged, self.given, self.finished = [], None, 0

    def init(self, **given):
        print("a greeting")
        self.given = given
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1

    class Histogram:
        def __init__(self, np_histogram):
            self.counts, self.edges = np_histogram


@pytest.fixture
def service(monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "stand_in", service)
    return service


def test_a_run_is_made_with_its_settings_and_finished(service, capsys):
    settings = {"lr": 0.1, "downpour": {"replicas": 2}, "seed": None}
    with ak.Tracker("digits", name="first", settings=settings, service="stand_in", mode="offline"):
        pass
    assert service.given == {
        "project": "digits",
        "name": "first",
        "config": {"lr": 0.1, "downpour.replicas": 2},
        "mode": "offline",
    }
    assert service.finished == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "a greeting\n")


def test_numbers_are_logged_with_steps_that_never_fall(service):
    with ak.Tracker("p", service="stand_in") as tracker, ak.run(small_network()) as session:
        session.subscribe(tracker)
        for name in ("one", "two"):
            session.attach(ak.Sentinel.train(batches_of(5), cross_entropy, epochs=3, name=name))
        session.attach(ak.Sentinel.validate(batches_of(2), cross_entropy, name="v"))
        session.wait(WAIT_S)
    steps = [step for step, _ in service.logged]
    assert steps == sorted(steps)
    assert steps[-1] == 30
    names = set().union(*(numbers for _, numbers in service.logged))
    assert {"one/loss", "two/loss", "v/loss", "gate/0/version", "gate/0/staleness"} <= names


def test_staleness_is_logged_as_a_histogram(service):
    with ak.Tracker("p", service="stand_in") as tracker:
        tracker(GateStatus(0, "gate/0", "g", 0, 9, 0, 0, {1: 5, 3: 4}, {}))
    ((_, numbers),) = service.logged
    seen = numbers["gate/0/staleness"]
    assert (seen.counts, seen.edges) == ([5, 0, 4], [0.5, 1.5, 2.5, 3.5])


def test_a_service_that_is_not_there_or_begins_no_run_is_told(service, monkeypatch):
    with pytest.raises(RecipeError, match=r"logging to no_such_one needs .*pip install no_such_one"):
        ak.Tracker("p", service="no_such_one")

    def refuse(**given):
        raise RuntimeError("no account")

    monkeypatch.setattr(service, "init", refuse)
    with pytest.raises(RecipeError, match="begins no run in the project 'p': RuntimeError: no account"):
        ak.Tracker("p", service="stand_in")


TRACKIO = """
import akkordeon as ak
from akkordeon.core.reports import BatchCount, EpochDone, GateStatus
with ak.Tracker("proj", name="first", settings={"lr": 0.1}) as tracker:
    for i in range(1, 4):
        count = BatchCount(10 * i, 10 * i, 0, 0)
        tracker(EpochDone("t", i, 1 / i, {"accuracy": 0.5}, 80, 2.0, 1.5, 4, 0, count))
    tracker(GateStatus(0, "gate/0", "g", 0, 9, 0, 0, {1: 5, 3: 4}, {}))
from trackio.sqlite_storage import SQLiteStorage
for entry in SQLiteStorage.get_logs("proj", "first"):
    if "t/loss" in entry:
        print(entry["step"], entry["t/loss"], entry["t/accuracy"])
"""


def test_trackio_keeps_what_it_is_told(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="trackio is not installed: pip install '.[trackio]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = python(TRACKIO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["10 1.0 0.5", "20 0.5 0.5", f"30 {1 / 3} 0.5"]


def test_a_round_is_logged_as_one_step(service):
    with ak.Tracker("p", service="stand_in") as tracker:
        tracker(EpochDone("t", 1, 0.5, {}, 80, 2.0, 1.5, 4, 0, BatchCount(10, 10, 0, 0)))
        tracker(RoundDone("v", "validate", 1, 0.25, {"f": 1.0}, 8, 0.5, 10))
    assert service.logged[-1] == (10, {"v/loss": 0.25, "v/version": 10, "v/seconds": 0.5, "v/f": 1.0})
