"""What is answered to whom: codes, sentences, tokens, bounds. Without a socket."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.harness import WAIT_S
from tests.support.serving import service_of
from torch import nn

import akkordeon as ak
from akkordeon.session.http import admission
from akkordeon.session.serving.bodies import NUMPY
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def linear():
    torch.manual_seed(2)
    return nn.Linear(6, 3)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def client():
    with service_of(linear()) as client:
        yield client


def sentence(answer, code):
    """What is wrong, in words."""
    assert answer.status_code == code
    assert answer.headers["content-type"] == "application/json"
    (text,) = answer.json().values()
    return text


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────


def test_rows_are_answered_with_rows_and_a_version(client):
    answer = client.post("/predict", json={"inputs": X.tolist()})
    assert answer.json() == {"outputs": linear()(X).tolist(), "version": 1}


def test_arrays_of_numpy_are_answered_likewise(client):
    for array in (X.numpy(), X.double().numpy(), np.asfortranarray(X.numpy()), X.numpy().astype(">f4")):
        answer = client.post("/predict", content=npy(array), headers={"content-type": NUMPY})
        assert answer.headers["akkordeon-version"] == "1"
        assert answer.headers["content-type"] == NUMPY
        assert np.array_equal(np.load(io.BytesIO(answer.content)), linear()(X).detach().numpy())


def test_what_curl_calls_a_form_is_read_as_json(client):
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/predict", content=json.dumps({"inputs": X.tolist()}), headers=form)
    assert answer.status_code == 200


class Named(nn.Module):
    def forward(self, ids, scale):
        assert ids.dtype is torch.int64
        return {"scaled": ids * scale, "ids": ids}


def test_inputs_with_names_are_given_by_name_and_have_the_dtypes_of_the_example():
    example = {"ids": torch.zeros(1, 2, dtype=torch.int64), "scale": torch.zeros(1, 1)}
    with service_of(Named(), example=example) as client:
        inputs = {"ids": [[1, 2]], "scale": [[2]]}
        answer = client.post("/predict", json={"inputs": inputs})
        assert answer.json()["outputs"] == {"scaled": [[2.0, 4.0]], "ids": [[1, 2]]}
        wrong = client.post("/predict", json={"inputs": {"ids": [[1, 2]]}})
        assert sentence(wrong, 422) == "inputs are an object with ids, scale, got one with ids"
        wrong = client.post("/predict", json={"inputs": inputs | {"ids": [[1.5, 2]]}})
        assert sentence(wrong, 422) == "inputs.ids are whole numbers, got float32 (1, 2)"


class Pair(nn.Module):
    def forward(self, a, b):
        return a + b


def test_several_inputs_are_a_list():
    with service_of(Pair(), example=(torch.zeros(1, 1), torch.zeros(1, 1))) as client:
        assert client.post("/predict", json={"inputs": [[[1]], [[2]]]}).json()["outputs"] == [[3.0]]
        wrong = client.post("/predict", json={"inputs": [[[1]]]})
        assert sentence(wrong, 422) == "inputs are a list of 2 arrays, got a list of 1"


class Blunt(nn.Module):
    def forward(self, x):
        return x / 0


def test_what_json_has_no_number_for_is_null():
    with service_of(Blunt()) as client:
        assert client.post("/predict", json={"inputs": [[1, 0]]}).json()["outputs"] == [[None, None]]


# ── what is wrong with a request ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b'{"inputs": [[NaN]]}', "NaN is no number"),
        (b"[1]", "the body is a JSON object, got a list of 1"),
        (b"{}", "the body has no inputs"),
        (b'{"inputs": 3}', "inputs are an array of numbers, got int"),
        (b'{"inputs": []}', "at least one"),
        (b'{"inputs": [1, [2]]}', "no array of numbers"),
        (b'{"inputs": [["a"]]}', "no array of numbers"),
        (b'{"inputs": [[1, 2]]}', "the network cannot work on float32 (1, 2): RuntimeError: mat1 and mat2"),
        (b'{"inputs": {"\\ud800": [1]}}', "the network cannot work on"),
    ],
)
def test_a_body_that_is_wrong_is_told_so_in_a_sentence(client, body, why):
    assert why in sentence(client.post("/predict", content=body), 422)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no array of numbers in NumPy's format"),
        (npy(X.numpy())[:-1], "promises 120 bytes of numbers, it has 119"),
        (npy(np.array([["a"]])), "it holds <U1, and no numbers"),
        (npy(np.array([[1j]])), "and no numbers"),
        (npy(np.float32(1)), "at least one"),
        (npy(X.numpy().astype(np.int64)), "the network cannot work on int64 (5, 6)"),
        (npy(np.zeros((1, 2))), "the network cannot work on float32 (1, 2)"),
    ],
)
def test_an_array_that_is_wrong_is_told_so_in_a_sentence(client, body, why):
    assert why in sentence(client.post("/predict", content=body, headers={"content-type": NUMPY}), 422)


def test_nothing_is_unpickled(client, tmp_path):
    file, trace = io.BytesIO(), tmp_path / "trace"

    class Malicious:
        def __reduce__(self):
            return open, (str(trace), "w")

    np.save(file, np.array([Malicious()], dtype=object), allow_pickle=True)
    answer = client.post("/predict", content=file.getvalue(), headers={"content-type": NUMPY})
    assert "it holds object, and no numbers" in sentence(answer, 422)
    assert not trace.exists()


def test_a_header_that_promises_more_than_there_is_takes_no_memory(client):
    promise = npy(np.zeros((1, 6))).replace(b"(1, 6)", b"(9" + b"9" * 11 + b", 6)")
    answer = client.post("/predict", content=promise, headers={"content-type": NUMPY})
    assert answer.status_code == 422


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=3), parts, max_size=3),
    max_leaves=12,
)
json_bodies = st.one_of(values, st.fixed_dictionaries({"inputs": values})).map(json.dumps).map(str.encode)
npy_bodies = st.tuples(
    st.sampled_from([npy(X.numpy()), npy(X.int().numpy()), npy(np.zeros((2, 0)))]),
    st.integers(0, 250),
    st.binary(max_size=6),
).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300) | json_bodies | npy_bodies, st.sampled_from(["application/json", NUMPY]))
def test_whatever_bytes_come_the_answer_is_outputs_or_a_sentence(client, body, kind):
    answer = client.post("/predict", content=body, headers={"content-type": kind})
    assert answer.status_code in (200, 422)
    if answer.status_code == 422:
        assert sentence(answer, 422)


def learning_from(posts):
    """What takes examples for a stream that reads nothing."""
    recipe = ak.Sentinel.stream(posts, nn.functional.cross_entropy)
    return Learning(SimpleNamespace(recipe=recipe, ended=False))


right = st.just(X.tolist())
lessons = st.fixed_dictionaries(
    {"inputs": values | right, "targets": values | st.lists(st.integers(-2, 4), min_size=5, max_size=5)},
    optional={"key": values},
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(lessons.map(json.dumps).map(str.encode) | st.binary(max_size=50), max_size=3))
def test_whatever_is_posted_to_learn_from_is_taken_or_refused_in_a_sentence(bodies):
    posts = ak.Posts()
    with service_of(linear(), learning=learning_from(posts)) as client:
        answers = [client.post("/learn", content=body) for body in bodies]
    taken = [answer for answer in answers if answer.status_code == 202]
    assert posts.waiting == len(taken)
    assert all(sentence(answer, 422) for answer in answers if answer not in taken)


def test_other_paths_and_methods_are_told_what_there_is(client):
    there = "there are POST /predict, GET /healthz, GET /readyz, GET /metrics"
    assert sentence(client.get("/"), 404) == f"no GET /; {there}"
    wrong = client.get("/predict")
    assert sentence(wrong, 405) == f"no GET /predict; {there}"
    assert wrong.headers["allow"] == "POST"


# ── tokens and bounds ────────────────────────────────────────────────────────────────────────────────


def test_without_the_token_nobody_is_answered_but_who_asks_for_its_health():
    with service_of(linear(), token="right") as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic right"}):
            for answer in (
                client.post("/predict", json={"inputs": X.tolist()}, headers=header),
                client.get("/metrics", headers=header),
            ):
                assert sentence(answer, 401) == "it has not the server's token: Authorization: Bearer TOKEN"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        right = {"authorization": "Bearer right"}
        assert client.post("/predict", json={"inputs": X.tolist()}, headers=right).status_code == 200
        foreign = {"authorization": b"Bearer r\xefght"}
        assert client.post("/predict", json={}, headers=foreign).status_code == 401


def test_a_body_that_is_too_large_is_not_read_to_its_end():
    with service_of(linear(), body_bytes_max=1000) as client:
        told = "a body has at most 1,000 bytes"
        assert sentence(client.post("/predict", content=b"x" * 1001), 413) == told
        lengthy = {"content-length": "9" * 5000}
        assert sentence(client.post("/predict", content=b"", headers=lengthy), 413) == told

        async def chunks():
            for _ in range(11):
                yield b"x" * 100

        assert sentence(client.post("/predict", content=chunks()), 413) == told
        assert client.post("/predict", content=b"x" * 1000).status_code == 422


def test_a_body_that_does_not_come_is_not_waited_for_without_end(client, monkeypatch):
    monkeypatch.setattr(admission, "BODY_S", 0.01)

    async def stalling():
        yield b"{"
        await asyncio.Event().wait()

    assert sentence(client.post("/predict", content=stalling()), 408) == "its body has not come in 0.01 s"


class Gated(nn.Module):
    """Computes when it is let."""

    def __init__(self):
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def forward(self, x):
        self.reached.set()
        assert self.go_on.wait(WAIT_S)
        return x


def test_one_request_too_many_is_told_when_to_come_again():
    module = Gated()
    with service_of(module, queue_max=1) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/predict", json={"inputs": [[1]]})
        assert module.reached.wait(WAIT_S)
        second = client.post("/predict", json={"inputs": [[2]]})
        assert sentence(second, 503) == "1 requests are under way, the most that there may be"
        assert second.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
        module.go_on.set()
        assert first.result().json()["outputs"] == [[1.0]]
        assert client.post("/predict", json={"inputs": [[2]]}).status_code == 200


def test_examples_are_taken_as_long_as_there_is_room_for_them():
    with service_of(linear(), learning=learning_from(ak.Posts(max_waiting=1))) as client:
        example = {"inputs": X.tolist(), "targets": [0] * 5}
        assert client.post("/learn", json=example).json() == {"waiting": 1}
        second = client.post("/learn", json=example)
        assert sentence(second, 503) == "1 examples wait to be learned from, and no more are taken now"
        assert "akkordeon_batches_total 1" in client.get("/metrics").text.splitlines()  # it was not tried
        assert second.headers["retry-after"] == "1"
        assert "akkordeon_examples_waiting 1" in client.get("/metrics").text.splitlines()


@pytest.mark.parametrize("wrong", [{"queue_max": 0}, {"batch_max": 1.5}, {"wait_ms": -1}, {"wait_ms": 1e4}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# ── how it is ────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_answered_is_counted():
    with service_of(linear()) as client:
        client.post("/predict", json={"inputs": X.tolist()})
        client.post("/predict", json={"inputs": [[1]]})
        client.get("/nowhere")
        lines = client.get("/metrics").text.splitlines()
        assert 'akkordeon_requests_total{path="/predict",code="200"} 1' in lines
        assert 'akkordeon_requests_total{path="/predict",code="422"} 1' in lines
        assert 'akkordeon_requests_total{path="other",code="404"} 1' in lines
        assert 'akkordeon_request_seconds_bucket{path="/predict",le="+Inf"} 2' in lines
        assert 'akkordeon_request_seconds_count{path="/predict"} 2' in lines
        assert {"akkordeon_batches_total 1", "akkordeon_rows_total 5", "akkordeon_weights_version 1"} <= set(
            lines
        )
        assert "akkordeon_requests_under_way 0" in lines
        samples = [line for line in lines if not line.startswith("#")]
        assert all(float(line.rpartition(" ")[2]) >= 0 for line in samples)


def test_it_is_ready_as_long_as_there_are_newer_weights():
    with service_of(linear()) as client:
        assert client.get("/readyz").json()["version"] == 1
    with service_of(linear(), refresh_s=1e-3) as client:
        answer = client.get("/readyz")
        while answer.status_code == 200:
            answer = client.get("/readyz")
        assert sentence(answer, 503) == "there are no newer weights: there are no more"
        assert client.post("/predict", json={"inputs": X.tolist()}).status_code == 200
