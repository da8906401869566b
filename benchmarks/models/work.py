"""What everybody trains: two character GPTs and a CNN, with the same data and batches for all."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.data.datasets import mnist

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
gpt: Any = import_module("char_gpt")
cnn: Any = import_module("cnn_mnist")

__all__ = ["Batch", "Images", "Text", "Work", "adamw", "gpt", "muon"]

Batch = tuple[Tensor, Tensor]
Named = Iterable[tuple[str, nn.Parameter]]


def adamw(named_parameters: Named) -> torch.optim.Optimizer:
    """As the example's, with decay for all weights and a rate that stays."""
    return torch.optim.AdamW(named_parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def muon(named_parameters: Named) -> torch.optim.Optimizer:
    """At the rate that suits the plain loop."""
    return ak.muon(named_parameters, lr=1e-2, weight_decay=0.1)


@dataclass(frozen=True)
class Work(ABC):
    """A model, its data, and how it learns.

    Args:
        train: as :meth:`batches` needs it.
        validation: batches of which the mean loss is taken.
    """

    train: Any
    validation: list[Batch]

    unit = "samples"
    """What is counted."""

    @property
    @abstractmethod
    def units(self) -> int:
        """How many of them are in a batch."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """To begin with."""

    @abstractmethod
    def optimizer(self, named_parameters: Named) -> torch.optim.Optimizer:
        """Likewise for everybody."""

    @abstractmethod
    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """A mean over the batch."""

    @abstractmethod
    def batches(self, count: int, seed: int) -> list[Batch]:
        """The same for everybody who has that seed."""

    @abstractmethod
    def stages(self, model: Any) -> tuple[nn.Module, nn.Module]:
        """The model in two parts that take about equally long; they share its weights."""

    def tied(self, stage: nn.Module) -> list[nn.Parameter]:
        """Weights of a stage that the other has as well, in the same order there."""
        return []

    @torch.no_grad()
    def judged(self, model: nn.Module) -> float:
        """The mean loss of the validation batches."""
        model.eval()
        losses = [self.loss(model(x), y) for x, y in self.validation]
        model.train()
        return float(torch.stack(losses).mean())


@dataclass(frozen=True)
class Text(Work):
    """The character GPT of the examples on a text.

    Args:
        characters: how many different ones.
        width: of the model.
        make_optimizer: from names and parameters.
    """

    characters: int
    width: int
    make_optimizer: Callable[[Named], torch.optim.Optimizer]

    unit = "tokens"

    @classmethod
    def of(
        cls,
        written: str,
        width: int,
        make_optimizer: Callable[[Named], torch.optim.Optimizer],
        validated: int,
    ) -> Text:
        """On nine tenths of what is written; batches of the last tenth validate."""
        characters = sorted(set(written))
        numbers = {character: number for number, character in enumerate(characters)}
        text = torch.tensor([numbers[character] for character in written])
        train, held_out = text.tensor_split([len(text) * 9 // 10])
        validation = list(gpt.random_rows(held_out, validated, seed=2))
        return cls(train, validation, len(characters), width, make_optimizer)

    @property
    def units(self) -> int:
        return int(gpt.BATCH_SIZE * gpt.LENGTH)

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = gpt.GPT(self.characters, self.width)
        return model

    def optimizer(self, named_parameters: Named) -> torch.optim.Optimizer:
        return self.make_optimizer(named_parameters)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        result: Tensor = gpt.loss(outputs, y)
        return result

    def batches(self, count: int, seed: int) -> list[Batch]:
        return list(gpt.random_rows(self.train, count, 1000 + seed))

    def stages(self, model: Any) -> tuple[nn.Module, nn.Module]:
        return _FirstHalf(model), _LastHalf(model)

    def tied(self, stage: nn.Module) -> list[nn.Parameter]:
        table = stage.embedding if isinstance(stage, _FirstHalf) else stage.head
        assert isinstance(table, nn.Module)
        return list(table.parameters())


class _FirstHalf(nn.Module):
    """The embedding, and half of the blocks of a GPT."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embedding, self.position = model.embedding, model.position
        self.blocks = nn.Sequential(*model.blocks[: gpt.BLOCKS // 2])

    def forward(self, text: Tensor) -> Tensor:
        """(B, T) to (B, T, W)."""
        result: Tensor = self.blocks(self.embedding(text) + self.position[: text.shape[1]])
        return result


class _LastHalf(nn.Sequential):
    """The other half, and the head, whose weight is the embedding's."""

    def __init__(self, model: Any) -> None:
        super().__init__(*model.blocks[gpt.BLOCKS // 2 :], model.norm)
        self.head = model.head


@dataclass(frozen=True)
class Images(Work):
    """The CNN of the examples on MNIST."""

    @classmethod
    def of(cls, folder: Path, validated: int) -> Images:
        """So many of the test images validate."""
        data = mnist(folder)
        x, y = cnn.as_images(*data.test)
        batches = zip(x[:validated].split(1000), y[:validated].split(1000), strict=True)
        return cls(cnn.as_images(*data.train), list(batches))

    @property
    def units(self) -> int:
        return int(cnn.BATCH_SIZE)

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = cnn.make_model()
        return model

    def optimizer(self, named_parameters: Named) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = cnn.adam(named_parameters)
        return made

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y)

    def batches(self, count: int, seed: int) -> list[Batch]:
        x, y = self.train
        generator = torch.Generator().manual_seed(seed)
        some = torch.randint(len(x), (count, self.units), generator=generator)
        return [(x[index], y[index]) for index in some]

    def stages(self, model: Any) -> tuple[nn.Module, nn.Module]:
        return nn.Sequential(model[0]), nn.Sequential(*model[1:])
