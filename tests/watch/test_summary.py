"""The outcome of a session as one dictionary."""

from __future__ import annotations

from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.watch.summary import summary


def test_the_summary_has_every_sentinel_gate_and_batch():
    scores = {"accuracy": ak.accuracy}
    with ak.run(small_network()) as session:
        for name in ("one", "two"):
            session.attach(
                ak.Sentinel.train(batches_of(10), cross_entropy, epochs=2, scores=scores, name=name)
            )
        session.attach(ak.Sentinel.validate(batches_of(3), cross_entropy, scores=scores, name="vdp"))
        session.wait(WAIT_S)
    found = summary(session, seconds=2.0)
    assert found.keys() == {"sentinels", "gates", "batches", "restarts", "seconds", "samples_per_s"}
    assert {name: (s["role"], s["rounds"], s["samples"]) for name, s in found["sentinels"].items()} == {
        "one": ("train", 2, 160),
        "two": ("train", 2, 160),
        "vdp": ("validate", 1, 24),
    }
    last = session.attachments[0].epochs[-1]
    assert found["sentinels"]["one"]["loss"] == last.loss
    assert found["sentinels"]["one"]["scores"] == last.scores
    assert found["batches"] == {"sent": 40, "trained": 40, "refused": 0, "lost": 0}
    assert [(g["name"], g["version"]) for g in found["gates"]] == [(f"gate/{i}", 40) for i in range(3)]
    for gate in found["gates"]:
        seen = {int(tau): n for tau, n in gate["staleness"].items()}
        assert sum(seen.values()) == 40
        assert max(seen) == gate["staleness_max"]
    assert found["seconds"] == 2.0
    assert found["samples_per_s"] > 0


def test_the_summary_of_a_session_in_which_nothing_happened_is_empty():
    with ak.run(small_network()) as session:
        pass
    found = summary(session, seconds=0.0)
    assert found["sentinels"] == {}
    assert found["samples_per_s"] == 0.0
    assert [gate["version"] for gate in found["gates"]] == [0, 0, 0]
