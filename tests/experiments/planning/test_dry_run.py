from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.support.planning import costs_of, sent
from torch import nn

import akkordeon as ak
from akkordeon.engines.simulator import Compute, Cost, Host, Link, Links
from akkordeon.experiments.planning.costs import Sent
from akkordeon.experiments.planning.dry_run import dry_run
from akkordeon.experiments.planning.layouts import RunLayout

SGD = partial(torch.optim.SGD, lr=0.01)
LINK = Link(0.02, 100_000.0)
FREE = ak.MessageCost(ms=0, ms_per_mb=0)


def machines(
    count: int, cores: int = 2, link: Link = LINK, message: ak.MessageCost = FREE, **settings
) -> ak.Machines:
    hosts = [ak.Machine(name=f"h{i}", cores=cores, **settings) for i in range(count)]
    return ak.Machines(hosts, Links(link), message)


def row(*hosts: str, in_flight: int) -> RunLayout:
    return RunLayout(ends=tuple(range(1, len(hosts) + 1)), in_flight=in_flight, placement=(hosts,))


def in_earnest(recipe, hosts, compute, batches: int, in_flight: int):
    """Real actors in the same world: samples per second and mean τ."""
    x = torch.zeros(10, 4)
    engine = ak.Simulator(hosts=hosts, links=Links(Link(0.02)), compute=Compute(compute))
    with ak.run(recipe, engine) as session:
        trainers = recipe.replicas if isinstance(recipe, ak.Downpour) else 1
        source = [(x, x)] * (batches * trainers)
        session.attach(
            ak.Sentinel.train(source, lambda y, _: y.square().mean(), in_flight=in_flight, name="t")
        )
        session.wait()
        seen = [pair for gate in session.status().gates for pair in gate.staleness.items()]
        mean = sum(tau * n for tau, n in seen) / sum(n for _, n in seen)
        return 10 * len(source) / engine.now_s(), mean


def test_a_row_gives_what_the_real_actors_give_in_the_same_world():
    network = ak.Network([ak.Gate(nn.Linear(4, 4), SGD) for _ in range(2)])
    hosts = [Host("h0", ["gate/0", "sentinel/*"], 1), Host("h1", ["gate/1"], 1)]
    costs = {"gate/*": Cost(forward_s=0.01, backward_s=0.02)}
    rate, staleness = in_earnest(network, hosts, costs, batches=200, in_flight=3)
    layout = row("h0", "h1", in_flight=3)
    forecast = dry_run(layout, costs_of([0.01, 0.01]), machines(2, cores=1, link=Link(0.02)))
    assert forecast.samples_per_s == pytest.approx(rate, rel=0.05)
    assert forecast.staleness == pytest.approx(staleness, abs=0.2)


@pytest.mark.parametrize(
    ("name", "schedule", "in_flight", "age"),
    [("flush", ak.Flush(4), 4, 0), ("flush", ak.Flush(4), 2, 0), ("2bw", ak.TwoBuffers(4), 8, 1)],
)
def test_a_row_that_waits_for_updates_gives_what_the_real_actors_give(name, schedule, in_flight, age):
    network = ak.Network([ak.Gate(nn.Linear(4, 4), SGD) for _ in range(2)], schedule=schedule)
    hosts = [Host("h0", ["gate/0", "sentinel/*"], 1), Host("h1", ["gate/1"], 1)]
    gate = {"gate/*": Cost(forward_s=0.01, backward_s=0.02, update_s=0.001)}
    rate, staleness = in_earnest(network, hosts, gate, batches=200, in_flight=in_flight)
    costs = costs_of([0.01, 0.01])
    costs = replace(costs, blocks=[replace(block, update_s=0.004) for block in costs.blocks])
    layout = replace(row("h0", "h1", in_flight=in_flight), schedule=name, micro_batches=4)
    forecast = dry_run(layout, costs, machines(2, cores=1, link=Link(0.02)))
    assert forecast.samples_per_s == pytest.approx(rate, rel=0.05)
    assert forecast.staleness == pytest.approx(staleness, abs=0.05)
    assert forecast.staleness == age


def test_where_updates_are_waited_for_no_batch_in_flight_keeps_weights():
    layout = replace(row("h0", "h1", in_flight=4), micro_batches=4)
    flush, two = (
        dry_run(replace(layout, schedule=name), costs_of([0.01, 0.01]), machines(2))
        for name in ("flush", "2bw")
    )
    # Weights, a gradient, what is gathered; four batches; what the optimizer keeps.
    assert flush.memory_bytes["h0"] == 3 * 10_000 + 4 * 4000 + 20_000
    assert two.memory_bytes["h0"] == flush.memory_bytes["h0"] + 10_000


@pytest.mark.parametrize("push_every", [1, 4])
def test_replicas_give_what_the_real_actors_give_in_the_same_world(push_every):
    network = ak.Network([ak.Gate(nn.Linear(4, 4), SGD)])
    recipe = ak.Downpour(network, replicas=2, push_every=push_every, push="differences", server_optimizer=SGD)
    hosts = [
        Host(f"h{i}", [f"replica/{i}/*", f"sentinel/t-{i}*", *["shard/0"] * (i == 0)], 2) for i in range(2)
    ]
    gate = {"Forward": (0.01, 0.0), "Backward": (0.02, 0.001 / push_every), "Parameters": (0.001, 0.0)}
    costs = {"replica/*": Cost(table=gate), "shard/*": Cost(table={"Push": (0.001, 0.0)})}
    rate, staleness = in_earnest(recipe, hosts, costs, batches=200, in_flight=2)
    layout = RunLayout(ends=(1,), in_flight=2, placement=(("h0",), ("h1",)), push_every=push_every)
    forecast = dry_run(layout, costs_of([0.01], replicas=True), machines(2, link=Link(0.02)))
    assert forecast.samples_per_s == pytest.approx(rate, rel=0.05)
    assert forecast.staleness == pytest.approx(staleness, abs=0.4)


def test_a_slow_link_is_what_a_row_over_it_is_bound_by():
    layout = row("h0", "h1", in_flight=8)
    forecast = dry_run(layout, costs_of([0.001, 0.001]), machines(2, link=Link(0.0, 10_000.0)))
    # Each way go 2,000 bytes: of the loss, where the trainer is beside the first gate, and of the other gate.
    assert forecast.samples_per_s == pytest.approx(10 / 0.2, rel=0.06)
    assert forecast.bytes_per_sample == pytest.approx(4 * 1000 / 10, rel=0.1)


def test_a_row_in_one_host_sends_nothing_over_links():
    assert dry_run(row("h0", "h0", in_flight=2), costs_of([0.01, 0.01]), machines(1)).bytes_per_sample == 0


def test_int8_spares_a_slow_link_and_costs_what_it_takes_to_narrow():
    whole = row("h0", "h1", in_flight=8)
    slow = machines(2, link=Link(0.0, 10_000.0))
    as_it_is, narrowed = (
        dry_run(replace(whole, int8=int8), costs_of([0.001, 0.001]), slow) for int8 in (False, True)
    )
    assert narrowed.samples_per_s == pytest.approx(4 * as_it_is.samples_per_s, rel=0.06)
    assert narrowed.bytes_per_sample == pytest.approx(as_it_is.bytes_per_sample / 4, rel=0.06)
    alone = row("h0", "h1", in_flight=1)
    costs = costs_of([0.001, 0.001])
    takes = Sent(bytes=1000, int8_bytes=250, int8_s=0.5)
    costs = replace(costs, blocks=[replace(costs.blocks[0], output=takes), costs.blocks[1]])
    free = machines(2, link=Link(0.0, 1e12))
    assert dry_run(alone, costs, free).samples_per_s == pytest.approx(10 / 0.006, rel=0.01)
    assert dry_run(replace(alone, int8=True), costs, free).samples_per_s == pytest.approx(
        10 / 0.506, rel=0.02
    )


def test_one_gate_with_several_threads_takes_what_was_measured_on_a_host_of_that_speed():
    layout = replace(row("h0", in_flight=1), intra_op_threads=2)
    costs = costs_of([0.01], workers=2, crowding=1.8, threaded_s=0.02, gate_s=(0.001, 0.002))
    forecast = dry_run(layout, costs, machines(1, speed=0.5))
    assert forecast.samples_per_s == pytest.approx(10 / 0.04, rel=0.01)
    assert forecast.staleness == 0


def test_a_host_of_half_the_speed_takes_twice_as_long():
    fast, slow = (
        dry_run(row("h0", in_flight=1), costs_of([0.01]), machines(1, speed=speed)) for speed in (1.0, 0.5)
    )
    assert slow.samples_per_s == pytest.approx(fast.samples_per_s / 2, rel=0.02)


def replicas(push_every, compression=None, link=LINK):
    layout = RunLayout(
        ends=(1,),
        in_flight=1,
        placement=(("h0",), ("h1",)),
        push_every=push_every,
        compression=compression,
    )
    return dry_run(layout, costs_of([0.001], replicas=True), machines(2, link=link))


def test_pushing_seldom_spares_a_slow_link():
    assert replicas(64).samples_per_s > 1.5 * replicas(1).samples_per_s


def test_bytes_are_those_of_pushes_and_of_the_weights_that_come_back():
    often, seldom, packed = (replicas(*how, link=Link(0.0, 1e12)) for how in ((1,), (16,), (1, "int8")))
    # Of two replicas one is beside the shard; a batch has 10 samples, a push and the weights 10,000 bytes.
    assert often.bytes_per_sample == pytest.approx(20_000 / 10 / 2, rel=0.1)
    assert seldom.bytes_per_sample == pytest.approx(20_000 / 160 / 2, rel=0.2)
    assert packed.bytes_per_sample == pytest.approx(12_500 / 10 / 2, rel=0.1)


def test_a_forecast_is_counted_from_one_batch_that_comes_back_to_another():
    forecast = dry_run(row("h0", in_flight=1), costs_of([0.01]), machines(1, cores=1))
    assert forecast.samples_per_s == pytest.approx(10 / 0.03, rel=0.01)


def test_two_batches_do_not_keep_each_other_waiting_for_ever():
    # With equal times for equal messages the second gate had both batches at once, again and again: 0.67.
    row = RunLayout(ends=(1, 2), in_flight=2, placement=(("h0", "h0"),))
    forecast = dry_run(row, costs_of([0.01, 0.01], sentinel_s=(0.001, 0.001)), machines(1))
    assert forecast.samples_per_s > 0.9 * 10 / 0.03


FREE_LINK = Link(0.0, 1e12)


@pytest.mark.parametrize(
    ("hosts", "ends"),
    [
        (("h0", "h1"), 12),  # of inputs, outputs, their gradients, and what comes and goes between the gates
        (("h0", "h0", "h1"), 12),  # gates on one host share a process
        (("h0", "h0"), 0),
    ],
)
def test_each_end_of_a_message_between_processes_costs_what_it_is_said_to(hosts, ends):
    costs = costs_of([0.01] * len(hosts))
    there = machines(2, link=FREE_LINK, message=ak.MessageCost(ms=10, ms_per_mb=0))
    forecast = dry_run(row(*hosts, in_flight=1), costs, there)
    assert forecast.samples_per_s == pytest.approx(10 / (0.03 * len(hosts) + 0.01 * ends), rel=0.02)


@pytest.mark.parametrize(("int8", "ends_s"), [(False, 0.092), (True, 0.0245)])
def test_a_large_message_costs_by_its_bytes_as_they_are_sent(int8, ends_s):
    layout = replace(row("h0", "h1", in_flight=1), int8=int8)
    message = ak.MessageCost(ms=1, ms_per_mb=10_000)  # of 1,000 bytes 10 ms: four; one of half; one of none
    forecast = dry_run(layout, costs_of([0.01, 0.01]), machines(2, link=FREE_LINK, message=message))
    assert forecast.samples_per_s == pytest.approx(10 / (0.06 + ends_s), rel=0.02)


def test_both_ends_of_a_gradient_are_of_its_own_size():
    costs = costs_of([0.01, 0.01])
    first, second = costs.blocks
    costs = replace(costs, blocks=[first, replace(second, gradient=sent(2000))])  # of two outputs, say
    message = ak.MessageCost(ms=0, ms_per_mb=10_000)
    forecast = dry_run(row("h0", "h1", in_flight=1), costs, machines(2, link=FREE_LINK, message=message))
    assert forecast.samples_per_s == pytest.approx(10 / (0.06 + 0.07 + 2 * 0.02), rel=0.02)


@pytest.mark.parametrize(("slow", "ends"), [(0, 8), (1, 4)])
def test_an_end_of_a_message_is_the_work_of_the_host_that_it_is_on(slow, ends):
    # On the first host are its gate and the trainer, which send each other half of what they send.
    there = machines(2, link=FREE_LINK, message=ak.MessageCost(ms=100, ms_per_mb=0))
    hosts = [replace(host, speed=0.5 if i == slow else 1.0) for i, host in enumerate(there.hosts)]
    costs = costs_of([0.0001, 0.0001])
    forecast = dry_run(row("h0", "h1", in_flight=1), costs, replace(there, hosts=hosts))
    assert forecast.samples_per_s == pytest.approx(10 / (0.1 * (12 + ends)), rel=0.02)


def test_inputs_are_narrowed_from_the_process_of_the_session_too():
    costs = costs_of([0.001, 0.001], inputs=Sent(bytes=500, int8_bytes=125, int8_s=0.5))
    free = machines(2, link=FREE_LINK)
    narrowed = dry_run(replace(row("h0", "h1", in_flight=1), int8=True), costs, free)
    assert narrowed.samples_per_s == pytest.approx(10 / 0.506, rel=0.02)


def test_of_replicas_only_pushes_and_what_comes_back_are_messages_between_processes():
    layout = RunLayout(ends=(1,), in_flight=1, placement=(("h0",), ("h1",)), push_every=16)
    there = machines(2, cores=8, link=FREE_LINK, message=ak.MessageCost(ms=10, ms_per_mb=0))
    forecast = dry_run(layout, costs_of([0.001], replicas=True), there)
    # A step takes 3 ms; a replica sends a push, and takes in weights, every 16 steps.
    assert forecast.samples_per_s == pytest.approx(2 * 10 / (0.003 + 0.02 / 16), rel=0.03)


def test_a_shard_gives_no_more_weights_than_its_messages_let_it():
    layout = RunLayout(ends=(1,), in_flight=1, placement=(("h0",), ("h1",)), push_every=1)
    there = machines(2, cores=8, link=FREE_LINK, message=ak.MessageCost(ms=0, ms_per_mb=1000))
    forecast = dry_run(layout, costs_of([0.001], replicas=True), there)
    # A push of 10,000 bytes, and as many that come back, however late.
    assert forecast.samples_per_s == pytest.approx(10 / 0.02, rel=0.05)
