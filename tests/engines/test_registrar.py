"""What the registrar of a network takes in, and what it refuses. Without a cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache, partial
from unittest.mock import MagicMock, patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fuzz import Fuzz
from tests.support.traffic import of_a_row
from torch import nn

import akkordeon as ak
from akkordeon.core.messages import Cut, CutId, Exported, Message
from akkordeon.core.reports import ActorFailed, ActorLost, BatchCount, EpochDone, GateLeft, GateStatus
from akkordeon.session.recovery.gates import GateRecovery

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

ROW = ("gate/0", "gate/1", "gate/2")

ASK = "ask"
"""Where the registrar asks for a cut."""


@cache
def told() -> list:
    """What came to it in the session of a row: parts of cuts, and the reports of gates and sentinels."""
    from akkordeon.engines.ray.snapshots import REGISTRAR

    traffic, found, number = of_a_row(), [], 0
    records = [record for who in traffic.values() for record in who.records]
    for message in traffic["sentinel/c#1"].messages:
        if isinstance(message, Cut):
            number += 1
            found.append(ASK)
        if isinstance(message, Cut | Exported):
            found.append(replace(message, cut=CutId(REGISTRAR, number)))
            found += [records.pop(0) for _ in range(min(5, len(records)))]
    return found


def registrar(recovers: bool = False):
    """One whose gates are in no process."""
    from akkordeon.engines.ray.network_info import NetworkInfo
    from akkordeon.engines.ray.registrar import Registrar
    from akkordeon.engines.ray.restarts import RestartingEngine
    from akkordeon.engines.ray.serialization import serialize

    made = Registrar("net")
    recipe = serialize(ak.Network([ak.Gate(nn.Linear(4, 3)) for _ in ROW]))
    recovery = serialize(partial(GateRecovery, ak.Recovery())) if recovers else None
    info = NetworkInfo(recipe, 0, {"host": MagicMock()}, {"host": ("here", 1)}, dict.fromkeys(ROW, "host"))
    info = replace(info, recovery=recovery)
    with patch.object(RestartingEngine, "keep_spare"):  # which is a process
        made._know(info)
    if recovers:
        made._restarts._engine.after = lambda seconds, do: None
    for name in "abvc":
        made.register_sentinel(name, "train", False, "key", MagicMock(), ("here", 2), ROW)
    return made


def take(made, thing) -> str:
    """Have it take in a message or a record; what became of it."""
    from akkordeon.engines.ray.serialization import serialize, serialize_message

    if thing is ASK:
        made._snapshots.ask()
        return ASK
    try:
        if isinstance(thing, Message):
            take_in, came = made.enqueue, serialize_message("registrar", thing)
        else:
            take_in, came = made.report, serialize(thing)
    except TypeError:
        return "cannot travel"
    made._events.clear()
    take_in(came)
    (*_, note) = [*made._events, "taken, or dropped in silence"]
    (first, *_) = [*made._events, note]
    return " ".join(first.split()[:4]) if first.startswith("what came") else "taken, or dropped in silence"


def attack(seed: int, count: int = 30) -> Counter[str]:
    """Tell a registrar things between what is true; it stays whole, and its network well."""
    torch.manual_seed(seed)
    made, found = registrar(recovers=seed % 2 == 1), Counter[str]()
    fuzz = Fuzz(seed, told(), seldom(), [*ROW, "sentinel/a#1"])
    for is_true, thing in fuzz.walk(count):
        failed, became = made.failure(), take(made, thing)
        if not is_true:
            found[became] += 1
        status, latest = made.status(), made._snapshots.latest()
        assert [gate.address for gate in status.gates] == list(ROW)
        assert made._statuses.versions().keys() <= set(ROW), thing
        assert latest is None or list(latest.states) == list(latest.versions) == list(ROW), thing
        assert made.failure() == failed or isinstance(thing, ActorFailed | ActorLost), thing
        assert len(status.events) <= 20
    return found


@cache
def seldom() -> list:
    """What is told where something went wrong, and now and then."""
    status = GateStatus(-1, "gate/1", "gate/1", 1, 7, 0, 0, {0: 7}, {})
    failed = ActorFailed("gate/0", "Forward", ValueError("no"))
    left = GateLeft("gate/2", 2, 7, {"weight": torch.ones(3, 4)})
    return [status, status, status, failed, left, ActorLost("gate/2", "its process died")]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_a_registrar_is_told_does_not_stop_it(seed):
    attack(seed)


@pytest.mark.slow
def test_ten_thousand_things_told_to_a_registrar():
    found: Counter[str] = Counter()
    for seed in range(10_000 // 30 + 1):
        found += attack(seed)
    print("registrar", found.total(), dict(found.most_common()))
    assert found.total() >= 10_000


def asked() -> tuple:
    """A registrar that has asked for a cut, and the cut."""
    from akkordeon.engines.ray.snapshots import REGISTRAR

    made = registrar()
    return made, CutId(REGISTRAR, made._snapshots.ask())


@pytest.mark.parametrize("versions", [(), (1,), (1, 2, 3, 4)])
def test_a_cut_of_another_number_of_gates_is_dropped(versions):
    made, cut = asked()
    take(made, Cut(cut, versions))
    take(made, Cut(cut, (3, 2, 1)))
    for gate in ROW:
        take(made, Exported(cut, gate, {}))
    assert made._snapshots.latest().versions == dict(zip(ROW, (1, 2, 3), strict=True))


def test_what_others_than_gates_of_the_row_give_is_dropped():
    """A cut with one of them was whole without a gate; and of gates that ended no weights were known."""
    made, cut = asked()
    take(made, Cut(cut, (3, 2, 1)))
    for gate in ("ghost", *ROW):
        take(made, Exported(cut, gate, {}))
    take(made, GateLeft("ghost", 7, 7, {}))
    assert tuple(made._snapshots.latest().states) == ROW


def test_the_status_of_no_gate_is_not_kept():
    made = registrar()
    take(made, replace(seldom()[0], address="ghost"))
    assert made._statuses.versions() == {}


def test_a_record_with_a_field_that_is_none_is_refused_and_noted():
    made = registrar()
    take(made, replace(seldom()[0], version="7"))
    assert made.status().events == [
        "what came was refused: the version of its GateStatus is none: it is of the type str"
    ]


def test_bytes_that_nobody_can_read_are_noted():
    made = registrar()
    made.report((b"", []))
    made.enqueue(b"\x80")
    assert [event.split(":")[0] for event in made.status().events] == ["what came could not be read"] * 2


def test_a_network_says_how_many_batches_a_lost_sentinel_has_trained():
    """Of a sentinel whose session was killed there was no number any more, though it had told of them."""
    from akkordeon.engines.ray.serialization import serialize

    made = registrar()
    for name in ("told", "silent"):
        made.register_sentinel(name, "train", False, "killed", MagicMock(), ("10.0.0.7", 42), ROW)
    count = BatchCount(sent=23, trained=20, refused=1)
    made.report(serialize(EpochDone("told", 1, 0.5, {}, 160, 1.0, 0.0, 0, 1, count)))
    made._mark_lost("killed")
    assert made.status().events == [
        "told is lost: its process died (number 42 on 10.0.0.7) after epoch 1: 20 batches trained, 1 refused",
        "silent is lost: its process died (number 42 on 10.0.0.7)",
    ]
    assert [sentinel.name for sentinel in made.status().sentinels] == list("abvc")
