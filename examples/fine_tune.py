"""Fine-tuning: a network that tells 0 from 1, 2, 3 and 4 learns 5 to 9 from a hundred images of them.

    python examples/fine_tune.py pretrain lower.safetensors    # 0 to 4, and the weights go to a file
    python examples/fine_tune.py tune lower.safetensors        # 5 to 9, from these weights

Its lower layers are frozen: they stay what they were. The layer above is trained on, and the head is new.

Letters: B samples in a batch, C classes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.data.datasets import Examples, digits

BATCH_SIZE = 32

app = typer.Typer()
adam = partial(torch.optim.Adam, lr=2e-3, fused=True)


class Net(nn.Module):
    """Convolutions, and a head over what they find."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.lower = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        )
        self.upper = nn.Sequential(nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 64) grey values of 8 × 8 images to (B, C) logits."""
        return self.head(self.upper(self.lower(images.unflatten(1, (1, 8, 8)))))


def with_new_head(weights: dict[str, Tensor]) -> Net:
    """A network with the weights of another up to its head, and with its lower layers frozen."""
    model = Net()
    model.load_state_dict({**weights, **model.head.state_dict(prefix="head.")})
    model.lower.requires_grad_(False)
    return model


def between(first: int, last: int, examples: Examples) -> Examples:
    """Those of some digits, which become the classes from 0 on."""
    x, y = examples
    chosen = (first <= y) & (y <= last)
    return x[chosen], y[chosen] - first


def trained(model: Net, train: Examples, test: Examples, steps: int, gates: int, in_flight: int) -> Net:
    """The model in a row of gates, trained, then tested."""
    row = ak.Network.from_module(model, gates, adam, example=train[0][:BATCH_SIZE])
    with ak.run(row) as session:
        batches = ak.Batches(*train, BATCH_SIZE, shuffle=True)
        samples, scores = steps * BATCH_SIZE, {"accuracy": ak.accuracy}
        session.attach(ak.Sentinel.train(batches, cross_entropy, samples=samples, in_flight=in_flight))
        session.wait()
        tested = session.attach(ak.Sentinel.test(test, cross_entropy, scores=scores)).wait()
        print(f"{tested.rounds[-1].scores['accuracy']:.2%} of {len(test[0])} images that it has not learned")
        return session.module()  # a Net


@app.command()
def pretrain(file: Path, steps: int = 300, gates: int = 2, in_flight: int = 1) -> None:
    """Learn the digits from 0 to 4, and write the weights to a file."""
    torch.manual_seed(0)
    train, test = (between(0, 4, part) for part in (digits().train, digits().test))
    save_file(trained(Net(), train, test, steps, gates, in_flight).state_dict(), file)


@app.command()
def tune(file: Path, images: int = 100, steps: int = 150, gates: int = 2, in_flight: int = 1) -> None:
    """Learn the digits from 5 to 9 from a few images, beginning with the weights in a file."""
    torch.manual_seed(0)
    weights = load_file(file)
    (x, y), test = (between(5, 9, part) for part in (digits().train, digits().test))
    model = trained(with_new_head(weights), (x[:images], y[:images]), test, steps, gates, in_flight)
    same = [name for name, weight in model.state_dict().items() if weight.equal(weights[name])]
    print("as they were:", ", ".join(same))


if __name__ == "__main__":
    app()
