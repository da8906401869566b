"""Gates that come and go in a network that runs on its own, from the command line, with real processes."""

from __future__ import annotations

import re
import signal

import pytest
from tests.support.commands import akkordeon
from tests.support.terminals import free_port, says

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

GATES = """
import torch
from torch import nn
import akkordeon as ak

class Scaled(nn.Module):  # known to nobody but this file
    def __init__(self, n):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n))
    def forward(self, x):
        return x * self.scale

def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)

def network():
    return ak.Network([ak.Gate(nn.Linear(64, 32), adam), ak.Gate(nn.Linear(32, 10), adam)])

def block():
    return ak.Gate(Scaled(32), adam)

def longer():
    return ak.Network([*network().gates[:1], block(), *network().gates[1:]])

def nothing():
    return 7
"""


@pytest.fixture
def gates(tmp_path):
    path = tmp_path / "gates.py"
    path.write_text(GATES)
    return path


def test_what_no_gate_can_be_made_of_is_refused_before_anybody_is_asked(gates):
    def refused(*options):
        return akkordeon("insert", "127.0.0.1:1/net", *options, expecting=1).output

    assert "Give --before GATE or --after GATE" in refused(f"{gates}:block")
    both = ("--before", "gate/0", "--after", "gate/0")
    assert "Give --before GATE or --after GATE" in refused(f"{gates}:block", *both)
    assert "must return an akkordeon.Gate, or a module" in refused(f"{gates}:nothing", "--after", "gate/0")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_trainer_in_another_process_goes_on_when_gates_come_and_go(terminals, gates):
    at = f"127.0.0.1:{free_port()}"
    target = f"{at}/net"
    terminals("network", "start", f"{gates}:network", "--listen", at, "--name", "net").end()
    feed = ("--network", target, "--data", "digits", "--in-flight", "3")
    trainer = terminals("sentinel", "train", *feed, "--epochs", "100000", "--name", "t")
    trainer.until("epoch +1 ")
    insert = terminals("insert", target, "gates.py:block", "--after", "gate/0").end()
    assert "gate/2 is there; the row is gate/0, gate/2, gate/1" in insert
    says(terminals("remove", target, "gate/9"), "none is called 'gate/9'")
    now = int(trainer.until(r"epoch +(\d+) ")[1])
    trainer.until(f"epoch +{now + 2} ")
    later = terminals("sentinel", "train", *feed, "--epochs", "1", "--name", "later").end()
    assert re.search(r"later: ([\d,]+) batches sent, \1 trained, 0 refused, 0 lost", later)
    assert re.search(r"gate/0 .*\n +gate/2 .*\n +gate/1 .*version [1-9]", terminals("status", at).end())
    assert "updates behind them: gate/0" in terminals("network", "save", target, "kept").end()
    again = ("--listen", at, "--from", "kept")
    terminals("network", "start", "gates.py:longer", *again, "--name", "longer").end()
    terminals("network", "stop", f"{at}/longer").end()
    assert "gate/2 is gone; the row is gate/0, gate/1" in terminals("remove", target, "gate/2").end()
    now = int(trainer.until(r"epoch +(\d+) ")[1])
    trainer.until(f"epoch +{now + 2} ")
    trainer.process.send_signal(signal.SIGTERM)
    assert re.search(r"t: ([\d,]+) batches sent, \1 trained, 0 refused, 0 lost", trainer.end(143))
    terminals("network", "stop", target).end()
