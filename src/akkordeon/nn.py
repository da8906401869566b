"""Modules that PyTorch lacks: random ones whose masks depend on the batch, not on who ran before.

PyTorch's CPU generator is one per process, so with many actors at work a mask would depend on how
they interleave. A :class:`Seeded` module has a generator of its own; its gate seeds it before each
training forward by (run seed, gate, batch). Replicas differ, and a replay agrees.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akkordeon.errors import RecipeError

__all__ = ["DropConnectLinear", "Dropout", "Seeded"]


class Seeded(nn.Module):
    """A module with randomness of its own. Outside a gate it draws from a generator seeded with 0."""

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def reseed(self, key: tuple[object, ...]) -> None:
        """Start the randomness anew from a key; equal keys give equal masks, in any process."""
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
        self._seed = int.from_bytes(digest, "little") >> 1
        for generator in self._generators.values():
            generator.manual_seed(self._seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """This module's generator on that device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def mask_like(self, tensor: Tensor, p: float) -> Tensor:
        """0 with probability p, else 1/(1 − p), so that the mean is 1; in the tensor's shape and dtype."""
        mask = torch.empty_like(tensor, requires_grad=False)
        return mask.bernoulli_(1 - p, generator=self.generator(tensor.device)).div_(1 - p)

    def __getstate__(self) -> dict[str, object]:
        """Generators cannot be copied or pickled; the seed is enough."""
        return {**self.__dict__, "_generators": {}}


def _probability(p: float, of: str) -> float:
    if not 0 <= p < 1:
        raise RecipeError(f"the probability of {of} is in [0, 1), got {p}")
    return float(p)


class Dropout(Seeded):
    """Dropout whose mask is the same whenever the same batch comes to the same gate.

    Args:
        p: probability that an element becomes 0; the others are scaled by 1/(1 − p).
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = _probability(p, "dropout")

    def forward(self, x: Tensor) -> Tensor:
        """The input with a mask on it when training, the input itself otherwise; any shape."""
        return x * self.mask_like(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"p={self.p}"


class DropConnectLinear(Seeded):
    """A linear layer that drops weights, not activations (Wan et al. 2013, "Regularization of NNs
    using DropConnect").

    One mask over weight and bias per batch (the paper draws one per sample, at a cost of batch × weights);
    kept weights are scaled by 1/(1 − p), so evaluation uses the weights as they are, the paper's mean
    network.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        p: probability that a weight is dropped.
        bias: add a bias.
    """  # noqa: D205 - the source belongs into the first sentence

    def __init__(self, in_features: int, out_features: int, p: float = 0.5, bias: bool = True) -> None:
        super().__init__()
        self.p = _probability(p, "DropConnect")
        like = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(
            x, self._connected(self.weight), None if self.bias is None else self._connected(self.bias)
        )

    def _connected(self, weight: Tensor) -> Tensor:
        return weight * self.mask_like(weight, self.p) if self.training and self.p else weight

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, p={self.p}"
