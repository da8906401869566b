"""The contract for modules: each in modules.py trains as in the plain loop and is kept whole, bit for bit."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.engines import ENGINES, WITHOUT_RAY, warm_engine
from tests.support.modules import DOWNPOUR, RAY, REFUSED, ROWS, SIZE, Row, squared
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.payload import map_tensors
from akkordeon.experiments.run_folder import load_weights, save_weights
from akkordeon.pipeline.nn import Seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*was compiled in place by compile"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf"
    ),  # PyTorch's compiler
]

WAIT_S = 30.0
BATCHES, HALF = 6, 3
BY_NAME = {row.name: row for row in ROWS}

ON_ENGINES = [
    pytest.param(
        name,
        engine,
        id=f"{name}-{engine}",
        marks=[] if engine == "threads, 2 workers" or name in DOWNPOUR else [pytest.mark.slow],
    )
    for name in BY_NAME
    for engine in ENGINES
]
"""All of them where forward and backward may be on different threads; on other engines most are slow."""


def made(row: Row) -> list[nn.Module]:
    torch.manual_seed(1)
    return row.modules()


@cache
def data(name: str) -> list[tuple[Any, Tensor]]:
    torch.manual_seed(2)
    return [(BY_NAME[name].inputs(), torch.randn(SIZE)) for _ in range(BATCHES)]


# ── the plain loop ───────────────────────────────────────────────────────────────────────────────────


@cache
def plain(name: str) -> tuple[dict[str, Any], Any, Any]:
    """What the plain loop makes: all state at the end, what it predicts half way, and at the end."""
    half_way = predicted(plainly_trained(name, HALF), data(name)[0][0])
    parts = plainly_trained(name, BATCHES)
    state = copies(all_state(nn.Sequential(*parts)))  # an evaluation may write to weights
    return state, half_way, predicted(parts, data(name)[0][0])


def plainly_trained(name: str, batches: int) -> list[nn.Module]:
    """The loop that everybody writes; random modules of ak.nn draw as their gates have them draw."""
    row, parts = BY_NAME[name], made(BY_NAME[name])
    optimizers = [row.optimizer(list(part.parameters())) for part in parts if list(part.parameters())]
    torch.manual_seed(0)
    for i, (x, y) in enumerate(data(name)[:batches]):
        batch = ("sentinel/train#1", i) if i < HALF else ("sentinel/train#2", i - HALF)
        for optimizer in optimizers:
            optimizer.zero_grad()
        out = copy.deepcopy(x)
        for j, part in enumerate(parts):
            for k, module in enumerate(m for m in part.modules() if isinstance(m, Seeded)):
                module.reseed((0, f"gate/{j}", *batch, k))
            out = part(out)
        row.loss(out, y).backward()
        for optimizer in optimizers:
            optimizer.step()
    return parts


def predicted(parts: list[nn.Module], x: Any) -> Any:
    """The outputs in evaluation mode; what is one number for the batch as ``predict`` has it, one a batch."""
    x = copy.deepcopy(x)
    with torch.no_grad():
        for part in parts:
            x = part.eval()(x)
    return map_tensors(lambda tensor: tensor if tensor.dim() else tensor[None], x)


# ── what is compared ─────────────────────────────────────────────────────────────────────────────────


def all_state(module: nn.Module) -> dict[str, Any]:
    """All that a module knows: more than its ``state_dict``."""
    state: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        state |= {f"{path}.{name}": buffer for name, buffer in part._buffers.items()}
        state[f"{path} trains"] = part.training
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            state[f"{path} extra"] = part.get_extra_state()
    return state


def copies(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in state.items()}


def assert_same(got: Any, expected: Any, what: str) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(got, Tensor), f"{what} is {got!r}"
        assert (got.shape, got.dtype, got.layout) == (expected.shape, expected.dtype, expected.layout), what
        same = torch.equal(got.to_dense(), expected.to_dense())
        assert same, f"{what}: {got} is not {expected}"
    elif isinstance(expected, dict):
        assert list(got) == list(expected), what
        for name in expected:
            assert_same(got[name], expected[name], f"{what} {name}")
    elif isinstance(expected, tuple | list):
        assert len(got) == len(expected), what
        for i, part in enumerate(expected):
            assert_same(got[i], part, f"{what} {i}")
    else:
        assert got == expected, what


# ── the contract ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "engine"), ON_ENGINES)
def test_a_module_trains_as_in_the_plain_loop_and_is_kept_whole(name, engine, tmp_path):
    row, batches = BY_NAME[name], data(name)
    expected, half_way, at_the_end = plain(name)
    network = ak.Network([ak.Gate(module, row.optimizer) for module in made(row)])
    with ak.run(network, engine=ENGINES[engine]()) as session:
        session.attach(ak.Sentinel.validate(batches[:2], row.loss, every_updates=2))
        session.attach(ak.Sentinel.train(batches[:HALF], row.loss, in_flight=1)).wait(timeout=WAIT_S)
        assert_same(session.predict([batches[0][0]], timeout=WAIT_S), half_way, "half way")
        training = session.attach(ak.Sentinel.train(batches[HALF:], row.loss, in_flight=1))
        assert training.wait(timeout=WAIT_S).batches.as_tuple() == (HALF, HALF, 0, 0)
        session.wait(timeout=WAIT_S)
        assert_same(session.predict([batches[0][0]], timeout=WAIT_S), at_the_end, "at the end")
        module = session.module(timeout=WAIT_S)
    assert_same(all_state(module), expected, "module()")
    save_weights(tmp_path / "weights", module)
    assert_same(predicted([module], batches[0][0]), at_the_end, "module() at the end")
    if row.unknown:
        with pytest.raises(DataError, match=row.unknown):
            load_weights(tmp_path / "weights", network)
        return
    again = load_weights(tmp_path / "weights", network).module()
    assert_same(all_state(again), expected, "kept")
    assert_same(predicted([again], batches[0][0]), at_the_end, "kept at the end")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DOWNPOUR)
def test_one_waiting_replica_trains_a_module_as_in_the_plain_loop(name, engine):
    row = BY_NAME[name]
    network = ak.Network([ak.Gate(module, row.optimizer) for module in made(row)])
    recipe = ak.Downpour(network, replicas=1, fetch="wait", server_optimizer=row.optimizer)
    assert_same(all_state(trained(recipe, row, ENGINES[engine]())), plain(name)[0], "module()")


@WITHOUT_RAY
@pytest.mark.parametrize("name", [RAY[0], *(pytest.param(name, marks=pytest.mark.slow) for name in RAY[1:])])
def test_processes_of_a_cluster_train_a_module_as_in_the_plain_loop(name):
    row = BY_NAME[name]
    network = ak.Network([ak.Gate(module, row.optimizer) for module in made(row)])
    assert_same(all_state(trained(network, row, warm_engine())), plain(name)[0], "module()")


@WITHOUT_RAY
def test_a_module_that_cannot_be_pickled_is_refused_on_a_cluster():
    network = ak.Network(
        [ak.Gate(module, BY_NAME["weight_norm"].optimizer) for module in made(BY_NAME["weight_norm"])]
    )
    with pytest.raises(RecipeError, match=r"gate/1 cannot travel to its host: .*parametrized modules"):
        ak.run(network, engine=warm_engine())


def trained(recipe: Any, row: Row, engine: Any) -> nn.Module:
    batches = data(row.name)  # made before the session seeds what they are drawn from
    with ak.run(recipe, engine=engine) as session:
        training = session.attach(ak.Sentinel.train(batches, row.loss, in_flight=1))
        assert training.wait(timeout=WAIT_S).batches.as_tuple() == (BATCHES, BATCHES, 0, 0)
        return session.module(timeout=WAIT_S)


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.name)
def test_what_cannot_be_trained_is_refused_in_a_sentence(refusal):
    def train() -> None:
        network = ak.Network([ak.Gate(module, refusal.optimizer) for module in refusal.modules()])
        batches = [(refusal.inputs(), torch.randn(SIZE)) for _ in range(20)]
        with ak.run(network, engine=ak.Simulator()) as session:
            session.attach(ak.Sentinel.train(batches, squared)).wait(timeout=WAIT_S)

    with pytest.raises(refusal.error, match=refusal.sentence):
        train()


def test_every_module_has_a_name_of_its_own():
    assert len(BY_NAME) == len(ROWS)
    assert {*DOWNPOUR, *RAY} <= BY_NAME.keys()


def test_what_the_documents_name_for_each_feature_is_there():
    root = Path(__file__).parents[2]
    table = (root / "docs" / "modules.md").read_text().split("features: begin")[1]
    rows = [
        line.split("|")[3] for line in table.split("features: end")[0].splitlines() if line.startswith("| ")
    ]
    named = {name for row in rows[1:] for name in re.findall("`([^`]+)`", row)}
    tests = {
        name
        for file in (root / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(rows) > 40
    assert all("`" in row for row in rows[1:])
    assert named <= tests | BY_NAME.keys() | {refusal.name for refusal in REFUSED}
