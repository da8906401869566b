"""The last steps of docs/tutorial.md, over three machines: its file, its commands, its weights."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.forks import python
from tests.support.terminals import Terminal

TUTORIAL = (Path(__file__).parents[2] / "docs/tutorial.md").read_text(encoding="utf-8")
AT = "192.168.1.23"
"""The first machine's address in the tutorial; its machines here have others."""

PATIENCE_S = 300.0
"""With a command: to start a network took 112 s where others were at work on the same two cores."""


def blocks(language: str, step: int) -> list[str]:
    """The code of a step in one language."""
    (text,) = re.findall(rf"^## {step}\. .*?(?=^## |\Z)", TUTORIAL, re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(step: int) -> Iterator[tuple[int, list[str]]]:
    """The commands of a step in their order, each with its machine, counted from 0."""
    for block in blocks("shell", step):
        machine = None
        for line in block.splitlines():
            if found := re.fullmatch(r"# on machine (\d)", line):
                machine = int(found[1]) - 1
            else:
                program, *words = line.split()
                assert program == "akkordeon"
                assert machine is not None
                yield machine, words


def test_there_are_ten_steps_and_the_last_has_commands_for_three_machines():
    assert re.findall(r"^## (\d+)\. ", TUTORIAL, re.M) == [str(i) for i in range(1, 11)]
    assert {machine for machine, _ in commands(10)} == {0, 1, 2}
    assert {machine for machine, _ in commands(9)} == {0}


class Machines:
    """Three machines with a terminal for each command."""

    def __init__(self, homes: Path, names: tuple[str, ...]) -> None:
        self.homes = [homes / name for name in names]
        self.names = names
        self.token: dict[str, str] = {}
        self.opened: list[Terminal] = []
        for home in self.homes:
            home.mkdir()

    def run(self, machine: int, words: list[str], at: str = "10.77.0.1") -> Terminal:
        """Begin a command."""
        words = [word.replace(AT, at) for word in words]
        inside, home = self.names[machine], self.homes[machine]
        self.opened.append(Terminal(home, *words, inside=inside, patience_s=PATIENCE_S, **self.token))
        return self.opened[-1]

    def start(self, words: list[str]) -> Terminal:
        """Begin a network, up to the token that others need."""
        started = self.run(0, words)
        self.token["RAY_AUTH_TOKEN"] = started.until(r"export RAY_AUTH_TOKEN=(\w+)").group(1)
        return started

    def close(self) -> None:
        for each in self.opened:
            if each.process.poll() is None:
                each.process.terminate()
                each.process.wait(60)
            each.rest()


@pytest.fixture
def three(machines, tmp_path) -> Iterator[Machines]:
    pytest.importorskip("ray")
    its = Machines(tmp_path, machines)
    (recipe,) = [block for block in blocks("python", 9) if block.startswith("# digits_net.py")]
    (its.homes[0] / "digits_net.py").write_text(recipe)
    yield its
    its.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_trial_on_one_machine(three):
    (_, start), *others = commands(9)
    three.start(start).end()
    said = [three.run(machine, words).end() for machine, words in others]
    assert re.search(r"([\d,]+) batches sent, \1 trained, 0 refused, 0 lost", said[0])
    assert "as no network is left" in said[-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_network_over_three_machines(three):
    (_, start), *others = commands(10)
    started = three.start(start)
    members, trainers, judge = [], [], None
    for machine, words in others:
        match words:
            case ["join", *_]:
                members.append(three.run(machine, words))
            case ["sentinel", "train", *_]:
                started.end()
                trainers.append(three.run(machine, words))
            case ["sentinel", "validate", *_]:
                judge = three.run(machine, words)
                for trainer in trainers:
                    assert re.search(r"([\d,]+) batches sent, \1 trained", trainer.end())
                judge.until(r"accuracy (0\.9|1\.)")
            case _:
                three.run(machine, words).end()
    assert judge is not None
    judge.end()
    for member in members:
        member.process.send_signal(signal.SIGINT)
        member.end(None)
    (load,) = blocks("python", 10)
    done = python(f"import os, sys\nos.chdir({str(three.homes[0])!r})\nsys.path.insert(0, '')\n{load}")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"0\.\d+|1\.", done.stdout)[0]) > 0.9
