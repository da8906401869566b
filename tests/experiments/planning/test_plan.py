from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.support.planning import costs_of
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.experiments.planning import measure
from akkordeon.experiments.planning import plan as planner
from akkordeon.experiments.planning.blocks import blocks_of_module, blocks_of_network, recut
from akkordeon.experiments.planning.costs import ModelCosts, load_costs, save_costs
from akkordeon.experiments.planning.layouts import proposed


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def three_blocks(module, example, optimizer, cuts, tie):
    return blocks_of_module(module, example, optimizer, ("1", "3"), tie)


def by_hand() -> ak.Network:
    return ak.Network([ak.Gate(layer, sgd) for layer in (nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))])


def planned(costs: ModelCosts, cores: int = 2, **settings) -> ak.Plan:
    machines = ak.Machines([ak.Machine(name="here", cores=cores)])
    return ak.plan(by_hand(), example=torch.randn(4, 8), hosts=machines, costs=costs, **settings)


@pytest.mark.slow
def test_a_module_is_measured_planned_and_built():
    x, y, model = torch.randn(16, 8), torch.randint(3, (16,)), nn.Sequential(nn.Dropout(0.1), *mlp())
    drawn = torch.get_rng_state()
    plan = ak.plan(model, example=x, targets=y, loss=F.cross_entropy, optimizer=sgd)
    assert torch.equal(drawn, torch.get_rng_state())
    assert plan.best in plan.layouts
    assert repr(plan).startswith(f"<Plan: {plan.best.layout}")
    network = plan.network()
    assert len(network.gates) == plan.best.layout.gates
    assert isinstance(network.module(), nn.Sequential)
    assert all(block.forward_s >= 0 and block.saved_bytes > 0 for block in plan.costs.blocks)


def test_a_module_is_cut_where_a_function_chooses():
    asked = []

    def choose(*given):
        asked.append(given)
        return ["2"]

    model, x = mlp(), torch.randn(4, 8)
    assert len(ak.Network.from_module(model, choose, sgd, example=x).gates) == 2
    assert asked == [(model, x, sgd, False)]
    assert len(ak.Network.from_module(model, lambda *_: [], sgd, example=x).gates) == 1
    with pytest.raises(RecipeError, match="needs a batch of inputs"):
        ak.Network.from_module(model, choose, sgd)
    with pytest.raises(RecipeError, match=r"as ak\.auto; got 'auto'"):
        ak.Network.from_module(model, "auto", sgd, example=x)


def quick(monkeypatch, calls):
    """Measure with fewer batches; the time does not count here. What is measured is kept by length of row."""
    monkeypatch.setattr(measure, "MEASURED_S", 0.0)
    monkeypatch.setattr(measure, "FEWEST", 1)
    take = measure._Measurement.take

    def noted(self):
        calls.append((len(self.row), torch.get_num_threads()))
        return take(self)

    monkeypatch.setattr(measure._Measurement, "take", noted)


def test_measuring_tries_all_cores_for_one_gate_and_leaves_the_process_as_it_was(monkeypatch):
    calls = []
    quick(monkeypatch, calls)
    blocks = blocks_of_network(by_hand(), torch.randn(4, 8))
    torch.set_num_threads(3)
    pairs = [(torch.randn(4, 8), torch.zeros(4).long())] * 8
    costs = measure.measured(blocks, pairs, F.cross_entropy, 2, [])
    assert torch.get_num_threads() == 3
    assert costs.threaded_s is not None
    assert costs.threaded_s > 0
    assert costs.compressions == []
    assert calls.count((1, 2)) == 1  # one gate with two threads
    assert {threads for _, threads in calls} == {1, 2}
    assert sum(gates == 3 for gates, _ in calls) == 5  # first look, alone, two beside each other, empty gates
    assert costs.inputs.bytes == 4 * 8 * 4
    assert costs.inputs.int8_bytes == 4 * (8 + 4)


def test_one_worker_is_measured_with_one_thread(monkeypatch):
    calls = []
    quick(monkeypatch, calls)
    blocks = blocks_of_network(by_hand(), torch.randn(4, 8))
    costs = measure.measured(blocks, [(torch.randn(4, 8),) * 2] * 8, lambda y, _: y.mean(), 1, [])
    assert costs.threaded_s is None
    assert {threads for _, threads in calls} == {1}


@pytest.mark.parametrize(("hosts", "measured"), [(1, [None]), (2, [None, "bf16", "int8"])])
def test_compressions_are_measured_only_where_there_are_links(monkeypatch, hosts, measured):
    asked = []

    def costs(blocks, pairs, loss, workers, compressions):
        asked.extend(compressions)
        return costs_of([0.01, 0.01, 0.02])

    monkeypatch.setattr(planner, "measured", costs)
    machines = ak.Machines([ak.Machine(name=str(i), cores=2) for i in range(hosts)])
    ak.plan(by_hand(), example=torch.randn(4, 8), hosts=machines)
    assert asked == measured


@pytest.mark.slow
def test_the_planner_chooses_the_gates_of_a_module():
    network = ak.Network.from_module(mlp(), ak.auto, sgd, example=torch.randn(16, 8))
    assert 1 <= len(network.gates) <= 5


def test_even_blocks_on_two_cores_go_twice_as_fast_in_gates():
    plan = planned(costs_of([0.01, 0.01, 0.02]))
    alone = next(each for each in plan.layouts if each.layout.gates == 1)
    assert plan.best.layout.gates == 2
    assert plan.best.layout.ends == (2, 3)
    assert plan.best.samples_per_s == pytest.approx(2 * alone.samples_per_s, rel=0.05)
    assert plan.best.samples_per_s == pytest.approx(10 / 0.06, rel=0.05)


def unsplittable() -> ModelCosts:
    """Nearly all in one block, of which two threads make 1.7 times as many."""
    return costs_of([0.0001, 0.02, 0.0001], workers=2, threaded_s=0.0606 / 1.7)


def test_one_gate_uses_two_cores_where_one_block_has_nearly_all_the_work():
    plan = planned(unsplittable())
    assert str(plan.best.layout) == "1 gate with 2 intra-op threads, 1 batch in flight"
    assert plan.best.samples_per_s == pytest.approx(1.7 * 10 / 0.0606, rel=0.01)
    assert (plan.engine().workers, plan.engine().intra_op_threads) == (1, 2)
    alone = next(each for each in plan.layouts if each.layout.intra_op_threads == 1)
    assert (plan.engine(alone).workers, plan.engine(alone).intra_op_threads) == (2, 1)
    assert len(plan.network().gates) == 1


def test_two_even_gates_go_before_one_on_two_cores():
    plan = planned(costs_of([0.01, 0.01, 0.02], workers=2, threaded_s=0.12 / 1.7))
    assert plan.best.layout.gates == 2


def test_a_function_that_chooses_one_gate_on_all_cores_says_what_to_run_it_on(monkeypatch, caplog):
    monkeypatch.setattr(planner, "measured", lambda *_: unsplittable())
    monkeypatch.setattr(planner, "blocks_of_module", three_blocks)
    network = ak.Network.from_module(mlp(), ak.auto, sgd, example=torch.randn(4, 8))
    assert len(network.gates) == 1
    assert "run the network on ak.Threads(workers=1, intra_op_threads=2)" in caplog.text


def test_a_plan_with_replicas_says_that_they_learn_less_of_a_sample():
    costs = costs_of([0.01, 0.03, 0.01], replicas=True)
    costs = replace(costs, blocks=[costs.blocks[0], replace(costs.blocks[1], update_s=0.2), costs.blocks[2]])
    plan = planned(costs)
    assert plan.best.layout.replicas == 2
    assert "learn less from a sample" in plan.why


def test_layouts_over_several_hosts_have_no_threads_to_run_on():
    hosts = ak.Machines([ak.Machine(name=str(i), cores=1) for i in range(3)])
    plan = ak.plan(by_hand(), example=torch.randn(4, 8), hosts=hosts, costs=costs_of([0.01] * 3))
    assert plan.best.layout.gates == 3
    with pytest.raises(
        RecipeError,
        match=r"3 gates on 3 hosts.* need the engine ak\.Ray\(address, placement=\[\[0\], \[1\], \[2\]\]",
    ):
        plan.engine()


def test_on_one_core_splitting_does_not_pay():
    plan = planned(costs_of([0.01, 0.01, 0.02]), cores=1)
    assert plan.best.layout.gates == 1
    assert plan.best.layout.in_flight == 1
    assert "none that may be taken would be more than 5 % faster" in plan.why


def test_what_every_gate_costs_speaks_against_many():
    plan = planned(costs_of([0.001, 0.001, 0.001], gate_s=(0.01, 0.02)), cores=2)
    assert plan.best.layout.gates == 1 or plan.best.samples_per_s < 10 / 0.03


def test_workers_that_crowd_each_other_make_less_of_gates():
    free, crowded = (
        planned(costs_of([0.01, 0.01, 0.02], workers=2, crowding=crowding)) for crowding in (1.0, 1.8)
    )
    assert crowded.best.samples_per_s < 0.7 * free.best.samples_per_s


def test_layouts_that_are_too_stale_are_listed_but_not_taken():
    plan = planned(costs_of([0.01, 0.01, 0.02]), staleness_max=0.0)
    assert plan.best.staleness == 0.0
    assert any(each.staleness > 0 for each in plan.layouts)


def test_memory_counts_versions_and_batches_in_flight():
    plan = planned(costs_of([0.01, 0.01, 0.02]))
    one = next(e for e in plan.layouts if e.layout.gates == 1 and e.layout.in_flight == 1)
    assert one.memory_bytes == {"here": 3 * (4000 + 2 * 10_000 + 20_000)}
    assert all(e.memory_bytes["here"] >= one.memory_bytes["here"] for e in plan.layouts)


def test_a_layout_that_needs_more_memory_than_there_is_is_not_taken():
    machines = ak.Machines([ak.Machine(name="here", cores=2, memory_gb=1e-4)])
    plan = ak.plan(by_hand(), example=torch.randn(4, 8), hosts=machines, costs=costs_of([0.01] * 3))
    assert repr(plan).startswith("<Plan: none of")
    with pytest.raises(RecipeError, match="no layout fits into the memory"):
        _ = plan.best


def test_the_network_of_a_plan_has_the_names_and_weights_of_the_one_that_was_planned():
    network = by_hand()
    costs = costs_of([0.01, 0.01, 0.02], replicas=True)
    plan = ak.plan(network, example=torch.randn(4, 8), costs=costs, hosts=ak.Machines.here(2))
    for forecast in plan.layouts:
        made = plan.network(forecast)
        assert isinstance(made, ak.Downpour) is (forecast.layout.replicas > 0)
        assert len(made.gates) == forecast.layout.gates
        theirs, ours = made.module().state_dict(), network.module().state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_gates_that_learn_in_their_own_ways_stay_as_they_are():
    gates = [ak.Gate(nn.Linear(8, 8), sgd), ak.Gate(nn.Linear(8, 3), torch.optim.Adam)]
    blocks = blocks_of_network(ak.Network(gates), torch.randn(4, 8))
    layouts = proposed(costs_of([0.01, 0.01]), ak.Machines.here(2), blocks.may_merge)
    assert {each.gates for each in layouts} == {2}
    with pytest.raises(RecipeError, match="of their own"):
        recut(blocks.network, ["1"])


def test_costs_go_through_a_file(tmp_path):
    costs = costs_of([0.01, 0.02, 0.01], replicas=True)
    save_costs(costs, tmp_path / "costs.json")
    loaded = load_costs(tmp_path / "costs.json")
    assert planned(loaded).best == planned(costs).best


def test_costs_of_another_model_are_refused():
    with pytest.raises(RecipeError, match="measure them with this model"):
        planned(costs_of([0.01, 0.01]))


def test_a_file_without_costs_is_refused(tmp_path):
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(DataError, match="has no costs"):
        load_costs(tmp_path / "costs.json")


def test_what_a_plan_lacks_is_said():
    with pytest.raises(RecipeError, match="needs a batch of inputs"):
        ak.plan(mlp(), optimizer=sgd)
    with pytest.raises(RecipeError, match="a loss needs targets"):
        ak.plan(mlp(), example=torch.randn(4, 8), loss=F.cross_entropy, optimizer=sgd)


def waiting(costs, schedule, **settings):
    """A plan of a network that waits."""
    machines = ak.Machines([ak.Machine(name="here", cores=2)])
    network = replace(by_hand(), schedule=schedule)
    return ak.plan(network, example=torch.randn(4, 8), hosts=machines, costs=costs, **settings)


@pytest.mark.parametrize(("schedule", "name"), [(ak.Flush(4), "flush"), (ak.TwoBuffers(4), "2bw")])
def test_a_network_that_waits_is_planned_with_its_schedule(schedule, name):
    plan = waiting(costs_of([0.01, 0.01, 0.02], replicas=True), schedule)
    assert {each.layout.schedule for each in plan.layouts} == {name}
    assert {each.staleness for each in plan.layouts} == {0.0 if name == "flush" else 1.0}
    assert plan.network().schedule == schedule


def test_schedules_that_are_asked_for_are_in_the_plan_and_the_network_has_the_one_that_is_taken():
    plan = planned(costs_of([0.01, 0.01, 0.02]), schedules=("2bw",))
    assert {each.layout.schedule for each in plan.layouts} == {"2bw"}
    assert plan.network().schedule == ak.TwoBuffers(4 * plan.best.layout.gates)
    both = planned(costs_of([0.01, 0.01, 0.02]), schedules=("async", "flush"))
    flush = max(each.samples_per_s for each in both.layouts if each.layout.schedule == "flush")
    assert 0.5 < flush / max(each.samples_per_s for each in both.layouts) < 1


def test_what_contradicts_a_schedule_is_refused():
    with pytest.raises(RecipeError, match=r"the network has schedule=Flush\(micro_batches=4\): leave it out"):
        waiting(costs_of([0.01] * 3), ak.Flush(4), schedules=("async",))
    with pytest.raises(RecipeError, match="there is no schedule 'gpipe'"):
        planned(costs_of([0.01] * 3), schedules=("gpipe",))


def test_an_update_that_is_waited_for_is_measured_as_one_of_each_batch():
    waits = blocks_of_network(replace(by_hand(), schedule=ak.Flush(4)), torch.randn(4, 8))
    assert waits.updating_at_once.network.schedule == ak.Async()
    assert waits.network.schedule == ak.Flush(4)
