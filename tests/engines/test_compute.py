"""Work takes what it costs, longer for stragglers, and never by the machine's own clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Attach, Backward, Batch, Forward, Probe
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown, Work
from akkordeon.engines.simulator.distributions import Uniform
from akkordeon.experiments.schedules.measure_costs import from_operations, measure_costs

FORWARD, BACKWARD = Forward(Batch("s", 0), torch.zeros(1)), Backward(Batch("s", 0), None)
COST = Cost(forward_s=1, backward_s=2, update_s=0.5, evaluate_s=0.8, message_s=0.1)


def test_a_message_costs_what_its_kind_costs():
    work = Work(Compute({"gate/*": COST}), "gate/1", "seed")
    assert work.seconds(FORWARD, 0.0) == (1.1, 0.0)
    assert work.seconds(BACKWARD, 0.0) == (2.1, 0.5)
    assert work.seconds(Probe(1), 0.0) == (0.1, 0.0)
    assert COST.batch_s == pytest.approx(3.7)


def test_a_measured_table_goes_before_the_rest():
    cost = Cost(forward_s=1, message_s=0.1, table={"Forward": (3.0, 0.2)})
    assert Work(Compute({"*": cost}), "a", "").seconds(FORWARD, 0.0) == (3.0, 0.2)


def test_the_first_pattern_that_fits_counts_and_no_fit_costs_nothing():
    compute = Compute({"gate/1": Cost(forward_s=5), "gate/*": COST})
    assert compute.of("gate/1").forward_s == 5
    assert compute.of("gate/2") is COST
    assert Work(compute, "sentinel/t#1", "").is_free


def test_a_straggler_is_slow_for_its_share_of_the_time():
    compute = Compute({"*": Cost(forward_s=1)}, [Slowdown("gate/3", 5, share=0.1, phase_s=2.0)])
    work = Work(compute, "gate/3", "seed")
    taken = [work.seconds(FORWARD, t / 10)[0] for t in range(200_000)]
    assert set(taken) == {1.0, 5.0}
    assert taken.count(5.0) / len(taken) == pytest.approx(0.1, abs=0.01)
    assert Work(compute, "gate/2", "seed").seconds(FORWARD, 0.0) == (1.0, 0.0)


def test_phases_do_not_depend_on_when_they_are_asked_for():
    compute = Compute({"*": Cost(forward_s=1)}, [Slowdown("*", 2, share=0.3)])
    times = [t / 7 for t in range(1000)]
    forwards, backwards = (Work(compute, "a", "seed") for _ in range(2))
    seen = {t: forwards.seconds(FORWARD, t) for t in times}
    assert {t: backwards.seconds(FORWARD, t) for t in reversed(times)} == seen


def test_a_spread_multiplies():
    work = Work(Compute({"*": Cost(forward_s=2)}, spread=Uniform(1, 3)), "a", "seed")
    taken = [work.seconds(FORWARD, 0.0)[0] for _ in range(1000)]
    assert 2 <= min(taken) < 2.1
    assert 5.9 < max(taken) <= 6


def test_measuring_gives_every_actor_its_costs_and_leaves_the_process_as_it_was():
    torch.set_num_threads(2)
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    network = ak.Network([ak.Gate(nn.Linear(400, 400), sgd), ak.Gate(nn.Linear(400, 3), sgd)])
    data = [(torch.randn(64, 400), torch.zeros(64, dtype=torch.long))] * 12
    costs = measure_costs(network, data, F.cross_entropy, warm=3, message_s=1e-6)
    assert torch.get_num_threads() == 2
    assert set(costs) == {"gate/0", "gate/1", "sentinel/*", "reader/*"}
    big, small = (costs[f"gate/{i}"].by_message() for i in (0, 1))
    assert big["Forward"][0] > small["Forward"][0] > 1e-6
    assert all(seconds > 0 for seconds in big["Backward"])


def test_costs_from_operations_are_the_larger_of_computing_and_moving():
    network = ak.Network([ak.Gate(nn.Linear(100, 50, bias=False)), ak.Gate(nn.Linear(50, 10, bias=False))])
    x = torch.zeros(8, 100)
    by_flops = from_operations(network, x, flops_per_s=1e6, bytes_per_s=1e18)
    assert by_flops["gate/0"].forward_s == pytest.approx(2 * 8 * 100 * 50 / 1e6)
    assert by_flops["gate/1"].backward_s == pytest.approx(2 * 2 * 8 * 50 * 10 / 1e6)
    by_bytes = from_operations(network, x, flops_per_s=1e18, bytes_per_s=1e6)
    assert by_bytes["gate/0"].forward_s == pytest.approx(4 * (100 * 50 + 8 * 100 + 8 * 50) / 1e6)


@pytest.mark.parametrize(
    "make", [lambda: Cost(forward_s=-1), lambda: Slowdown("a", 0), lambda: Slowdown("a", 2, 0)]
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(RecipeError):
        make()


def test_nothing_costs_anything_if_nobody_says_so():
    assert Work(Compute(), "gate/0", "").seconds(Attach(), 0.0) == (0.0, 0.0)
