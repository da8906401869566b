"""Does the price of electricity go up or down? Each example is predicted before it is learned.

python examples/electricity.py --data-dir DIR               # DIR has elec.csv, of Harries 1999 ("elec2")
python examples/electricity.py --data-dir DIR --seeds 5     # five networks
python examples/electricity.py --data-dir DIR --no-label-before --curves curves.csv

45,312 half hours in New South Wales; the label is whether the price is above its mean of the last day. It
mostly stays what it was, so "the label does not change" is what to beat. Besides the six columns of the file,
all learners are given the label of the half hour before: it is known by then, as labels come before the next
example is predicted (a delay of 0 or 1). --no-label-before leaves it out.

With river installed three of its learners see the same examples in the same order, and its ADWIN watches the
loss of ours for drift.
"""

from __future__ import annotations

import csv
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.data.datasets import Examples

COLUMNS = ["period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer"]
WINDOW = 1000
BARS = "▁▂▃▄▅▆▇█"

sgd = partial(torch.optim.SGD, lr=0.05)


@dataclass
class Learned:
    """How well somebody predicted: accuracy over all, by example over the window before, and the alarms."""

    name: str
    accuracy: float
    examples_per_s: float | None
    curve: dict[int, float] = field(default_factory=dict)
    alarms: tuple[int, ...] = ()


def read(folder: Path, label_before: bool, take: int | None) -> Examples:
    """Inputs (N, 6), or (N, 7) with the label before, and labels (N,), 0 or 1."""
    columns = ak.Columns(COLUMNS, "class", classes=[0, 1])
    path = folder / "elec.csv"
    if not path.is_file():
        raise SystemExit(f"{folder} lacks elec.csv")
    xs, ys = zip(*map(columns, ak.GrowingFile(path, follow=False)), strict=True)
    x, y = torch.cat(xs)[:take], torch.cat(ys)[:take]
    before = torch.cat([torch.zeros(1), y[:-1].float()])
    return (torch.column_stack([x, before]) if label_before else x), y


def network(inputs: int, width: int, seed: int) -> ak.Network:
    """(N, inputs) to (N, 2) logits, in three gates; features are standardised as they come."""
    torch.manual_seed(seed)
    first = nn.Sequential(ak.nn.Standardize(inputs), nn.Linear(inputs, width), nn.ReLU())
    second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
    return ak.Network([ak.Gate(module, sgd) for module in (first, second, nn.Linear(width, 2))])


def ours(data: Examples, width: int, seed: int, drift: ak.Drift | None = None) -> Learned:
    """A network of ours, one example at a time, each predicted first."""
    sentinel = ak.Sentinel.stream(
        data,
        F.cross_entropy,
        scores={"accuracy": ak.accuracy},
        window=WINDOW,
        report_every=WINDOW,
        drift=drift,
    )
    with ak.run(network(data[0].shape[1], width, seed), ak.Threads(2)) as session:
        stream = session.attach(sentinel).wait().stream
    last = stream[-1]
    curve = {report.examples: report.window["accuracy"] for report in stream}
    speed = last.examples / last.seconds
    return Learned(f"three gates, seed {seed}", last.overall["accuracy"], speed, curve, last.alarms)


def watched_by_river() -> ak.Drift:
    """ADWIN on the loss, as river has it by default."""
    from river.drift import ADWIN

    return ak.Drift(ADWIN(), on="loss")


def no_change(data: Examples) -> Learned:
    """The label is what it was."""
    y = data[1].tolist()
    return replace(
        scored("the label does not change", zip([0, *y[:-1]], y, strict=True)), examples_per_s=None
    )


def scored(name: str, pairs: Iterator[tuple[int | None, int]]) -> Learned:
    """The score of pairs of what was predicted and what was right, as they come."""
    recent: deque[bool] = deque(maxlen=WINDOW)
    right, curve, began_s, examples = 0, {}, time.perf_counter(), 0
    for examples, (predicted, true) in enumerate(pairs, 1):
        recent.append(predicted == true)
        right += recent[-1]
        if examples % WINDOW == 0:
            curve[examples] = sum(recent) / len(recent)
    return Learned(name, right / examples, examples / (time.perf_counter() - began_s), curve)


def of_river(data: Examples) -> Iterator[Learned]:
    """Three learners of river's; what it has as defaults, features standardised for the first."""
    from river import forest, linear_model, preprocessing, tree

    models = {
        "river, logistic regression": preprocessing.StandardScaler() | linear_model.LogisticRegression(),
        "river, Hoeffding tree": tree.HoeffdingTreeClassifier(),
        "river, adaptive random forest": forest.ARFClassifier(seed=0),
    }
    rows = [dict(enumerate(row)) for row in data[0].tolist()]
    labels = data[1].tolist()
    for name, model in models.items():
        yield scored(name, test_then_train(model.predict_one, model.learn_one, rows, labels))


def test_then_train(
    predict: Callable[[dict[int, float]], int | None],
    learn: Callable[[dict[int, float], int], None],
    rows: list[dict[int, float]],
    labels: list[int],
) -> Iterator[tuple[int | None, int]]:
    """What is predicted for each row before it is learned, and what is right."""
    for row, label in zip(rows, labels, strict=True):
        yield predict(row), label
        learn(row, label)


def write_curves(path: Path, learned: list[Learned]) -> None:
    """A CSV file: the accuracy over the latest 1,000 examples, every 1,000."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["examples", *(each.name for each in learned)])
        for examples in learned[0].curve:
            writer.writerow([examples, *(each.curve.get(examples, "") for each in learned)])


def print_plot(learned: list[Learned]) -> None:
    """The same as bars, one for each 1,000 examples, and below those of ours the alarms for drift."""
    values = [value for each in learned for value in each.curve.values()]
    low, high = min(values), max(values)
    scale = f"from {low:.0%} {BARS[0]} to {high:.0%} {BARS[-1]}"
    print(f"\naccuracy over the latest {WINDOW:,}, {scale}; ^ is an alarm for drift")
    for each in learned:
        heights = [(value - low) / (high - low or 1) * (len(BARS) - 1) for value in each.curve.values()]
        print(f"{each.name:32} {''.join(BARS[round(height)] for height in heights)}")
        if each.alarms:
            marked = {(examples - 1) // WINDOW for examples in each.alarms}
            print(" " * 33 + "".join("^" if i in marked else " " for i in range(max(marked) + 1)))


def main(
    data_dir: Annotated[Path, typer.Option(help="with elec.csv in it")],
    seeds: int = 1,
    width: int = 64,
    label_before: bool = True,
    take: int | None = None,
    river: bool = True,
    curves: Path | None = None,
) -> None:
    """Predict the electricity market in DATA_DIR, example by example, and learn from it."""
    data = read(data_dir, label_before, take)
    if river and find_spec("river") is None:
        print("river is not installed, so its learners are left out: pip install 'akkordeon[river]'")
        river = False
    drift = watched_by_river() if river else None
    learned = [no_change(data), *(ours(data, width, seed, drift) for seed in range(seeds))]
    if river:
        learned += of_river(data)
    print(f"{len(data[1]):,} examples, each predicted before it was learned")
    for each in learned:
        speed = "" if each.examples_per_s is None else f"{each.examples_per_s:10,.0f} examples/s"
        print(f"{each.name:32} {each.accuracy:7.2%} {speed}")
    if curves is not None:
        write_curves(curves, learned)
    print_plot(learned)


if __name__ == "__main__":
    typer.run(main)
