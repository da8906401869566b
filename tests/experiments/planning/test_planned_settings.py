from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.support.planning import costs_of
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError, TaskError
from akkordeon.experiments.build import build_network, build_recipe, in_flight_of
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.planning.settings import as_planned, plan_task, with_best

DIGITS = TrainConfig("digits")


def planned(costs, cores=2):
    return plan_task(DIGITS, ak.Machines([ak.Machine(name="here", cores=cores)]), costs)


def test_the_settings_of_the_best_row_build_its_gates():
    found = planned(costs_of([0.01, 0.01, 0.02]))
    config = with_best(DIGITS, found)
    network = build_network(config.load_task(), config)
    assert config.cut_before == "2"
    assert len(network.gates) == found.best.layout.gates == 2
    assert in_flight_of(config.load_task(), config) == found.best.layout.in_flight
    assert network.module().state_dict().keys() == DIGITS.load_task().network.module().state_dict().keys()
    assert TrainConfig.from_plain(config.as_plain()) == replace(config, **_paths(config))


def _paths(config):
    return {"task": config.as_plain()["task"], "data_dir": config.as_plain()["data_dir"]}


def test_one_gate_is_the_empty_list_of_cuts():
    config = with_best(DIGITS, planned(costs_of([0.01, 0.01, 0.02]), cores=1))
    assert config.cut_before == ""
    assert len(build_network(config.load_task(), config).gates) == 1


def test_a_network_that_is_best_as_it_is_is_not_cut_anew():
    config = with_best(DIGITS, planned(costs_of([0.01, 0.01, 0.01]), cores=3))
    assert config.cut_before is None


def test_replicas_that_are_best_become_settings_of_downpour():
    costs = costs_of([0.01, 0.03, 0.01], replicas=True)
    costs = replace(costs, blocks=[costs.blocks[0], replace(costs.blocks[1], update_s=0.2), costs.blocks[2]])
    config = with_best(DIGITS, planned(costs))
    assert config.downpour is not None
    assert config.downpour.server_lr == 0.5
    recipe = build_recipe(config.load_task(), config)
    assert isinstance(recipe, ak.Downpour)
    assert recipe.replicas == 2
    assert recipe.push == "differences"


def test_one_gate_on_all_cores_becomes_one_worker_with_as_many_threads():
    costs = costs_of([0.0001, 0.02, 0.0001], workers=2, threaded_s=0.0606 / 1.7)
    config = with_best(DIGITS, planned(costs))
    assert (config.cut_before, config.workers, config.intra_op_threads, config.in_flight) == ("", 1, 2, 1)
    kept = TrainConfig.from_plain(config.as_plain())
    assert (kept.workers, kept.intra_op_threads) == (1, 2)
    alone = with_best(replace(DIGITS, workers=1), planned(costs, cores=1))
    assert (alone.workers, alone.intra_op_threads) == (1, 1)


def test_what_the_planner_chooses_cannot_be_given_too():
    threads = {"intra_op_threads": 2}, "intra-op-threads"
    for setting, option in ({"in_flight": 3}, "in-flight"), ({"sentinels": 2}, "sentinels"), threads:
        with pytest.raises(RecipeError, match=f"leave out --{option}, or --auto"):
            as_planned(replace(DIGITS, **setting))


def test_a_network_that_was_cut_is_cut_anew_with_a_batch_of_its_task():
    x = torch.randn(12, 4)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    network = ak.Network.from_module(model, 2, lambda p: torch.optim.SGD(p, lr=0.1), example=x)
    task = ak.Task(network, (x, x[:, 0].long() % 2), [(x, x)], nn.functional.cross_entropy, batch_size=4)
    made = build_network(task, TrainConfig(cut_before="0.1,1"))
    assert len(made.gates) == 3
    assert made.module().state_dict().keys() == model.state_dict().keys()
    once = replace(task, train=iter([(x, x)]))
    with pytest.raises(TaskError, match="read once only"):
        build_network(once, TrainConfig(cut_before="1"))
