"""Any message to any actor: it is refused, with a reason and a count, or it is one that it may well take."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fuzz import Fuzz
from tests.support.harness import WAIT_S, do, forward, gate_alone
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Report, Send
from akkordeon.core.errors import DataError, RecipeError, SentinelFailedError
from akkordeon.core.messages import Attach, Backward, Batch, Fault, Forward, Item, Refused
from akkordeon.core.payload import all_finite
from akkordeon.core.reports import BatchRefused, MessageRefused, PeerRefused
from akkordeon.core.shard_messages import Dropped, Fetch
from akkordeon.core.well_formed import malformed
from akkordeon.downpour.shard import ParameterShard, ShardActor
from akkordeon.pipeline.refusals.actor import OFFENCES_MAX
from akkordeon.pipeline.stage import Position
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.trainer import Trainer

ROW = ("gate/0", "gate/1", "gate/2")
ME = "sentinel/a#1"
OTHERS = (ME, "sentinel/b#1", "ghost", *ROW, "r/0", "r/1")


def refusals(effects: list) -> list[str]:
    """What they refuse, named."""
    found = []
    for effect in effects:
        what = effect.message if isinstance(effect, Send) else getattr(effect, "record", None)
        if isinstance(what, Refused | Dropped):
            found.append(what.fault.name)
            assert what.reason
        elif isinstance(what, MessageRefused | PeerRefused):
            found.append(type(what).__name__)
            assert what.reason
        elif isinstance(what, BatchRefused):
            found.append(f"BatchRefused {what.fault}")
    return found


def gate():
    actor = gate_alone(nn.Linear(4, 3), position={"max_payload_bytes": 10**6, "max_in_flight": 16})
    do(actor, *(forward(number, torch.randn(5, 4), sentinel=ME) for number in range(3)))
    return actor


def shard():
    recipe = ParameterShard(nn.Linear(3, 5, bias=False), partial(torch.optim.SGD, lr=0.1))
    actor = ShardActor(recipe, Position("shard/0", 0, max_payload_bytes=10**6))
    do(actor, Fetch("r/0"), Fetch("r/1"))
    return actor


def trainer():
    actor = Trainer(ME, "a", ROW, "reader/a#1", ak.Sentinel.train([], F.cross_entropy, in_flight=3))
    do(actor, Attach(), *(Item(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)) for _ in range(3)))
    return actor


def evaluator():
    actor = Evaluator(ME, "a", ROW, "reader/a#1", ak.Sentinel.validate([], F.cross_entropy))
    do(actor, Attach())
    return actor


def attack_stage(make, shape, seed: int, count: int) -> Counter[str]:
    """Send a stage so many messages; its weights change with its version alone, and stay finite."""
    torch.manual_seed(seed)
    found: Counter[str] = Counter()
    actor = make()
    for message in itertools.islice(Fuzz(seed, shape, OTHERS), count):
        version, before = actor.version, [weight.detach().clone() for weight in actor.weights.now]
        counted = sum(actor.refusals.values())
        named = refusals(do(actor, message))
        found.update(named)
        assert sum(actor.refusals.values()) - counted == len(named)
        unfit = type(message) not in actor._handlers or malformed(message) is not None
        assert not unfit or len(named) == 1 or actor._is_forgotten(message.batch), message
        if actor.version == version:
            assert all(map(torch.equal, before, actor.weights.now)), message
        assert all_finite(actor.weights.now)
    return found


def attack_sentinel(make, seed: int, count: int) -> Counter[str]:
    """Send a sentinel so many; only refusals of its own batches end it, with an error that says so.

    What its loss raises on ends it as well, so the outputs of its batches under way fit here.
    """
    torch.manual_seed(seed)
    found: Counter[str] = Counter()
    actor = make()
    for message in itertools.islice(Fuzz(seed, (5, 3), OTHERS), count):
        if isinstance(message, Forward) and malformed(message) is None and message.batch in actor._flights:
            message = Forward(message.batch, torch.randn(5, 3))
        try:
            named = refusals(do(actor, message))
        except DataError:
            actor, named = make(), ["the sentinel ends"]
        found.update(named)
        unfit = type(message) not in actor._handlers or malformed(message) is not None
        assert not unfit or named == ["MessageRefused"], message
        batches = actor.batches
        assert batches.in_flight == len(actor._flights) or isinstance(actor, Evaluator), message
    return found


ATTACKS = {
    "gate": partial(attack_stage, gate, (5, 3)),
    "gate forwards": partial(attack_stage, gate, (5, 4)),
    "shard": partial(attack_stage, shard, (5, 3)),
    "trainer": partial(attack_sentinel, trainer),
    "evaluator": partial(attack_sentinel, evaluator),
}


@pytest.mark.parametrize("who", ATTACKS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_refused_is_named_and_counted_and_changes_nothing(who, seed):
    ATTACKS[who](seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("who", ATTACKS)
def test_twenty_thousand_messages_to_each(who):
    total: Counter[str] = Counter()
    for seed in range(100):
        total += ATTACKS[who](seed, 200)
    assert total
    print(who, dict(total))


def test_a_sender_of_whom_too_much_is_refused_in_a_row_is_told_of_once_and_then_dropped():
    """The session hears of it from the gate, and detaches the sentinel."""
    actor = gate()
    flood = [forward(number, torch.randn(5, 4), sentinel="flood") for number in range(OFFENCES_MAX + 100)]
    effects = do(actor, *flood)
    (told,) = [effect.record for effect in effects if isinstance(effect, Report)]
    assert (told.by, told.sender, told.in_a_row) == ("gate/1", "flood", OFFENCES_MAX)
    assert "batches are in flight here" in told.reason
    assert len(actor.stash) == 16
    assert not do(actor, forward(10**6, torch.randn(5, 4), sentinel="flood"))


def test_one_batch_that_is_trained_ends_the_row_of_those_refused():
    actor = gate()
    do(actor, *(Backward(Batch(ME, 0), torch.ones(1)) for _ in range(3)))
    assert actor._offences == {ME: 3}
    do(actor, Backward(Batch(ME, 0), torch.ones(5, 3)))
    assert not actor._offences


def test_a_payload_with_more_bytes_than_the_network_takes_is_refused_with_the_limit_and_its_option():
    network = ak.Network([ak.Gate(nn.Linear(4, 3))], max_payload_bytes=100)
    (spawn,) = network.spawns(0)
    actor = spawn.make()
    (small, large) = do(actor, forward(0, torch.ones(6, 4)), forward(1, torch.ones(7, 4)))
    assert isinstance(small.message, Forward)
    assert large.message.fault is Fault.TOO_LARGE
    assert "100 bytes" in large.message.reason
    assert "max_payload_bytes" in large.message.reason


@pytest.mark.parametrize("limit", [0, 1.5, "1"])
def test_a_limit_of_bytes_is_a_whole_number(limit):
    with pytest.raises(RecipeError, match="max_payload_bytes is"):
        ak.Network([ak.Gate(nn.Linear(4, 3))], max_payload_bytes=limit)


def test_a_sentinel_of_whom_a_gate_takes_no_more_is_detached_with_the_reason():
    network = ak.Network([ak.Gate(nn.Linear(4, 3))])
    data = itertools.repeat((torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)))
    with ak.run(network, ak.Threads(1)) as session:
        bad = session.attach(ak.Sentinel.train(data, F.cross_entropy, name="bad"))
        session._on_report(PeerRefused("gate/0", bad.address, "its output is not finite", 1000))
        with pytest.raises(SentinelFailedError, match="'bad' was detached: gate/0 refused 1000"):
            bad.wait(WAIT_S)


def test_a_batch_of_a_sentinel_that_never_was_does_not_stay_in_the_gates():
    network = ak.Network([ak.Gate(nn.Linear(4, 3))])
    with ak.run(network, ak.Threads(1)) as session:
        session._engine.send("gate/0", forward(0, torch.ones(1, 4), sentinel="sentinel/ghost#1"))
        assert session._engine.wait_until(lambda: session.status(WAIT_S).gates[0].stashed == 0, WAIT_S)


def test_only_what_comes_through_ray_is_unpickled():
    """A file that is not ours, or a message from elsewhere, runs no code."""
    source = Path(ak.__file__).parent
    lines = [(file, line) for file in source.rglob("*.py") for line in file.read_text().splitlines()]
    unpickles = re.compile(r"pickle\.loads?\(|Unpickler|shelve|marshal")
    found = {str(file.relative_to(source)) for file, line in lines if unpickles.search(line)}
    assert found == {"engines/ray/serialization.py"}
    loads = [line for _, line in lines if re.search(r"(?<!safetensors\.)\btorch\.load\(", line)]
    assert all("weights_only=True" in line for line in loads)
