"""A comparison of methods: tuned on seeds of their own, resumed where it broke off, with plain figures."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain, count, islice

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.data.sources import as_batches
from akkordeon.experiments.laboratory.arm import Arm, run_arm
from akkordeon.experiments.laboratory.delays import delays_of
from akkordeon.experiments.laboratory.study import Design, Study
from akkordeon.experiments.presets import optimizer_named
from akkordeon.pipeline.staleness.named import RULES

DESIGN = Design("line", ("stash/sgd",), (0, 2), (0.01, 0.1, 1e9), "fixed", steps=40, seeds=2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)  # others are set


def task(seed=0):
    """A line through points, without noise; with one learning rate that diverges."""
    torch.manual_seed(seed)
    network = ak.Network([ak.Gate(layer, sgd) for layer in (nn.Linear(3, 4), nn.Linear(4, 1))])
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(7))
    points = x, x.sum(1, keepdim=True)
    return ak.Task(network, points, points, nn.functional.mse_loss, batch_size=8)


def test_an_arm_is_run_alike_again():
    arm = Arm("line", "stash/sgd", "fixed", 2, 0.05, seed=3, steps=30)
    one, other = run_arm(task(3), arm), run_arm(task(3), arm)
    assert (one.loss, one.validation, one.curve) == (other.loss, other.validation, other.curve)
    assert one.staleness == [pytest.approx((0 + 1 + 28 * 2) / 30)] * 2
    assert one.copies == [3, 3]


@pytest.mark.parametrize("engine", [None, "simulator"])
def test_what_is_measured_of_an_arm_changes_nothing_of_it(engine):
    arm = Arm("line", "inverse/sgd", "fixed", 2, 0.05, seed=3, steps=30, engine=engine)
    plain, measured = run_arm(task(3), arm), run_arm(task(3), replace(arm, diagnose_every=1))
    if engine is None:  # else seconds are measured anew
        assert (plain.loss, plain.validation, plain.curve) == (
            measured.loss,
            measured.validation,
            measured.curve,
        )
        assert measured.correction == [pytest.approx(28 / 30 * (1 - 1 / 2))] * 2  # τ is 0, 1, 2, 2, …
    assert (plain.cosine, plain.correction) == ([], [])
    assert measured.cosine == [pytest.approx(1.0)] * 2  # each gate is one linear layer
    assert len(measured.correction) == 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_without_delay_every_rule_is_its_optimizer_to_the_bit(rule, optimizer):
    one, other = (
        run_arm(task(1), Arm("line", f"{name}/{optimizer}", "fixed", 0, 0.01, seed=1, steps=20))
        for name in (rule, "stash")
    )
    assert (one.loss, one.validation, one.curve) == (other.loss, other.validation, other.curve)


def test_what_is_the_same_without_delay_is_run_once(tmp_path):
    design = replace(DESIGN, methods=("stash/sgd", "inverse/sgd"), delays=(0,))
    told = []
    first, second = Study(task, design, tmp_path / "a", lambda arm, outcome: told.append(arm)).cells()
    assert {arm.method for arm in told} == {"stash/sgd"}
    assert (first.method, second.method) == ("stash/sgd", "inverse/sgd")
    assert first.outcomes == second.outcomes


def test_delays_grow_over_a_warm_up():
    arm = Arm("line", "stash/sgd", "fixed", 4, 0.05, seed=1, steps=40, warm_up=20)
    delays = [delays_of("fixed", 4, warm_up=20).of(batch, 2) for batch in range(25)]
    assert delays[0] == (0, 0)
    assert delays == sorted(delays)
    assert delays[20:] == [(4, 4)] * 5
    assert 0 < run_arm(task(1), arm).staleness[0] < run_arm(task(1), replace(arm, warm_up=0)).staleness[0]


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_learning_rate_falls_along_a_cosine_as_in_a_plain_loop_with_a_scheduler(optimizer):
    arm = Arm("line", f"stash/{optimizer}", "fixed", 0, 0.05, seed=1, steps=20, decay=True)
    model = nn.Sequential(*(gate.module for gate in task(1).network.gates))
    plain = optimizer_named(optimizer, 0.05)(model.parameters())
    scheduler = CosineAnnealingLR(plain, 20)
    losses = []
    batches = as_batches(task(1).train_batches(None, 1), 8)
    for x, y in islice(chain.from_iterable(batches for _ in count()), 20):
        losses.append(nn.functional.mse_loss(model(x), y))
        plain.zero_grad()
        losses[-1].backward()
        plain.step()
        scheduler.step()
    assert plain.param_groups[0]["lr"] == pytest.approx(0)
    assert run_arm(task(1), arm).curve == [[step, loss.item()] for step, loss in enumerate(losses, 1)]


def test_learning_rates_fall_for_optimizers_that_go_by_names_too():
    arm = Arm("line", "stash/muon", "fixed", 2, 0.05, seed=1, steps=20)
    falling = run_arm(task(1), replace(arm, decay=True))
    assert falling.why is None
    assert falling.curve[-1] != run_arm(task(1), arm).curve[-1]


def test_the_best_learning_rate_on_the_tuning_seeds_is_taken_and_others_are_reported(tmp_path):
    told = []
    study = Study(task, DESIGN, tmp_path / "arms.jsonl", lambda arm, outcome: told.append(arm))
    cells = list(study.cells())
    assert [(cell.method, cell.delay, cell.lr) for cell in cells] == [("stash/sgd", d, 0.1) for d in (0, 2)]
    assert not any(cell.at_edge for cell in cells)
    assert len(told) == 2 * (3 + 2)
    assert {arm.seed for arm in told} == {1000, 0, 1}
    mean, spread = cells[0].of("validation")
    assert 0 < mean < 0.5
    assert spread > 0


def test_a_study_goes_on_where_it_was_broken_off(tmp_path):
    file = tmp_path / "arms.jsonl"
    whole = list(Study(task, DESIGN, file).cells())
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:20])
    told = []
    again = list(Study(task, DESIGN, file, lambda arm, outcome: told.append(arm)).cells())
    assert len(told) == len(lines) - 4
    assert [cell.of("loss") for cell in again] == [cell.of("loss") for cell in whole]
    told.clear()
    assert list(Study(task, DESIGN, file, lambda arm, outcome: told.append(arm)).cells())
    assert told == []


def test_what_diverges_is_infinite_and_says_why(tmp_path):
    design = Design("line", ("stash/sgd",), (0,), (1e9,), "fixed", steps=40, seeds=1)
    (cell,) = Study(task, design, tmp_path / "arms.jsonl").cells()
    assert cell.of("loss") == cell.of("validation") == (float("inf"),) * 2
    assert cell.outcomes[0].why
    (line,) = (tmp_path / "arms.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"]["loss"] is None
    (again,) = Study(task, design, tmp_path / "arms.jsonl").cells()
    assert again == cell


def test_another_file_is_refused(tmp_path):
    (tmp_path / "arms.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(DataError, match=r"line 1 of .*arms\.jsonl is no arm of a comparison"):
        Study(task, DESIGN, tmp_path / "arms.jsonl")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("later/sgd", "there is no"),
        ("stash/sdg", "there is no"),
        ("stash", "names no optimizer, as stash/adamw"),
    ],
)
def test_what_names_no_rule_and_optimizer_is_refused_before_anything_is_run(name, sentence):
    with pytest.raises(RecipeError, match=sentence):
        replace(DESIGN, methods=("stash/sgd", name))
