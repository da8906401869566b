"""The whole story of a network that runs on its own, with real processes: as in separate terminals."""

from __future__ import annotations

import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import chain, repeat
from types import SimpleNamespace

import httpx
import pytest
from tests.support.terminals import free_port, says
from tests.support.workers import fork_workers_of_heads, worker_path
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.core.errors import ClusterError
from akkordeon.engines.ray.cluster.connection import ClusterProbe

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

RECIPE = """
import torch
from torch import nn
import akkordeon as ak

class Scaled(nn.Module):  # known to nobody but this file
    def forward(self, x):
        return 2 * x

def adam(parameters):
    return torch.optim.Adam(parameters, lr=2e-3)

def network():
    return ak.Network([
        ak.Gate(nn.Sequential(Scaled(), nn.Linear(64, 128), nn.ReLU()), adam),
        ak.Gate(nn.Linear(128, 10), adam),
    ])
"""


@pytest.mark.timeout(300)  # a dozen processes, on two cores
def test_sentinels_train_and_validate_a_network_that_outlives_them(terminals, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.py").write_text(RECIPE)
    at = f"127.0.0.1:{free_port()}"
    target = f"{at}/digits-net"
    feed = ("--network", target, "--data", "digits")

    start = terminals(
        "network", "start", "recipe/mine.py:network", "--listen", at, "--name", "digits-net",
        prepare=partial(fork_workers_of_heads, worker_path()),
    ).end()  # fmt: skip
    assert re.search(r"export RAY_AUTH_TOKEN=\w{64}\n", start)
    assert "Ray listens on all interfaces of this machine" in start

    one = ("--in-flight", "1")  # with ten in all under way, Adam now and then loses what it had learned
    killed = terminals("sentinel", "train", *feed, *one, "--epochs", "100000", "--name", "killed")
    validator = terminals("sentinel", "validate", *feed, "--every", "1", "--name", "vdp")
    trainer = terminals("sentinel", "train", *feed, *one, "--take", "1000", "--epochs", "12", "--name", "tdp")
    killed.until("epoch +1 ")
    says(terminals("set", target, "gate/1", "speed=1"), "gate/1 has no setting 'speed'")
    slower = terminals("set", target, "gate/1", "optimizer=recipe/mine.py:adam", "lr=0.001").end()
    assert "gate/1 learns with optimizer=recipe/mine.py:adam, lr=0.001" in slower
    killed.process.send_signal(signal.SIGKILL)
    assert re.search(r"tdp: ([\d,]+) batches sent, \1 trained, 0 refused, 0 lost", trainer.end())
    validator.until(r"accuracy (0\.9[5-9]|1\.)")

    refusals = [
        (terminals("status", at, RAY_AUTH_TOKEN="wrong"), "refuses us: the token here is another"),
        (terminals("status", at, HOME=str(tmp_path / "recipe")), "refuses us: this process has no token"),
        (
            terminals("sentinel", "train", "--network", f"{at}/no", "--data", "digits"),
            "no network 'no' at .*digits-net",
        ),
    ]
    for refused, sentence in refusals:
        says(refused, sentence)
    says(
        terminals("network", "start", "digits", "--listen", at, "--name", "digits-net"),
        "there is a network 'digits-net' here already",
    )
    status, under_way = "", ["?"]
    for _ in range(5):  # gates are asked now and then how they are, perhaps just before one was killed
        if under_way != ["0", "0"]:
            status = terminals("status", at).end()
            gates = re.findall(
                r"(gate/\d) +([\d.]+) number (\d+)  version [1-9]\d*  τ mean .* (\d+) in flight", status
            )
            under_way = [gate[3] for gate in gates]
    assert under_way == ["0", "0"]
    assert "digits-net: runs" in status
    assert re.search(r"earlier: killed is lost: its process died", status)
    assert [gate[0] for gate in gates] == ["gate/0", "gate/1"]
    assert gates[0][2] != gates[1][2]  # a process each
    assert re.search(r"vdp +validate on .* accuracy 0\.\d+", status)

    server = terminals("serve", target, "--port", "0")
    url = server.until(r"serves \S+, version [1-9][\d,]*, at (\S+); Ctrl-C ends it")[1]
    answer = httpx.post(f"{url}/predict", json={"inputs": [[0.5] * 64]}, timeout=30)
    assert len(answer.json()["outputs"][0]) == 10
    server.process.send_signal(signal.SIGINT)
    assert "ended by SIGINT" in server.end(130)

    page = terminals("watch", at, "--port", "0")  # the only network there
    url = page.until(r"shows \S+ at (\S+)/; Ctrl-C ends it")[1]
    seen = httpx.get(f"{url}/picture", timeout=30).json()["picture"]
    assert seen["title"] == target
    assert [seen["gates"][gate]["version"] > 0 for gate in seen["row"]] == [True, True]
    assert seen["sentinels"]["vdp"]["role"] == "validate"
    assert {"gate/0", "gate/1"} <= {actor for host in seen["hosts"].values() for actor in host["actors"]}
    assert seen["offers"]["orders"] == ["detach", "set"]
    page.process.send_signal(signal.SIGINT)
    assert "ended by SIGINT" in page.end(130)

    terminals("detach", target, "vdp").end()
    validator.end()
    from tests.support.warm import start_cluster

    start_cluster()  # another of this machine
    stopped = terminals("network", "stop", target.replace("127.0.0.1", "localhost")).end()
    assert re.search(
        r"'digits-net' has ended\n.*is gone.*\nRay at localhost:\d+ has ended, as no network is left",
        stopped,
    )
    assert ClusterProbe().node_answers()
    assert ClusterProbe().head_answers()
    says(terminals("status", at), f"nothing answers at {at}")


def test_of_two_who_start_ray_at_one_address_the_second_finds_that_of_the_first(monkeypatch, tmp_path):
    """Both failed: each saw the port of the other before anything answered there."""
    from akkordeon.engines.ray.cluster import processes

    monkeypatch.setenv("HOME", str(tmp_path))
    at = f"127.0.0.1:{free_port()}"
    starting, both_asked = threading.Event(), threading.Event()
    running: list[str] = []

    def started(address, dashboard):
        starting.set()
        both_asked.wait(10)
        running.append(address)
        return True

    monkeypatch.setattr(processes, "_started", started)
    monkeypatch.setattr(processes, "_listens", lambda address: address in running)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(processes.start_head, at)
        assert starting.wait(10)
        second = pool.submit(processes.start_head, at)
        assert not wait([second], 0.2).done
        both_asked.set()
        assert (first.result(10), second.result(10)) == (True, False)


def test_activations_are_sent_as_one_dtype_and_two_are_refused():
    words = ["network", "start", "mlp", "--listen", "127.0.0.1:1234", "--name", "net", "--bf16", "--int8"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    assert "give --bf16 or --int8" in result.output


def test_a_machine_outside_the_cluster_is_told_to_join_at_once(monkeypatch):
    """Ray looks for a minute, and does not say for what."""
    import psutil

    from akkordeon.engines.ray.cluster.connection import _check_member

    raylet = SimpleNamespace(info={"cmdline": ["/ray/raylet/raylet", "--gcs-address=10.0.0.7:25520"]})
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: [raylet])
    _check_member("10.0.0.7:25520")
    with pytest.raises(
        ClusterError, match=r"no part of the cluster at 10.0.0.7:1234: run `akkordeon join 10"
    ):
        _check_member("10.0.0.7:1234")


def test_a_machine_with_patience_is_part_of_the_cluster_again_when_that_is_there_again(monkeypatch):
    """When the head had died, somebody had to go to every other machine."""
    from akkordeon.engines.ray.cluster import processes

    gone = SimpleNamespace(wait=lambda timeout: 1)
    answers = chain([gone, ClusterError("nothing answers"), gone], repeat(ClusterError("nothing answers")))

    def member(address, resources):
        answer = next(answers)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    monkeypatch.setattr(processes, "member", member)
    result = CliRunner().invoke(app, ["join", "10.0.0.7:1234", "--patience", "0.1"])
    assert result.exit_code == 1
    left = "Ray ended by itself with 1: this machine has left the cluster at 10.0.0.7:1234"
    assert result.output.count(f"{left}; waiting for it up to 0.1 s\n") == 2
    assert (
        result.output.count("this machine is part of the cluster at 10.0.0.7:1234; Ctrl-C leaves it\n") == 2
    )
    assert result.output.endswith("akkordeon: 10.0.0.7:1234 was away for 0.1 s: nothing answers\n")


def test_a_port_that_is_taken_is_told_of_at_once(terminals):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        start = terminals("network", "start", "digits", "--listen", at, "--name", "digits-net")
        says(start, f"{at} is in use by something that is no Ray cluster")
