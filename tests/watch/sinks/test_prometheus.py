"""What Prometheus is told, read with its own parser."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError, SessionError
from akkordeon.core.reports import BatchCount, EpochDone, GateRestarted, GateStatus, RoundDone
from akkordeon.core.streams.reports import StreamReport

pytest.importorskip(
    "prometheus_client", reason="prometheus_client is not installed: pip install '.[prometheus]'"
)


def asked(sink):
    """The metrics by name, each a dict from its labels to its value."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(sink.url, timeout=WAIT_S) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "Prometheus refuses all if one is twice"
            found[sample.name][labels] = sample.value
    return found


@pytest.fixture
def sink():
    with ak.Prometheus(0) as sink:
        yield sink


def epoch(sentinel, loss, scores=None):
    count = BatchCount(10, 8, 1, 1)
    return EpochDone(sentinel, 1, loss, scores or {}, 80, 2.0, 1.5, 4, 1, count)


def test_the_numbers_of_a_session_are_there_while_it_goes_on(sink):
    with ak.run(small_network()) as session:
        session.subscribe(sink)
        training = session.attach(ak.Sentinel.train(batches_of(5), cross_entropy, epochs=2, name="t"))
        session.wait(WAIT_S)
        found = asked(sink)
    assert found["akkordeon_step"] == {(): 10}
    key = (("sentinel", "t"),)
    assert found["akkordeon_epoch_loss"][key] == pytest.approx(training.epochs[-1].loss)
    assert found["akkordeon_batches_trained_total"][key] == 10
    assert asked(sink)["akkordeon_gate_version"] == {(("gate", f"gate/{i}"),): 10 for i in range(3)}


def test_a_metric_has_a_sample_for_each_sentinel(sink):
    sink(epoch("one", 0.5))
    sink(epoch("two", 0.25))
    sink(epoch("one", 0.125))
    assert asked(sink)["akkordeon_epoch_loss"] == {
        (("sentinel", "one"),): 0.125,
        (("sentinel", "two"),): 0.25,
    }


def test_scores_are_labels_so_that_any_name_will_do(sink):
    names = ["top-1", "top_1", 'a "quoted" one', "back\\slash", "two\nlines", "τ"]
    sink(epoch("t", 0.5, {name: float(i) for i, name in enumerate(names)}))
    sink(RoundDone("v", "validate", 1, 0.5, {"top-1": 9.0}, 8, 0.5, 1))
    found = asked(sink)
    assert found["akkordeon_epoch_score"] == {
        (("score", name), ("sentinel", "t")): float(i) for i, name in enumerate(names)
    }
    assert found["akkordeon_round_score"] == {(("score", "top-1"), ("sentinel", "v")): 9.0}


def test_scores_of_a_stream_are_labels_too(sink):
    sink(StreamReport("s", {"a-b": 1.0, "a_b": 2.0}, {"a-b": 3.0}, {}, 100, 0))
    assert set(asked(sink)["akkordeon_stream_score"].values()) == {1.0, 2.0, 3.0}


def test_staleness_is_a_histogram_that_adds_up(sink):
    sink(GateStatus(1, "gate/0", "g", 0, 9, 0, 0, {0: 2, 3: 4, 1000: 1}, {}))
    sink(GateRestarted("gate/0", "raised", 1, 9, 8, 10))
    found = asked(sink)
    buckets = {dict(labels)["le"]: n for labels, n in found["akkordeon_gate_staleness_bucket"].items()}
    assert {float(bound): n for bound, n in buckets.items()} == {
        0: 2, 1: 2, 2: 2, 4: 6, 8: 6, 16: 6, 32: 6, 64: 6, 128: 6, float("inf"): 7
    }  # fmt: skip
    gate = (("gate", "gate/0"),)
    assert found["akkordeon_gate_staleness_count"][gate] == 7
    assert found["akkordeon_gate_staleness_sum"][gate] == 1012
    assert found["akkordeon_gate_restarts_total"][gate] == 1


def test_numbers_may_be_asked_for_while_they_are_written(sink):
    over = threading.Event()

    def write():
        for i in range(2000):
            sink(epoch(f"t{i % 50}", 0.5))
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not over.is_set():
        asked(sink)
    thread.join()
    assert len(asked(sink)["akkordeon_epoch_loss"]) == 50


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SessionError, match=f"metrics cannot be offered at 127.0.0.1:{port}: Address"):
            ak.Prometheus(port)


@pytest.mark.parametrize("port", [-1, "9464", 1.5])
def test_what_is_no_port_is_told(port):
    with pytest.raises(RecipeError, match="port is "):
        ak.Prometheus(port)


def test_a_port_that_no_machine_has_is_told():
    with pytest.raises(SessionError, match=r"the metrics cannot be offered at 127.0.0.1:70000"):
        ak.Prometheus(70_000)


def test_a_sink_that_is_closed_answers_nobody_and_leaves_its_port():
    sink = ak.Prometheus(0)
    sink.close()
    with pytest.raises(urllib.error.URLError):
        asked(sink)
    with ak.Prometheus(sink.port):
        pass
