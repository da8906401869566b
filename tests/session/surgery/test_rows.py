"""Gates come and go while the row is at work: every batch goes back the way it came, and none is lost."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.support.engines import ALL_ENGINES, ENGINES, NAMES
from tests.support.harness import WAIT_S, same_bits, sgd
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError, ReplayError, SharedParameterError, WaitTimeoutError
from akkordeon.core.surgery.reports import RowChanged
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash


def gate(seed=0):
    """6 features to 6, so that it fits anywhere in a row; the generator of the process stays where it is."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ak.Gate(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), sgd)


def momentum(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.5)


def network(**kwargs):
    return ak.Network([gate(seed) for seed in range(3)], **kwargs)


def data(n=40):
    generator = torch.Generator().manual_seed(1)
    return [(x, x.argmax(1)) for x in torch.randn(n, 8, 6, generator=generator)]


def training(epochs=3, name="a", in_flight=4):
    return ak.Sentinel.train(data(), F.cross_entropy, in_flight=in_flight, epochs=epochs, name=name)


def validating():
    return ak.Sentinel.validate(data(3), F.cross_entropy, every_updates=7, name="v", best=ak.Best("loss"))


def slow_simulator(*faults):
    cost = Cost(forward_s=0.01, backward_s=0.02, message_s=0.001)
    return ak.Simulator(compute=Compute({"gate/*": cost, "*": Cost(message_s=0.002)}), faults=faults)


def let_pass(session, seconds):
    session._engine.wait_until(lambda: False, seconds)


def assert_replays(record, session, sentinels, given):
    replayed = ak.replay(record, network(), sentinels, given=given)
    states = session.states()
    assert set(session.network.row()) <= replayed.states.keys()
    assert all(same_bits(replayed.states[gate], states[gate]) for gate in states)
    assert replayed.network.row() == session.network.row()


@pytest.mark.parametrize("name", ENGINES)
def test_gates_come_and_go_under_training_and_a_replay_has_the_same_bits(name, tmp_path):
    given = [gate(seed) for seed in range(10, 14)]
    with ak.run(network(), engine=ENGINES[name](), record=tmp_path / "r") as session:
        attached, validation = session.attach_all([training(), validating()])
        head = session.gate("gate/0").insert_before(given[0])
        session.gate("gate/1").insert_after(given[1])
        session.gate("gate/2").replace(given[2])
        last = session.gate("gate/5").insert_after(given[3])
        session.gate("gate/0").remove()
        session.gate("gate/5").remove()
        assert (head.address, last.address) == ("gate/3", "gate/6")
        assert session.network.row() == ("gate/3", "gate/1", "gate/4", "gate/6")
        session.wait(WAIT_S)
        assert [each.address for each in session.status().gates] == [*session.network.row()]
    assert attached.batches.as_tuple() == (120, 120, 0, 0)
    assert validation.rounds
    assert_replays(tmp_path / "r", session, [training(), validating()], given)


@pytest.mark.parametrize("name", [each for each in NAMES if "ray" in each.values])
def test_on_ray_gates_are_set_and_come_and_go_too(name):
    with ak.run(network(), engine=ALL_ENGINES[name]()) as session:
        attached, _ = session.attach_all([training(epochs=10_000), validating()])
        session.gate("gate/1").set(lr=0.01, optimizer=momentum)
        new = session.gate("gate/2").insert_after(gate(9))
        session.gate("gate/0").remove()
        assert session.predict(torch.ones(3, 6)).shape == (3, 6)
        new.set(frozen=True)
        done = attached.epochs_done
        assert session._engine.wait_until(lambda: attached.epochs_done > done + 1, WAIT_S)  # a whole one
        attached.detach()
        attached.wait(WAIT_S)
        assert [each.address for each in session.status().gates] == ["gate/1", "gate/2", "gate/3"]
        stages = session.checkpoint().stages
        with pytest.raises(RecipeError, match="no setting 'speed'"):
            new.set(speed=1)
    sent, trained, refused, lost = attached.batches.as_tuple()
    assert (sent, refused, lost) == (trained, 0, 0)
    assert stages["gate/1"].learner["optimizer"]["groups"][0]["lr"] == 0.01
    assert stages["gate/3"].learner["frozen"]


class Operations:
    """Random operations on a session that trains, and what a replay needs of them."""

    def __init__(self, session, seed):
        self.session = session
        self.random = torch.Generator().manual_seed(seed)
        self.given = []
        self.trained = []
        self.seed = 100

    def below(self, n):
        return int(torch.randint(n, (), generator=self.random))

    def new_gate(self):
        self.seed += 1
        self.given.append(gate(self.seed))
        return self.given[-1]

    def do_one(self):
        row = self.session.network.row()
        place = self.session.gate(row[self.below(len(row))])
        match self.below(9):
            case 0 if len(row) < 6:
                place.insert_before(self.new_gate())
            case 1 if len(row) < 6:
                place.insert_after(self.new_gate())
            case 2 if len(row) > 1:
                place.remove()
            case 3:
                place.replace(self.new_gate())
            case 4:
                place.set(frozen=bool(self.below(2)), lr=0.01 * self.below(9))
            case 5:
                place.set(reset_optimizer=True, momentum=0.1 * self.below(9))
            case 6:
                self.session.predict(torch.ones(3, 6))
            case 7:
                self.session.checkpoint()
            case 8:
                self.exchange_trainer()
        let_pass(self.session, 0.001 * self.below(100))

    def exchange_trainer(self):
        for attached in self.trained[-1:]:
            attached.detach()
        self.trained.append(self.session.attach(training(100, f"t{len(self.trained)}", 1 + self.below(6))))


def operate(times, seed, record):
    """So many random operations; every batch is accounted for, and a replay has the same bits."""
    with ak.run(network(), engine=slow_simulator(), record=record, seed=seed) as session:
        stays, _ = session.attach_all([training(10_000), validating()])
        operations = Operations(session, seed)
        operations.exchange_trainer()
        for _ in range(times):
            operations.do_one()
        for attached in (stays, *operations.trained):
            attached.detach()
        session.wait()
    for attached in (stays, *operations.trained):
        sent, trained, refused, lost = attached.batches.as_tuple()
        assert (sent, refused, lost) == (trained, 0, 0)
    again = [training(10_000), validating()]
    again += [training(100, attached.name, attached.recipe.in_flight) for attached in operations.trained]
    assert_replays(record, session, again, operations.given)
    return stays


@pytest.mark.parametrize("seed", range(2))
def test_some_random_operations_lose_no_batch_and_replay_to_the_bit(seed, tmp_path):
    assert operate(12, seed, tmp_path / "r").batches.trained > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_random_operations_lose_no_batch_and_replay_to_the_bit(tmp_path):
    assert operate(1000, 7, tmp_path / "r").batches.trained > 1000


class Plus(nn.Module):
    """Adds a number, and has a weight that changes nothing."""

    def __init__(self, number):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.number = number

    def forward(self, x):
        return x + self.number + 0 * self.weight


def test_no_prediction_mixes_the_rows_before_and_after():
    rows = ak.Network([ak.Gate(Plus(number), sgd) for number in (1, 10)])
    seen, over = set(), threading.Event()
    with ak.run(rows, engine=ak.Threads(2)) as session:

        def predict():
            while not over.is_set():
                seen.update(session.predict(torch.zeros(4, 1), batch_size=1).flatten().tolist())

        asking = threading.Thread(target=predict)
        asking.start()
        trainer = session.attach(
            ak.Sentinel.train([(torch.zeros(2, 1), torch.zeros(2, 1))] * 8, F.mse_loss, epochs=10_000)
        )
        for _ in range(3):
            middle = session.gate("gate/0").insert_after(ak.Gate(Plus(100), sgd))
            middle = middle.replace(ak.Gate(Plus(1000), sgd))
            middle.remove()
        over.set()
        asking.join()
        trainer.detach()
        trainer.wait(WAIT_S)
    assert seen <= {11.0, 111.0, 1011.0}
    assert trainer.batches.lost == trainer.batches.refused == 0


def test_the_new_last_gate_knows_what_was_learned_before_it_came():
    with ak.run(network(), engine=slow_simulator()) as session:
        session.attach(training(epochs=1000))
        let_pass(session, 1)
        session.gate("gate/2").insert_after(gate(9))
        trained = session.attachments[0].batches.trained
        stages = session.checkpoint().stages
        session.detach("a")
    (applied,) = stages["gate/3"].applied.values()
    assert applied.next >= trained > 0
    assert not stages["gate/2"].applied


def test_validators_of_updates_watch_the_new_head():
    with ak.run(network(), engine=slow_simulator()) as session:
        _, validation = session.attach_all([training(epochs=1000), validating()])
        let_pass(session, 1)
        session.gate("gate/0").replace(gate(9))
        rounds = validation.rounds_done
        let_pass(session, 5)
        assert validation.rounds_done > rounds + 2
        session.detach("a")


def test_what_does_not_come_back_in_time_leaves_the_row_as_it_was():
    is_waiting, may_go_on, heard = threading.Event(), threading.Event(), []

    def waiting_loss(outputs, y):
        is_waiting.set()
        assert may_go_on.wait(WAIT_S)
        return F.cross_entropy(outputs, y)

    with ak.run(network(), engine=ak.Threads(2)) as session:
        session.subscribe(heard.append)
        attached = session.attach(ak.Sentinel.train(data(), waiting_loss, epochs=1))
        assert is_waiting.wait(WAIT_S)
        with pytest.raises(WaitTimeoutError, match=r"not all that was under way has come back after 0\.05 s"):
            session.gate("gate/1").remove(timeout=0.05)
        may_go_on.set()
        attached.wait(WAIT_S)
        assert session.network.row() == ("gate/0", "gate/1", "gate/2")
        assert session.gate("gate/1").insert_before(gate()).address == "gate/3"
    assert attached.batches.as_tuple() == (40, 40, 0, 0)
    assert [each.came for each in heard if isinstance(each, RowChanged)] == [("gate/3",)]


def test_what_cannot_be_is_refused_and_nothing_has_changed():
    shared = gate()
    with ak.run(ak.Network([shared]), engine=ak.Simulator()) as session:
        here = session.gate("gate/0")
        with pytest.raises(RecipeError, match="at least one gate"):
            here.remove()
        with pytest.raises(SharedParameterError):
            here.insert_after(ak.Gate(shared.module))
        with pytest.raises(RecipeError, match="got Linear; wrap it"):
            here.replace(nn.Linear(6, 6))
        with pytest.raises(RecipeError, match="optimizer function of gate/2 failed"):
            here.replace(ak.Gate(nn.Linear(6, 6), lambda params: 1 / 0))
        session.attach(training(epochs=1)).wait(WAIT_S)
        assert session.network.row() == ("gate/0",)
        here.replace(gate(1))
        with pytest.raises(RecipeError, match="gate/0 is not part of the row any more"):
            here.remove()


def test_gates_of_one_forward_stay_together():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net = ak.Network.from_module(module, gates=2, optimizer=sgd, example=torch.ones(2, 6))
    with ak.run(net, engine=ak.Simulator()) as session:
        head = session.gate("gate/0")
        with pytest.raises(RecipeError, match="parts of one module's forward"):
            head.insert_after(gate())


def test_the_module_of_a_row_by_hand_has_its_gates_in_their_order():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    net = ak.Network.from_module(module, gates=2, optimizer=sgd)
    with ak.run(net, engine=ak.Simulator()) as session:
        session.gate("gate/0").insert_after(gate(9))
        trained = session.module()
        x = torch.ones(2, 6)
        assert torch.equal(trained.eval()(x), session.predict(x))
    assert [type(each) for each in trained[1]] == [nn.Linear, nn.Tanh]


def test_the_best_weights_of_a_row_that_is_no_more_are_a_module_of_that_row():
    with ak.run(network(), engine=ak.Simulator()) as session:
        session.attach_all([training(), validating()])
        session.wait(WAIT_S)
        for address in ("gate/0", "gate/1"):
            session.gate(address).remove()
        assert len(session.best_module()) == 3
        assert len(session.module()) == 1


def test_a_gate_that_came_is_made_anew_in_its_place():
    crash = Crash(who="gate/3", at_s=2.0, back_after_s=0.5)
    recovering = network(recovery=ak.Recovery(snapshot_every=5))
    with ak.run(recovering, engine=slow_simulator(crash)) as session:
        attached = session.attach(training(epochs=2))
        let_pass(session, 1)
        session.gate("gate/1").replace(gate(9))
        attached.wait(1000)
        assert session.status().restarts == {"gate/3": 1}
        assert [each.index for each in session.status().gates] == [0, 1, 2]
    sent, trained, refused, lost = attached.batches.as_tuple()
    assert sent == trained + lost == 80
    assert refused == 0


def test_a_checkpoint_of_a_changed_row_is_taken_up_by_its_recipe():
    with ak.run(network(), engine=ak.Simulator()) as session:
        session.attach(training(epochs=1)).wait(WAIT_S)
        session.gate("gate/1").insert_after(gate(9))
        session.gate("gate/0").remove()
        kept = session.checkpoint()
    with ak.run(session.network, engine=ak.Simulator(), resume=kept) as again:
        assert again.network.row() == ("gate/1", "gate/3", "gate/2")
        assert same_bits(again.module(), session.module())


def test_a_replay_without_the_gates_that_came_says_so(tmp_path):
    with ak.run(network(), engine=ak.Simulator(), record=tmp_path / "r") as session:
        session.gate("gate/1").insert_after(gate(9))
    with pytest.raises(ReplayError, match=r"gate gate/3 came while it ran; give it to the replay: given="):
        ak.replay(tmp_path / "r", network())
