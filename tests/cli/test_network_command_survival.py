"""A network's head dies, and signals end commands: with real processes, as in separate terminals."""

from __future__ import annotations

import os
import re
import signal
import threading

import psutil
import pytest
from tests.support.terminals import free_port

from akkordeon.engines.ray.cluster import processes

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

TRACES = r"Traceback|logging\.cc|\*\*\* SIG|terminate called|Fatal Python"


def begin(terminals, **options):
    """A network; its address."""
    at = f"127.0.0.1:{free_port()}"
    start_at(terminals, at)
    return at


def start_at(terminals, at):
    return terminals(
        "network", "start", "digits", "--listen", at, "--name", "net", "--placement", "pack"
    ).end()


def train(terminals, at, *options):
    feed = ("--network", f"{at}/net", "--data", "digits", "--in-flight", "1")
    return terminals("sentinel", "train", *feed, "--epochs", "100000", *options)


def ray_processes(at):
    """Ray's own, of the cluster there."""
    port = at.partition(":")[2]
    marks = (
        f"--gcs_server_port={port}",
        f"--gcs-address={at}",
        f"--port={port}",
        f"--gcs-address=localhost:{port}",
    )
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(mark in (process.info["cmdline"] or []) for mark in marks):
            found += [process, *process.children(recursive=True)]
    return list({process.pid: process for process in found}.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_signals_end_a_sentinel_which_says_what_it_came_to_and_the_second_at_once(terminals):
    """Some ended with a stack of Ray's C++ and exit code -6."""
    at = begin(terminals)
    running = {name: train(terminals, at, "--name", name.lower()) for name in ("SIGTERM", "SIGINT", "SIGHUP")}
    for name, terminal in running.items():
        terminal.until("epoch +1 ")
        terminal.process.send_signal(getattr(signal, name))
    for name, terminal in running.items():
        text = terminal.end(128 + getattr(signal, name))
        assert re.search(rf"{name.lower()}: ([\d,]+) batches sent, \1 trained, 0 refused, 0 lost\n", text)
        assert text.endswith(f"ended by {name}\n")
        assert not re.search(TRACES, text), text
    twice = train(terminals, at, "--name", "twice")
    twice.until("is attached")
    twice.process.send_signal(signal.SIGTERM)
    twice.process.send_signal(signal.SIGTERM)
    assert not re.search(TRACES, twice.end(143))
    early = train(terminals, at, "--name", "early")
    threading.Event().wait(2.0)  # while Ray begins, at some moment of it
    early.process.send_signal(signal.SIGTERM)
    assert not re.search(TRACES, early.end(143))
    member = terminals("join", at)
    member.until("is part of the cluster")
    member.process.send_signal(signal.SIGHUP)
    assert f"left the cluster at {at}\nended by SIGHUP\n" in member.end(129)
    terminals("network", "stop", f"{at}/net").end()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sentinels_with_patience_go_on_when_the_head_was_killed_and_the_network_is_started_again(terminals):
    """All that fed it ended, and nobody could start it at its address: somebody had to see to each."""
    at = begin(terminals)
    patient, brief = train(terminals, at, "--patience", "120"), train(terminals, at, "--patience", "0.5")
    patient.until("epoch +2 ")
    brief.until("epoch +1 ")
    before = ray_processes(at)
    (head,) = [process for process in before if process.name() == "gcs_server"]
    head.kill()
    patient.until("is away .*waiting for it up to 120 s")
    assert re.search(r"\nakkordeon: .*/net was away for 0\.5 s: .*it was lost: .*\n$", brief.end(1))
    start_at(terminals, at)
    patient.until("is there again, and its sentinels go on")
    epoch = int(patient.until(r"epoch +(\d+) ")[1])
    assert epoch >= 3  # of its own count
    assert not [process for process in before if alive(process)]
    patient.process.send_signal(signal.SIGTERM)
    assert re.search(
        r"([\d,]+) batches sent, ([\d,]+) trained, 0 refused, \d+ lost\nended by SIGTERM", patient.end(143)
    )
    terminals("network", "stop", f"{at}/net").end()
    assert ray_processes(at) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_with_patience_joins_again_when_the_head_was_killed_and_another_is_there(terminals):
    at = begin(terminals)
    member = terminals("join", at, "--patience", "200")
    member.until("is part of the cluster")
    (head,) = [process for process in ray_processes(at) if process.name() == "gcs_server"]
    head.kill()
    member.until("Ray ended by itself .*; waiting for it up to 200 s")  # after a minute
    start_at(terminals, at)
    member.until("is part of the cluster")
    member.process.send_signal(signal.SIGTERM)
    member.end(143)
    terminals("network", "stop", f"{at}/net").end()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [("ray start",), ("ray start", "gcs_server")])
def test_nothing_is_left_of_a_head_that_was_killed(killed, monkeypatch, tmp_path):
    """What it had begun went on, and nobody knew any more that it was ours."""
    monkeypatch.setenv("HOME", str(tmp_path))
    at = f"127.0.0.1:{free_port()}"
    shared = set(os.listdir("/dev/shm"))
    processes.ensure_token()
    assert processes.start_head(at)
    before = ray_processes(at)
    for process in [psutil.Process(processes._noted(at)[0]), *(p for p in before if p.name() in killed)]:
        process.kill()
    if "gcs_server" in killed:
        psutil.wait_procs([p for p in before if p.name() in killed], 10)
        assert processes.start_head(at)
        assert not [process for process in before if alive(process)]
        assert processes.is_ours(at)
    processes.end_head(at)  # where the system has not ended the rest with the first
    assert not processes.is_ours(at)
    assert [process for process in ray_processes(at) if alive(process)] == []
    assert {name for name in os.listdir("/dev/shm") if "plasma" in name} <= shared
    assert processes.start_head(at)  # no lock is left, and the port is free
    assert processes.end_head(at)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_network_whose_head_was_killed_goes_on_from_its_checkpoint(terminals, tmp_path):
    """Another process of the network's takes checkpoints; whoever trained it comes back by himself."""
    at = begin(terminals)
    patient = train(terminals, at, "--patience", "120")
    keeper = terminals(
        "sentinel", "checkpoint", "--network", f"{at}/net", "--out", "kept", "--every", "0.5",
        "--patience", "120",
    )  # fmt: skip
    patient.until("epoch +3 ")
    folder = tmp_path / "kept" / "checkpoints"
    while not list(folder.glob("0*/manifest.json")):
        patient.until("epoch")
    (head,) = [process for process in ray_processes(at) if process.name() == "gcs_server"]
    head.kill()
    patient.until("is away")
    text = terminals(
        "network", "start", "digits", "--listen", at, "--name", "net", "--placement", "pack", "--from", "kept"
    ).end()
    version = int(re.search(r"gate/0 at ([\d,]+) updates, gate/1 at", text)[1].replace(",", ""))
    assert version > 0
    patient.until("is there again, and its sentinels go on")
    now = 0
    while now <= version:  # gates are asked now and then how they are
        patient.until("epoch")
        now = int(re.search(r"gate/0 .* version (\d+)", terminals("status", at).end())[1])
    for terminal in (patient, keeper):
        terminal.process.send_signal(signal.SIGTERM)
        terminal.end(143)
    terminals("network", "stop", f"{at}/net").end()
