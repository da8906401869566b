"""Any message to any actor: it is refused, with a reason and a count, or it is one that it may well take."""

from __future__ import annotations

import itertools
import re
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fuzz import Fuzz
from tests.support.harness import WAIT_S, do, forward, gate_alone, stops
from tests.support.traffic import of_a_downpour, of_a_row, of_a_stream
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Report, Send
from akkordeon.core.errors import AkkordeonError, DataError, RecipeError, SentinelFailedError
from akkordeon.core.messages import Backward, Batch, Cut, Fault, Forward, Refused
from akkordeon.core.payload import all_finite
from akkordeon.core.reports import BatchRefused, MessageRefused, PeerRefused
from akkordeon.core.shard_messages import Dropped, Parameters
from akkordeon.core.well_formed import malformed
from akkordeon.pipeline.refusals.actor import OFFENCES_MAX
from akkordeon.pipeline.stage import Stage
from akkordeon.sentinels.training.trainer import Trainer

ME = "sentinel/a#1"

ATTACKED = {
    "gate": (of_a_row, ("gate/0", "gate/1", "gate/2")),
    "replica": (of_a_downpour, ("replica/0/gate/0", "replica/0/gate/1", "replica/0/gate/2")),
    "shard": (of_a_downpour, ("shard/2",)),
    "front of a split shard": (of_a_downpour, ("shard/0", "shard/1")),
    "part of a split shard": (of_a_downpour, ("shard/0.1", "shard/1.2")),
    "trainer": (of_a_row, (ME, "sentinel/b#1")),
    "trainer of a replica": (of_a_downpour, ("sentinel/a-0#1",)),
    "streamer": (of_a_stream, ("sentinel/pairs#1", "sentinel/keys#1")),
    "validator": (of_a_row, ("sentinel/v#1",)),
    "checkpointer": (of_a_row, ("sentinel/c#1",)),
}
"""Where there was traffic, and of which actors."""

EPISODE = 30
"""Messages between true ones in a row, before another actor is made."""


@pytest.mark.parametrize("who", ATTACKED)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_refused_is_named_and_counted_and_changes_nothing(who, seed):
    attack(who, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_messages():
    """Of all, what became of how many; most get beyond the first check."""
    each = 100_000 // len(ATTACKED) + 1
    total: Counter[str] = Counter()
    for who in ATTACKED:
        found: Counter[str] = Counter()
        for seed in itertools.count():
            found += attack(who, seed)
            if found.total() >= each:
                break
        total += found
        print(who, found.total(), dict(found.most_common()))
        assert found["unfit"] < found.total() / 2
    print("all", total.total(), dict(total.most_common()))


def attack(who: str, seed: int) -> Counter[str]:
    """Send an actor messages between true ones; what became of those."""
    recorded, names = ATTACKED[who]
    traffic, name = recorded(), names[seed % len(names)]
    others = [message for other in traffic.values() for message in other.messages[:50]]
    fuzz = Fuzz(seed, traffic[name].messages, others, list(traffic))
    torch.manual_seed(seed)
    actor = traffic[name].make()
    look = stage_outcome if isinstance(actor, Stage) else sentinel_outcome
    found: Counter[str] = Counter()
    for is_true, message in fuzz.walk(EPISODE):
        what = look(actor, message)
        if not is_true:
            found[what] += 1
        if what.startswith("ends"):
            break
    return found


def stage_outcome(actor, message) -> str:
    """A stage's weights change with its version alone, and stay finite; what it refuses it counts."""
    version, before = actor.version, [weight.detach().clone() for weight in actor.weights.now]
    counted = sum(actor.refusals.values())
    unfit = is_unfit(actor, message)
    try:
        effects = do(actor, message)
    except DataError:
        assert isinstance(message, Dropped), message  # too many in a row
        return "ends: DataError"
    named = refusals(effects)
    if not isinstance(message, Dropped):  # of which a replica's gate tells, and counts
        assert sum(actor.refusals.values()) - counted == len(named), message
    if unfit:
        assert len(named) == 1 or actor._is_forgotten(message.batch), message
    if not isinstance(message, Parameters | Cut):  # with which others' weights come
        assert actor.version > version or all(map(same_bytes, before, actor.weights.now)), message
        assert all_finite(actor.weights.now) or not all_finite(before)
    return outcome(effects, unfit, named)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are equal, NaN and all."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def sentinel_outcome(actor, message) -> str:
    """A sentinel counts its batches; an error that says what is wrong ends it, as do refusals of its own."""
    unfit = is_unfit(actor, message)
    try:
        effects = do(actor, message)
    except AkkordeonError as error:
        assert not unfit
        return f"ends: {type(error).__name__}"
    except Exception as error:
        if error is getattr(message, "learner", None):  # why a gate's state cannot be had
            return "ends: what a gate raised"
        if any(frame.name == "loss_of" for frame in traceback.extract_tb(error.__traceback__)):
            return "ends: its loss raises"
        raise
    named = refusals(effects)
    assert not unfit or named == ["MessageRefused"], message
    assert min(actor.batches.as_tuple()) >= 0, message
    if isinstance(actor, Trainer):
        assert actor.batches.in_flight == len(actor._flights), message
    return outcome(effects, unfit, named)


def is_unfit(actor, message) -> bool:
    return type(message) not in actor._handlers or malformed(message) is not None


def outcome(effects: list, unfit: bool, named: list[str]) -> str:
    """What became of a message."""
    if unfit:
        return "unfit"
    if named:
        return f"refused: {named[0]}"
    if stops(effects):
        return "ends"
    return "taken" if effects else "taken in silence"


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
    """One that holds three batches."""
    actor = gate_alone(nn.Linear(4, 3), position={"max_payload_bytes": 10**6, "max_in_flight": 16})
    do(actor, *(forward(number, torch.randn(5, 4), sentinel=ME) for number in range(3)))
    return actor


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
