"""XOR by Downpour: 25 replicas of a 2-2-1 sigmoid net, 2,000 random examples each, one at a time.

What alexminnaar/AkkaDistBelief shows: data shards, replicas split by layer, a parameter shard for each
layer. A 2-2-1 net has local minima, so not every start gets there, with actors or without.

    python examples/xor.py                          # as it was
    python examples/xor.py --seeds 10               # ten starts
    python examples/xor.py --seeds 10 --serial      # a plain loop over the same examples
    python examples/xor.py --seeds 10 --start apart # initial weights from which all ten get there

As there, a replica makes no steps of its own: it sends each gradient to the shards, and waits for their
weights before the next example. The shards apply what comes with SGD, 0.5, in one pass.

``--start apart`` changes the initial weights of the hidden layer and nothing else. A hidden unit draws a
line across the square, and XOR takes two lines with the odd corners between them; a start goes wrong where
neither comes to run between two neighbouring corners. Here they begin apart: roughly parallel (weights of
size 2 to 4, whose signs are drawn once for both units), a quarter and three quarters of the way across.
Which side of which line counts, and how much, the output layer must learn; its weights are drawn as ever.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from torch import Tensor, nn

import akkordeon as ak

EXAMPLES, REPLICAS, LR = 50_000, 25, 0.5
CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
CLOSE = 0.1
"""A prediction this close to its target is right."""


def xor(x: Tensor) -> Tensor:
    """1 where exactly one of two inputs is: (N, 2) to (N, 1)."""
    return (x.sum(1, keepdim=True) == 1).float()


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random corners of the square, and what they are to give."""
    x = CORNERS[torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed))]
    return x, xor(x)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """½(o − y)², whose gradient is o − y."""
    return 0.5 * (outputs - targets).square().mean()


def layers(start: str, seed: int) -> list[nn.Sequential]:
    """2-2 and 2-1, each with its sigmoid."""
    torch.manual_seed(seed)
    hidden, output = nn.Linear(2, 2), nn.Linear(2, 1)
    if start == "apart":
        with torch.no_grad():
            hidden.weight.uniform_(2, 4).mul_(torch.randint(2, (2,)) * 2 - 1)
            lowest, highest = hidden.weight.clamp(max=0).sum(1), hidden.weight.clamp(min=0).sum(1)
            hidden.bias.copy_(-lowest.lerp(highest, torch.tensor([0.25, 0.75])))
    return [nn.Sequential(hidden, nn.Sigmoid()), nn.Sequential(output, nn.Sigmoid())]


def by_actors(start: str, seed: int) -> Tensor:
    """The four predictions after 25 replicas have seen 2,000 examples each."""
    sgd = partial(torch.optim.SGD, lr=LR)
    network = ak.Network([ak.Gate(layer, sgd) for layer in layers(start, seed)])
    downpour = ak.Downpour(network, REPLICAS, server_optimizer=sgd, fetch="wait", local_step=False)
    with ak.run(downpour, seed=seed) as session:
        batches = ak.Batches(*examples(EXAMPLES, seed), batch_size=1)
        session.attach(ak.Sentinel.train(batches, half_square, in_flight=1)).wait()
        predictions: Tensor = session.predict(CORNERS)
    return predictions


def by_a_loop(start: str, seed: int) -> Tensor:
    """The four predictions after a plain loop over the same examples."""
    model = nn.Sequential(*layers(start, seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for x, y in ak.Batches(*examples(EXAMPLES, seed), batch_size=1):
        optimizer.zero_grad()
        half_square(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        predictions: Tensor = model(CORNERS)
    return predictions


def main() -> None:
    """Read the arguments, run, and say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first start")
    parser.add_argument("--seeds", type=int, default=1, help="how many starts")
    parser.add_argument("--start", choices=["random", "apart"], default="random", help="initial weights")
    parser.add_argument("--serial", action="store_true", help="a plain loop instead of actors")
    given = parser.parse_args()
    torch.set_num_threads(1)
    way = by_a_loop if given.serial else by_actors
    right = 0
    for seed in range(given.seed, given.seed + given.seeds):
        began_s = time.perf_counter()
        predictions = way(given.start, seed).flatten().tolist()
        seconds = time.perf_counter() - began_s
        close = all(abs(p - y) < CLOSE for p, y in zip(predictions, xor(CORNERS).flatten(), strict=True))
        right += close
        told = ", ".join(
            f"{int(a)} xor {int(b)} = {p:.3f}"
            for (a, b), p in zip(CORNERS.tolist(), predictions, strict=True)
        )
        print(f"seed {seed}: {told} ({'right' if close else 'not there'}, {seconds:.1f} s)", flush=True)
    print(f"Job done: {right} of {given.seeds} starts have all four within {CLOSE} of the target.")


if __name__ == "__main__":
    main()
