"""A study over three machines, which are network namespaces on a bridge with a Ray of its own in each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from tests.support.terminals import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MACHINES = ("akkordeon0", "akkordeon1", "akkordeon2")
BRIDGE = "akkordeon-br"
AT = "10.77.0.1:25520"
TARGET = f"{AT}/digits-net"


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def machines():
    """Three of them, 10.77.0.1 to 10.77.0.3."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        ip("addr", "add", "10.77.0.254/24", "dev", BRIDGE)
        for i, name in enumerate(MACHINES):
            ip("netns", "add", name)
            ip("link", "add", f"ak-v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"ak-v{i}", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", "10.77.0.254")
        yield MACHINES
    finally:
        for name in MACHINES:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
            for number in inside.split():  # what a test that failed left there
                with suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            ip("netns", "del", name, check=False)
        for i in range(len(MACHINES)):
            ip("link", "del", f"ak-v{i}", check=False)  # lives as long as the last process of its machine
        ip("link", "del", BRIDGE, check=False)


@pytest.fixture
def mnist():
    folder = Path(os.environ.get("AKKORDEON_DATA", "/nowhere"))
    found = folder / "mnist" if (folder / "mnist").is_dir() else folder
    if not found.is_dir():
        pytest.skip("this needs MNIST: set AKKORDEON_DATA to the folder of its files")
    return str(found)


def test_mnist_is_learned_over_three_machines_while_trainers_come_and_go(machines, mnist, tmp_path):
    Path("/tmp/ray").mkdir(exist_ok=True)  # where each machine sees its own
    opened: list[Terminal] = []
    token: dict[str, str] = {}

    def terminal(machine: int, *command: str) -> Terminal:
        home = tmp_path / str(machine)
        home.mkdir(exist_ok=True)
        opened.append(Terminal(home, *command, inside=machines[machine], **token))
        return opened[-1]

    def train(machine: int, name: str, take: int, epochs: int) -> Terminal:
        feed = ("--network", TARGET, "--data", "mnist", "--data-dir", mnist)
        how = ("--take", str(take), "--epochs", str(epochs), "--name", name)
        return terminal(machine, "sentinel", "train", *feed, *how)

    try:
        start = terminal(
            0, "network", "start", "mlp", "--listen", AT, "--name", "digits-net", "--machines", "3"
        )
        token["RAY_AUTH_TOKEN"] = start.until(r"export RAY_AUTH_TOKEN=(\w+)").group(1)
        members = [terminal(i, "join", AT) for i in (1, 2)]
        start.end()
        first = train(1, "first", 60_000, 100)
        first.until("epoch +1 ")
        killed = train(2, "killed", 60_000, 100)
        killed.until("epoch +1 ")
        validator = terminal(
            0,
            "sentinel",
            "validate",
            "--network",
            TARGET,
            "--data",
            "mnist",
            "--data-dir",
            mnist,
            "--every",
            "5",
        )
        killed.process.send_signal(signal.SIGKILL)
        short = train(2, "short", 3000, 3)
        assert re.search(r"short: ([\d,]+) batches sent, \1 trained", short.end())
        validator.until(r"accuracy (0\.9[5-9]|1\.)")
        status = terminal(1, "status", AT).end()
        print(status)
        assert len(set(re.findall(r"gate/\d +([\d.]+) ", status))) >= 2
        assert "killed is lost" in status
        assert re.search(r"first +train on 10\.77\.0\.2 ", status)  # with its data, where it was attached
        first.process.send_signal(signal.SIGINT)
        assert re.search(r"first: ([\d,]+) batches sent, \1 trained, 0 refused, 0 lost", first.end(130))
        terminal(0, "detach", TARGET, "validate").end()
        print(validator.end())
        for member in members:
            member.process.send_signal(signal.SIGINT)
            member.end(None)
        assert "is lost" in terminal(0, "status", AT).end()  # with the gates that were there
        terminal(0, "network", "stop", TARGET).end()
    finally:
        for each in opened:
            if each.process.poll() is None:
                each.process.terminate()
                each.process.wait(60)
            each.rest()
