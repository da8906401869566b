"""A recorded run, replayed, ends with the same bits, or says at the first message why it cannot."""

from __future__ import annotations

import errno
import gzip
import io
import json
import random
import re
import tracemalloc
from contextlib import suppress
from functools import partial

import pytest
import torch
from tests.support.engines import ENGINES
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import akkordeon as ak
from akkordeon.cli.main import app
from akkordeon.core.errors import RecipeError, RecordError, ReplayError
from akkordeon.core.reports import EpochDone
from akkordeon.session.records import file_format
from akkordeon.session.records import record as record_file
from akkordeon.session.records.file_format import FORMAT
from akkordeon.session.records.record import Record


def momentum(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def network(dropout=ak.nn.Dropout, seed=0):
    torch.manual_seed(seed)
    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), dropout(0.3)), momentum),
            ak.Gate(nn.Sequential(ak.nn.DropConnectLinear(16, 8, 0.2), nn.Tanh()), momentum,
                    staleness=ak.DelayCompensation()),
            ak.Gate(nn.Linear(8, 3), momentum, clip_norm=1.0),
        ]
    )  # fmt: skip


def data(seed, batches=40):
    rng = torch.Generator().manual_seed(seed)
    return [(x, x[:, :3].argmax(1)) for x in torch.randn(batches, 8, 6, generator=rng)]


def sentinels(data_seed=0):
    return [
        ak.Sentinel.train(data(data_seed), F.cross_entropy, in_flight=4, epochs=2, name="a"),
        ak.Sentinel.train(data(data_seed + 1), F.cross_entropy, in_flight=3, name="b"),
        ak.Sentinel.validate(
            data(9, 3), F.cross_entropy, scores={"accuracy": ak.accuracy}, every_updates=9, name="v"
        ),
    ]


def recorded(path, engine, seed=0, net=network, after=lambda session: None):
    """The states a recorded run ends with."""
    with ak.run(net(), engine=engine, seed=seed, record=path) as session:
        for sentinel in sentinels():
            session.attach(sentinel)
        after(session)
        session.wait(timeout=60)
    return session.states()


def assert_equal_bits(states, expected):
    assert states.keys() == expected.keys()
    for gate in expected:
        for name, tensor in expected[gate].items():
            assert torch.equal(states[gate][name], tensor), (gate, name)


@pytest.mark.parametrize("name", ENGINES)
def test_a_replay_ends_with_the_bits_of_the_run(name, tmp_path):
    states = recorded(tmp_path / "r", ENGINES[name]())
    assert_equal_bits(ak.replay(tmp_path / "r", network(), sentinels()).states, states)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 20))]
)
def test_two_workers_two_trainers_a_validator_and_dropout_replay_to_the_bit(seed, tmp_path):
    states = recorded(tmp_path / "r", ak.Threads(2), seed)
    again = ak.replay(tmp_path / "r", network(), sentinels())
    assert_equal_bits(again.states, states)
    assert again.messages > 1000


def test_runs_on_two_workers_differ_so_there_is_something_to_replay(tmp_path):
    runs = [recorded(tmp_path / "r", ak.Threads(2)) for _ in range(5)]
    first = runs[0]["gate/0"]["0.weight"]
    assert any(not torch.equal(run["gate/0"]["0.weight"], first) for run in runs[1:])


def with_dropout_of_torch(gates):
    """A row of three gates, so many of which draw from the generator of the process."""
    torch.manual_seed(0)
    drops = [nn.Dropout(0.3) if i < gates else nn.Identity() for i in range(2)]
    layers = [nn.Linear(n_in, n_out) for n_in, n_out in ((6, 16), (16, 8), (8, 3))]
    modules = [*(nn.Sequential(layer, drop) for layer, drop in zip(layers, drops, strict=False)), layers[-1]]
    return ak.Network([ak.Gate(module, partial(torch.optim.SGD, lr=0.01)) for module in modules])


@pytest.mark.parametrize(
    ("name", "gates"), [("threads, 2 workers", 1), ("threads, 1 worker", 2), ("simulator", 2)]
)
def test_dropout_of_torch_replays_where_one_gate_or_one_worker_draws(name, gates, tmp_path):
    """README and docs/simulator.md promise it; with two gates on two workers, who draws first decides."""
    states = recorded(tmp_path / "r", ENGINES[name](), net=lambda: with_dropout_of_torch(gates))
    again = ak.replay(tmp_path / "r", with_dropout_of_torch(gates), sentinels())
    assert_equal_bits(again.states, states)


def test_what_comes_from_outside_is_replayed_too(tmp_path):
    def outside(session):
        session.predict(torch.ones(5, 6), timeout=60)
        late = session.attach(ak.Sentinel.train(data(5), F.cross_entropy, epochs=100, name="late"))
        timed = ak.Sentinel.validate(data(9, 2), F.cross_entropy, every_s=0.01, name="timed")
        session.attach(timed)
        session.module(timeout=60)
        session.detach("late", drop=True)
        late.wait(timeout=60)
        session.status(timeout=60)

    states = recorded(tmp_path / "r", ak.Threads(2), after=outside)
    more = [
        ak.Sentinel.train(data(5), F.cross_entropy, epochs=100, name="late"),
        ak.Sentinel.validate(data(9, 2), F.cross_entropy, every_s=0.01, name="timed"),
    ]
    again = ak.replay(tmp_path / "r", network(), [*sentinels(), *more])
    assert_equal_bits(again.states, states)
    assert {report.sentinel for report in again.reports} >= {"a", "b", "v"}


@pytest.mark.parametrize("loader", [False, True])
def test_sentinels_that_go_on_with_the_same_data_are_replayed(loader, tmp_path):
    x, y = torch.randn(24, 6), torch.randint(3, (24,))
    source = DataLoader(TensorDataset(x, y), 8, shuffle=True) if loader else ak.Batches(x, y, 8, shuffle=True)
    recipes = [ak.Sentinel.train(source, F.cross_entropy, name=name) for name in "ab"]
    with ak.run(network(), engine=ak.Threads(1), record=tmp_path / "run") as session:
        for recipe in recipes:
            session.attach(recipe).wait(60)
    replayed = ak.replay(tmp_path / "run", network(), recipes)
    assert_equal_bits(replayed.states, session.states())


def test_sentinels_without_names_are_taken_in_their_order(tmp_path):
    def unnamed():
        return [ak.Sentinel.train(data(i), F.cross_entropy) for i in range(2)]

    with ak.run(network(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        for sentinel in unnamed():
            session.attach(sentinel)
        session.wait(timeout=60)
    assert_equal_bits(ak.replay(tmp_path / "r", network(), unnamed()).states, session.states())


def test_downpour_replays_with_a_replica_that_joined_while_it_ran(tmp_path):
    def downpour():
        return ak.Downpour(network(), replicas=2)

    def trainers():
        return [
            ak.Sentinel.train(data(0), F.cross_entropy, name="all"),
            ak.Sentinel.train(data(1), F.cross_entropy, name="late", replica=2),
        ]

    with ak.run(downpour(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        everywhere, late = trainers()
        session.attach(everywhere)
        session.add_replica()
        session.attach(late)
        session.wait(timeout=60)
    again = ak.replay(tmp_path / "r", downpour(), trainers())
    assert_equal_bits({"all": again.module().state_dict()}, {"all": session.module().state_dict()})


def shuffled(seed, name=None, epochs=1, **more):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=rng)
    batches = ak.Batches(x, x[:, :3].argmax(1), 8, shuffle=True, seed=seed)
    return ak.Sentinel.train(batches, F.cross_entropy, epochs=epochs, name=name, **more)


def downpour():
    return ak.Downpour(network(), replicas=2)


def assert_replays(recipe, play, again, tmp_path):
    """A run in which ``play`` attached sentinels is replayed with ``again`` to the same bits."""
    with ak.run(recipe(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        play(session)
        session.wait(timeout=60)
    replayed = ak.replay(tmp_path / "r", recipe(), again)
    assert_equal_bits({"all": replayed.module().state_dict()}, {"all": session.module().state_dict()})


@pytest.mark.parametrize("recipe", [network, downpour])
def test_a_name_that_was_given_twice_is_replayed_with_both_of_its_recipes(recipe, tmp_path):
    """The last recipe of a name stood for all of them, and "the data of 'a'" was blamed."""

    def recipes():
        return [shuffled(0, "a", epochs=2), shuffled(5, "a"), shuffled(6, "a")]

    def one_after_the_other(session):
        for sentinel in recipes():
            session.attach(sentinel).wait(60)

    assert_replays(recipe, one_after_the_other, recipes(), tmp_path)


def test_a_recipe_that_was_attached_again_and_again_is_given_to_a_replay_once(tmp_path):
    """As long as a name had one recipe for good, this worked; it still does, of a Downpour too."""

    def again_and_again(session):
        once = shuffled(0, "a")
        for _ in range(3):
            session.attach(once).wait(60)

    assert_replays(downpour, again_and_again, [shuffled(0, "a")], tmp_path)


def test_trainers_without_names_are_replayed_in_their_order_on_a_downpour(tmp_path):
    """All of them were dealt under the base "train" at once, so the last one stood for all."""

    def recipes():
        return [shuffled(0, epochs=2), shuffled(5), shuffled(6, replica=1)]

    def one_after_the_other(session):
        for sentinel in recipes():
            session.attach(sentinel).wait(60)

    def at_once(session):
        for sentinel in recipes():
            session.attach(sentinel)

    for play in (one_after_the_other, at_once):
        assert_replays(downpour, play, recipes(), tmp_path)


@pytest.mark.parametrize("loader", [False, True], ids=["Batches", "DataLoader"])
def test_a_replay_deals_to_the_replicas_that_lived_when_a_trainer_came(loader, tmp_path):
    """It dealt to those of the recipe: part 2 of 3 was asked for, or a half taken for the whole."""

    def recipe():
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        y = x[:, :3].argmax(1)
        source = DataLoader(TensorDataset(x, y), 8, shuffle=True) if loader else ak.Batches(x, y, 8)
        return ak.Sentinel.train(source, F.cross_entropy, name="a", samples=72)

    def joined(session):
        session.add_replica()
        session.attach(recipe())

    def left(session):
        session.remove_replica(0)
        session.attach(recipe())

    def in_between(session):
        once = recipe()
        session.attach(once).wait(60)
        session.add_replica()
        session.attach(once).wait(60)
        session.remove_replica(1)
        session.attach(once)

    for play in (joined, left, in_between):
        assert_replays(downpour, play, [recipe()], tmp_path)


def test_an_attach_that_was_refused_takes_no_recipe_in_a_replay(tmp_path):
    """Whoever came before the refused one was in the record, and the next took another's recipe."""

    def with_one_refused(session):
        with pytest.raises(RecipeError, match="in flight"):
            session.attach_all([shuffled(7), shuffled(7, in_flight=10_000)])
        session.attach(shuffled(0)).wait(60)

    for recipe in (network, downpour):
        assert_replays(recipe, with_one_refused, [shuffled(0)], tmp_path)


def test_a_recipe_that_cannot_be_dealt_as_it_was_is_refused_with_the_reason(tmp_path):
    """Data were blamed that were the same."""
    with ak.run(downpour(), record=tmp_path / "r") as session:
        session.attach(shuffled(0, "a")).wait(60)
    for recipe, given in ((downpour(), shuffled(0, "a", replica=0)), (network(), shuffled(0, "a"))):
        with pytest.raises(ReplayError, match=r"'a' was dealt to the replicas 0, 1"):
            ak.replay(tmp_path / "r", recipe, [given])


def test_a_failing_run_replays_up_to_its_failure(tmp_path):
    def source():
        yield from data(0, 5)
        raise OSError("the disk is gone")

    def broken():
        return [ak.Sentinel.train(source(), F.cross_entropy, name="broken")]

    with ak.run(network(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        attached = session.attach(broken()[0])
        with pytest.raises(RuntimeError, match="the disk is gone"):
            attached.wait(timeout=60)
    assert_equal_bits(ak.replay(tmp_path / "r", network(), broken()).states, session.states())


# ── where it cannot ──────────────────────────────────────────────────────────────────────────────────


def test_a_module_with_unseeded_randomness_is_found_at_its_first_message(tmp_path):
    class Noise(nn.Module):
        def __init__(self, p):
            super().__init__()

        def forward(self, x):
            return x * (1 + random.random() / 100)

    def net():
        return network(dropout=Noise)

    recorded(tmp_path / "r", ak.Threads(2), net=net)
    with pytest.raises(ReplayError, match=r"Forward .* at gate/0.*randomness of its own"):
        ak.replay(tmp_path / "r", net(), sentinels())


def test_other_data_is_found_at_the_first_message_that_carries_it(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    with pytest.raises(ReplayError, match=r"at reader/a#1.*the data of 'a'"):
        ak.replay(tmp_path / "r", network(), sentinels(data_seed=7))


def test_another_network_is_found_at_its_first_output(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    with pytest.raises(ReplayError, match=r"Forward .* at gate/0.*the network's modules, weights or rules"):
        ak.replay(tmp_path / "r", network(seed=1), sentinels())


def test_another_version_of_torch_is_named_where_it_shows(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    record = Record(tmp_path / "r")
    record.header["torch"] = "1.0"
    ak.replay(record, network(), sentinels())  # as long as it does not show, it is no reason
    with pytest.raises(ReplayError, match=r"torch \(1\.0 then"):
        ak.replay(record, network(seed=1), sentinels())


def test_a_sentinel_that_was_not_given_is_asked_for_by_name(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    with pytest.raises(ReplayError, match="has a sentinel 'v'"):
        ak.replay(tmp_path / "r", network(), sentinels()[:2])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no record", id="text"),
        pytest.param(gzip.compress(b'{"format": 99}\n'), id="another format"),
    ],
)
def test_a_file_that_is_no_record_is_refused(content, tmp_path):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(RecordError):
        ak.replay(tmp_path / "r", network())


def test_a_record_that_breaks_off_is_refused(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    whole = (tmp_path / "r").read_bytes()
    (tmp_path / "r").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"breaks off after .* not a whole one.*partial=True"):
        ak.replay(tmp_path / "r", network(), sentinels())


def test_a_record_that_was_cut_at_the_end_of_a_line_is_no_whole_one(tmp_path):
    """It replayed "to the same bits": of nothing."""
    recorded(tmp_path / "r", ak.Threads(2))
    lines = gzip.decompress((tmp_path / "r").read_bytes()).splitlines(keepends=True)
    for kept in (1, 2, len(lines) // 2, len(lines) - 1):
        (tmp_path / "cut").write_bytes(gzip.compress(b"".join(lines[:kept])))
        with pytest.raises(RecordError, match=f"breaks off after {kept - 1} lines"):
            ak.replay(tmp_path / "cut", network(), sentinels())


def test_the_record_of_a_run_that_was_killed_replays_as_far_as_it_goes(tmp_path):
    """It could not be read at all."""
    with ak.run(network(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        attached = session.attach_all(sentinels())
        attached[1].wait(timeout=60)
        (tmp_path / "killed").write_bytes((tmp_path / "r").read_bytes())  # what is on the disk then
        session.wait(timeout=60)
    record = Record(tmp_path / "killed")
    assert not record.whole
    found = ak.replay(record, network(), sentinels(), partial=True)
    whole = ak.replay(tmp_path / "r", network(), sentinels())
    assert (found.whole, whole.whole) == (False, True)
    assert 500 < found.messages < whole.messages
    assert found.states.keys() == whole.states.keys()
    told = [report for report in found.reports if isinstance(report, EpochDone)]
    assert told == [report for report in whole.reports if isinstance(report, EpochDone)][: len(told)]


CHANGES = ("flip", "cut", "append", "drop a line", "double a line", "swap lines", "other line", "other field")


def damaged(whole, change, rng):
    """A record with some damage, to its bytes or to a line of it."""
    if change == "flip":
        at = rng.randrange(len(whole))
        return whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
    if change == "cut":
        return whole[: rng.randrange(len(whole))]
    if change == "append":
        return whole + rng.randbytes(rng.randint(1, 50))
    lines = gzip.decompress(whole).decode().splitlines()
    at, other = rng.sample(range(len(lines) - 1), 2)
    if change == "drop a line":
        del lines[at]
    elif change == "double a line":
        lines.insert(at, lines[at])
    elif change == "swap lines":
        lines[at], lines[other] = lines[other], lines[at]
    elif change == "other line":
        lines[at] = rng.choice(["5", "null", "{}", "[]", "NaN", "[[[", '"x"', "[0,1,2]"])
    else:
        content = json.loads(lines[at])
        key = rng.choice(list(content)) if isinstance(content, dict) else rng.randrange(len(content))
        content[key] = rng.choice([None, -1, 1.5, "7", [], {}, 10**9])
        lines[at] = json.dumps(content)
    return gzip.compress("\n".join(lines).encode() + b"\n", 1)


@pytest.mark.parametrize("trailer", [True, False], ids=["whole", "breaking off"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_damage_to_a_record_is_told_in_a_sentence(change, trailer, tmp_path):
    """Some gave tracebacks of zlib, IndexError or KeyError, and some passed."""
    with ak.run(network(), engine=ak.Simulator(), record=tmp_path / "r") as session:
        session.attach(ak.Sentinel.train(data(0, 3), F.cross_entropy, name="a"))
        session.wait(timeout=60)
    whole = (tmp_path / "r").read_bytes()
    if not trailer:
        whole = gzip.compress(b"".join(gzip.decompress(whole).splitlines(keepends=True)[:-1]))
    recipe, rng = sentinels()[:1], random.Random(change)
    for _ in range(15):
        (tmp_path / "d").write_bytes(damaged(whole, change, rng))
        found = None
        with suppress(RecordError):
            found = ak.replay(tmp_path / "d", network(), recipe, partial=not trailer)
        if found is not None:
            assert not trailer or change == "flip"  # a bit of gzip's own header says nothing
            assert found.whole is trailer


def test_views_that_numpy_does_not_know_are_recorded(tmp_path):
    """The digest of a conjugate view raised, and the gate was blamed."""

    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return torch.fft.fft(self.linear(x)).conj()

    class Length(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, wave):
            return self.linear(wave.abs())

    def row():
        torch.manual_seed(0)
        return ak.Network([ak.Gate(Wave(), momentum), ak.Gate(Length(), momentum)])

    trainer = ak.Sentinel.train(data(0, 5), F.cross_entropy, name="a")
    with ak.run(row(), record=tmp_path / "r") as session:
        assert session.attach(trainer).wait(timeout=60).batches.trained == 5
    assert_equal_bits(ak.replay(tmp_path / "r", row(), [trainer]).states, session.states())


def test_a_full_disk_ends_the_record_and_not_the_run(tmp_path, caplog):
    """The gate that was at work was blamed, and the session ended."""

    class Full(io.RawIOBase):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    with ak.run(network(), engine=ak.Threads(2), record=tmp_path / "r") as session:
        session.attach(ak.Sentinel.train(data(0), F.cross_entropy, name="a")).wait(timeout=60)
        session._recorder._file = Full()
        training = session.attach(ak.Sentinel.train(data(0), F.cross_entropy, epochs=3, name="b"))
        assert training.wait(timeout=60).batches.trained == 120
    assert caplog.text.count("No space left on device") == 1
    assert "breaks off, and the run goes on without" in caplog.text


@pytest.mark.parametrize("what", ["train", "simulate"])
def test_a_command_whose_record_breaks_off_has_not_succeeded(tmp_path, monkeypatch, what):
    """It ended with exit code 0, though what it was asked to keep cannot be replayed."""
    encoded = file_format.encoded

    def full(content):
        if isinstance(content, list):
            raise OSError(errno.ENOSPC, "No space left on device")
        return encoded(content)

    monkeypatch.setattr(file_format, "encoded", full)
    world = tmp_path / "world.toml"
    world.write_text(
        'title = "small"\n[train]\ntask = "digits"\nepochs = 1\n[cost]\nforward_s = 0.1\nbackward_s = 0.2\n'
    )
    arguments = {"train": ["train", "--epochs", "1"], "simulate": ["simulate", str(world)]}[what]
    result = CliRunner().invoke(app, [*arguments, "--record", str(tmp_path / "r")])
    assert result.exit_code == 1
    assert "batches" in result.stdout
    assert re.search(r"akkordeon: the record .* breaks off.*No space left", result.stderr)


def test_a_record_that_cannot_be_begun_is_refused(tmp_path):
    with pytest.raises(RecordError, match="cannot be written: No such file or directory"):
        ak.run(network(), record=tmp_path / "none" / "r")
    with pytest.raises(RecordError, match="cannot be written: No space left on device"):
        ak.run(network(), record="/dev/full")


def test_a_record_says_why_it_cannot_be_read(tmp_path):
    (tmp_path / "r").write_bytes(gzip.compress(b"[" * 100_000 + b"\n"))
    for path, match in ((tmp_path / "r", "line 1 is none"), (tmp_path / "none", "No such file")):
        with pytest.raises(RecordError, match=match):
            Record(path)


HEADER = b'{"format":%d,"seed":0}\n' % FORMAT
MUCH = {
    "a line without an end": lambda: HEADER + b'"' + bytes(20_000_000),
    "the first line": lambda: b"[" + bytes(20_000_000),
    "a line again and again": lambda: HEADER + b'[0,"replica",0]\n' * 1_000_000,
}


@pytest.mark.parametrize("content", MUCH.values(), ids=MUCH)
def test_a_small_file_that_unpacks_to_much_is_refused_before_it_fills_the_memory(
    content, tmp_path, monkeypatch
):
    """It was unpacked as a whole, whatever its size, and only then looked at."""
    monkeypatch.setattr(record_file, "LINE_BYTES_MAX", 1_000_000)
    (tmp_path / "r").write_bytes(gzip.compress(content(), 1))
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match="is damaged: "):
            Record(tmp_path / "r")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_inputs_that_are_too_large_for_a_line_are_said_not_to_be_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(file_format, "LINE_BYTES_MAX", 1_000)
    recorded(tmp_path / "r", ak.Threads(2), after=lambda session: session.predict(torch.zeros(100, 6), 60))
    with pytest.raises(ReplayError, match="the inputs of 'predict' are not in the record"):
        ak.replay(tmp_path / "r", network(), sentinels())


def test_the_record_is_json_lines_and_small(tmp_path):
    recorded(tmp_path / "r", ak.Threads(2))
    with gzip.open(tmp_path / "r", "rt") as file:
        handled = [line for line in map(json.loads, list(file)[1:-1]) if line[1] == "handle"]
    assert len(handled) > 1000
    assert (tmp_path / "r").stat().st_size / len(handled) < 60  # bytes a message


@pytest.mark.parametrize("name", ENGINES)
def test_a_record_is_of_its_own_session_alone(name, tmp_path):
    """A second session on an engine that was at work took the first one's record from it."""
    engine = ENGINES[name]()
    trainer = ak.Sentinel.train(data(0), F.cross_entropy, name="a")
    with ak.run(network(), engine=engine, record=tmp_path / "r") as session:
        with pytest.raises(ak.AkkordeonError, match="session"):
            ak.run(network(), engine=engine, record=tmp_path / "other")
        session.attach(trainer).wait(timeout=60)
    with ak.run(network(), engine=engine) as unrecorded:
        unrecorded.attach(trainer).wait(timeout=60)
    assert engine.recorder is None
    assert_equal_bits(ak.replay(tmp_path / "r", network(), [trainer]).states, session.states())
    assert Record(tmp_path / "other").lines == []
