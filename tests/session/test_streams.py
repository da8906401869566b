"""Streams on every engine: scores and weights of a plain loop, labels that come late, and going on."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from tests.support.engines import ALL_ENGINES, ENGINES, NAMES, each_on_engines
from tests.support.harness import WAIT_S, same_bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.reports import TrainingProgress
from akkordeon.core.streams.reports import DriftAlarm, ShadowTried
from akkordeon.data.streams.columns import Columns
from akkordeon.data.streams.growing import GrowingFile
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder

N = 60
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(1))
Y = X.sum(1).gt(0).long()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.5)


def network():
    torch.manual_seed(3)
    modules = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 8), nn.Linear(8, 2)
    return ak.Network([ak.Gate(module, sgd) for module in modules])


def plain_loop(delay):
    """Test then train as anybody would write it: the model, and whether each prediction was right."""
    model, right, waiting = network().module(), [], []
    optimizer = sgd(model.parameters())

    def learn():
        i = waiting.pop(0)
        optimizer.zero_grad()
        F.cross_entropy(model(X[i : i + 1]), Y[i : i + 1]).backward()
        optimizer.step()

    for i in range(N):
        while waiting and waiting[0] + delay <= i:
            learn()
        with torch.no_grad():
            right.append(model(X[i : i + 1]).argmax(1).eq(Y[i]).item())
        waiting.append(i)
    while waiting:
        learn()
    return model, right


def stream(source=(X, Y), **options):
    return ak.Sentinel.stream(source, F.cross_entropy, **({"scores": {"accuracy": ak.accuracy}} | options))


def run(engine, *sentinels, **options):
    with ak.run(network(), engine, **options) as session:
        attached = session.attach_all(sentinels)
        session.wait(WAIT_S)
        return session.module(), attached[0]


@pytest.mark.parametrize("delay", [None, 0, 1, 7])
@pytest.mark.parametrize("name", ENGINES)
def test_with_one_in_flight_scores_and_weights_are_those_of_a_plain_loop(name, delay):
    model, attached = run(ENGINES[name](), stream(delay=delay))
    expected, right = plain_loop(delay or 0)
    assert same_bits(model, expected)
    report = attached.stream[-1]
    assert report.overall["accuracy"] == sum(right) / N
    assert report.examples == N
    assert attached.batches.as_tuple() == (N, N, 0, 0)


@pytest.mark.parametrize("name", ENGINES)
def test_with_several_in_flight_all_are_predicted_and_learned(name):
    _, attached = run(ENGINES[name](), stream(in_flight=4, delay=lambda x, y: int(y) * 9, report_every=10))
    assert attached.stream[-1].examples == N
    assert attached.batches.as_tuple() == (N, N, 0, 0)
    assert len(attached.stream) == N // 10


def questions_and_answers():
    """Every third label never comes, the others in pairs the wrong way round."""
    for i in range(0, N, 3):
        for j in range(i, i + 3):
            yield ak.Question(f"no. {j}", X[j : j + 1])
        for j in (i + 2, i + 1):
            yield ak.Answer(f"no. {j}", Y[j : j + 1])


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_come_by_themselves_are_matched_by_key(name):
    model, attached = run(ALL_ENGINES[name](), stream(questions_and_answers(), max_waiting=8))
    expected, _ = run(ak.Simulator(), stream(questions_and_answers(), max_waiting=8))
    assert same_bits(model, expected)
    report = attached.stream[-1]
    assert (report.examples, attached.batches.trained) == (2 * N // 3, 2 * N // 3)
    assert (report.labels.dropped, report.labels.unmatched) == (N // 3, 0)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_the_source_is_held_up_until_what_was_read_is_learned(in_flight):
    losses, early = [], []

    def loss(outputs, y):
        losses.append(y)
        return F.cross_entropy(outputs, y)

    def source():
        for i in range(N):
            learned = (
                i + 1 - in_flight
            )  # each was given its loss when it was predicted, and when it was trained
            if len(losses) < 2 * learned:
                early.append(i)
            yield X[i : i + 1], Y[i : i + 1]

    run(ak.Threads(2), ak.Sentinel.stream(source(), loss, in_flight=in_flight))
    assert len(losses) == 2 * N
    assert not early


def test_a_stream_that_fits_no_gate_fails_with_the_reason():
    with ak.run(network(), ak.Threads(2)) as session:
        attached = session.attach(stream((torch.randn(40, 5), Y[:40])))
        with pytest.raises(ak.AkkordeonError, match="all 10 of its batches were refused"):
            attached.wait(WAIT_S)


def test_a_record_of_a_stream_is_replayed_to_the_same_bits(tmp_path):
    model, _ = run(ak.Threads(2), stream(delay=3, name="s"), record=tmp_path / "record")
    again = ak.replay(tmp_path / "record", network(), [stream(delay=3, name="s")])
    assert same_bits(again.module(), model)


def test_replicas_have_no_streams():
    with ak.run(ak.Downpour(network(), replicas=2)) as session, pytest.raises(RecipeError, match="one row"):
        session.attach(stream())


@pytest.mark.parametrize("sources", ["pairs", "keys"])
@pytest.mark.parametrize("engine", [ak.Simulator, lambda: ak.Threads(1)], ids=["simulator", "1 worker"])
def test_a_resumed_stream_has_the_bits_and_scores_of_one_that_never_stopped(engine, sources, tmp_path):
    def sentinel():
        source = {"source": questions_and_answers()} if sources == "keys" else {"delay": 5}
        return stream(**source, max_waiting=6, window=9, name="s")

    kept = []
    with ak.run(network(), engine()) as session:
        session.subscribe(lambda r: kept.append(r) if hasattr(r, "sentinels") else None)
        whole = session.attach_all([sentinel(), ak.Sentinel.checkpoint(every_updates=13)])[0]
        session.wait(WAIT_S)
        model = session.module()
    folder = CheckpointFolder(tmp_path)
    for checkpoint in kept[:3]:
        folder.write(checkpoint)
        checkpoint = folder.latest()
        again, attached = run(engine(), sentinel(), resume=checkpoint)
        assert same_bits(again, model)
        one, other = attached.stream[-1], whole.stream[-1]
        assert (one.overall, one.window, one.fading) == (other.overall, other.window, other.fading)
        assert (one.labels, attached.batches) == (other.labels, whole.batches)


def test_under_way_nothing_is_learned_twice_or_left_out():
    def sentinel():
        return stream((torch.cat([torch.arange(N)[:, None], X[:, 1:]], 1), Y), delay=5, in_flight=4, name="s")

    with ak.run(network(), ak.Threads(4)) as session:
        attached = session.attach(sentinel())
        checkpoint = session.checkpoint(timeout=WAIT_S)
        attached.wait(WAIT_S)
    state = checkpoint.sentinels["s"]
    not_done = [int(e["x"][0, 0]) for e in state["stream"]["to_train"] + state["stream"]["to_predict"]]
    not_done += [int(e["x"][0, 0]) for e in state["stream"]["labels"]["waiting"]]
    not_done += [int(x[0, 0]) for kind, x, *_ in (e for e in state["stream"]["events"] if e[0] == "pair")]
    read = state["position"]["place"][1]
    assert sorted(not_done) == sorted(set(not_done))
    assert state["batches"][1] == read - len(not_done)
    _, attached = run(ak.Threads(2), sentinel(), resume=checkpoint)
    assert attached.batches.as_tuple() == (N, N, 0, 0)
    assert attached.stream[-1].examples == N


def test_a_file_is_followed_and_a_resumed_stream_goes_on_at_its_place(tmp_path):
    path = tmp_path / "data.csv"
    names = [f"x{i}" for i in range(6)]
    rows = [",".join(map(repr, [*x.tolist(), float(y)])) + "\n" for x, y in zip(X, Y, strict=True)]
    path.write_text(",".join([*names, "y"]) + "\n" + "".join(rows[:20]))

    def sentinel(source):
        return stream(source, split=Columns(names, "y", classes=[0, 1]), name="s")

    source = GrowingFile(path, poll_s=0.001)
    with ak.run(network(), ak.Threads(2)) as session:
        twenty = threading.Event()
        session.subscribe(lambda record: twenty.set() if isinstance(record, TrainingProgress) else None)
        session.attach(replace(sentinel(source), report_every=20))
        assert twenty.wait(WAIT_S)
        checkpoint = session.checkpoint(timeout=WAIT_S)  # while the reader waits for the file
    with path.open("a") as file:
        file.writelines(rows[20:])
    model, attached = run(ak.Threads(2), sentinel(GrowingFile(path, follow=False)), resume=checkpoint)
    expected, right = plain_loop(0)
    assert same_bits(model, expected)
    assert attached.stream[-1].overall["accuracy"] == sum(right) / N


class Queue:
    """A source that gives what was not acknowledged again to whoever comes next."""

    def __init__(self, questions):
        self.left = dict(questions)
        self._at = None

    def __iter__(self):
        for key, (x, y) in list(self.left.items()):
            self._at = None
            yield ak.Question(key, x)
            self._at = key
            yield ak.Answer(key, y)

    def state_dict(self):
        return {"answered": self._at}

    def load_state_dict(self, state):
        pass

    def acknowledge(self, positions):
        for position in positions:
            self.left.pop(position["answered"], None)


def test_what_was_learned_is_acknowledged_and_nothing_else():
    queue = Queue({i: (X[i : i + 1], Y[i : i + 1]) for i in range(N)})
    with ak.run(network(), ak.Threads(2)) as session:
        first = session.attach(stream(queue, samples=20))
        first.wait(WAIT_S)
    assert first.batches.trained == 20
    assert len(queue.left) >= N - 20
    _, second = run(ak.Threads(2), stream(queue))
    assert not queue.left
    assert second.batches.trained >= N - 20


class Slow(Queue):
    """It takes its time over each that it need not give again."""

    def acknowledge(self, positions):
        threading.Event().wait(0.002)  # never set
        super().acknowledge(positions)


def test_a_stream_ends_once_its_source_was_told_of_all_that_was_learned():
    queue = Slow({i: (X[i : i + 1], Y[i : i + 1]) for i in range(N)})
    with ak.run(network(), ak.Threads(2)) as session:
        session.attach(stream(queue, in_flight=8)).wait(WAIT_S)
        assert not queue.left


class Failing:
    """A source that is out of reach once."""

    def __init__(self, at):
        self._pairs = iter([(X[i : i + 1], Y[i : i + 1]) for i in range(N)])
        self._left = at

    def __iter__(self):
        return self

    def __next__(self):
        self._left -= 1
        if self._left == -1:
            raise OSError("out of reach")
        return next(self._pairs)


def test_a_stream_whose_source_was_out_of_reach_goes_on_where_it_was():
    with ak.run(network(), ak.Threads(2)) as session:
        attached = session.attach(stream(Failing(at=17), delay=5))
        with pytest.raises(ak.AkkordeonError, match="out of reach"):
            attached.wait(WAIT_S)
        attached.restart().wait(WAIT_S)
        model = session.module()
    expected, right = plain_loop(5)
    assert same_bits(model, expected)
    assert attached.stream[-1].overall["accuracy"] == sum(right) / N


def test_a_stream_that_was_detached_while_its_source_stalled_goes_on_where_it_was():
    twenty, go_on = threading.Event(), threading.Event()

    def stalling():
        for i in range(N):
            if i == 20:
                twenty.set()
                go_on.wait(WAIT_S)
            yield X[i : i + 1], Y[i : i + 1]

    with ak.run(network(), ak.Threads(2)) as session:
        first = session.attach(stream(stalling(), delay=5, name="s"))
        assert twenty.wait(WAIT_S)
        first.detach()
        first.wait(WAIT_S)
        checkpoint = session.checkpoint(timeout=WAIT_S)
        go_on.set()
    assert first.stopped
    assert first.stream[-1].labels.waiting == 5
    model, attached = run(ak.Threads(2), stream(stalling(), delay=5, name="s"), resume=checkpoint)
    expected, right = plain_loop(5)
    assert same_bits(model, expected)
    assert attached.stream[-1].overall["accuracy"] == sum(right) / N


@pytest.mark.parametrize("gate", ["gate/0", "gate/2"])
def test_a_gate_that_crashes_comes_back_and_every_example_is_accounted_for(gate):
    gates = network().gates
    row = ak.Network(gates, recovery=ak.Recovery(snapshot_every=5))
    costs = {"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)}
    engine = ak.Simulator(compute=Compute(costs), faults=[Crash(who=gate, at_s=0.4, back_after_s=0.2)])
    with ak.run(row, engine) as session:
        attached = session.attach(stream(delay=3, in_flight=2))
        session.wait(WAIT_S)
    sent, trained, refused, lost = attached.batches.as_tuple()
    assert sent == trained + refused + lost == N
    assert lost + refused <= 4
    assert attached.stream[-1].examples == N


class Threshold:
    """Sees a change where the mean of ten losses is twice that of the first hundred."""

    def __init__(self):
        self.losses = []

    @property
    def drift_detected(self):
        first, last = self.losses[:100], self.losses[-10:]
        found = len(self.losses) > 110 and sum(last) / 10 > 2 * sum(first) / 100
        if found:
            self.losses = []
        return found

    def update(self, x):
        self.losses.append(x)


def turned(react=(), **options):
    """After 130 examples the labels are the other way round."""
    y = Y.repeat(4)
    y[130:] = 1 - y[130:]
    return stream((X.repeat(4, 1), y), drift=ak.Drift(Threshold(), react=react), name="s", **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_alarm_is_reported_at_once_and_listed_by_the_number_of_its_example(name):
    alarms = []
    with ak.run(network(), ALL_ENGINES[name]()) as session:
        session.subscribe(lambda record: alarms.append(record) if isinstance(record, DriftAlarm) else None)
        attached = session.attach(turned())
        session.wait(WAIT_S)
    (alarm,) = alarms
    assert (alarm.sentinel, alarm.on) == ("s", "loss")
    assert 130 < alarm.examples < 150
    assert attached.stream[-1].alarms == (alarm.examples,)


def test_a_resumed_stream_has_the_alarms_of_before():
    kept = []
    with ak.run(network(), ak.Simulator()) as session:
        session.subscribe(lambda r: kept.append(r) if hasattr(r, "sentinels") else None)
        first = session.attach_all([turned(), ak.Sentinel.checkpoint(every_updates=150)])[0]
        session.wait(WAIT_S)
    _, again = run(ak.Simulator(), turned(), resume=kept[0])
    assert first.stream[-1].alarms == again.stream[-1].alarms != ()
    assert again.stream[-1].examples == 4 * N


REACTIONS = {
    "more learning": ak.MoreLearning(factor=1.5, updates=40),
    "reset": ak.ResetOptimizers(["gate/0", "gate/2"]),
}


def turned_in_a_plain_loop(reaction):
    """As anybody would write it who reacts after the prediction of the alarm, before learning from it."""
    gates = [gate.module for gate in network().gates]
    model, detector, boosted = nn.Sequential(*gates), Threshold(), 0
    optimizers = [sgd(gate.parameters()) for gate in gates]
    xs, ys = turned().batches
    for x, y in zip(xs.split(1), ys.split(1), strict=True):
        with torch.no_grad():
            detector.update(F.cross_entropy(model(x), y).item())
        is_alarm = detector.drift_detected
        if is_alarm and reaction == "reset":
            optimizers = [sgd(gates[0].parameters()), optimizers[1], sgd(gates[2].parameters())]
        elif is_alarm and reaction == "more learning":
            boosted = 40
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 * 1.5 if boosted else 0.1
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        boosted = max(0, boosted - 1)
    return model


def same_weights(one, other):
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize(("name", "reaction"), each_on_engines(*REACTIONS))
def test_gates_react_between_the_prediction_of_an_alarm_and_learning_from_it(name, reaction):
    model, _ = run(ALL_ENGINES[name](), turned(REACTIONS[reaction]))
    assert same_weights(model, turned_in_a_plain_loop(reaction))
    assert not same_weights(model, turned_in_a_plain_loop("none"))


@pytest.mark.parametrize("reaction", REACTIONS)
def test_reactions_are_replayed_to_the_same_bits(reaction, tmp_path):
    record = tmp_path / "record"
    model, _ = run(ak.Threads(2), turned(REACTIONS[reaction]), record=record)
    again = ak.replay(record, network(), [turned(REACTIONS[reaction])])
    assert same_bits(again.module(), model)


def test_a_boost_goes_on_in_a_checkpoint():
    kept = []
    with ak.run(network(), ak.Simulator()) as session:
        session.subscribe(lambda r: kept.append(r) if hasattr(r, "sentinels") else None)
        session.attach_all([turned(REACTIONS["more learning"]), ak.Sentinel.checkpoint(every_updates=145)])
        session.wait(WAIT_S)
        model = session.module()
    assert [stage.learner["boost"][0] for stage in kept[0].stages.values()] == [1.5, 1.5, 1.5]
    again, _ = run(ak.Simulator(), turned(), resume=kept[0])
    assert same_bits(again, model)


def shadowed_in_a_plain_loop(examples):
    """A fresh model learns beside since the alarm, and takes over if its loss was lower in the later half."""
    detector, shadow, tried, lead = Threshold(), None, 0, 0.0
    model = network().module()
    optimizer = sgd(model.parameters())
    for x, y in zip(*(each.split(1) for each in turned().batches), strict=True):
        with torch.no_grad():
            loss = F.cross_entropy(model(x), y).item()
        detector.update(loss)
        if shadow is not None:
            other, others = shadow
            with torch.no_grad():
                own = F.cross_entropy(other(x), y).item()
            learn(other, others, x, y)
            tried += 1
            lead += (loss - own) * (tried > examples / 2)
            if tried == examples:
                model, optimizer = shadow if lead > 0 else (model, optimizer)
                shadow = None
        elif detector.drift_detected:
            other = network().module()
            shadow = other, sgd(other.parameters())
        learn(model, optimizer, x, y)
    return model


def learn(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize(("name", "examples"), each_on_engines(60, 40))
def test_a_shadow_takes_over_if_it_was_better_than_the_gates(name, examples):
    tried, takes_over = [], examples == 60
    with ak.run(network(), ALL_ENGINES[name]()) as session:
        session.subscribe(lambda record: tried.append(record) if isinstance(record, ShadowTried) else None)
        session.attach(turned(ak.Shadow(examples)))
        session.wait(WAIT_S)
        model = session.module()
    assert same_bits(model, shadowed_in_a_plain_loop(examples))
    (one,) = tried
    assert (one.examples, one.takes_over, one.shadow < one.at_work) == (131 + examples, *[takes_over] * 2)


def test_a_shadow_is_replayed_to_the_same_bits(tmp_path):
    model, _ = run(ak.Threads(2), turned(ak.Shadow(60)), record=tmp_path / "record")
    again = ak.replay(tmp_path / "record", network(), [turned(ak.Shadow(60))])
    assert same_bits(again.module(), model)


def test_with_several_in_flight_the_gates_are_empty_when_a_shadow_takes_over():
    tried = []
    slow = Compute({"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)})
    with ak.run(network(), ak.Simulator(compute=slow)) as session:
        session.subscribe(lambda record: tried.append(record) if isinstance(record, ShadowTried) else None)
        attached = session.attach(turned(ak.Shadow(60), in_flight=4))
        session.wait(WAIT_S)
        assert [gate.refused for gate in session.status().gates] == [{}] * 3
    assert [record.takes_over for record in tried] == [True]
    assert attached.batches.as_tuple() == (4 * N, 4 * N, 0, 0)


def test_a_gate_that_is_not_there_cannot_be_reset():
    with (
        ak.run(network(), ak.Simulator()) as session,
        pytest.raises(RecipeError, match="the optimizer of 'gate/7' cannot be reset: the gates are gate/0, "),
    ):
        session.attach(turned(ak.ResetOptimizers(["gate/7"])))
