"""Modules that PyTorch lacks: random ones whose masks depend on the batch, not on who ran before.

PyTorch's CPU generator is one per process, so with many actors at work a mask would depend on how
they interleave. A :class:`Seeded` module has a generator of its own; its gate seeds it before each
training forward by (run seed, gate, batch). Replicas differ, and a replay agrees.

Within a batch every call of the module draws by its number::

    forward     drop(a) ─ call 0        drop(b) ─ call 1        what each was called with is marked
    backward                            drop(b) again: the mark says call 1

A backward runs parts of the forward again where they are checkpointed, last part first and others not at
all, so counting would give the wrong mask there.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akkordeon.core.errors import RecipeError

__all__ = ["DropConnectLinear", "Dropout", "Marks", "Seeded", "Standardize"]

Marks = tuple[str, ...]
"""What each call was called with, in a few numbers; empty where there was one call at most."""


class _Calls:
    """The calls of a module since it was given a key.

    Args:
        seed: from the key.
        awaited: marks of a forward, while its backward runs.
    """

    __slots__ = ("_awaited", "_first", "_seed", "marks", "number", "seed")

    def __init__(self, seed: int, awaited: Marks | None = None) -> None:
        self._seed = self.seed = seed  # of the first call, and of this one
        self._awaited = None if awaited is None else dict(enumerate(awaited))
        self._first: tuple[Any, ...] = ()
        self.number = 0
        self.marks: list[str] = []

    def begin(self, args: tuple[Any, ...]) -> bool:
        """Count a call; whether its seed is another than the last one's, or has been drawn from."""
        number, self.number = self.number, self.number + 1
        if number == 0 and self._awaited is None:
            self._first = args  # most modules are called once, and need no mark
            return False
        draws_as = number if self._awaited is None else self._made_again(args)
        if self._awaited is None:
            if number == 1:
                self.marks.append(_mark(self._first))
                self._first = ()
            self.marks.append(_mark(args))
        self.seed = _seed_from((self._seed, draws_as)) if draws_as else self._seed
        return number + draws_as > 0

    def end(self) -> Marks:
        """All of them; none where there was one at most."""
        self._first = ()
        return tuple(self.marks)

    def _made_again(self, args: tuple[Any, ...]) -> int:
        """Which call of the forward this is; of several alike the first that was not yet made again."""
        if not self._awaited:
            return 0
        mark = _mark(args)
        number = next((i for i, other in self._awaited.items() if other == mark), next(iter(self._awaited)))
        del self._awaited[number]
        return number


class Seeded(nn.Module):
    """A module with randomness of its own. Outside a gate it draws from a generator seeded with 0."""

    def __init__(self) -> None:
        super().__init__()
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}
        self._calls: _Calls | None = None  # None until there is a key

    def reseed(self, key: tuple[object, ...]) -> None:
        """Start the randomness anew from a key; equal keys give equal masks, in any process."""
        self._restart(key, None)

    def replay(self, key: tuple[object, ...], marks: Marks) -> None:
        """Start anew from a key; every call gives the mask of the call that was marked alike."""
        self._restart(key, marks)

    def _restart(self, key: tuple[object, ...], marks: Marks | None) -> None:
        self._seed = _seed_from(key)
        self._calls = _Calls(self._seed, marks)
        self._seed_generators(self._seed)

    def marks(self) -> Marks:
        """The calls since the last key, for :meth:`replay`."""
        return () if self._calls is None else self._calls.end()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Count the call, and run as any module does."""
        calls = self._calls
        if calls is not None and calls.begin((*args, *kwargs.values())):
            self._seed_generators(calls.seed)
        return super().__call__(*args, **kwargs)

    def _seed_generators(self, seed: int) -> None:
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def generator(self, device: torch.device) -> torch.Generator:
        """This module's generator on that device."""
        if device not in self._generators:
            seed = self._seed if self._calls is None else self._calls.seed
            self._generators[device] = torch.Generator(device).manual_seed(seed)
        return self._generators[device]

    def mask_like(self, tensor: Tensor, p: float) -> Tensor:
        """0 with probability p, else 1/(1 − p), so that the mean is 1; in the tensor's shape and dtype."""
        mask = torch.empty_like(tensor, requires_grad=False)
        return mask.bernoulli_(1 - p, generator=self.generator(tensor.device)).div_(1 - p)

    def __getstate__(self) -> dict[str, object]:
        """Generators cannot be copied or pickled; the seed is enough."""
        return {**self.__dict__, "_generators": {}, "_calls": None}


def _seed_from(key: tuple[object, ...]) -> int:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _mark(args: tuple[Any, ...]) -> str:
    """What tells these arguments from others: the shape and the sum of every tensor."""
    return repr([(tuple(x.shape), x.detach().sum().item()) for x in args if isinstance(x, Tensor)])


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


class Standardize(nn.Module):
    """Brings every feature to mean 0 and variance 1, by all examples that it was trained with so far.

    It goes before the first layer of a network that learns from a stream, whose scale nobody knows
    beforehand. Mean and variance are those of Welford's method, as Chan et al. 1979 have it for batches; they
    are buffers, and so are part of cuts and checkpoints.

    Args:
        features: size of the last dimension of the input.
        limit: what comes out is cut to this size, as a feature may be far off where few examples were seen.
    """

    mean: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, features: int, limit: float = 10.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("squares", torch.zeros(features))  # the sum of squared differences from the mean
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(…, features) to the same; in training the input is taken in first."""
        if self.training:
            self._take_in(x.detach().reshape(-1, x.shape[-1]))
        variance = self.squares / self.count.clamp(min=1)
        scale = torch.where(variance > 0, variance, 1).rsqrt()
        return ((x - self.mean) * scale).clamp(-self.limit, self.limit)

    def _take_in(self, x: Tensor) -> None:
        before = self.count.clone()
        self.count += len(x)
        mean = x.mean(0)
        difference = mean - self.mean
        self.squares += (x - mean).square().sum(0) + difference.square() * before * (len(x) / self.count)
        self.mean += difference * (len(x) / self.count)

    def extra_repr(self) -> str:
        """What ``print(module)`` shows."""
        return f"{len(self.mean)}, limit={self.limit}"
