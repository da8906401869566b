"""A session that serves over a real socket while it trains."""

from __future__ import annotations

import itertools
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, sgd, small_network
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError, SessionError
from akkordeon.session.http import access
from akkordeon.session.http.server import VANISHED_S, listening_at

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def asker():
    """Somebody who keeps a connection; to make one takes long."""
    with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
        yield client


def ask(asker, server, x=X, **options):
    answer = asker.post(f"{server.url}/predict", json={"inputs": x.tolist()}, **options)
    assert answer.status_code == 200, answer.text
    return torch.tensor(answer.json()["outputs"]), answer.json()["version"]


def test_a_session_answers_with_the_outputs_of_its_gates_and_their_version(asker):
    with ak.run(small_network(), ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(batches_of(7), cross_entropy)).wait(WAIT_S)
        with session.serve(port=0) as server:
            outputs, version = ask(asker, server)
            assert version == 7
            assert torch.allclose(outputs, session.predict(X))
            metrics = asker.get(f"{server.url}/metrics").text
            assert "akkordeon_trained_batches_total 7\n" in metrics


APART = 1e6
"""More updates than there will be."""


class Tell(nn.Module):
    """Adds a column that tells which gate it is, and how often it was updated."""

    def __init__(self, number=0):
        super().__init__()
        self.number = number
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.cat([x, (self.number * APART + self.weight).expand(len(x), 1)], 1)


def plus_one(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def sum_of_weights(outputs, y):
    """Its gradient by each weight is -1, so that with every update each becomes larger by 1."""
    return -outputs[:, 1:].sum(1).mean()


def test_while_all_gates_learn_each_answer_is_of_one_version_and_they_become_newer(asker):
    network = ak.Network([ak.Gate(Tell(), plus_one) for _ in range(4)])
    endless = itertools.repeat((torch.zeros(2, 1), torch.zeros(2)))
    with ak.run(network, ak.Threads(2)) as session, session.serve(port=0, refresh_s=1e-3) as server:
        session.attach(ak.Sentinel.train(endless, sum_of_weights, in_flight=8))
        versions = []
        while len(set(versions)) < 5:
            outputs, version = ask(asker, server, torch.zeros(3, 1))
            assert torch.equal(outputs[:, 1:], torch.full((3, 4), float(version)))
            versions.append(version)
        assert versions == sorted(versions)
        session.detach("train", drop=True)


def test_while_gates_come_and_go_each_answer_is_of_one_row_and_one_version(asker):
    gates = {number: ak.Gate(Tell(number), plus_one) for number in (1, 2, 3, 4, 5)}
    network = ak.Network([gates[1], gates[2], gates[3]])
    endless = itertools.repeat((torch.zeros(2, 1), torch.zeros(2)))
    answers = []
    with ThreadPoolExecutor(1) as pool, ak.run(network, ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(endless, sum_of_weights, in_flight=4))
        with session.serve(port=0, refresh_s=1e-3) as server:
            for change, row in (
                (lambda: session.gate("gate/0").insert_after(gates[4]), (1, 4, 2, 3)),
                (lambda: session.gate("gate/1").replace(gates[5]), (1, 4, 5, 3)),
                (lambda: session.gate("gate/2").remove(), (1, 4, 5)),
                (lambda: session.gate("gate/0").remove(), (4, 5)),
            ):
                changing = pool.submit(change)
                while len({version for its, _, version in answers if its == row}) < 4:
                    outputs, version = ask(asker, server, torch.zeros(3, 1))
                    numbers, learned = outputs[:, 1:] // APART, outputs[:, 1:] % APART
                    assert torch.equal(numbers, numbers[:1].expand_as(numbers))
                    assert torch.equal(learned, learned[:1].expand_as(learned))
                    answers.append((tuple(numbers[0].tolist()), tuple(learned[0].tolist()), version))
                changing.result(WAIT_S)
        session.detach("train", drop=True)
    rows = [row for row, _ in itertools.groupby(row for row, _, _ in answers)]
    assert rows == [(1, 2, 3)] * (rows[0] == (1, 2, 3)) + [(1, 4, 2, 3), (1, 4, 5, 3), (1, 4, 5), (4, 5)]
    for row in rows:  # all learn from the same batches: how far one is ahead of another does not change
        assert len({tuple(n - learned[0] for n in learned) for its, learned, _ in answers if its == row}) == 1
    versions = [version for _, _, version in answers]
    assert versions == sorted(versions)
    assert len({(row, learned, version) for row, learned, version in answers}) == len(set(versions))


def test_where_gates_keep_an_average_it_is_served_by_choice(asker):
    network = small_network().replacing(ema=0.5)
    with ak.run(network) as session:
        with (
            pytest.raises(RecipeError, match="no gate that learns keeps one"),
            ak.run(small_network()) as other,
        ):
            other.serve(port=0, ema=True)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
        with session.serve(port=0, ema=True) as server:
            assert torch.allclose(ask(asker, server)[0], session.module(ema=True).eval()(X))


def test_replicas_are_served_with_their_master_weights(asker):
    with ak.run(ak.Downpour(small_network(), replicas=2), ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(batches_of(4), cross_entropy)).wait(WAIT_S)
        with session.serve(port=0) as server:
            assert torch.allclose(ask(asker, server)[0], session.module().eval()(X))


def test_a_server_that_others_can_reach_makes_a_token(asker):
    with ak.run(small_network()) as session:
        with session.serve(port=0, host="0.0.0.0") as server:
            assert len(server.token) == 64
            assert server.token not in repr(server)
            server.url = server.url.replace("0.0.0.0", "127.0.0.1")
            assert asker.post(f"{server.url}/predict", json={}).status_code == 401
            ask(asker, server, headers={"authorization": f"Bearer {server.token}"})
        with session.serve(port=0) as server:
            assert server.token is None
        with session.serve(port=0, token=True) as server:
            assert len(server.token) == 64


def test_the_server_ends_with_its_session(asker):
    with ak.run(small_network()) as session:
        server = session.serve(port=0)
        ask(asker, server)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/healthz")
    server.close()


def test_a_client_that_vanished_without_a_word_is_noticed_though_it_is_sent_nothing():
    with (
        listening_at("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == VANISHED_S


def test_what_cannot_be_served_is_told_in_a_sentence(monkeypatch):
    with ak.run(small_network()) as session:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(
                SessionError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"
            ):
                session.serve(port)
        for wrong in ({"port": -1}, {"refresh_s": 0}, {"token": "a b"}, {"token": ""}, {"learn": 3}):
            with pytest.raises(RecipeError):
                session.serve(**{"port": 0, **wrong})
        monkeypatch.setattr(access, "find_spec", lambda name: None if name == "uvicorn" else object())
        with pytest.raises(SessionError, match=r"serving needs uvicorn: pip install 'akkordeon\[serve\]'"):
            session.serve(port=0)


# ── learning from what is posted ─────────────────────────────────────────────────────────────────────


def learning_session():
    return ak.run(ak.Network([ak.Gate(nn.Linear(6, 4), sgd)]), ak.Threads(2))


def post(asker, server, **body):
    return asker.post(f"{server.url}/learn", json=body)


def test_what_is_posted_is_learned_from_once_for_each_key(asker):
    posts = ak.Posts()
    with learning_session() as session:
        stream = session.attach(ak.Sentinel.stream(posts, cross_entropy))
        with session.serve(port=0, learn=stream) as server:
            for i in range(4):
                assert post(asker, server, inputs=X[:2].tolist(), targets=[i, 1]).status_code == 202
            for key in ("a", 3, "a"):
                assert post(asker, server, inputs=X[:1].tolist(), targets=[2], key=key).status_code == 202
            posts.close()
            stream.wait(WAIT_S)
            assert stream.batches.trained == 6
            assert stream.stream[-1].labels.duplicates == 1
            refused = post(asker, server, inputs=X[:1].tolist(), targets=[2])
            assert refused.status_code == 503
            assert refused.json()["error"] == "the stream that learns has ended"


def test_targets_that_the_loss_cannot_take_do_not_reach_the_stream(asker):
    with learning_session() as session:
        stream = session.attach(ak.Sentinel.stream(ak.Posts(), cross_entropy))
        with session.serve(port=0, learn=stream) as server:
            for wrong in (
                {"inputs": X.tolist(), "targets": [9] * 5},
                {"inputs": X.tolist(), "targets": [1] * 4},
                {"inputs": X.tolist(), "targets": ["a"] * 5},
                {"inputs": X[:, :2].tolist(), "targets": [1] * 5},
                {"inputs": X.tolist()},
                {"inputs": X.tolist(), "targets": [1] * 5, "key": 1.5},
                {"inputs": X.tolist(), "targets": [1] * 5, "key": -1},
            ):
                assert post(asker, server, **wrong).status_code == 422
            assert post(asker, server, inputs=X.tolist(), targets=[1] * 5).status_code == 202
        stream.recipe.batches.close()
        stream.wait(WAIT_S)
        assert stream.batches.trained == 1
        assert not stream.refusals


# What is infinite as a float has a finite loss behind a Tanh. It was taken, the gates refused it, and ten
# such examples ended the stream.
@pytest.mark.parametrize("number", ["1e400", "-1e39"])
def test_inputs_that_gates_refuse_do_not_reach_the_stream_though_they_have_a_loss(number, asker):
    network = ak.Network([ak.Gate(nn.Sequential(nn.Linear(1, 4), nn.Tanh()), sgd)])
    with ak.run(network, ak.Threads(2)) as session:
        stream = session.attach(ak.Sentinel.stream(ak.Posts(), cross_entropy))
        with session.serve(port=0, learn=stream) as server:
            body = f'{{"inputs": [[{number}]], "targets": [1]}}'
            answer = asker.post(f"{server.url}/learn", content=body)
            assert post(asker, server, inputs=[[1.0]], targets=[1]).status_code == 202
        stream.recipe.batches.close()
        stream.wait(WAIT_S)
    assert answer.status_code == 422
    assert answer.json()["error"] == "the inputs of this example are not finite"
    assert stream.batches.as_tuple() == (1, 1, 0, 0)


def test_whole_numbers_are_targets_of_a_regression_where_that_is_said(asker):
    posts = ak.Posts(target_dtype=torch.float32)
    with learning_session() as session:
        stream = session.attach(ak.Sentinel.stream(posts, nn.functional.mse_loss))
        with session.serve(port=0, learn=stream) as server:
            assert post(asker, server, inputs=X[:1].tolist(), targets=[[1, 2, 3, 4]]).status_code == 202
        posts.close()
        stream.wait(WAIT_S)
        assert stream.batches.trained == 1
