"""A small ResNet, with skip connections and batch normalisation, cut into a row of gates.

    python examples/resnet.py                                  # on the digits of scikit-learn
    python examples/resnet.py --gates 4 --in-flight 4          # all gates busy, gradients a little late

Letters: B samples in a batch, C channels, S pixels along a side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

import akkordeon as ak
from akkordeon.data.datasets import digits

BATCH_SIZE = 64


def normalised(channels_in: int, channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution, and batch normalisation of what it gives."""
    convolution = nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """Two convolutions, and a way past them."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = (
            normalised(channels_in, channels, 3, stride),
            normalised(channels, channels, 3),
        )
        is_alike = channels_in == channels and stride == 1
        self.skip = nn.Identity() if is_alike else normalised(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) to the same, or to more channels and fewer pixels."""
        return (self.second(self.first(x).relu()) + self.skip(x)).relu()


class ResNet(nn.Module):
    """Three stages of two blocks."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        c = channels
        self.stem = normalised(1, c, 3)
        self.blocks = nn.ModuleList(
            [
                *(Residual(c, c), Residual(c, c)),
                *(Residual(c, 2 * c, stride=2), Residual(2 * c, 2 * c)),
                *(Residual(2 * c, 4 * c, stride=2), Residual(4 * c, 4 * c)),
            ]
        )
        self.head = nn.Linear(4 * c, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 64) grey values of 8 × 8 images to (B, 10) logits."""
        x = self.stem(images.unflatten(1, (1, 8, 8))).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def sgd(params: Iterable[Tensor], steps: int) -> tuple[torch.optim.Optimizer, object]:
    """Momentum, at a rate that falls along a cosine."""
    optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=1e-4)
    return optimizer, CosineAnnealingLR(optimizer, steps)


def main(steps: int = 150, gates: int = 3, in_flight: int = 1) -> None:
    """Train a ResNet on the digits."""
    data = digits()
    batches = ak.Batches(*data.train, BATCH_SIZE, shuffle=True, drop_last=True)
    torch.manual_seed(0)
    row = ak.Network.from_module(
        ResNet(), gates, lambda params: sgd(params, steps), example=data.train[0][:BATCH_SIZE]
    )
    with ak.run(row, progress=True) as session:
        scores = {"accuracy": ak.accuracy}
        samples = steps * BATCH_SIZE
        session.attach(ak.Sentinel.train(batches, cross_entropy, samples=samples, in_flight=in_flight))
        session.attach(ak.Sentinel.validate(data.test, cross_entropy, scores=scores, every_epoch=2))
        session.wait()
        trained = session.module().eval()  # a ResNet
    x, y = data.test
    with torch.no_grad():
        print(f"{ak.accuracy(trained(x), y):.2%} of {len(x)} images that it has not learned")


if __name__ == "__main__":
    typer.run(main)
