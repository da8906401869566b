"""A study over three machines, which are network namespaces on a bridge with a Ray of its own in each."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from tests.support.terminals import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AT = "10.77.0.1:25520"
TARGET = f"{AT}/digits-net"


@pytest.fixture
def mnist():
    folder = Path(os.environ.get("AKKORDEON_DATA", "/nowhere"))
    found = folder / "mnist" if (folder / "mnist").is_dir() else folder
    if not found.is_dir():
        pytest.skip("this needs MNIST: set AKKORDEON_DATA to the folder of its files")
    return str(found)


def test_mnist_is_learned_over_three_machines_while_trainers_come_and_go(machines, mnist, tmp_path):
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
