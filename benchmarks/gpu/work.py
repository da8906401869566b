"""What everybody trains on the GPU: a character GPT of 25 million weights, and a ResNet-50."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
gpt: Any = import_module("char_gpt")

__all__ = ["WORKS", "Batch", "Work"]

Batch = tuple[Tensor, Tensor]

CHARACTERS, WIDTH = 65, 512


@dataclass(frozen=True)
class Work:
    """A model with batches that lie in pinned memory of the host.

    Args:
        model: made the same each time.
        loss: a mean over the batch.
        batch: x and y of one batch.
        optimizer: fused.
        autocast: what forwards run under.
        tied: two parts of the model share a weight.
        cut: modules that begin a gate, if there are four.
    """

    model: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    batch: Callable[[torch.Generator], Batch]
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    autocast: torch.dtype | None
    tied: bool = False

    def batches(self, count: int) -> list[Batch]:
        """Different ones, the same each time."""
        generator = torch.Generator().manual_seed(1)
        return [(x.pin_memory(), y.pin_memory()) for x, y in (self.batch(generator) for _ in range(count))]

    def row(self, gates: int) -> ak.Network:
        """The model in gates on the GPU."""
        x, _ = self.batch(torch.Generator().manual_seed(0))
        gate = {"device": "cuda:0", "autocast": self.autocast}
        return ak.Network.from_module(self.model(), gates, self.optimizer, example=x, tie=self.tied, **gate)


def _text(rows: int, generator: torch.Generator) -> Batch:
    text = torch.randint(CHARACTERS, (rows, gpt.LENGTH + 1), generator=generator)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def _images(count: int, generator: torch.Generator) -> Batch:
    return torch.randn(count, 3, 224, 224, generator=generator), torch.randint(
        1000, (count,), generator=generator
    )


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def _resnet50() -> nn.Module:
    made: nn.Module = import_module("torchvision.models").resnet50(num_classes=1000)
    return made


def _gpt() -> nn.Module:
    made: nn.Module = gpt.GPT(CHARACTERS, WIDTH)
    return made


_ADAMW = partial(torch.optim.AdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)

WORKS = {
    "char-GPT 25 M, 16 × 64": Work(
        partial(_seeded, _gpt), gpt.loss, partial(_text, 16), _ADAMW, None, tied=True
    ),
    "char-GPT 25 M, 512 × 64": Work(
        partial(_seeded, _gpt), gpt.loss, partial(_text, 512), _ADAMW, None, tied=True
    ),
    "ResNet-50, 64 × 224²": Work(
        partial(_seeded, _resnet50), F.cross_entropy, partial(_images, 64), _SGD, None
    ),
    "ResNet-50, 256 × 224², bf16": Work(
        partial(_seeded, _resnet50), F.cross_entropy, partial(_images, 256), _SGD, torch.bfloat16
    ),
}
"""By name."""
