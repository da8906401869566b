"""A convolutional network on images of digits, cut into a row of gates; the best weights are kept.

python examples/cnn_mnist.py                                # on scikit-learn's digits, made larger
python examples/cnn_mnist.py --data-dir DIR --steps 2000    # on MNIST, from its files in DIR
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.data.datasets import Examples, digits, mnist

SIDE, BATCH_SIZE = 28, 64

adam = partial(torch.optim.Adam, lr=2e-3, fused=True)


def make_model() -> nn.Sequential:
    """(B, 1, 28, 28) grey values to (B, 10) logits."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(16 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def as_images(x: Tensor, y: Tensor) -> Examples:
    """Rows of pixels as images of MNIST's size, with their labels: (N, side · side) to (N, 1, 28, 28)."""
    side = round(x.shape[1] ** 0.5)
    return F.interpolate(x.unflatten(1, (1, side, side)), size=(SIDE, SIDE), mode="bilinear"), y


def main(data_dir: Path | None = None, steps: int = 200, gates: int = 3, in_flight: int = 1) -> None:
    """Train a convolutional network on MNIST in DATA_DIR, or on the digits of scikit-learn."""
    data = digits() if data_dir is None else mnist(data_dir)
    train, test = as_images(*data.train), as_images(*data.test)
    batches = ak.Batches(*train, BATCH_SIZE, shuffle=True, drop_last=True)

    torch.manual_seed(0)
    row = ak.Network.from_module(make_model(), gates, adam, example=train[0][:BATCH_SIZE])
    with ak.run(row, progress=True) as session:
        session.attach(
            ak.Sentinel.train(batches, F.cross_entropy, samples=steps * BATCH_SIZE, in_flight=in_flight)
        )
        session.attach(
            ak.Sentinel.validate(
                test,
                F.cross_entropy,
                scores={"accuracy": ak.accuracy},
                every_updates=max(1, steps // 5),
                best=ak.Best("accuracy"),
            )
        )
        session.wait()
        best = session.best_module().eval()
    with torch.no_grad():
        print(f"{ak.accuracy(best(test[0]), test[1]):.2%} of {len(test[0])} images that it has not learned")


if __name__ == "__main__":
    typer.run(main)
