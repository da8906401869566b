"""`akkordeon serve`: what was kept, over HTTP, until a signal."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager

import httpx
import pytest
import torch
from sklearn.datasets import load_digits
from tests.support.commands import MINE, QUICK, akkordeon, alone, read_until
from tests.support.harness import WAIT_S
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.experiments.run_folder import WEIGHTS, load_weights
from akkordeon.experiments.tasks.loader import load_network

X = torch.tensor(load_digits().data[:3], dtype=torch.float32) / 16


@pytest.fixture(scope="module")
def asker():
    """Somebody who keeps connections; to make one takes long."""
    with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
        yield client


@contextmanager
def serving(*arguments, ends_with=signal.SIGTERM):
    """The command at work: its address, and all that it said; ended by a signal."""
    process = alone("serve", *arguments, "--port", 0)
    lines = read_until(process, "serves ")
    yield re.search(r"at (http\S+);", lines[-1])[1], process
    process.send_signal(ends_with)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + ends_with
    assert errors == f"ended by {ends_with.name}\n"


def predicted(asker, url, x, **options):
    answer = asker.post(f"{url}/predict", json={"inputs": x.tolist()}, **options)
    assert answer.status_code == 200, answer.text
    return torch.tensor(answer.json()["outputs"]), answer.json()["version"]


def written_at(path):
    return int(path.stat().st_mtime)


def test_a_kept_run_is_served_until_a_signal_and_newer_weights_of_it_when_they_come(tmp_path, asker):
    akkordeon("train", *QUICK, "--out", tmp_path)
    first = load_weights(tmp_path / WEIGHTS, load_network("digits")).module()(X)
    with serving(tmp_path, "--refresh", 0.01) as (url, _):
        outputs, version = predicted(asker, url, X)
        assert torch.allclose(outputs, first, atol=1e-5)
        assert version == written_at(tmp_path / WEIGHTS)
        akkordeon("train", *QUICK, "--seed", 1, "--out", tmp_path)
        newer = load_weights(tmp_path / WEIGHTS, load_network("digits")).module()(X)
        while not torch.allclose(outputs, newer, atol=1e-5):
            outputs, now = predicted(asker, url, X)
        assert now > version


def test_a_folder_of_checkpoints_is_served_with_the_network_that_is_named(tmp_path, asker):
    (tmp_path / "mine.py").write_text(MINE)
    network = load_network(f"{tmp_path}/mine.py:network")
    x, y = torch.randn(32, 6), torch.randint(4, (32,))
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train((x, y), cross_entropy, batch_size=8)).wait(WAIT_S)
        session.checkpoint(tmp_path)
        module = session.module()
    with serving(tmp_path, "--network", f"{tmp_path}/mine.py:network", ends_with=signal.SIGINT) as (url, _):
        outputs, version = predicted(asker, url, x)
        assert version == 4
        assert torch.allclose(outputs, module(x), atol=1e-5)


def test_a_token_is_made_and_shown_once_where_that_is_asked(tmp_path, asker):
    akkordeon("train", *QUICK, "--out", tmp_path)
    with serving(tmp_path, "--new-token") as (url, process):
        token = read_until(process, "  Authorization: ")[-1].split()[-1]
        assert asker.post(f"{url}/predict", json={}).status_code == 401
        predicted(asker, url, X, headers={"authorization": f"Bearer {token}"})


def test_a_folder_of_data_in_the_environment_is_no_reason_to_refuse_a_network(monkeypatch):
    monkeypatch.setenv("AKKORDEON_DATA", "/somewhere")
    told = akkordeon("serve", "127.0.0.1:1/mine", "--patience", 0.1, expecting=1).stderr
    assert "127.0.0.1:1" in told
    assert "leave that out" not in told


def test_what_cannot_be_served_is_told_in_a_sentence(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    for arguments, why in (
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path], "has no task.json"),
        ([tmp_path, "--network", "digits"], "is not there; `akkordeon train --out"),
        (["127.0.0.1:1/mine"], "127.0.0.1:1"),
        ([tmp_path, "--ema"], "is a folder, where --ema would change nothing"),
        (["127.0.0.1:1/mine", "--best", "--trust"], "where --best and --trust would change nothing"),
        ([tmp_path, "--token", "a", "--new-token"], "leave out --new-token or --token"),
    ):
        told = akkordeon("serve", *arguments, expecting=1).stderr
        assert why in told
        assert told.count("\n") == 1
    akkordeon("train", f"{tmp_path}/mine.py:task", "--out", tmp_path / "run")
    assert "give --trust" in akkordeon("serve", tmp_path / "run", expecting=1).stderr
