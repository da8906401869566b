"""A run that is taken up from a checkpoint is the run that never stopped."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import akkordeon as ak
from akkordeon.core.errors import DataError
from akkordeon.session.recovery.checkpoint import Checkpoint

SAMPLES, SIZE = 90, 8
X = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
Y = X.sum(1).gt(0).long()


def _adamw(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def _plain(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def _network(optimizer=_sgd, rule=None, dropout=nn.Dropout):
    torch.manual_seed(3)
    rule = rule or ak.Stash()
    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU()), optimizer, rule),
            ak.Gate(nn.Sequential(dropout(0.3), nn.Linear(16, 16), nn.ReLU()), optimizer, rule),
            ak.Gate(nn.Linear(16, 2), optimizer, rule),
        ]
    )


def _batches():
    return ak.Batches(X, Y, SIZE, shuffle=True, seed=5)


def _loader():
    generator = torch.Generator().manual_seed(4)
    return DataLoader(TensorDataset(X, Y), SIZE, shuffle=True, generator=generator, num_workers=2)


def _run(network, source, in_flight=1, every=7, resume=None, validate=False, until=None):
    """A run to its end, or to the checkpoint of a number; its weights, what it kept, and its records."""
    kept, reached = [], threading.Event()

    def watch(record):
        if isinstance(record, Checkpoint):
            kept.append(record)
            if until is not None and record.number == until:
                reached.set()

    loss = nn.CrossEntropyLoss()
    with ak.run(network, ak.Threads(1), seed=2, resume=resume) as session:
        session.subscribe(watch)
        sentinels = [
            ak.Sentinel.train(source(), loss, epochs=4, in_flight=in_flight, name="a"),
            ak.Sentinel.checkpoint(every_updates=every),
        ]
        if validate:
            best = ak.Best("loss", patience=None)
            sentinels.insert(1, ak.Sentinel.validate((X, Y), loss, every_updates=5, best=best, name="v"))
        attached = session.attach_all(sentinels)
        if until is not None:
            assert reached.wait(60)
            return None, kept, attached
        session.wait(60)
        return session.states(), kept, attached


def _assert_same(one, other):
    for address, state in one.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, other[address][name]), (address, name)


CASES = {
    "sgd with momentum": {},
    "adamw with a scheduler": {"optimizer": _adamw},
    "delay compensation": {"rule": ak.DelayCompensation("adaptive")},
    "seeded dropout": {"dropout": ak.nn.Dropout},
}


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_with_one_worker_a_resumed_run_has_the_bits_of_the_one_that_never_stopped(case, in_flight):
    whole, kept, _ = _run(_network(**case), _batches, in_flight)
    assert len(kept) > 5
    for number in (0, 3):
        again, _, attached = _run(_network(**case), _batches, in_flight, resume=kept[number])
        _assert_same(whole, again)
        assert attached[0].batches.as_tuple() == (48, 48, 0, 0)
        assert attached[0].epochs_done == 4


def test_a_second_resume_inside_one_epoch_has_the_bits_too():
    whole, _, _ = _run(_network(), _batches, every=3)
    _, kept, _ = _run(_network(), _batches, every=3, until=1)
    _, again, _ = _run(_network(), _batches, every=3, resume=kept[0], until=3)
    assert [each.number for each in again[:2]] == [2, 3]
    assert again[1].sentinels["a"]["position"]["place"][0] == 0
    last, _, _ = _run(_network(), _batches, every=3, resume=again[1])
    _assert_same(whole, last)


def test_a_loader_with_workers_goes_on_where_it_was():
    whole, kept, _ = _run(_network(), _loader)
    again, _, _ = _run(_network(), _loader, resume=kept[2])
    _assert_same(whole, again)


def test_a_validator_goes_on_with_its_rounds_and_its_best():
    whole, kept, attached = _run(_network(), _batches, validate=True)
    again, _, resumed = _run(_network(), _batches, validate=True, resume=kept[3])
    _assert_same(whole, again)
    assert attached[1].rounds_done == resumed[1].rounds_done
    rounds = [[(r.round, r.loss, r.version) for r in each[1].rounds] for each in (attached, resumed)]
    assert rounds[1] == rounds[0][-len(rounds[1]) :]
    assert (resumed[1].best.round, resumed[1].best.value) == (attached[1].best.round, attached[1].best.value)


def test_other_data_are_refused_with_what_differs_and_the_right_ones_go_on():
    _, kept, _ = _run(_network(), _batches, until=2)
    with ak.run(_network(), ak.Simulator(), resume=kept[-1]) as session:
        others = ak.Batches(X, Y, SIZE + 1, shuffle=True, seed=5)
        with pytest.raises(DataError, match="their batch_size was 8 and is 9"):
            session.attach(ak.Sentinel.train(others, nn.CrossEntropyLoss(), epochs=4, name="a"))
        right = session.attach(ak.Sentinel.train(_batches(), nn.CrossEntropyLoss(), epochs=4, name="a"))
        assert right.wait(60).batches.as_tuple() == (48, 48, 0, 0)


def test_another_network_is_refused_with_what_differs():
    _, kept, _ = _run(_network(), _batches, until=1)
    other = ak.Network([ak.Gate(nn.Linear(6, 2), _sgd), *_network().gates[1:]])
    with pytest.raises(ak.errors.RecipeError, match=r"another network: bias of gate/0 is \(16,\) there"):
        ak.run(other, resume=kept[0])


def _flat(gates, optimizer=_adamw):
    torch.manual_seed(3)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    return ak.Network.from_module(nn.Sequential(*layers), gates, optimizer, ak.DelayCompensation())


class _Branches(nn.Module):
    """No Sequential: what its gates are made of are parts of this one."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.deep = nn.BatchNorm1d(6), nn.Linear(6, 16), nn.Linear(16, 16)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        wide = torch.relu(self.wide(self.norm(x)))
        return self.head(torch.cat([wide, torch.relu(self.deep(wide))], dim=1))


def _branches(gates):
    torch.manual_seed(3)
    cut_before = ("wide", "deep", "head")[4 - gates :]
    if gates == 1:
        return ak.Network.from_module(_Branches(), 1, _adamw, ak.DelayCompensation(), example=X[:SIZE])
    return ak.Network.from_module(
        _Branches(), gates, _adamw, ak.DelayCompensation(), example=X[:SIZE], cut_before=cut_before
    )


@pytest.mark.parametrize("gates", [1, 2, 4])
@pytest.mark.parametrize("network", [_flat, _branches])
def test_the_same_layers_in_other_gates_go_on_to_the_bit(network, gates):
    whole, kept, _ = _run(network(3), _batches)
    again, _, _ = _run(network(gates), _batches, resume=kept[2])
    merged = [{name: t for state in each.values() for name, t in state.items()} for each in (whole, again)]
    assert merged[0].keys() == merged[1].keys()
    for name, tensor in merged[0].items():
        assert torch.equal(tensor, merged[1][name]), name


class _Counter:
    """A source with a state: numbers from where it is."""

    def __init__(self):
        self.at = 0
        self.opened = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def __len__(self):
        return 40

    def __iter__(self):
        while self.at < 40:
            at, self.at = self.at, self.at + 1
            generator = torch.Generator().manual_seed(at)
            yield torch.randn(4, 6, generator=generator), torch.tensor([0, 1, 0, 1])
            self.opened += 1
        self.at = 0


def test_a_source_that_knows_where_it_is_is_asked_and_not_read_from_the_beginning():
    sources = []

    def source():
        sources.append(_Counter())
        return sources[-1]

    whole, kept, _ = _run(_network(), source)
    again, _, _ = _run(_network(), source, resume=kept[12])
    _assert_same(whole, again)
    assert kept[12].sentinels["a"]["position"]["place"] == [2, 12]
    assert sources[0].opened == 160
    assert sources[1].opened == 160 - 80


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=1)])
def test_under_way_nothing_is_trained_twice_or_left_out(engine, in_flight):
    """Each batch has a label of its own; the head counts how often it learned from each."""
    loss, n = nn.MSELoss(), 60
    data = ak.Batches(torch.eye(n), torch.ones(n, 1), 1, shuffle=True)

    def network():  # with SGD and this loss a weight moves once for each time its sample is trained
        head = nn.Linear(n, 1, bias=False)
        nn.init.zeros_(head.weight)
        tail = nn.Linear(1, 1, bias=False)
        nn.init.ones_(tail.weight)
        return ak.Network([ak.Gate(head, _plain), ak.Gate(tail)])

    def trainer(name):
        return ak.Sentinel.train(data, loss, epochs=3, in_flight=in_flight, name=name)

    with ak.run(network(), engine(), seed=1) as session:
        begun = session.attach_all([trainer("a"), trainer("b")])
        assert session._engine.wait_until(lambda: begun[0].epochs_done >= 1, 60)
        kept = session.checkpoint()
    counts = [kept.sentinels[name]["batches"] for name in ("a", "b")]
    assert all(sent == trained + refused + lost for sent, trained, refused, lost in counts)
    assert counts[0][1] + counts[1][1] == kept.stages["gate/0"].version
    with ak.run(network(), engine(), seed=1, resume=kept) as session:
        ended = session.attach_all([trainer("a"), trainer("b")])
        session.wait(60)
        weight = session.states()["gate/0"]["weight"]
    assert [each.batches.as_tuple() for each in ended] == [(180, 180, 0, 0)] * 2
    if in_flight == 1:  # six times each; stale ones move a little further
        expected = 1 - 0.8**6
        assert torch.allclose(weight, torch.full_like(weight, expected), atol=0.05)


def test_a_downpour_goes_on_with_its_shards_and_its_places():
    def downpour():
        return ak.Downpour(_network(), replicas=2, server_optimizer=_sgd, fetch_compression="int8")

    loss = nn.CrossEntropyLoss()
    with ak.run(downpour(), ak.Threads(2)) as session:
        trainers = session.attach(ak.Sentinel.train(_batches(), loss, epochs=30, name="a"))
        assert session._engine.wait_until(lambda: trainers.epochs_done > 1, 60)
        kept = session.checkpoint()
    assert list(kept.sentinels) == ["a-0", "a-1"]
    assert min(stage.version for stage in kept.stages.values()) > 0
    with ak.run(downpour(), ak.Threads(2), resume=kept) as session:
        trainers = session.attach(ak.Sentinel.train(_batches(), loss, epochs=30, name="a"))
        session.wait(60)
        assert trainers.batches.as_tuple() == (360, 360, 0, 0)


def test_other_shares_of_a_downpour_are_refused_and_begin_anew_under_another_name():
    """Its promises said that they were dealt out anew."""

    def downpour(replicas):
        return ak.Downpour(_network(), replicas=replicas, server_optimizer=_sgd)

    loss = nn.CrossEntropyLoss()
    with ak.run(downpour(2), ak.Simulator()) as session:
        session.attach(ak.Sentinel.train(_batches(), loss, name="a")).wait(60)
        kept = session.checkpoint()
    version = kept.stages["shard/0"].version
    with ak.run(downpour(3), ak.Simulator(), resume=kept) as session:
        with pytest.raises(DataError, match="other data than 'a-0' has now: their samples was"):
            session.attach(ak.Sentinel.train(_batches(), loss, name="a"))
        trainers = session.attach(ak.Sentinel.train(_batches(), loss, name="b"))
        session.wait(60)
        assert trainers.batches.trained == 12
        assert session.checkpoint().stages["shard/0"].version == version + 12


def test_a_recorded_run_with_checkpoints_replays_to_the_same_bits(tmp_path):
    loss = nn.CrossEntropyLoss()
    trainer = ak.Sentinel.train(_batches(), loss, epochs=2, in_flight=2, name="a")
    with ak.run(_network(), ak.Threads(1), seed=2, record=tmp_path / "run.rec") as session:
        session.attach_all([trainer, ak.Sentinel.checkpoint(every_updates=5)])
        session.checkpoint()
        session.wait(60)
        weights = session.states()
    replayed = ak.replay(tmp_path / "run.rec", _network(), [trainer])
    _assert_same(weights, replayed.states)


class _Strange(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "param_groups": [{"params": [0, 1], "key": object()}]}


def test_an_optimizer_that_cannot_be_kept_fails_the_checkpoint_and_not_the_training():
    loss = nn.CrossEntropyLoss()
    network = ak.Network([ak.Gate(nn.Linear(6, 2), lambda ps: _Strange(ps, lr=0.1))])
    with ak.run(network, ak.Threads(1)) as session:
        trainer = session.attach(ak.Sentinel.train(_batches(), loss, epochs=2))
        with pytest.raises(
            ak.errors.ActorFailedError, match="optimizer of gate/0 has something of type object"
        ):
            session.checkpoint(timeout=30)
        assert trainer.wait(30).batches.trained == 24


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
@pytest.mark.parametrize("engine", [lambda: ak.Threads(1), lambda: ak.Threads(2), lambda: ak.Simulator()])
@pytest.mark.parametrize("recipe", [_network, lambda: ak.Downpour(_network(), replicas=2)])
def test_whoever_comes_and_goes_while_checkpoints_are_taken_is_not_held_up(recipe, engine, seed):
    dice, loss = random.Random(seed), nn.CrossEntropyLoss()
    with ak.run(recipe(), engine(), seed=seed) as session:
        session.attach(ak.Sentinel.checkpoint(every_updates=dice.choice([2, 5, 9]), name="kept"))
        for i in range(8):
            what = dice.randrange(5)
            if what < 2:
                recipe_of = ak.Sentinel.train(_batches(), loss, epochs=2, in_flight=dice.choice([1, 3]))
                session.attach(recipe_of)
            elif what == 2:
                session.attach(ak.Sentinel.validate((X, Y), loss, every_updates=4, name=f"v{i}"))
            elif what == 3:
                session.attach(ak.Sentinel.checkpoint(every_updates=7, name=f"k{i}"))
            else:
                at_work = [a for a in session.attachments if not a.ended and a.name != "kept"]
                for attachment in at_work[:1]:
                    attachment.detach(drop=dice.random() < 0.5)
            if dice.random() < 0.3:
                session.checkpoint(timeout=30)
        session.wait(60)
        assert session.attachments[0].error is None
        for attachment in session.attachments:
            batches = attachment.batches
            assert batches.sent == batches.trained + batches.refused + batches.lost


@pytest.mark.parametrize(("in_flight", "every"), [(3, 3), (4, 3), (4, 2)])
def test_checkpoints_that_fall_due_while_one_is_taken_leave_the_bits(in_flight, every):
    whole, kept, _ = _run(_network(), _batches, in_flight, every)
    for checkpoint in kept[::3]:
        again, _, _ = _run(_network(), _batches, in_flight, every, resume=checkpoint)
        _assert_same(whole, again)
