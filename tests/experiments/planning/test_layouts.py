from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.planning import costs_of
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError, ScenarioError
from akkordeon.experiments.planning.layouts import proposed
from akkordeon.experiments.planning.machines import load_machines

HOSTS = Path(__file__).parents[3] / "examples/hosts"


def machines(*speeds: float, cores: int = 2) -> ak.Machines:
    return ak.Machines([ak.Machine(name=f"h{i}", cores=cores, speed=s) for i, s in enumerate(speeds)])


def test_a_gate_more_is_proposed_only_if_it_makes_the_heaviest_lighter():
    layouts = proposed(costs_of([0.01, 0.1, 0.001]), machines(1.0))
    assert {each.ends for each in layouts if not each.replicas} == {(3,), (1, 3)}


def test_tens_of_layouts_are_proposed_and_not_thousands():
    for count in (1, 3, 8):
        layouts = proposed(costs_of([0.01] * 12, replicas=True), machines(*[1.0] * count, cores=4))
        assert len(set(layouts)) == len(layouts) <= 60


def test_faster_hosts_have_more_blocks_of_a_row():
    layouts = proposed(costs_of([0.01] * 6), machines(2.0, 1.0, cores=1))
    assert {each.ends for each in layouts if len(each.hosts) == 2 and not each.replicas} == {(4, 6)}


def test_replicas_push_seldom_only_where_there_are_links():
    here = {
        each.push_every for each in proposed(costs_of([0.01], replicas=True), machines(1.0)) if each.replicas
    }
    apart = {
        each.push_every
        for each in proposed(costs_of([0.01], replicas=True), machines(1.0, 1.0))
        if each.replicas
    }
    assert here == {1}
    assert apart == {1, 16, 64}


def test_one_gate_on_all_cores_is_proposed_where_a_host_has_as_many_as_were_measured():
    costs = costs_of([0.01, 0.1], workers=4, threaded_s=0.1)
    assert not any(each.intra_op_threads > 1 for each in proposed(costs, machines(1.0, cores=2)))
    [found] = [each for each in proposed(costs, machines(1.0, 1.0, cores=8)) if each.intra_op_threads > 1]
    assert (found.gates, found.in_flight, found.intra_op_threads, found.placement) == (1, 1, 4, (("h0",),))
    assert str(found) == "1 gate with 4 intra-op threads, 1 batch in flight"


def test_schedules_that_wait_are_proposed_where_they_are_asked_for():
    costs = costs_of([0.01] * 4, replicas=True, workers=2, threaded_s=0.1)
    hosts = machines(1.0, 1.0)
    usual = proposed(costs, hosts)
    assert {each.schedule for each in usual} == {"async"}
    found = proposed(costs, hosts, schedules=("async", "flush", "2bw"))
    assert found[: len(usual)] == usual
    waiting = found[len(usual) :]
    assert {each.schedule for each in waiting} == {"flush", "2bw"}
    assert all(each.micro_batches == 4 * each.gates and not each.replicas for each in waiting)
    assert all(each.intra_op_threads == 1 for each in waiting)
    assert len(set(found)) == len(found)
    assert "2 gates, 3 batches in flight, flush of 8" in map(str, waiting)
    assert "4 gates on 2 hosts in int8, 32 batches in flight, 2bw of 16" in map(str, waiting)


def test_rows_of_a_network_that_waits_have_its_schedule():
    found = proposed(costs_of([0.01] * 2, replicas=True), machines(1.0), True, ("flush",), 4)
    assert {(each.schedule, each.micro_batches) for each in found} == {("flush", 4)}
    assert {(each.gates, each.in_flight) for each in found} == {(1, 2), (1, 4), (2, 3), (2, 4)}


def test_rows_send_int8_only_over_links():
    costs = costs_of([0.01, 0.01])
    assert not any(each.int8 for each in proposed(costs, machines(1.0)))
    apart = [each for each in proposed(costs, machines(1.0, 1.0, cores=1)) if len(each.hosts) > 1]
    assert sum(each.int8 for each in apart) == len(apart) / 2


def test_layouts_say_in_words_what_they_are():
    said = {str(each) for each in proposed(costs_of([0.01] * 2, replicas=True), machines(1.0, 1.0, cores=1))}
    assert "1 gate, 1 batch in flight" in said
    assert "2 gates on 2 hosts, 4 batches in flight" in said
    assert "2 gates on 2 hosts in int8, 4 batches in flight" in said
    assert "2 replicas of 1 gate on 2 hosts, 1 batch in flight, pushes every 16 steps in int8" in said


@pytest.mark.parametrize(
    ("name", "hosts", "wins"),
    [
        ("laptop", 1, "gates"),
        ("gigabit", 8, "replicas"),
        ("far_apart", 3, "replicas"),
        ("rack", 4, "replicas"),
    ],
)
def test_the_example_hosts_are_planned_for(name, hosts, wins):
    network = ak.Network([ak.Gate(nn.Linear(4, 4), lambda p: torch.optim.SGD(p, lr=0.1)) for _ in range(2)])
    costs = costs_of([0.01, 0.01], replicas=True)
    plan = ak.plan(network, example=torch.zeros(1, 4), hosts=HOSTS / f"{name}.toml", costs=costs)
    assert len(plan.machines.hosts) == hosts
    best = plan.best.layout
    assert len(best.hosts) == hosts
    assert getattr(best, wins) > 1
    built = plan.network()
    assert isinstance(built, ak.Downpour) is (wins == "replicas")
    assert len(built.gates) == best.gates


def test_what_messages_cost_is_read_from_a_file(tmp_path):
    file = tmp_path / "hosts.toml"
    file.write_text("[[host]]\nname = 'a'\ncores = 1\n[message]\nms = 0\nms_per_mb = 2")
    assert load_machines(file).message == ak.MessageCost(ms=0, ms_per_mb=2)


def test_links_are_read_from_a_file():
    found = load_machines(HOSTS / "far_apart.toml")
    assert found.links.default.bytes_per_s == pytest.approx(12.5e6)
    assert found.links.default.latency_s == pytest.approx(0.02)
    assert [host.speed for host in found.hosts] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs at least one host"),
        ("[[host]]\nname = 'a'\ncores = 0", "cores of the host 'a'"),
        ("[[host]]\nname = 'a'\ncores = 1\n" * 2, "two of 'a'"),
        (
            "[[host]]\nname = 'a'\ncores = 1\nspeeds = 2",
            "a host is a .*, got cores, name, speeds",
        ),
        ("[host]\nname = 'a'", "a host is a table of name, cores"),
        ("message = 3", "a message is a table of ms, ms_per_mb, got 3"),
        ("[[host]]\nname = 'a'\ncores = 1\n[link]\nmbit = 5", "a link has mbit_per_s"),
        ("[[host]]\nname = 'a'\ncores = 1\n[[between]]\none = 'a'", "has no 'other'"),
        ("[hosts]", "nothing is known of hosts"),
        ("[[host]]\nname = 'a'\ncores = 1\n[message]\nms = -1", "the ms of a message is at least 0, got -1"),
        (
            "[[host]]\nname = 'a'\ncores = 1\n[message]\nms = 'no'",
            "the ms of a message is at least 0, got 'no'",
        ),
        (
            "[[host]]\nname = 'a'\ncores = 1\n[message]\nus = 5",
            "a message is a table of .*, got us",
        ),
        ("[[", "cannot be read|Invalid|Expected"),
    ],
)
def test_a_file_that_describes_no_hosts_is_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / "hosts.toml").write_text(text)
    with pytest.raises((ScenarioError, RecipeError), match=sentence):
        load_machines(tmp_path / "hosts.toml")


def test_a_file_of_hosts_that_is_not_there_is_told():
    with pytest.raises(ScenarioError, match=r"nowhere\.toml cannot be read"):
        load_machines("nowhere.toml")
