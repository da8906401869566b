"""The validation loss of examples/char_gpt.py over its steps, in a row of gates and in a plain loop.

python benchmarks/models/curve.py --data-dir DIR [--steps N] [--width W] [--json FILE]

All runs begin with the same weights, read the same batches in the same order, and work on one thread, so
each of them can be repeated to the bit. DIR has the ``input.txt`` to learn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
gpt: Any = import_module("char_gpt")

POINTS, GATES = 10, 4

Curve = dict[int, float]
"""Validation loss by updates."""


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    model: nn.Module
    characters: str
    train: Tensor
    validation: list[tuple[Tensor, Tensor]]
    steps: int

    @classmethod
    def of(cls, written: str, width: int, steps: int) -> Study:
        """A model of its own width for a text."""
        characters = sorted(set(written))
        text = torch.tensor([characters.index(character) for character in written])
        train, held_out = text.tensor_split([len(text) * 9 // 10])
        torch.manual_seed(0)
        model = gpt.GPT(len(characters), width)
        return cls(model, "".join(characters), train, list(gpt.random_rows(held_out, 20, seed=2)), steps)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same for everybody."""
        return gpt.random_rows(self.train, self.steps, seed=1)

    def optimizer(self, params: Any) -> Any:
        """Likewise, with its schedule."""
        return gpt.adamw(params, steps=self.steps)

    def written_by(self, model: nn.Module) -> str:
        """Some text."""
        torch.manual_seed(0)
        return "".join(self.characters[number] for number in gpt.written_by(model.eval(), 600))


def plainly(study: Study) -> tuple[Curve, nn.Module]:
    """The loop that everybody writes."""
    model, curve = study.model, Curve()
    optimizer, scheduler = study.optimizer(model.parameters())
    for step, (x, y) in enumerate(study.batches(), start=1):
        optimizer.zero_grad()
        gpt.loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        if step % (study.steps // POINTS) == 0:
            with torch.no_grad():
                losses = [gpt.loss(model(x), y) for x, y in study.validation]
            curve[step] = float(torch.stack(losses).mean())
    return curve, model


def in_gates(study: Study, in_flight: int) -> tuple[Curve, nn.Module]:
    """A row of gates, validated while it is trained."""
    example, _ = study.validation[0]
    row = ak.Network.from_module(study.model, GATES, study.optimizer, example=example, tie=True)
    with ak.run(row, ak.Threads(workers=1)) as session:
        validator = ak.Sentinel.validate(study.validation, gpt.loss, every_updates=study.steps // POINTS)
        validation = session.attach(validator)
        session.attach(ak.Sentinel.train(study.batches(), gpt.loss, in_flight=in_flight))
        session.wait()
        curve = {each.version: each.loss for each in validation.rounds}
        return curve, session.module()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    written = (given.data_dir / "input.txt").read_text("utf-8")
    ways = {f"{n} in flight": partial(in_gates, in_flight=n) for n in (1, 4)} | {"plain loop": plainly}
    found: dict[str, Any] = {}
    states = {}
    for name, way in ways.items():
        study = Study.of(written, given.width, given.steps)
        curve, model = way(study)
        found[name] = {"validation loss by updates": curve, "text": study.written_by(model)}
        states[name] = model.state_dict()
        print(name, " ".join(f"{updates}: {loss:.3f}" for updates, loss in curve.items()), flush=True)
        print(found[name]["text"], flush=True)
    same = all(w.equal(states["plain loop"][name]) for name, w in states["1 in flight"].items())
    found["one in flight has the weights of the plain loop to the bit"] = same
    print("one in flight has the weights of the plain loop to the bit:", same)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
