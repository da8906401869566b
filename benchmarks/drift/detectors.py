"""Which detector sees the slow changes of run.py, on seeds that are not reported there.

    python benchmarks/drift/detectors.py [--seeds N …]

A plain loop predicts and learns as the stream with one batch in flight does, and nothing reacts, so one run
serves all detectors. Told is what they are given, before the change and in its later half; then alarms before
the change, the runs in which there was one within it, and after how many examples of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean, median, stdev

import torch
from river.drift import ADWIN, PageHinkley
from run import BATCH, CHANGE, TURNS, Turn, layers_of, stream_of
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.sentinels.streaming.drift import Detector
from akkordeon.sentinels.streaming.drift_watch import DriftWatch

DETECTORS: dict[str, Callable[[], Detector]] = {
    "ADWIN()": ADWIN,
    "ADWIN(delta=0.05, clock=1)": lambda: ADWIN(delta=0.05, clock=1),
    "ADWIN(delta=0.3, clock=1)": lambda: ADWIN(delta=0.3, clock=1),
    "PageHinkley()": PageHinkley,
    "PageHinkley(threshold=20)": lambda: PageHinkley(threshold=20),
    "PageHinkley(threshold=10)": lambda: PageHinkley(threshold=10),
    "PageHinkley(threshold=5, delta=0.05)": lambda: PageHinkley(threshold=5, delta=0.05),
}


def values_of(turn: Turn, seed: int) -> list[dict[str, float]]:
    """Loss and accuracy of each batch, before it is learned from."""
    x, y = stream_of(turn.examples, seed)
    network = nn.Sequential(*layers_of(seed))
    optimizer = torch.optim.Adam(network.parameters(), lr=turn.lr)
    values = []
    for xs, ys in zip(x.split(BATCH), y.split(BATCH), strict=True):
        outputs = network(xs)
        loss = F.cross_entropy(outputs, ys)
        values.append({"loss": loss.item(), "accuracy": float(ak.accuracy(outputs.detach(), ys))})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return values


def alarms_of(detector: Detector, on: str, values: Sequence[dict[str, float]]) -> list[int]:
    """Examples from the change to each alarm."""
    watch = DriftWatch("s", ak.Drift(detector, on))
    for n, scores in enumerate(values, 1):
        list(watch.look(scores, n * BATCH, ()))
    return [alarm - CHANGE for alarm in watch.alarms]


def given(turn: Turn, on: str, runs: Sequence[Sequence[dict[str, float]]]) -> str:
    """Mean and standard deviation in the 500 examples before the change, and in its later half."""
    half = range((CHANGE + turn.examples // 2) // BATCH, (CHANGE + turn.examples) // BATCH)
    parts = range((CHANGE - 500) // BATCH, CHANGE // BATCH), half
    before, within = ([run[n][on] for run in runs for n in part] for part in parts)
    return f"{mean(before):.2f} ± {stdev(before):.2f} before, then {mean(within):.2f} ± {stdev(within):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101, 102], metavar="N")
    seeds = parser.parse_args().seeds
    for name, turn in list(TURNS.items())[1:]:
        runs = [values_of(turn, seed) for seed in seeds]
        for on in ("loss", "accuracy"):
            print(f"{name}  {on}: {given(turn, on, runs)}", flush=True)
        for words, make in DETECTORS.items():
            for on in ("loss", "accuracy"):
                alarms = [alarms_of(make(), on, values) for values in runs]
                before = sum(alarm <= 0 for run in alarms for alarm in run)
                first = [next((it for it in run if it > 0), None) for run in alarms]
                found = [it for it in first if it is not None and it <= turn.examples]
                after = f"after {median(found):.0f} examples of it" if found else ""
                print(
                    f"{name}  {words:38}{on:9}{before} before, found in {len(found)} of {len(runs)} {after}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
