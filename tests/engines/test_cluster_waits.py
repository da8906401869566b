"""What is asked of Ray has an end, and signals are answered as before Ray came. With a cluster that dies."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import threading

import pytest

from akkordeon.core.errors import ClusterError
from akkordeon.engines.ray.cluster.processes import check_listen
from akkordeon.engines.ray.cluster.signals import signals_kept
from akkordeon.engines.ray.cluster.waits import ask, within


def test_what_ray_answers_or_raises_is_handed_on():
    assert ask(lambda: 7, "a number") == 7
    with pytest.raises(ValueError, match="no such actor"):
        ask(lambda: (_ for _ in ()).throw(ValueError("no such actor")).__next__(), "an actor")


def test_a_question_that_is_not_answered_ends_in_a_sentence():
    never = threading.Event()
    with pytest.raises(ClusterError, match=r"asked for its machines and has not answered for 0\.05 s"):
        ask(never.wait, "its machines", 0.05)
    assert not within(0.05, never.wait)
    assert within(10, lambda: None)
    never.set()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_signals_are_answered_as_before_where_something_took_them(thread):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))

    def take():
        with signals_kept():
            setter = ctypes.CDLL(None).signal
            setter.argtypes, setter.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
            setter(signal.SIGTERM, 1)  # SIG_IGN, as the system has it; Python does not know of it

    try:
        if thread == "main":
            take()
        else:
            other = threading.Thread(target=take)
            other.start()
            other.join(10)
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


RAYLET_DIES = """
import threading, time
import psutil, torch
import akkordeon as ak
from torch import nn

class Slow(list):
    def __iter__(self):
        for batch in super().__iter__():
            threading.Event().wait(0.01)
            yield batch

network = ak.Network([ak.Gate(nn.Linear(8, 3), lambda p: torch.optim.SGD(p, lr=.01))])
data = Slow([(torch.randn(8, 8), torch.randint(3, (8,)))] * 10)
session = ak.run(network, engine="ray")
training = session.attach(ak.Sentinel.train(data, nn.functional.cross_entropy, epochs=10**6, name="t"))
while not training.epochs:
    threading.Event().wait(0.1)
(raylet,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
raylet.kill()

def told(what, do):
    began_s = time.monotonic()
    try:
        do()
        said = "done"
    except ak.AkkordeonError as error:
        said = f"{type(error).__name__}: {error}"
    print(f"{what}|{time.monotonic() - began_s:.1f}|{said}", flush=True)

told("wait", lambda: training.wait(60))
told("status", lambda: session.status(2))
told("module", lambda: session.module(timeout=5))
told("close", session.close)
print("batches|0|", training.batches.as_tuple())
"""


@pytest.mark.slow
def test_every_wait_of_a_session_ends_in_a_sentence_when_the_raylet_is_killed():
    """module(timeout=5) did not keep its time and close() took minutes, in a ray.get without one."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    done = subprocess.run(
        [sys.executable, "-c", RAYLET_DIES], capture_output=True, text=True, timeout=120, check=False
    )
    told = {line.split("|")[0]: line.split("|")[1:] for line in done.stdout.splitlines() if "|" in line}
    assert {"wait", "status", "module", "close", "batches"} <= set(told), done.stdout + done.stderr
    for what in ("wait", "module"):
        assert told[what][1].startswith("GateFailedError: gate/0 is lost: Ray's process on this"), told
    assert float(told["wait"][0]) < 30
    assert float(told["status"][0]) < 10
    assert float(told["module"][0]) < 10
    assert float(told["close"][0]) < 45
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_that_ends_while_it_is_looked_at_is_none():
    """A head could not be started where one was just ending: its port was said to be in use."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"

        def end_with_the_second():
            listening.accept()[0].close()
            second, _ = listening.accept()
            listening.close()
            second.close()

        ending = threading.Thread(target=end_with_the_second)
        ending.start()
        assert not check_listen(address)
        ending.join()
