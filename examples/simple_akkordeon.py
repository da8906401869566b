"""The ancestor's example: 784-50-20-10 in three gates, trained and validated at the same time on MNIST.

DropConnect on the weights of every gate, SGD with a learning rate of its own for every gate, delay
compensation, batches of 1024, five in flight. botkop/akkordeon, in Scala and Akka, had 70.3 % on the
training and 71.1 % on the validation data after epoch 7, at 2.3 s an epoch.

    python examples/simple_akkordeon.py --data-dir DIR                      # as it was
    python examples/simple_akkordeon.py --data-dir DIR --variant modern     # momentum, no ReLU at the end
    python examples/simple_akkordeon.py --data-dir DIR --plain              # the same recipe, a plain loop

Inputs are standardised in both variants.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import EpochDone, RoundDone
from akkordeon.data.datasets import Dataset, mnist
from akkordeon.sentinels.scores import ScoreBoard
from akkordeon.watch.lines import line_of

SIZES = (784, 50, 20, 10)
DROPS = (0.15, 0.07, 0.03)
RATES = (2e-2, 1e-2, 5e-3)
BATCH_SIZE = 1024
IN_FLIGHT = 5
SCORES = {"accuracy": ak.accuracy}


@dataclass(frozen=True)
class Variant:
    """Where the two recipes differ."""

    momentum: float
    last_relu: bool


VARIANTS = {
    "ancestor": Variant(momentum=0.0, last_relu=True),
    "modern": Variant(momentum=0.9, last_relu=False),
}


def make_network(variant: Variant) -> ak.Network:
    """Three gates, each with its own DropConnect, optimizer and staleness rule."""
    gates = []
    for i, (n_in, n_out) in enumerate(pairwise(SIZES)):
        layer = ak.nn.DropConnectLinear(n_in, n_out, DROPS[i])
        is_last = i == len(SIZES) - 2
        gates.append(
            ak.Gate(
                nn.Sequential(layer, nn.ReLU()) if variant.last_relu or not is_last else layer,
                optimizer=partial(torch.optim.SGD, lr=RATES[i], momentum=variant.momentum),
                staleness=ak.DelayCompensation("adaptive"),
                name=f"g{i}",
            )
        )
    return ak.Network(gates)


def train(network: ak.Network, data: Dataset, epochs: int, every_s: float, seed: int) -> None:
    """A training and a validation sentinel, both at the same time."""
    batches = ak.Batches(*data.train, BATCH_SIZE, shuffle=True, seed=seed)
    with ak.run(network, seed=seed) as session:
        session.subscribe(show)
        session.attach(
            ak.Sentinel.train(
                batches, cross_entropy, in_flight=IN_FLIGHT, epochs=epochs, scores=SCORES, name="tdp"
            )
        )
        session.attach(
            ak.Sentinel.validate(data.test, cross_entropy, scores=SCORES, every_s=every_s, name="vdp")
        )
        session.wait()


def train_plainly(network: ak.Network, data: Dataset, epochs: int, seed: int) -> None:
    """The same first weights, masks of the same kind, rates and batches, in the usual loop."""
    model = network.module()
    optimizers = [gate.optimizer(part.parameters()) for gate, part in zip(network.gates, model, strict=True)]
    batches = ak.Batches(*data.train, BATCH_SIZE, shuffle=True, seed=seed)
    for epoch in range(1, epochs + 1):
        board, began_s = ScoreBoard(SCORES), time.perf_counter()
        for x, y in batches:
            outputs = model(x)
            loss = cross_entropy(outputs, y)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            board.add(loss.item(), outputs.detach(), y, len(x))
        seconds = time.perf_counter() - began_s
        show(EpochDone("plain", epoch, board.loss, board.scores(), board.samples, seconds, 0.0, 0))
    show(validated(model.eval(), data))


def validated(model: nn.Module, data: Dataset) -> RoundDone:
    """One round over the test images."""
    x, y = data.test
    began_s = time.perf_counter()
    with torch.no_grad():
        outputs = model(x)
    board = ScoreBoard(SCORES)
    board.add(cross_entropy(outputs, y).item(), outputs, y, len(x))
    seconds = time.perf_counter() - began_s
    return RoundDone("plain", "validate", 1, board.loss, board.scores(), board.samples, seconds, version=0)


def show(record: Any) -> None:
    """Print a line for each epoch and each validation."""
    if isinstance(record, EpochDone | RoundDone):
        print(line_of(record), flush=True)


def main(
    data_dir: Annotated[Path, typer.Option(envvar="AKKORDEON_DATA", help="The folder with MNIST's files.")],
    epochs: Annotated[int, typer.Option(min=1)] = 7,
    seed: int = 1,
    variant: Literal["ancestor", "modern"] = "ancestor",
    validate_every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS")] = 0.5,
    plain: Annotated[bool, typer.Option("--plain", help="The same recipe in a plain loop.")] = False,
) -> None:
    """Train the ancestor's network on MNIST."""
    try:
        data = mnist(data_dir, standardise=True)
    except ak.AkkordeonError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
    torch.manual_seed(seed)
    network = make_network(VARIANTS[variant])
    if plain:
        train_plainly(network, data, epochs, seed)
    else:
        train(network, data, epochs, validate_every, seed)


if __name__ == "__main__":
    typer.run(main)
