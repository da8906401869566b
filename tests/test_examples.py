"""The examples run, on a few made images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from test_data import IDX_FILES, write

import akkordeon as ak

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, IDX_FILES)


@pytest.mark.parametrize("variant", ["ancestor", "modern"])
def test_the_simple_example_trains_and_validates(variant, folder, capsys):
    example("simple_akkordeon").main(folder, epochs=2, variant=variant)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("tdp")] == [
        ["tdp", "epoch", "1"],
        ["tdp", "epoch", "2"],
    ]
    assert lines[-1].startswith("vdp")


@pytest.mark.parametrize("variant", ["ancestor", "modern"])
def test_its_plain_loop_prints_the_same_lines(variant, folder, capsys):
    example("simple_akkordeon").main(folder, epochs=2, variant=variant, plain=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["epoch", "epoch", "round"]


def test_its_two_networks_differ_in_the_last_relu_and_the_momentum():
    simple = example("simple_akkordeon")
    ancestor, modern = (simple.make_network(simple.VARIANTS[name]) for name in ("ancestor", "modern"))
    assert [len(list(gate.module.children())) for gate in ancestor.gates] == [2, 2, 2]
    assert isinstance(modern.gates[-1].module, ak.nn.DropConnectLinear)
    for network, momentum in ((ancestor, 0.0), (modern, 0.9)):
        groups = [gate.optimizer(gate.module.parameters()).param_groups[0] for gate in network.gates]
        assert [group["lr"] for group in groups] == [2e-2, 1e-2, 5e-3]
        assert {group["momentum"] for group in groups} == {momentum}


def test_the_larger_example_trains_with_three_sentinels_until_there_were_so_many_validations(folder, capsys):
    example("akkordeon").main(folder, rounds=3, seconds=30.0, validate_every=0.02)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"tdp0", "tdp1", "tdp2", "vdp"}
    assert "after" in lines[-1]
    assert 3 <= int(lines[-1].split()[-2]) <= 5


def test_the_halves_of_the_larger_example_are_disjoint(folder):
    larger = example("akkordeon")
    data = larger.mnist(folder)
    everything, one, other = (trainer.batches.samples for trainer in larger.trainers(data, 1.0, 0))
    assert (everything, one, other) == (12, 6, 6)


@pytest.mark.parametrize("name", ["simple_akkordeon", "akkordeon"])
def test_run_as_a_script_it_finds_the_package_and_not_its_neighbour(name, tmp_path):
    script = [sys.executable, str(EXAMPLES / f"{name}.py"), "--data-dir", str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("the folder")
    assert "lacks a file" in done.stderr
