"""The whole story of a network that runs on its own, with real processes: as in separate terminals."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import pytest

from akkordeon.core.errors import ClusterError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

PATIENCE_S = 100.0

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


class Terminal:
    """Somebody's terminal with one command in it."""

    def __init__(self, home: Path, *command: str, inside: str | None = None, **environment: str) -> None:
        words = [sys.executable, "-m", "akkordeon.cli.main", *command]
        if inside is not None:  # a network namespace, with files of Ray's own
            (home / "ray").mkdir(exist_ok=True)
            own_files = f'mount --bind {home}/ray /tmp/ray && exec "$@"'
            words = ["ip", "netns", "exec", inside, "sh", "-c", own_files, "sh", *words]
        env = {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", **environment}
        env.pop("RAY_AUTH_MODE", None)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env, cwd=home
        )
        self.began_s = time.monotonic()
        self.text = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line has this in it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (line := self._lines.get(timeout=max(0.1, deadline_s - time.monotonic()))) is not None:
            self.text += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} never came: {self.text}")

    def end(self, code: int | None = 0) -> str:
        """Wait for the command's end; everything it said."""
        assert self.process.wait(PATIENCE_S) == code or code is None, self.text + self.rest()
        return self.text + self.rest()

    def rest(self) -> str:
        self._reader.join(5)
        self.process.stdout.close()
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get() or "")
        return "".join(lines)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s


@pytest.fixture
def terminals(tmp_path):
    """Open terminals; all are closed at the end, and the head of the cluster with them."""
    opened = []

    def terminal(*command: str, **environment: str) -> Terminal:
        opened.append(Terminal(tmp_path, *command, **environment))
        return opened[-1]

    yield terminal
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.rest()
    for note in (tmp_path / ".akkordeon" / "heads").glob("*.json"):
        code = f"from akkordeon.engines.ray.processes import end_head; end_head('localhost:{note.stem}')"
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, timeout=60)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def says(terminal: Terminal, sentence: str) -> None:
    """It refuses with one sentence, in seconds even on a busy machine: Ray alone takes up to 122 s."""
    text = terminal.end(1)
    assert terminal.seconds < 60
    assert re.search(sentence, text), text
    assert text.count("\n") == 1, text


@pytest.mark.timeout(300)  # a dozen processes, on two cores
def test_sentinels_train_and_validate_a_network_that_outlives_them(terminals, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.py").write_text(RECIPE)
    at = f"127.0.0.1:{free_port()}"
    target = f"{at}/digits-net"
    feed = ("--network", target, "--data", "digits")

    start = terminals(
        "network", "start", "recipe/mine.py:network", "--listen", at, "--name", "digits-net"
    ).end()
    assert re.search(r"export RAY_AUTH_TOKEN=\w{64}\n", start)
    assert "Ray listens on all interfaces of this machine" in start

    killed = terminals("sentinel", "train", *feed, "--epochs", "100000", "--name", "killed")
    ended = terminals("sentinel", "train", *feed, "--epochs", "100000", "--name", "ended")
    validator = terminals("sentinel", "validate", *feed, "--every", "1", "--name", "vdp")
    trainer = terminals("sentinel", "train", *feed, "--take", "1000", "--epochs", "12", "--name", "tdp")
    killed.until("epoch +1 ")
    killed.process.send_signal(signal.SIGKILL)
    ended.until("epoch +1 ")
    ended.process.send_signal(signal.SIGTERM)
    assert re.search(r"ended: ([\d,]+) batches sent, \1 trained, .*\nended by SIGTERM\n", ended.end(143))
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
    status = terminals("status", at).end()
    assert "digits-net: runs" in status
    assert re.search(r"earlier: killed is lost: its process died", status)
    gates = re.findall(
        r"(gate/\d) +([\d.]+) number (\d+)  version [1-9]\d*  τ mean .* (\d+) in flight", status
    )
    assert [gate[0] for gate in gates] == ["gate/0", "gate/1"]
    assert gates[0][2] != gates[1][2]  # a process each
    assert [gate[3] for gate in gates] == ["0", "0"]
    assert re.search(r"vdp +validate on .* accuracy 0\.\d+", status)

    terminals("detach", target, "vdp").end()
    validator.end()
    from tests.support.warm import start_cluster

    neighbour = start_cluster()["warm/0"]
    stopped = terminals("network", "stop", target.replace("127.0.0.1", "localhost")).end()
    assert re.search(
        r"'digits-net' has ended\n.*is gone.*\nRay at localhost:\d+ has ended, as no network is left",
        stopped,
    )
    ray.get(neighbour.heartbeat.remote(), timeout=10)  # another cluster of this machine
    says(terminals("status", at), f"nothing answers at {at}")


def test_of_two_who_start_ray_at_one_address_the_second_finds_that_of_the_first(monkeypatch, tmp_path):
    """Both failed: each saw the port of the other before anything answered there."""
    from akkordeon.engines.ray import processes

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


def test_a_machine_outside_the_cluster_is_told_to_join_at_once(monkeypatch):
    """Ray looks for a minute, and does not say for what."""
    import psutil

    from akkordeon.engines.ray.connection import _check_member

    raylet = SimpleNamespace(info={"cmdline": ["/ray/raylet/raylet", "--gcs-address=10.0.0.7:25520"]})
    monkeypatch.setattr(psutil, "process_iter", lambda attributes: [raylet])
    _check_member("10.0.0.7:25520")
    with pytest.raises(
        ClusterError, match=r"no part of the cluster at 10.0.0.7:1234: run `akkordeon join 10"
    ):
        _check_member("10.0.0.7:1234")


def test_a_port_that_is_taken_is_told_of_at_once(terminals):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        start = terminals("network", "start", "digits", "--listen", at, "--name", "digits-net")
        says(start, f"{at} is in use by something that is no Ray cluster")
