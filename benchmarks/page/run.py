"""What it costs training to be watched: by nobody, on a page with and without browsers, and by every sink.

python benchmarks/page/run.py [--quick] [--rounds N] [--seconds S] [--json FILE]

Ways take turns within a round, each round in another order; what is told is the median over rounds of a way's
speed by that of training alone in the same round, and of the share of this process's time on the cores that
is not its workers': a machine is faster at one time than at another, and the share stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.session.session import Session
from akkordeon.watch.sinks.asking import GateAsker
from akkordeon.watch.sinks.sink import Sink

BROWSER = Path(__file__).with_name("browser.py")
BATCH = 128
REPORT_EVERY = 100  # batches: some reports a second, as of a run that is watched closely


@dataclass(frozen=True)
class Way:
    """How training is watched.

    Attributes:
        shown: whether there is a page.
        browsers: that read it.
        stuck: that do not.
        sinks: whether every sink is told.
    """

    shown: bool = True
    browsers: int = 0
    stuck: int = 0
    sinks: bool = False


ALONE = "alone"
WAYS = {
    ALONE: Way(shown=False),
    "a page that nobody looks at": Way(),
    "one browser": Way(browsers=1),
    "eight browsers": Way(browsers=8),
    "one that reads nothing": Way(stuck=1),
    "every sink": Way(shown=False, sinks=True),
    "every sink and one browser": Way(browsers=1, sinks=True),
}


def adam(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def network() -> ak.Network:
    layers = [nn.Sequential(nn.Linear(32, 256), nn.ReLU()), nn.Sequential(nn.Linear(256, 256), nn.ReLU())]
    return ak.Network([ak.Gate(layer, adam) for layer in (*layers, nn.Linear(256, 10))])


def measured(way: Way, seconds: float, folder: str) -> tuple[float, float]:
    """How fast a network trains while it is watched in some way, and what goes to others than workers.

    Returns:
        Batches a second, and the share of the process's time on the cores.
    """
    torch.manual_seed(0)
    batch = torch.randn(BATCH, 32), torch.randint(10, (BATCH,))
    with ExitStack() as telling, ak.run(network(), ak.Threads(2)) as session, ExitStack() as closing:
        if way.sinks:
            sinks = [telling.enter_context(sink) for sink in every_sink(folder)]
            for sink in sinks:
                session.subscribe(sink)
            closing.callback(begin_to_ask(session, sinks))
        attached = session.attach(
            ak.Sentinel.train(
                itertools.repeat(batch), cross_entropy, in_flight=3, report_every=REPORT_EVERY, name="train"
            )
        )
        if way.shown:
            page = session.watch(0)
            for number in range(way.browsers + way.stuck):
                closing.callback(end, begin(page.port, stuck=number >= way.browsers))
        pause(seconds / 5)
        before, began_s = attached.batches.trained, session.status().now_s
        process_s, workers_s = time.process_time(), of_workers_s()
        pause(seconds)
        batches, took_s = attached.batches.trained - before, session.status().now_s - began_s
        workers_share = (of_workers_s() - workers_s) / (time.process_time() - process_s)
        session.detach("train", drop=True)
        return batches / took_s, 1 - workers_share


def of_workers_s() -> float:
    """Seconds that the workers of this process have had of the cores."""
    workers = [each for each in threading.enumerate() if each.name.startswith("akkordeon-worker-")]
    clocks = [time.pthread_getcpuclockid(each.ident) for each in workers if each.ident is not None]
    return sum(map(time.clock_gettime, clocks))


def every_sink(folder: str) -> Iterator[Sink]:
    """A sink of each kind whose library is here and that needs no account."""
    if find_spec("tensorboard") is not None:
        yield ak.TensorBoard(folder, network=network())
    if find_spec("trackio") is not None:
        yield ak.Tracker("benchmark")
    if find_spec("prometheus_client") is not None:
        yield ak.Prometheus(0)


def begin_to_ask(session: Session, sinks: Sequence[Sink]) -> Callable[[], None]:
    """Ask gates how they are, as commands do, and each second for the metrics; returns what ends it."""
    over, asker = threading.Event(), GateAsker()
    urls = [sink.url for sink in sinks if isinstance(sink, ak.Prometheus)]

    def work() -> None:
        while not over.wait(1):
            asker.look(session)
            for url in urls:
                urllib.request.urlopen(url, timeout=10).read()

    thread = threading.Thread(target=work)
    thread.start()

    def end_asking() -> None:
        over.set()
        thread.join()

    return end_asking


def begin(port: int, stuck: bool) -> subprocess.Popen[str]:
    command = [sys.executable, str(BROWSER), "127.0.0.1", str(port), *(["--stuck"] if stuck else [])]
    browser = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert browser.stdout is not None
    assert browser.stdout.readline() == "connected\n"
    return browser


def end(browser: subprocess.Popen[str]) -> None:
    browser.kill()
    browser.communicate()


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="whether it works, and no figures")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds, seconds = (1, 0.5) if given.quick else (given.rounds, given.seconds)
    shuffle, folder = random.Random(0), tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["TRACKIO_DIR"] = folder.name  # before trackio is imported, which looks at it once
    speeds: dict[str, list[float]] = defaultdict(list)
    beside: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        order = list(WAYS)
        shuffle.shuffle(order)
        for name in order:
            per_s, share = measured(WAYS[name], seconds, folder.name)
            speeds[name].append(per_s)
            beside[name].append(share)
    found = {}
    for name in WAYS:
        shares = sorted(its / alone for its, alone in zip(speeds[name], speeds[ALONE], strict=True))
        found[name] = {
            "batches_per_s": statistics.median(speeds[name]),
            "share": statistics.median(shares),
            "shares": shares,
            "beside_workers": statistics.median(beside[name]),
            "beside_workers_of_rounds": sorted(beside[name]),
        }
        print(
            f"{name:<28} {found[name]['batches_per_s']:>7,.0f} batches/s"
            f"  {found[name]['share']:.3f} of alone ({shares[0]:.3f} to {shares[-1]:.3f})"
            f"  beside workers {found[name]['beside_workers']:.2%}"
            f" ({min(beside[name]):.2%} to {max(beside[name]):.2%})"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
