"""The ancestor's larger example: three training sentinels on one network, validated while they train.

784-100-40-10 in three gates on MNIST, DropConnect on the weights, delay compensation, batches of 2048. One
sentinel trains on all 60,000 images and one on each half of them; whoever comes, comes. botkop/akkordeon
reports 96.57 % in validation after 112 validation rounds, with rates of 1e-2, 5e-3 and 1e-3 and a ReLU after
the last layer; here it is momentum 0.9 and no ReLU at the end, which needs fewer epochs.

    python examples/three_sentinels.py --data-dir DIR
"""

from __future__ import annotations

import threading
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import EpochDone, RoundDone
from akkordeon.data.datasets import Dataset, mnist
from akkordeon.watch.lines import line_of

SIZES = (784, 100, 40, 10)
DROPS = (0.5, 0.2, 0.1)
RATES = (4e-2, 2e-2, 1e-2)
BATCH_SIZE = 2048
SCORES = {"accuracy": ak.accuracy}


def make_network() -> ak.Network:
    """Three gates, each with its own DropConnect, optimizer and staleness rule."""
    gates = []
    for i, (n_in, n_out) in enumerate(pairwise(SIZES)):
        layer = ak.nn.DropConnectLinear(n_in, n_out, DROPS[i])
        is_last = i == len(SIZES) - 2
        gates.append(
            ak.Gate(
                layer if is_last else nn.Sequential(layer, nn.ReLU()),
                optimizer=partial(torch.optim.SGD, lr=RATES[i], momentum=0.9),
                staleness=ak.DelayCompensation("adaptive"),
                name=f"g{i}",
            )
        )
    return ak.Network(gates)


def trainers(data: Dataset, seconds: float, seed: int) -> list[ak.Sentinel]:
    """One sentinel for all of the data, one for each half."""
    batches = ak.Batches(*data.train, BATCH_SIZE, shuffle=True, seed=seed)
    sources = [batches, batches.part(0, 2), batches.part(1, 2)]
    return [
        ak.Sentinel.train(source, cross_entropy, in_flight=1, seconds=seconds, scores=SCORES, name=f"tdp{i}")
        for i, source in enumerate(sources)
    ]


def train(
    network: ak.Network, data: Dataset, rounds: int, seconds: float, every_s: float, seed: int
) -> RoundDone:
    """Train until there were so many validations, or so many seconds have passed.

    Returns:
        The last validation.
    """
    enough = threading.Event()

    def watch(record: Any) -> None:
        if isinstance(record, EpochDone | RoundDone):
            print(line_of(record), flush=True)
        if isinstance(record, RoundDone) and record.round >= rounds:
            enough.set()

    with ak.run(network, seed=seed) as session:
        session.subscribe(watch)
        validation = session.attach(
            ak.Sentinel.validate(data.test, cross_entropy, scores=SCORES, every_s=every_s, name="vdp")
        )
        at_work = [session.attach(trainer) for trainer in trainers(data, seconds, seed)]
        enough.wait(seconds)
        for trainer in at_work:
            trainer.detach()
        session.wait()
    return validation.rounds[-1]


def main(
    data_dir: Annotated[Path, typer.Option(envvar="AKKORDEON_DATA", help="The folder with MNIST's files.")],
    rounds: Annotated[int, typer.Option(min=1, help="Validations.")] = 112,
    seconds: Annotated[float, typer.Option(min=0.1, help="Stop then at the latest.")] = 120.0,
    validate_every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS")] = 0.25,
    seed: int = 0,
) -> None:
    """Train the ancestor's larger network on MNIST with three sentinels."""
    try:
        data = mnist(data_dir, standardise=True)
    except ak.AkkordeonError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    torch.manual_seed(seed)
    last = train(make_network(), data, rounds, seconds, validate_every, seed)
    print(f"{last.scores['accuracy']:.2%} after {last.round} validations")


if __name__ == "__main__":
    typer.run(main)
