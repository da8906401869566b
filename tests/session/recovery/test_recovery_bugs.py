"""What once went wrong where a run was taken up from a checkpoint."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from tests.session.recovery.test_resume import _assert_same, _batches, _Counter, _network, _run
from torch import nn

import akkordeon as ak
from akkordeon.core.checkpoint_messages import Joined
from akkordeon.core.errors import ClusterError, GateFailedError
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.session.recovery.checkpoint import Checkpoint

LOSS = nn.CrossEntropyLoss()


class NeverAtRest(ak.Simulator):
    """Takes checkpoints under way, as several workers do."""

    is_repeatable = False


def _plateau(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def _attached(sentinels, network=None, engine=None, resume=None):
    """A run of sentinels attached at one moment: its weights, checkpoints, attachments and epochs."""
    kept = []
    with ak.run(network or _network(), engine or ak.Threads(1), seed=2, resume=resume) as session:
        session.subscribe(lambda r: kept.append(r) if isinstance(r, Checkpoint) else None)
        attached = session.attach_all(sentinels)
        session.wait(60)
        return session.states(), kept, attached, session._supervisor.epochs_done


# The epoch ended while its trainer was coming to rest. The validator rested already and had said where it
# was, so that its round, due by the epoch, was not in the checkpoint: best, patience and the learning rate
# of a ReduceLROnPlateau were others from then on.
@pytest.mark.parametrize("every", [5, 11])
def test_a_round_that_fell_due_while_all_came_to_rest_is_made(every):
    def sentinels():
        best = ak.Best("loss", patience=None)
        return [
            ak.Sentinel.train(_batches(), LOSS, epochs=4, name="a"),
            ak.Sentinel.validate(_batches(), LOSS, every_epoch=1, schedule_by="loss", best=best, name="v"),
            ak.Sentinel.checkpoint(every_updates=every),
        ]

    whole, kept, attached, _ = _attached(sentinels(), _network(_plateau))
    assert any(each.sentinels["v"]["due"] for each in kept)
    for each in kept:
        again, _, resumed, _ = _attached(sentinels(), _network(_plateau), resume=each)
        _assert_same(whole, again)
        assert resumed[1].rounds_done == attached[1].rounds_done


# With several batches in flight, a trainer taken up could be told to go on before what its reader had read
# came to it, as that message overtook the batches: others were under way together then.
@pytest.mark.parametrize(("in_flight", "every"), [(3, 4), (3, 5), (4, 7)])
def test_a_trainer_taken_up_has_all_its_batches_before_it_goes_on(in_flight, every):
    def sentinels():
        trainer = ak.Sentinel.train(_batches(), LOSS, epochs=3, in_flight=in_flight, name="a")
        return [trainer, ak.Sentinel.checkpoint(every_updates=every)]

    whole, kept, _, _ = _attached(sentinels())
    for each in kept:
        _assert_same(whole, _attached(sentinels(), resume=each)[0])


# All of an epoch was in the weights, and the last of its batches not yet back: the epoch was never counted.
# One that was told of after the cut was counted twice by the session, whose validators go by that.
@pytest.mark.parametrize("in_flight", [1, 6])
@pytest.mark.parametrize("engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=1)])
def test_epochs_are_counted_once_wherever_the_cut_fell(engine, in_flight):
    def sentinels():
        trainer = ak.Sentinel.train(_batches(), LOSS, epochs=3, in_flight=in_flight, name="a")
        return [trainer, ak.Sentinel.checkpoint(every_updates=3)]

    _, kept, _, _ = _attached(sentinels(), engine=engine())
    for each in kept:
        _, _, resumed, epochs_done = _attached(sentinels(), engine=engine(), resume=each)
        assert (resumed[0].epochs_done, epochs_done) == (3, 3)
        assert resumed[0].batches.as_tuple() == (36, 36, 0, 0)


# An epoch that samples= cut off counted while it went, and not after a resume; and all samples and seconds of
# before were forgotten by those who look on.
def test_samples_and_an_epoch_cut_off_by_their_number_are_told_after_a_resume():
    def sentinels():
        trainer = ak.Sentinel.train(_batches(), LOSS, samples=200, name="a")
        return [trainer, ak.Sentinel.checkpoint(every_updates=5)]

    _, kept, attached, _ = _attached(sentinels())
    assert (attached[0].epochs_done, attached[0].samples) == (3, 204)
    for each in kept:
        _, _, resumed, _ = _attached(sentinels(), resume=each)
        assert (resumed[0].epochs_done, resumed[0].samples) == (3, 204)


# Of two trainers without a name only the first was taken up: the second, train-2, began anew.
def test_trainers_without_a_name_are_taken_up_too():
    def sentinels():
        one, two = (ak.Sentinel.train(_batches().with_seed(seed), LOSS, epochs=2) for seed in (1, 2))
        return [one, two, ak.Sentinel.checkpoint(every_updates=10)]

    whole, kept, _, _ = _attached(sentinels())
    for each in kept:
        again, _, resumed, _ = _attached(sentinels(), resume=each)
        _assert_same(whole, again)
        assert [a.name for a in resumed[:2]] == ["train", "train-2"]


# A trainer went on with the epochs of the one before it, on the same data. Taken up after that one, which had
# ended, it skipped these epochs twice.
def test_trainers_one_after_the_other_on_the_same_data_read_on_once():
    def run(resume=None):
        kept, data = [], _batches()
        with ak.run(_network(), ak.Threads(1), seed=2, resume=resume) as session:
            session.subscribe(lambda r: kept.append(r) if isinstance(r, Checkpoint) else None)
            trainers = [ak.Sentinel.train(data, LOSS, epochs=1, name=name) for name in "abc"]
            first, *others = trainers
            session.attach_all([first, ak.Sentinel.checkpoint(every_updates=5)])[0].wait(60)
            for trainer in others:
                session.attach(trainer).wait(60)
            session.wait(60)
            return session.states(), kept

    whole, kept = run()
    for each in kept:
        _assert_same(whole, run(each)[0])


# The state of a source was forgotten by a run that was taken up, until it gave another: taken up a second
# time before that, the source was read from its beginning.
def test_a_second_resume_asks_a_source_for_its_state_too():
    sources = []

    def source():
        sources.append(_Counter())
        return sources[-1]

    whole, kept, _ = _run(_network(), source, every=7)
    _, again, _ = _run(_network(), source, every=1, resume=kept[12], until=15)
    assert again[0].sentinels["a"]["source"] == kept[12].sentinels["a"]["source"]
    last, _, _ = _run(_network(), source, resume=again[0])
    _assert_same(whole, last)
    assert sources[2].opened == 160 - 80


class _Counts(nn.Linear):
    """Its extra state takes more room the higher it counts."""

    calls = 8

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / self.calls


class _Centred(nn.Linear):
    """Has a mean from its first batch on."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mean", None)

    def forward(self, x):
        if self.training:
            mean = x.detach().mean(0)
            self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
        return super().forward(x - self.mean)


# All that a module had was held against the new one, shape by shape: extra state, which is as long as
# what it says, and buffers that begin as None made it another network. A gate without any state had no
# version.
@pytest.mark.parametrize(
    "middle",
    [
        nn.ReLU(),
        _Counts(16, 16),
        _Centred(16, 16),
        nn.Sequential(_Centred(16, 16), nn.ReLU(), nn.Linear(16, 16)),
    ],
    ids=["no state", "extra state", "None at first", "None at first, and more"],
)
def test_what_has_no_fixed_form_is_taken_up_too(middle):
    torch.manual_seed(0)
    ends, optimizer = (nn.Linear(6, 16), nn.Linear(16, 2)), _network().gates[0].optimizer
    network = ak.Network([ak.Gate(module, optimizer) for module in (ends[0], middle, ends[1])])
    whole, kept, _ = _run(network, _batches)
    again, _, attached = _run(network, _batches, resume=kept[2])
    _assert_same(whole, again)
    assert attached[0].batches.as_tuple() == (48, 48, 0, 0)


# Only numbered children counted as layers, so those of a Sequential with names could not be in other gates.
@pytest.mark.parametrize("gates", [1, 3])
def test_layers_with_names_go_on_in_other_gates(gates):
    torch.manual_seed(0)
    layers = {
        "into": nn.Linear(6, 16),
        "norm": nn.BatchNorm1d(16),
        "bend": nn.ReLU(),
        "out": nn.Linear(16, 2),
    }
    model = nn.Sequential(OrderedDict(layers))

    def network(gates):
        return ak.Network.from_module(model, gates, lambda ps: torch.optim.AdamW(ps, lr=0.01))

    whole, kept, _ = _run(network(2), _batches)
    again, _, _ = _run(network(gates), _batches, resume=kept[2])
    merged = [{name: t for state in each.values() for name, t in state.items()} for each in (whole, again)]
    assert merged[0].keys() == merged[1].keys()
    for name, tensor in merged[0].items():
        assert torch.equal(tensor, merged[1][name]), name


# Of a Downpour only the addresses of the shards were compared. Replicas and shards of another model took the
# weights of the old one, of other shapes, and trained on those.
@pytest.mark.parametrize("max_shard_bytes", [None, 1])
def test_another_model_in_a_downpour_is_refused_and_the_same_goes_on(max_shard_bytes):
    def downpour(network):
        return ak.Downpour(network, max_shard_bytes=max_shard_bytes)

    with ak.run(downpour(_network()), ak.Simulator()) as session:
        session.attach(ak.Sentinel.train(_batches(), LOSS, epochs=4, name="a"))
        kept = session.checkpoint()
    first, middle, last = _network().gates
    wider = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU())
    middle = replace(middle, module=nn.Sequential(nn.Dropout(0.3), nn.Linear(20, 16), nn.ReLU()))
    other = ak.Network([replace(first, module=wider), middle, last])
    with pytest.raises(ak.errors.RecipeError, match=r"0\.bias of gate/0 is \(16,\) there and \(20,\) here"):
        ak.run(downpour(other), resume=kept)
    with ak.run(downpour(_network()), ak.Simulator(), resume=kept) as session:
        attached = session.attach(ak.Sentinel.train(_batches(), LOSS, epochs=4, name="a"))
        session.wait(60)
        assert attached.batches.as_tuple() == (48, 48, 0, 0)


# A sentinel that takes checkpoints set the generator of the process back to where it was in the run before,
# also when it came by itself, after others had gone on from there and drawn from it.
def test_a_keeper_that_comes_after_the_others_leaves_the_generator_where_it_is():
    def sentinels():
        trainer = ak.Sentinel.train(_batches(), LOSS, epochs=2, in_flight=1, name="a")
        return [trainer, ak.Sentinel.checkpoint(every_updates=5, name="k")]

    _, kept, _, _ = _attached(sentinels())
    assert kept[0].sentinels["k"]["random"] is not None
    trainer, keeper = sentinels()
    with ak.run(_network(), ak.Simulator(), resume=kept[0]) as session:
        session.attach(trainer).wait(60)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        session.attach(keeper)
        session.wait(60)
        assert torch.equal(torch.get_rng_state(), before)


# Its cut was under way when a trainer ended, which was not asked any more: the checkpoint had all its batches
# as trained, and weights that had not learned from the last.
def test_a_trainer_that_ends_while_a_cut_is_under_way_is_kept_as_its_weights_are():
    costs = {"*gate/*": Cost(forward_s=0.01, backward_s=0.01, update_s=0.005), "*": Cost(message_s=0.05)}
    sentinels = [
        ak.Sentinel.train(_batches(), LOSS, samples=56, in_flight=2, name="a"),
        ak.Sentinel.train(_batches(), LOSS, epochs=2, in_flight=2, name="b"),
        ak.Sentinel.checkpoint(every_updates=1),
    ]
    _, kept, _, _ = _attached(sentinels, engine=NeverAtRest(compute=Compute(costs)))
    for each in kept:
        trained = sum(each.sentinels[name]["batches"][1] for name in ("a", "b"))
        assert [stage.version for stage in each.stages.values()] == [trained] * 3


# One that ended while a keeper came could be told to it as gone before it was told as there: it was waited
# for until the end of time.
def test_nobody_is_waited_for_who_is_not_there():
    with ak.run(_network(), ak.Threads(1)) as session:
        keeper = session.attach(ak.Sentinel.checkpoint(every_updates=100))
        session._send(keeper.address, Joined("sentinel/gone#1"))
        session.wait(30)


# A trainer whose time was over, or which found nothing better any more, trained on after a resume until it
# was told again.
@pytest.mark.parametrize("ends", ["time", "patience"])
def test_a_trainer_that_was_done_before_its_epochs_were_is_done_after_a_resume(ends):
    def run(resume=None):
        costs = {"*gate/*": Cost(forward_s=0.01, backward_s=0.01)}
        with ak.run(_network(), ak.Simulator(compute=Compute(costs)), resume=resume) as session:
            trainer = ak.Sentinel.train(
                _batches(), LOSS, epochs=9, name="a", seconds=1.5 if ends == "time" else None
            )
            validator = ak.Sentinel.validate(
                _batches(),
                LOSS,
                every_updates=10,
                scores={"flat": lambda outputs, y: 0.0},
                best=ak.Best("flat", patience=1 if ends == "patience" else None),
                name="v",
            )
            attached = session.attach_all([trainer, validator])
            attached[0].wait(1000)
            return session.checkpoint(timeout=1000), attached[0].batches.as_tuple(), attached[0].epochs_done

    kept, batches, epochs = run()
    assert 20 <= batches[1] < 9 * 12
    assert run(kept)[1:] == (batches, epochs)


# A validator that was ahead of the cut was kept with the versions of a round after it. The run that went on
# from there came to those versions with other weights, and made no round on them.
def test_a_validator_ahead_of_the_cut_is_not_kept_as_having_seen_what_comes_after_it():
    busy, slow = Cost(forward_s=0.01, backward_s=0.01, update_s=0.005), Cost(message_s=0.1)
    costs = {"sentinel/keeper*": slow, "*gate/*": busy, "*": Cost(message_s=0.001)}
    sentinels = [
        ak.Sentinel.train(_batches(), LOSS, epochs=2, in_flight=2, name="a"),
        ak.Sentinel.validate(_batches(), LOSS, every_updates=2, name="v"),
        ak.Sentinel.checkpoint(every_updates=5, name="keeper"),
    ]
    _, kept, _, _ = _attached(sentinels, engine=NeverAtRest(compute=Compute(costs)))
    for each in kept:
        versions = [stage.version for stage in each.stages.values()]
        assert each.sentinels["v"]["versions"] in ([], versions[::-1])


class _Threads(ak.Threads):
    """The processes that gates are to come back in die, so many times."""

    def __init__(self, times):
        super().__init__(1)
        self.left = times

    def respawn(self, spawn, then):
        self.left -= 1
        if self.left < 0:
            super().respawn(spawn, then)
        else:
            then(ClusterError("the host died"))


def _failing_once(recovery):
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if next(calls) == 7:
                raise ValueError("boom")
            return super().step(closure)

    calls = itertools.count()
    gates = [ak.Gate(nn.Linear(6, 2), lambda ps: Fails(ps, lr=0.1))]
    return ak.Network(gates, recovery=recovery)


# On Ray a process that was killed while a gate moved into it ended the session, though that gate could have
# come back in another.
def test_a_process_that_dies_while_a_gate_moves_in_is_one_more_restart():
    network = _failing_once(ak.Recovery(snapshot_every=5, restarts=3, backoff_s=0.01))
    with ak.run(network, _Threads(2)) as session:
        attached = session.attach(ak.Sentinel.train(_batches(), LOSS, epochs=2, name="a"))
        batches = attached.wait(60).batches
    assert batches.sent == batches.trained + batches.refused + batches.lost
    assert batches.refused == 1


def test_a_gate_that_moves_into_no_process_ends_the_session_with_the_story_and_its_other_weights():
    network = _failing_once(ak.Recovery(snapshot_every=5, restarts=3, backoff_s=0.01))
    with ak.run(network, _Threads(99)) as session:
        session.attach(ak.Sentinel.train(_batches(), LOSS, epochs=2, name="a"))
        with pytest.raises(GateFailedError, match=r"host died; it was made anew 3 times .* boom; could"):
            session.wait(60)
    assert session.states(timeout=1, partial=True) == {}


# It was dropped from the checkpoint, and the next run began its data anew on weights that knew them; of a
# stream, what was read and not learned from was lost.
def test_who_is_still_to_join_a_run_that_was_taken_up_keeps_its_place():
    def trainer():
        return ak.Sentinel.train(_batches(), LOSS, epochs=2, name="a")

    _, kept, attached, _ = _attached([trainer(), ak.Sentinel.checkpoint(every_updates=5)])
    with ak.run(_network(), ak.Threads(1), seed=2, resume=kept[0]) as session:
        between = session.checkpoint(timeout=60)
    assert between.sentinels["a"] == kept[0].sentinels["a"]
    _, _, resumed, _ = _attached([trainer()], resume=between)
    assert resumed[0].batches == attached[0].batches
