"""The scripts in examples/ as modules, and what each of them trains, made small."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import akkordeon as ak

EXAMPLES = Path(__file__).parents[2] / "examples"

STEPS = 6


def example(name: str) -> ModuleType:
    """An example, loaded anew."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Shown:
    """What an example trains.

    Attributes:
        model: the user's own.
        optimizer: from weights to an optimizer, or to it and a scheduler.
        batches: (x, y).
        loss: from outputs and y.
        cut: further arguments of ``Network.from_module``.
    """

    model: nn.Module
    optimizer: Callable[[Any], Any]
    batches: list[tuple[Any, Any]]
    loss: Callable[[Any, Any], torch.Tensor]
    cut: Mapping[str, Any] = field(default_factory=dict)

    def network(self, gates: int) -> ak.Network:
        """It in so many gates."""
        return ak.Network.from_module(
            self.model, gates, self.optimizer, example=self.batches[0][0], **self.cut
        )


def outputs(model: nn.Module, x: Any) -> Any:
    """What a model gives for the inputs of a batch."""
    return model(**x) if isinstance(x, dict) else model(x)


def logits(model: nn.Module, x: Any) -> torch.Tensor:
    """Its logits, which models of transformers give in an object."""
    gave = outputs(model, x)
    return gave if isinstance(gave, torch.Tensor) else gave.logits


def _char_gpt() -> Shown:
    own = example("char_gpt")
    batches = list(own.random_rows(torch.randint(20, (500,)), STEPS, seed=0))
    return Shown(own.GPT(20, 16), partial(own.adamw, steps=STEPS), batches, own.loss, {"tie": True})


def _cnn_mnist() -> Shown:
    own = example("cnn_mnist")
    batches = [own.as_images(torch.rand(8, 784), torch.randint(10, (8,))) for _ in range(STEPS)]
    return Shown(own.make_model(), own.adam, batches, own.F.cross_entropy)


def _resnet() -> Shown:
    own = example("resnet")
    batches = [(torch.rand(8, 64), torch.randint(10, (8,))) for _ in range(STEPS)]
    return Shown(own.ResNet(), partial(own.sgd, steps=STEPS), batches, own.cross_entropy)


def _fine_tune() -> Shown:
    own = example("fine_tune")
    batches = [(torch.rand(8, 64), torch.randint(5, (8,))) for _ in range(STEPS)]
    return Shown(own.with_new_head(own.Net().state_dict()), own.adam, batches, own.cross_entropy)


def _hugging_face(model: str) -> Shown:
    own = example("hugging_face")
    make, batches, _ = own.MODELS[model]
    return Shown(make(), own.adamw, list(batches(STEPS, seed=0)), own.loss, {"tie": True})


SHOWN: dict[str, Callable[[], Shown]] = {
    "char_gpt": _char_gpt,
    "cnn_mnist": _cnn_mnist,
    "resnet": _resnet,
    "fine_tune": _fine_tune,
}
"""By the names of the examples."""

if importlib.util.find_spec("transformers") is not None:
    SHOWN |= {"gpt2": partial(_hugging_face, "gpt2"), "bert": partial(_hugging_face, "bert")}
