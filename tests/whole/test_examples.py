"""The examples run, on a few made images."""

from __future__ import annotations

import sys

import pytest
import torch
from tests.data.test_datasets import IDX_FILES, write
from tests.support.examples import EXAMPLES, example
from tests.support.forks import python

import akkordeon as ak


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
    example("three_sentinels").main(folder, rounds=3, seconds=30.0, validate_every=0.02)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"tdp0", "tdp1", "tdp2", "vdp"}
    assert "after" in lines[-1]
    assert 3 <= int(lines[-1].split()[-2]) <= 5


def test_the_halves_of_the_larger_example_are_disjoint(folder):
    larger = example("three_sentinels")
    data = larger.mnist(folder)
    everything, one, other = (trainer.batches.samples for trainer in larger.trainers(data, 1.0, 0))
    assert (everything, one, other) == (12, 6, 6)


@pytest.mark.parametrize("name", ["simple_akkordeon", "three_sentinels"])
def test_run_as_a_script_it_says_what_it_needs(name, tmp_path):
    script = f"import runpy; runpy.run_path({str(EXAMPLES / f'{name}.py')!r}, run_name='__main__')"
    done = python(script, "--data-dir", tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("the folder")
    assert "lacks a file" in done.stderr


def test_xor_begins_apart_with_lines_between_any_two_neighbouring_corners_and_is_not_right_yet():
    xor = example("xor")
    for seed in range(10):
        hidden, output = xor.layers("apart", seed)
        sides = hidden(xor.CORNERS) > 0.5
        for one, other in ((0, 1), (0, 2), (1, 3), (2, 3)):
            assert not sides[one].equal(sides[other])
        predictions = output(hidden(xor.CORNERS))
        assert ((predictions - xor.xor(xor.CORNERS)).abs() > 0.4).any()
        for ours, usual in zip(output.parameters(), xor.layers("random", seed)[1].parameters(), strict=True):
            assert ours.equal(usual)


@pytest.mark.parametrize("serial", [False, True])
def test_xor_says_what_it_predicts_and_how_many_starts_are_right(serial, monkeypatch, capsys):
    xor = example("xor")
    monkeypatch.setattr(xor, "EXAMPLES", 250)
    monkeypatch.setattr(xor, "CLOSE", 1.0)
    monkeypatch.setattr(sys, "argv", ["xor.py", "--seeds", "2", "--start", "apart", *["--serial"][:serial]])
    xor.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed 0", "seed 1", "Job done"]
    assert lines[0].count(" xor ") == 4
    assert lines[-1].startswith("Job done: 2 of 2 starts")


def test_a_character_gpt_is_trained_validated_and_writes(tmp_path, capsys):
    (tmp_path / "input.txt").write_text("ab" * 1000)
    gpt = example("char_gpt")
    gpt.WIDTH = 8
    gpt.main(tmp_path, steps=3, gates=3, in_flight=2)
    printed = capsys.readouterr().out.rstrip("\n")
    lines, written = printed[:-301].splitlines(), printed[-301:]
    assert {line.split()[0] for line in lines} == {"train", "validate"}
    assert set(written) == {"a", "b"}


def test_a_convolutional_network_is_trained_on_mnist_and_its_best_weights_are_tried(folder, capsys):
    cnn = example("cnn_mnist")
    cnn.BATCH_SIZE = 6
    cnn.main(folder, steps=4, gates=2)
    printed = capsys.readouterr().out
    assert "best so far" in printed
    assert printed.endswith("images that it has not learned\n")


@pytest.mark.parametrize("name", ["cnn_mnist", "resnet"])
def test_the_digits_are_learned_in_a_few_steps(name, capsys):
    example(name).main(steps=20)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"train", "validate"}
    assert lines[-1].endswith("% of 360 images that it has not learned")
    assert float(lines[-1].partition("%")[0]) > 20


def test_a_network_is_tuned_from_the_file_of_another_run_and_its_lower_layers_stay(tmp_path, capsys):
    own, file = example("fine_tune"), tmp_path / "lower.safetensors"
    own.pretrain(file, steps=100)
    own.tune(file, steps=30)
    one, other, same = capsys.readouterr().out.splitlines()
    assert float(one.partition("%")[0]) > 80
    assert float(other.partition("%")[0]) > 30
    layers = ("lower.0.0.weight", "lower.0.0.bias", "lower.1.0.weight", "lower.1.0.bias")
    assert same == f"as they were: {', '.join(layers)}"


@pytest.mark.parametrize("model", ["gpt2", "bert"])
def test_models_of_transformers_are_trained_in_gates(model, capsys):
    pytest.importorskip("transformers", reason="an example of its own, and no requirement of ours")
    example("hugging_face").main(model, steps=3)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == {"train", "validate"}
    assert lines[-1] in ("trained a GPT2LMHeadModel", "trained a BertForSequenceClassification")


def test_without_transformers_its_example_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match="needs Hugging Face's transformers: pip install transformers"):
        example("hugging_face")


def test_the_electricity_example_prints_a_table_and_writes_curves(tmp_path, capsys):
    electricity = example("electricity")
    rows = [f"{i % 48 / 48},{i % 7 / 7},0.4,0.0,0.4,0.4,{i // 2 % 2}" for i in range(90)]
    (tmp_path / "elec.csv").write_text("\n".join([",".join([*electricity.COLUMNS, "class"]), *rows, ""]))
    electricity.WINDOW = 30
    electricity.main(tmp_path, width=16, river=False, curves=tmp_path / "curves.csv")
    _, same, ours, _, scale, *bars = capsys.readouterr().out.splitlines()
    assert same.startswith("the label does not change         51.11%")
    assert ours.startswith("three gates, seed 0")
    assert scale.startswith("accuracy over the latest 30, from ")
    assert [len(line[33:]) for line in bars] == [3, 3]
    curves = (tmp_path / "curves.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in curves] == ["examples", "30", "60", "90"]


def test_the_electricity_example_shows_learners_of_river_beside_ours():
    pytest.importorskip("river.base")
    electricity = example("electricity")
    x, y = torch.rand(20, 7), torch.arange(20) % 2
    assert [each.name.partition(", ")[2] for each in electricity.of_river((x, y))] == [
        "logistic regression",
        "Hoeffding tree",
        "adaptive random forest",
    ]


def test_the_electricity_example_marks_alarms_below_the_bar_of_their_examples(capsys):
    electricity = example("electricity")
    curve = {1000: 0.5, 2000: 0.9, 3000: 0.5}
    electricity.print_plot([electricity.Learned("ours", 0.6, 1.0, curve, alarms=(1001, 1500))])
    assert capsys.readouterr().out.splitlines()[2:] == ["ours".ljust(33) + "▁█▁", " " * 34 + "^"]
