"""Every kind of module trains to the same bits where its gates measure, and can be measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.harness import WAIT_S
from tests.support.modules import DOWNPOUR, ROWS, SIZE, Row
from torch import Tensor

import akkordeon as ak

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*was compiled in place by compile"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf"
    ),  # PyTorch's compiler
]

BATCHES, IN_FLIGHT = 9, 3

EACH = [
    pytest.param(row, id=row.name, marks=[] if row.name in DOWNPOUR else [pytest.mark.slow]) for row in ROWS
]


def trained(row: Row, **settings: Any) -> tuple[dict[str, Tensor], Tensor, list]:
    """All state at the end, what the process's generator gives then, and how gates are."""
    torch.manual_seed(2)
    batches = [(row.inputs(), torch.randn(SIZE)) for _ in range(BATCHES)]
    torch.manual_seed(1)
    gates = [
        ak.Gate(part, row.optimizer if list(part.parameters()) else None, **settings)
        for part in row.modules()
    ]
    with ak.run(ak.Network(gates), ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train(batches, row.loss, in_flight=IN_FLIGHT))
        session.wait(WAIT_S)
        return session.module().state_dict(), torch.rand(3), session.status().gates


@pytest.mark.parametrize("row", EACH)
def test_a_gate_that_measures_learns_the_same(row):
    (state, drawn, _), (measured, drawn_then, gates) = trained(row), trained(row, diagnose_every=2)
    assert measured.keys() == state.keys()
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            torch.testing.assert_close(measured[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(drawn_then, drawn)
    assert [(gate.diagnosis.failed, gate.diagnosis.why) for gate in gates] == [(0, None)] * len(gates)
    assert all(gate.diagnosis.batches >= BATCHES // 2 for gate in gates)
