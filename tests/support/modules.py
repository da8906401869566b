"""The modules of the contract in tests/pipeline/test_modules.py: every kind that people write.

One entry is one line in ``ROWS``: a name, what makes the modules of the row (head first, one a gate), and
where they differ from the defaults the inputs, the loss and the optimizer. Modules of a kind are made anew
for every run, never copied, so that a copy that loses something is seen.
"""

# ruff: noqa: E501 - a table has one line an entry

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.errors import (
    ForeignParameterError,
    GateFailedError,
    RecipeError,
    SentinelFailedError,
    SharedParameterError,
)

SIZE = 4
"""Samples in a batch."""


# ── what an entry says ───────────────────────────────────────────────────────────────────────────────


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """Makes inputs of normal numbers."""
    return lambda: torch.randn(SIZE, *shape, dtype=dtype)


def words(*shape: int, below: int = 7) -> Callable[[], Tensor]:
    """Makes inputs of integers."""
    return lambda: torch.randint(below, (SIZE, *shape))


def many(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Makes inputs of several tensors."""
    return lambda: tuple(torch.randn(SIZE, *shape) for shape in shapes)


def squared(out: Any, y: Tensor) -> Tensor:
    """A loss for outputs of any form: the mean of each sample against its target, for every tensor."""
    parts = [out] if isinstance(out, Tensor) else [*(out.values() if isinstance(out, dict) else out)]
    total = torch.zeros(())
    for part in parts:
        if part is not None and (part.is_floating_point() or part.is_complex()):
            real = torch.view_as_real(part) if part.is_complex() else part
            total = total + (real.reshape(len(y), -1).mean(1) - y.to(real.dtype)).square().mean()
    return total


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


FEATURES = numbers(6)


@dataclass(frozen=True)
class Row:
    """One entry of the contract."""

    name: str
    modules: Callable[[], list[nn.Module]]
    inputs: Callable[[], Any] = FEATURES
    loss: Callable[[Any, Tensor], Tensor] = squared
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd
    unknown: str = ""
    """Why a module made anew cannot load what was kept: the same as ``load_state_dict`` would say."""


def between(*middle: Callable[[], nn.Module]) -> Callable[[], list[nn.Module]]:
    """A linear layer, these, a linear layer; 8 features in the middle."""
    return lambda: [nn.Linear(6, 8), *(make() for make in middle), nn.Linear(8, 2)]


def first(make: Callable[[], nn.Module], features: int = 8) -> Callable[[], list[nn.Module]]:
    """A module that takes the inputs, and a linear layer."""
    return lambda: [make(), nn.Linear(features, 2)]


def images(*middle: Callable[[], nn.Module], channels: int = 4) -> Callable[[], list[nn.Module]]:
    """A convolution of 2 channels to 4, these, and the mean of every channel."""
    return lambda: [nn.Conv2d(2, 4, 3, padding=1), *(make() for make in middle), Pooled(channels)]


def series(middle: Callable[[], nn.Module], features: int = 8) -> Callable[[], list[nn.Module]]:
    """A linear layer, this, a linear layer, for (sample, step, feature)."""
    return lambda: [nn.Linear(6, 8), middle(), nn.Linear(features, 2)]


PICTURE, SERIES = numbers(2, 6, 6), numbers(5, 6)


class Does(nn.Module):
    """A linear layer and then a function of (module, x): for what needs no class of its own."""

    def __init__(self, function: Callable[[Any, Any], Any], n_in: int = 8, n_out: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def does(function: Callable[[Any, Any], Any], n_in: int = 8, n_out: int = 8) -> Callable[[], nn.Module]:
    return lambda: Does(function, n_in, n_out)


class Pooled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).mean(2))


def changed(make: Callable[[], nn.Module], change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """A module that was changed after it was made; what ``change`` returns, if anything, takes its place."""

    def made() -> nn.Module:
        module = make()
        return change(module) or module

    return made


def linear() -> nn.Module:
    return nn.Linear(8, 8)


# ── payloads ─────────────────────────────────────────────────────────────────────────────────────────


class ToDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"h": self.layer(x), "x": x}


class DictInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        d["h"] = torch.tanh(self.layer(d["h"]))
        return d


class DictAdds(DictInPlace):
    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        d["g"] = torch.tanh(self.layer(d["h"]))
        return d


class DictPops(DictInPlace):
    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        d["out"] = self.layer(d.pop("h")) + d.get("g", 0)
        return d


class FromDict(nn.Module):
    def __init__(self, name: str = "h") -> None:
        super().__init__()
        self.layer, self.name = nn.Linear(8, 2), name

    def forward(self, d: dict[str, Tensor]) -> Tensor:
        return self.layer(d[self.name]) + d["x"].mean()


class Spread(NamedTuple):
    mean: Tensor
    scale: Tensor | None


class GivesNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.scale = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Spread:
        return Spread(self.mean(x), self.scale(x).exp())


class TakesNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, spread: Spread) -> Tensor:
        return self.layer(spread.mean) * (1 if spread.scale is None else spread.scale)


def takes(name: str) -> Callable[[], nn.Module]:
    """Takes one tensor out of a dict."""
    return does(lambda self, d: self.layer(d[name]))


# ── buffers ──────────────────────────────────────────────────────────────────────────────────────────


class Scaled(nn.Module):
    """Divides by a running scale that it keeps in a buffer, made and changed in the way asked for."""

    def __init__(self, start: Tensor | None, change: str, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("scale", start, persistent=persistent)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            now = x.detach().abs().mean(0)
            if self.scale is None:
                self.scale = torch.ones_like(now)
            if self.change == "in place":
                self.scale.mul_(0.9).add_(now, alpha=0.1)
            elif self.change == "assigned":
                self.scale = 0.9 * self.scale + 0.1 * now
            elif self.change == "through data":
                self.scale.data = 0.9 * self.scale + 0.1 * now
        return x if self.scale is None else x / (1 + self.scale)


class HeldElsewhere(nn.Module):
    """A running mean in a buffer, which is written to by way of what keeps it as well."""

    def __init__(self, keep: Callable[[Tensor], Any], reach: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.kept = keep(self.mean)
        self.reach = reach

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            kept = self.reach(self.kept)
            kept.mul_(0.9).add_(x.detach().mean(0)[: len(kept)], alpha=0.1)
        return x - self.mean


class ViewInABuffer(HeldElsewhere):
    def __init__(self) -> None:
        super().__init__(lambda mean: None, lambda _: self.front)
        self.register_buffer("front", self.mean[:4])


class LateBuffer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(x.shape[-1]))
        if self.training:
            self.mean += 0.1 * x.detach().mean(0)
        return x - self.mean


class Counting(nn.Module):
    """Counts its batches in an integer buffer and warms up by it; a bool buffer is its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("on", torch.arange(8) % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            self.on[self.seen % 8] = False
        return torch.where(self.on, x * (1 - 0.5**self.seen), x)


class CountingInPython(nn.Module):
    """Warms up by a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.layer(x)
        self.calls += 1
        return self.layer(x) * (self.calls / 3)


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 8), 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.layer(x) * (1 + 0.1 * self.calls)


class OneBufferTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (Scaled(torch.ones(8), "in place") for _ in range(2))
        self.two.scale = self.one.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Neighbours(nn.Module):
    """A graph convolution with a sparse adjacency matrix in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", (torch.rand(8, 8) > 0.5).float().to_sparse())
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.sparse.mm(self.adjacency, x.T).T)


# ── codebooks, and weights written in a forward ──────────────────────────────────────────────────────


class Codebook(nn.Module):
    """A vector quantiser whose codes follow the mean of what chose them, written in the way asked for."""

    def __init__(self, written: str) -> None:
        super().__init__()
        codes = torch.randn(5, 8)
        self.written = written
        if written.startswith("buffer"):
            self.register_buffer("codes", codes)
        else:
            self.codes = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.cdist(x.detach(), self.codes.detach()).argmin(1)
        quantised = self.codes[chosen]
        if self.training:
            one_hot = F.one_hot(chosen, 5).to(x.dtype)
            means = one_hot.T @ x.detach() / one_hot.sum(0).clamp(min=1)[:, None]
            new = torch.where(one_hot.sum(0)[:, None] > 0, 0.8 * self.codes + 0.2 * means, self.codes)
            if self.written in ("buffer in place", "parameter in place"):
                self.codes.copy_(new)
            elif self.written == "buffer assigned":
                self.codes = new
            elif self.written == "parameter by data":
                self.codes.data = new
            elif self.written == "parameter through data":
                self.codes.data.copy_(new)
            else:
                self.codes = nn.Parameter(new, requires_grad=False)
        return x + (quantised - x).detach()


class Clipped(nn.Module):
    """Keeps its weights small by hand, as the critic of a WGAN does."""

    def __init__(self, through_data: bool) -> None:
        super().__init__()
        self.layer, self.through_data = nn.Linear(8, 8), through_data

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self.through_data:
                self.layer.weight.data.clamp_(-0.2, 0.2)
            else:
                with torch.no_grad():
                    self.layer.weight.clamp_(-0.2, 0.2)
        return self.layer(x)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class Bare(nn.Module):
    """Parameters of its own: a scalar, one of another layout, one that is None, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.turned = nn.Parameter(torch.randn(8, 8).T)
        self.unused = nn.Parameter(torch.randn(3))
        self.frozen = nn.Parameter(torch.randn(8), requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.turned) + self.frozen


class ListsAndDicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.named = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Tanh()})
        self.factors = nn.ParameterList([torch.rand(8) for _ in range(2)])
        self.offsets = nn.ParameterDict({"x": torch.rand(8)})

    def forward(self, x: Tensor) -> Tensor:
        for layer, factor in zip(self.layers, self.factors, strict=True):
            x = layer(x) * factor
        return self.named["b"](self.named["a"](x)) + self.offsets["x"]


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class Hypernetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maker, self.code = nn.Linear(3, 64), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.maker(self.code).view(8, 8))


class Functional(nn.Module):
    """Calls another module of its own with changed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: 0.5 * p for name, p in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, weights, (x,))


def mark_decay(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.no_decay = parameter.dim() == 1


def grouped(params: Any) -> torch.optim.Optimizer:
    """Two groups, by a mark on the parameters."""
    params = list(params)
    marked = [p for p in params if getattr(p, "no_decay", False)]
    others = [p for p in params if not getattr(p, "no_decay", False)]
    groups = [{"params": marked, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.5}]
    return torch.optim.SGD([group for group in groups if group["params"]], lr=0.05, momentum=0.9)


def hook_weight(module: nn.Module) -> None:
    module.weight.register_hook(lambda gradient: gradient * (torch.arange(8) % 2))


def hook_forward(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))
    module.register_forward_hook(lambda module, inputs, output: output + 1)


def hook_backward(module: nn.Module) -> None:
    module.register_full_backward_hook(lambda module, by_input, by_output: (by_input[0] * 0.5,))
    module.register_full_backward_pre_hook(lambda module, by_output: (by_output[0] * 2,))


# ── functions of their own ───────────────────────────────────────────────────────────────────────────


class Reversal(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.3 * gradient


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class RunsAgain(Function):
    """Its backward runs a module again, and a backward, which leaves gradients of weights in ``.grad``.

    Reversible layers do so, as those of Reformer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            ctx.module(x).backward(gradient)
        return x.grad, None


class Rounded(nn.Module):
    """A straight-through estimator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + (h.round() - h).detach()


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant) if self.training else self.inner(x)


class Energy(nn.Module):
    """The slope of an inner function by the input, itself differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            energy = torch.tanh(self.layer(x)).square().sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=training)
        return x - slope


# ── whole blocks ─────────────────────────────────────────────────────────────────────────────────────


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 8)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return h


class Attention(nn.Module):
    """With a causal mask that is made once and kept as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mask = nn.MultiheadAttention(8, 2, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]


class MaskedAttention(nn.Module):
    """Takes a dict of numbers and the mask of what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        mixed, weights = self.attention(d["x"], d["x"], d["x"], key_padding_mask=d["padding"])
        return {"h": mixed, "weights": weights, "padding": d["padding"]}


class Block(nn.Module):
    """A transformer's block by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out, self.mlp = (
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            nn.Sequential(nn.Linear(8, 16), nn.GELU()),
        )
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.down(self.mlp(self.ln2(x)))


class SmallGPT(nn.Module):
    """Its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 8), nn.Embedding(5, 8)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("positions", torch.arange(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x) + self.places(self.positions)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x
        return F.relu(out, inplace=True)


class Experts(nn.Module):
    """Sends every sample to one expert; some experts get none."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        weight, choice = self.router(x).softmax(1).max(1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return out


class Equilibrium(nn.Module):
    """Runs until it stands still; how often depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        with torch.no_grad():
            for _ in range(30):
                new = torch.tanh(0.3 * self.layer(z) + x)
                if (new - z).norm() < 1e-2:
                    break
                z = new
        return torch.tanh(0.3 * self.layer(z) + x)


class SometimesSkipped(nn.Module):
    """Stochastic depth: some batches leave its weights without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x) if not self.training or torch.rand(()) < 0.5 else x


class Down(nn.Module):
    """The first half of an autoencoder that pools with indices."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(self.conv(x))


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.MaxUnpool2d(2), nn.ConvTranspose2d(4, 2, 3, padding=1)

    def forward(self, pooled: tuple[Tensor, Tensor]) -> Tensor:
        return self.conv(self.pool(*pooled))


class Wide(nn.Module):
    """Names and numbers together."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.numbers = nn.Embedding(7, 8), nn.Linear(6, 8)

    def forward(self, d: dict[str, Tensor]) -> Tensor:
        return self.names(d["name"]) + self.numbers(d["x"])


class Splat(nn.Module):
    """Gives a module of several arguments the tensors of a tuple."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, several: tuple[Tensor, ...]) -> Tensor:
        return self.inner(*several)


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator) if self.training else x


class FrozenNorm(nn.Module):
    """Keeps its normalisation in evaluation mode whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(8), nn.Linear(8, 8)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class Teacher(nn.Module):
    """A frozen copy that follows a layer by moving averages."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(8, 8)
        self.teacher = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(0.9)).requires_grad_(
            False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.teacher.update_parameters(self.student)
        return self.student(x) + 0.1 * self.teacher(x)


class KeepsItsOwn(nn.Module):
    """Reaches its layer by way of what it kept of it."""

    def __init__(self, keep: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.kept = keep(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.kept[0](x) if isinstance(self.kept, list) else self.kept(x)


class Holder:
    """An object that nobody knows how to look into."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


def around_forward(module: nn.Module) -> None:
    """Replace its forward by a function that calls it, as wrappers of whole libraries do."""
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]


def over_functions(self: nn.Module) -> Any:
    """A function in a partial in a list, over a function that calls itself, over a list of the module's."""
    layers = {"some": [self.layer]}

    def twice(x: Tensor, times: int) -> Tensor:
        return x if times == 0 else twice(layers["some"][0](x), times - 1)

    return [partial(lambda x, times: twice(x, times), times=2)]


def over_an_object(self: nn.Module) -> Any:
    holder = Holder(self)
    return lambda x: holder.thing.layer(x)


def thaw(self: Any, x: Tensor) -> Tensor:
    self.requires_grad_(not self.training)
    return self.layer(x)


def exchange(self: Any, x: Tensor) -> Tensor:
    layer = self.layer
    layer.weight, layer.bias = layer.bias, layer.weight
    return x @ layer.bias.T if layer.bias.dim() == 2 else layer(x)


def late_weight(self: Any, x: Tensor) -> Tensor:
    self.scale = nn.Parameter(torch.ones(8))
    return self.layer(x) * self.scale


def late_statistics(self: Any, x: Tensor) -> Tensor:
    self.norm = nn.BatchNorm1d(8, affine=False)
    return self.norm(self.layer(x))


class KeepsData(torch.optim.Optimizer):
    """Updates what the data of its parameters was when it was made."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.kept = self.data()

    def data(self) -> list[Tensor]:
        return [parameter.data for parameter in self.param_groups[0]["params"]]

    def step(self, closure: Any = None) -> None:
        for data, parameter in zip(self.kept, self.param_groups[0]["params"], strict=True):
            data.sub_(0.1 * parameter.grad)


class KeepsDataLater(KeepsData):
    """Keeps it in its first step."""

    def __init__(self, params: Any) -> None:
        torch.optim.Optimizer.__init__(self, params, {})

    def step(self, closure: Any = None) -> None:
        self.state.setdefault("kept", self.data())
        self.kept = self.state["kept"]
        super().step()


def flat(params: Any) -> torch.optim.Optimizer:
    """An optimizer whose parameters are views of one tensor that it made."""
    params = list(params)
    parts = torch.cat([p.data.flatten() for p in params]).split([p.numel() for p in params])
    for param, part in zip(params, parts, strict=True):
        param.data = part.view_as(param)
    return torch.optim.SGD(params, lr=0.1)


class KeepsAList(nn.Module):
    """Has its weight in a list too, where nobody looks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.kept = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kept[0], self.layer.bias)


class TiedByData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight.data = self.one.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


class ViewsOfOne(nn.Module):
    """Parameters that lie in one piece of memory, apart."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(2, 8)
        self.scale, self.shift = nn.Parameter(both[0]), nn.Parameter(both[1])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Listening(nn.Module):
    """Takes what it gives from a hook on its layer, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.heard = nn.Linear(8, 8), None
        self.layer.register_forward_hook(lambda module, inputs, output: setattr(self, "heard", output))

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        return self.heard


class Remembering(nn.Module):
    """Begins with the state that the batch before ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)
        self.register_buffer("h", torch.zeros(SIZE, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.cell(x, self.h)
        if self.training:
            self.h = h.detach()
        return h


class CachedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.layer(torch.relu(self.layer(x)))


def hook_accumulated(module: nn.Module) -> None:
    def halve(parameter: Tensor) -> None:
        parameter.grad.mul_(0.5)

    module.weight.register_post_accumulate_grad_hook(halve)


class Lowered(nn.Module):
    """Low-rank adaptation of a frozen layer, merged into its weights in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.merged = nn.Linear(8, 8).requires_grad_(False), False
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.zeros(8, 2))

    def train(self, mode: bool = True) -> Lowered:
        super().train(mode)
        if mode == self.merged:
            self.layer.weight.data += (self.b @ self.a).data * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.merged else self.layer(x) + x @ self.a.T @ self.b.T


class Ensemble(nn.Module):
    """Several layers as one, their weights stacked."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(8, 8) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(layers)
        self.stacked = nn.ParameterDict({name: p.detach() for name, p in stacked.items()})
        self.one = [layers[0].to("meta")]  # in a list: no submodule

    def forward(self, x: Tensor) -> Tensor:
        def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(self.one[0], weights, (x,))

        return torch.vmap(call, (0, None))(dict(self.stacked), x).mean(0)


class Bottle(nn.Module):
    """The bottleneck of a variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_var, self.back = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_var = self.mean(x), self.log_var(x)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp() if self.training else mean
        return self.back(z), mean, log_var


def elbow(out: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
    again, mean, log_var = out
    divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
    return (again.mean(1) - y).square().mean() + 0.1 * divergence


class WithLoss(nn.Module):
    """Computes its loss itself, from labels in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, d: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.layer(d["h"])
        return {"loss": F.cross_entropy(logits, d["labels"]), "logits": logits}


class ListOfLayers(nn.Module):
    """Layers in a plain list: nobody finds them, nobody trains them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = [nn.Linear(8, 8)], nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers[0](x))


class Outputs(OrderedDict):
    """A dict whose entries are attributes, as in transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Mark(nn.Parameter):
    """A parameter of a class of its own."""


class MarkedScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Mark(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * (2 if type(self.scale) is Mark else 1)


def scaled_by_hook(self: Any, x: Tensor) -> Tensor:
    h = self.layer(x)
    if h.requires_grad:
        h.register_hook(lambda gradient: 0.1 * gradient)
    return h


def half_frozen() -> nn.Module:
    """A backbone in evaluation mode, without gradients, and a layer that learns."""
    frozen = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).eval().requires_grad_(False)
    return nn.Sequential(frozen, nn.Linear(8, 8))


def warmed(module: nn.Module) -> nn.Module:
    """A lazy module that has had its first batch."""
    with torch.no_grad():
        module(torch.randn(SIZE, 8))
    return module


def quietly(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """For what PyTorch calls deprecated and people use."""

    def made() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def autocasting(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.layer(x).float()


def spectrum(self: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(self.layer(x)) * torch.exp(1j * torch.arange(5)), n=8)


def mixed_dict() -> dict[str, Tensor]:
    return {"name": torch.randint(7, (SIZE,)), "x": torch.randn(SIZE, 6)}


def labelled() -> dict[str, Tensor]:
    return {"x": torch.randn(SIZE, 6), "labels": torch.randint(3, (SIZE,))}


def padded() -> dict[str, Tensor]:
    return {"x": torch.randn(SIZE, 5, 6), "padding": torch.arange(5) >= torch.tensor([5, 4, 3, 5])[:, None]}


def symmetric(module: nn.Module) -> None:
    parametrize.register_parametrization(module, "weight", Symmetric())


CONV = partial(nn.Conv2d, 4, 4, 3, padding=1)

ROWS = [
    # payloads
    Row("dict changed in place", lambda: [ToDict(), DictInPlace(), DictInPlace(), FromDict()]),
    Row("dict with added keys", lambda: [ToDict(), DictAdds(), FromDict("g")]),
    Row("dict with keys taken out", lambda: [ToDict(), DictAdds(), DictPops(), FromDict("out")]),
    Row("namedtuple out", lambda: [nn.Linear(6, 8), GivesNamed(), TakesNamed(), nn.Linear(8, 2)]),
    Row("namedtuple in", lambda: [TakesNamed()], lambda: Spread(torch.randn(SIZE, 8), torch.rand(SIZE, 8))),
    Row("None in a tuple", between(does(lambda self, x: (self.layer(x), None)), does(lambda self, p: self.layer(p[0])))),
    Row("None in a namedtuple", between(does(lambda self, x: Spread(self.layer(x), None)), TakesNamed)),
    Row("None in a dict", between(does(lambda self, x: {"h": self.layer(x), "g": None}), takes("h"))),
    Row("nested tuples", lambda: [nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True), does(lambda self, p: self.layer(p[0]) + p[1][0].mean())()], SERIES),
    Row("dict of tuples", between(does(lambda self, x: {"h": (self.layer(x), x)}), does(lambda self, d: self.layer(d["h"][0] + d["h"][1])))),
    Row("dict of a class of its own", between(does(lambda self, x: Outputs(h=self.layer(x))), does(lambda self, d: self.layer(d.h)))),
    Row("loss from the module", lambda: [does(lambda self, d: d | {"h": self.layer(d["x"])}, 6)(), WithLoss()], labelled, lambda out, y: out["loss"]),
    Row("bytes in", first(does(lambda self, x: self.layer(x / 255), 6)), lambda: torch.randint(256, (SIZE, 6), dtype=torch.uint8)),
    Row("bools in", first(does(lambda self, x: self.layer(x.float()), 6)), lambda: torch.rand(SIZE, 6) > 0.5),
    Row("sparse in", first(does(lambda self, x: torch.sparse.mm(x, self.layer.weight.T), 6)), lambda: (torch.randn(SIZE, 6) * (torch.rand(SIZE, 6) > 0.5)).to_sparse()),
    Row("twins", lambda: [does(lambda self, p: (self.layer(p[0]), self.layer(p[1])), 6)(), does(lambda self, p: torch.cosine_similarity(self.layer(p[0]), self.layer(p[1])))()], many((6,), (6,))),
    Row("list out", between(does(lambda self, x: [self.layer(x), x]), does(lambda self, p: self.layer(p[0]) + p[1]))),
    Row("several outputs", between(does(lambda self, x: (self.layer(x), x.sum(1, keepdim=True))), does(lambda self, p: self.layer(p[0]) * p[1]))),
    Row("several outputs to the loss", lambda: [ToDict(), DictAdds()]),
    Row("one tensor twice", between(does(lambda self, x: (h := self.layer(x), h)), does(lambda self, p: self.layer(p[0] + p[1])))),
    Row("one tensor three times", between(does(lambda self, x: [h := self.layer(x), h, {"again": h}]), does(lambda self, p: self.layer(p[0] * p[1] + p[2]["again"]) * p[0] - 0.3 * p[1].tanh() + p[2]["again"] / 3))),
    Row("one tensor twice to the loss", lambda: [does(lambda self, x: (h := self.layer(x), h), 6, 2)()], loss=lambda out, y: squared(out[0] * out[1] + out[0] / 3 - 0.7 * out[1], y)),
    Row("several inputs", lambda: [Splat(nn.Bilinear(6, 5, 8)), nn.Linear(8, 2)], many((6,), (5,))),
    Row("integers and numbers in a dict", first(Wide), mixed_dict),
    Row("output that needs no gradient", between(does(lambda self, x: (self.layer(x), x.detach() > 0)), does(lambda self, p: self.layer(p[0]) * p[1]))),
    Row("integers out", between(does(lambda self, x: (self.layer(x), x.argmax(1))), does(lambda self, p: self.layer(p[0]) * (p[1] > 3)[:, None]))),
    Row("input that gets no gradient", between(does(lambda self, x: self.layer(x.detach())))),
    Row("output used in part", between(does(lambda self, x: (self.layer(x), x)), does(lambda self, p: self.layer(p[0])))),
    Row("identity", between(nn.Identity)),
    Row("view of the input", lambda: [nn.Linear(6, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 2)]),
    Row("slice of the input", between(does(lambda self, x: x[:, :4]), does(lambda self, x: self.layer(x), 4))),
    Row("expanded output", between(does(lambda self, x: self.layer(x)[:, :1].expand(-1, 8)))),
    Row("weights as an output", between(does(lambda self, x: (x, self.layer.weight)), does(lambda self, p: F.linear(p[0], p[1])))),
    Row("no module with parameters", lambda: [nn.Linear(6, 8), nn.Tanh(), nn.Softmax(1), nn.Linear(8, 2)]),
    Row("in-place ReLU first", lambda: [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 8)), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))]),
    Row("in-place arithmetic on the input", between(does(lambda self, x: self.layer(x.mul_(2).add_(1))))),
    Row("in-place on a dict's tensors", lambda: [ToDict(), does(lambda self, d: {"h": self.layer(d["h"].relu_()), "x": d["x"]})(), FromDict()]),
    # buffers
    Row("buffer in place", between(lambda: Scaled(torch.ones(8), "in place"))),
    Row("buffer assigned", between(lambda: Scaled(torch.ones(8), "assigned"))),
    Row("buffer through data", between(lambda: Scaled(torch.ones(8), "through data"))),
    Row("non-persistent buffer in place", between(lambda: Scaled(torch.ones(8), "in place", False))),
    Row("non-persistent buffer assigned", between(lambda: Scaled(torch.ones(8), "assigned", False))),
    Row("buffer that begins as None", between(lambda: Scaled(None, "in place"))),
    Row("buffer that begins as None, non-persistent", between(lambda: Scaled(None, "assigned", False))),
    Row("buffer that stays None", between(lambda: changed(lambda: Scaled(torch.ones(8), "no"), lambda m: m.register_buffer("none", None))())),
    Row("buffer registered late", between(LateBuffer), unknown="has 1.mean, the .* has not"),
    Row("integer counter and bool mask", between(Counting)),
    Row("one buffer twice", between(OneBufferTwice)),
    Row("state carried to the next batch", between(Remembering)),
    Row("quantisation in training", between(quietly(partial(FakeQuantize, MovingAverageMinMaxObserver)))),
    Row("sparse buffer", between(Neighbours)),
    Row("counter as a plain attribute", between(CountingInPython)),
    Row("extra state", between(ExtraState)),
    # normalisation
    Row("BatchNorm", between(lambda: nn.BatchNorm1d(8))),
    Row("BatchNorm with a cumulative mean", between(lambda: nn.BatchNorm1d(8, momentum=None))),
    Row("BatchNorm without statistics", between(lambda: nn.BatchNorm1d(8, track_running_stats=False))),
    Row("BatchNorm in evaluation mode", between(lambda: nn.Sequential(nn.BatchNorm1d(8).eval(), nn.Linear(8, 8)))),
    Row("BatchNorm frozen by its owner", between(changed(FrozenNorm, lambda m: m.train()))),
    Row("frozen backbone in evaluation mode", between(half_frozen)),
    Row("GroupNorm", images(lambda: nn.GroupNorm(2, 4)), PICTURE),
    Row("LayerNorm", between(lambda: nn.LayerNorm(8))),
    Row("RMSNorm", between(lambda: nn.RMSNorm(8))),
    Row("InstanceNorm with statistics", images(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), PICTURE),
    # weights
    Row("frozen parameters", between(lambda: linear().requires_grad_(False))),
    Row("bare parameters, one unused, one frozen, one None", between(Bare)),
    Row("lists and dicts of modules and parameters", between(ListsAndDicts)),
    Row("tied within a gate", between(Tied)),
    Row("one module twice", between(lambda: nn.Sequential(layer := linear(), nn.Tanh(), layer))),
    Row("weight hook", between(changed(linear, hook_weight))),
    Row("forward hooks", between(changed(linear, hook_forward))),
    Row("backward hooks", between(changed(linear, hook_backward))),
    Row("marks on parameters for the optimizer", between(changed(linear, mark_decay)), optimizer=grouped),
    Row("weight_norm", between(lambda: parametrizations.weight_norm(linear()))),
    Row("spectral_norm", between(lambda: parametrizations.spectral_norm(linear()))),
    Row("orthogonal", between(lambda: parametrizations.orthogonal(linear()))),
    Row("parametrization of one's own", between(changed(linear, symmetric))),
    Row("old spectral_norm", between(quietly(lambda: nn.utils.spectral_norm(linear())))),
    Row("old weight_norm", between(quietly(lambda: nn.utils.weight_norm(linear())))),
    Row("pruned", between(changed(linear, lambda m: prune.l1_unstructured(m, "weight", 0.5)))),
    Row("parameter of a class of its own", between(MarkedScale)),
    Row("layers in a plain list", between(ListOfLayers)),
    Row("ensemble of stacked weights", between(Ensemble)),
    Row("low-rank adaptation, merged in evaluation mode", between(Lowered)),
    Row("weight_norm, cached", between(CachedWeights)),
    Row("teacher by moving averages", between(Teacher)),
    Row("weight in a plain list too", between(KeepsAList)),
    Row("function over the module", between(lambda: KeepsItsOwn(lambda self: lambda x: self.layer(x)))),
    Row("buffer in a list too", between(lambda: HeldElsewhere(lambda mean: [mean], lambda kept: kept[0]))),
    Row("buffer in an object too", between(lambda: HeldElsewhere(Holder, lambda kept: kept.thing))),
    Row("view of a buffer", between(lambda: HeldElsewhere(lambda mean: mean[:4], lambda kept: kept))),
    Row("view of a buffer in a buffer", between(ViewInABuffer)),
    Row("functions over functions over the module", between(lambda: KeepsItsOwn(over_functions))),
    Row("forward replaced by a function that calls it", between(changed(linear, around_forward))),
    Row("bound method of a part", between(lambda: KeepsItsOwn(lambda self: self.layer.forward))),
    Row("layer in a plain list too", between(lambda: KeepsItsOwn(lambda self: [self.layer]))),
    Row("tied by data", between(TiedByData)),
    Row("views of one piece of memory", between(ViewsOfOne)),
    Row("output kept by a hook", between(Listening)),
    Row("hypernetwork", between(Hypernetwork)),
    Row("functional call", between(Functional)),
    Row("lazy, initialised", between(lambda: warmed(nn.LazyLinear(8)))),
    Row("embedding", first(lambda: nn.Embedding(7, 8)), words()),
    Row("embedding with padding", first(lambda: nn.Embedding(7, 8, padding_idx=0)), words()),
    Row("embedding with max_norm", first(lambda: nn.Embedding(7, 8, max_norm=1.0)), words()),
    Row("embedding with sparse gradients", first(lambda: nn.Embedding(7, 8, sparse=True)), words(), optimizer=partial(torch.optim.SGD, lr=0.05)),
    Row("embedding bag", first(lambda: nn.EmbeddingBag(7, 8, mode="mean")), words(3)),
    Row("codebook in a buffer in place", between(lambda: Codebook("buffer in place"))),
    Row("codebook in a buffer assigned", between(lambda: Codebook("buffer assigned"))),
    Row("codebook in a parameter in place", between(lambda: Codebook("parameter in place"))),
    Row("codebook in a parameter by data", between(lambda: Codebook("parameter by data"))),
    Row("codebook in a parameter through data", between(lambda: Codebook("parameter through data"))),
    Row("codebook in a parameter assigned", between(lambda: Codebook("parameter assigned"))),
    Row("weights clipped in the forward", between(lambda: Clipped(False))),
    Row("weights clipped through data", between(lambda: Clipped(True))),
    # numbers
    Row("float64", lambda: [m.double() for m in between(linear)()], numbers(6, dtype=torch.float64)),
    Row("bfloat16", lambda: [m.bfloat16() for m in between(linear)()], numbers(6, dtype=torch.bfloat16)),
    Row("half", lambda: [m.half() for m in between(linear)()], numbers(6, dtype=torch.float16)),
    Row("complex", lambda: [m.to(torch.complex64) for m in between(linear)()], numbers(6, dtype=torch.complex64)),
    Row("complex inside", between(does(spectrum))),
    Row("channels last", lambda: [m.to(memory_format=torch.channels_last) for m in images(CONV)()], lambda: torch.randn(SIZE, 2, 6, 6).to(memory_format=torch.channels_last)),
    Row("autocast inside", between(does(autocasting))),
    # functions
    Row("gradient reversal", between(does(lambda self, x: Reversal.apply(self.layer(x))))),
    Row("custom autograd function", between(does(lambda self, x: Cube.apply(self.layer(x))))),
    Row("autograd function that runs a backward", between(does(lambda self, x: RunsAgain.apply(x, self.layer)))),
    Row("straight-through estimator", between(Rounded)),
    Row("hook on a tensor inside", between(does(scaled_by_hook))),
    Row("checkpointed", between(lambda: Checkpointed(nn.Sequential(linear(), nn.Tanh()), False))),
    Row("checkpointed, reentrant", between(lambda: Checkpointed(nn.Sequential(linear(), nn.Tanh()), True))),
    Row("checkpointed with Dropout", between(lambda: Checkpointed(nn.Sequential(linear(), nn.Dropout(0.3)), False))),
    Row("checkpointed with BatchNorm", between(lambda: Checkpointed(nn.Sequential(linear(), nn.BatchNorm1d(8)), False))),
    Row("slope of an inner function", between(Energy)),
    Row("einsum", between(does(lambda self, x: torch.einsum("bi,oi->bo", x, self.layer.weight)))),
    Row("vmap", between(does(lambda self, x: torch.vmap(self.layer)(x)))),
    # randomness
    Row("Dropout", between(lambda: nn.Dropout(0.4))),
    Row("functional dropout", between(does(lambda self, x: F.dropout(self.layer(x), 0.3, self.training)))),
    Row("Gumbel softmax", between(does(lambda self, x: F.gumbel_softmax(self.layer(x), hard=True) if self.training else self.layer(x)))),
    Row("variational autoencoder", lambda: [nn.Linear(6, 8), Bottle()], loss=elbow),
    Row("akkordeon.nn.Dropout", between(ak.nn.Dropout)),
    Row("akkordeon.nn.Dropout, called twice", between(lambda: nn.Sequential(layer := ak.nn.Dropout(0.3), linear(), layer))),
    Row("akkordeon.nn.DropConnectLinear", between(lambda: ak.nn.DropConnectLinear(8, 8, 0.3))),
    Row("AlphaDropout and RReLU", between(lambda: nn.Sequential(nn.AlphaDropout(0.2), nn.RReLU()))),
    Row("noise from a generator of its own", between(Noisy)),
    Row("stochastic depth", between(SometimesSkipped)),
    # layers and blocks
    Row("Conv1d", lambda: [nn.Conv1d(5, 4, 3), nn.ConvTranspose1d(4, 2, 3, stride=2), Pooled(2)], SERIES),
    Row("Conv2d", images(CONV), PICTURE),
    Row("Conv2d with circular padding", images(partial(CONV, padding_mode="circular", groups=2)), PICTURE),
    Row("Conv3d", lambda: [nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(4, 2, 3), Pooled(2)], numbers(2, 4, 4, 4)),
    Row("pooling with indices", lambda: [Down(), Up()], PICTURE),
    Row("ResNet block", images(Residual, Residual), PICTURE),
    Row("PReLU and GLU", lambda: [nn.Linear(6, 16), nn.Sequential(nn.PReLU(), nn.GLU()), nn.Linear(8, 2)]),
    Row("RNN", series(lambda: Recurrent(nn.RNN(8, 8, batch_first=True))), SERIES),
    Row("LSTM", series(lambda: Recurrent(nn.LSTM(8, 8, batch_first=True))), SERIES),
    Row("LSTM with projections, both directions", series(lambda: Recurrent(nn.LSTM(8, 8, 2, bidirectional=True, proj_size=4, batch_first=True))), SERIES),
    Row("GRU with dropout", series(lambda: Recurrent(nn.GRU(8, 8, 2, dropout=0.3, batch_first=True))), SERIES),
    Row("recurrent cell", lambda: [nn.Linear(6, 8), Cell(), nn.Linear(8, 2)], SERIES),
    Row("transformer layer", series(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), SERIES),
    Row("transformer decoder layer", lambda: [does(lambda self, p: (self.layer(p[0]), self.layer(p[1])), 6)(), Splat(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)), nn.Linear(8, 2)], many((5, 6), (3, 6))),
    Row("attention with a causal mask", series(Attention), SERIES),
    Row("attention with padding", lambda: [MaskedAttention(), does(lambda self, d: self.layer(d["h"]).masked_fill(d["padding"][..., None], 0), 6, 2)()], padded),
    Row("small GPT with a tied head", lambda: [SmallGPT(), nn.Linear(7, 2)], words(5), optimizer=partial(torch.optim.AdamW, lr=0.01)),
    Row("mixture of experts", between(Experts)),
    Row("loop until it stands still", between(Equilibrium)),
    # made by tools
    Row("compiled", between(lambda: torch.compile(nn.Sequential(linear(), nn.Tanh()), backend="eager"))),
    Row("compiled in place", between(changed(linear, lambda m: m.compile(backend="eager")))),
    Row("traced by fx", between(lambda: torch.fx.symbolic_trace(nn.Sequential(linear(), nn.Tanh())))),
]  # fmt: skip
"""Each trains as the plain loop does, bit for bit."""


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Refusal:
    """A row that cannot be trained, and the sentence that says so."""

    name: str
    modules: Callable[[], list[nn.Module]]
    sentence: str
    error: type[Exception] = RecipeError
    inputs: Callable[[], Any] = FEATURES
    optimizer: Callable[[Any], Any] = sgd


def gives(output: Callable[[Any, Tensor], Any]) -> Callable[[], list[nn.Module]]:
    return lambda: [does(output, 6)()]


def one_of(parameters: Callable[[], Any]) -> Callable[[Any], Any]:
    """An optimizer of other parameters than those it is given."""
    return lambda _: torch.optim.SGD(parameters(), lr=0.1)


def two_gates_share() -> list[nn.Module]:
    layer = nn.Linear(6, 6)
    return [nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer)]


def written_after_use(self: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(self.layer(x)).mul_(2) + self.layer(x).sigmoid().mul_(2)


CANNOT_TRAVEL = "the output of its module for .* cannot travel: a payload "

REFUSED = [
    Refusal("lazy", lambda: [nn.LazyLinear(8)], "lazy parameters; send one batch through it first"),
    Refusal("TorchScript", first(quietly(lambda: nn.Sequential(torch.jit.script(linear())))), "the part '0' of a gate's module is TorchScript"),
    Refusal("hook after a gradient", lambda: [changed(linear, hook_accumulated)()], "the parameter 'weight' has a hook for after its gradient is accumulated"),
    Refusal("partial over a weight", lambda: [nn.Linear(6, 8), KeepsItsOwn(lambda self: partial(F.linear, weight=self.layer.weight))], "reaches its parameter 'layer.weight' past its attribute", SentinelFailedError),
    Refusal("object over the module in a function", lambda: [nn.Linear(6, 8), KeepsItsOwn(over_an_object)], "reaches its parameter 'layer.weight' past its attribute", SentinelFailedError),
    Refusal("frozen in the forward", gives(thaw), "changed whether its parameter 'layer.weight' requires a gradient", SentinelFailedError),
    Refusal("parameters exchanged in the forward", gives(exchange), "put its parameter 'layer.bias' in the place of 'layer.weight'", SentinelFailedError),
    Refusal("parameter made in the forward", gives(late_weight), "its forward has made 'scale'", SentinelFailedError),
    Refusal("statistics made in the forward", gives(late_statistics), "its forward has made 'norm.running_mean', 'norm.running_var'", SentinelFailedError),
    Refusal("optimizer with memory of its own", first(linear), "gave its parameters other memory", optimizer=flat),
    Refusal("no module", lambda: [torch.tanh], "a gate holds an nn.Module, got builtin_function_or_method"),
    Refusal("shared between gates", two_gates_share, "'0.weight' of gate 1 is also '0.weight' of gate 0", SharedParameterError),
    Refusal("optimizer that needs a closure", first(linear), "LBFGS, whose step needs a closure", optimizer=torch.optim.LBFGS),
    Refusal("optimizer that does not fit", first(linear), "Muon only supports 2D parameters", optimizer=torch.optim.Muon),
    Refusal("optimizer of other parameters", first(linear), "that is not the gate's", ForeignParameterError, optimizer=one_of(lambda: linear().parameters())),
    Refusal("no optimizer made", first(linear), "gave a NoneType; it must return a torch.optim.Optimizer", optimizer=lambda params: None),
    Refusal("optimizer for dense gradients alone", first(lambda: nn.Embedding(7, 8, sparse=True)), "Adam does not support sparse gradients", GateFailedError, words(), torch.optim.Adam),
    Refusal("optimizer for sparse gradients alone", between(), "gate/1 failed .* SparseAdam does not support dense gradients", GateFailedError, FEATURES, lambda params: torch.optim.SparseAdam(list(params))),
    Refusal("optimizer of another device", between(), "gate/1 failed .*capturable=True, params and state_steps must be on supported devices", GateFailedError, FEATURES, lambda params: torch.optim.Adam(params, capturable=True)),
    Refusal("optimizer that keeps data", first(linear), "keeps the memory of its parameters", optimizer=KeepsData),
    Refusal("optimizer that keeps data from its first step on", between(), "keeps the memory of its parameters", GateFailedError, optimizer=KeepsDataLater),
    Refusal("text out", gives(lambda self, x: (self.layer(x), "text")), CANNOT_TRAVEL + "holds tensors alone; got str inside it", SentinelFailedError),
    Refusal("object out", gives(lambda self, x: self), CANNOT_TRAVEL + "is a tensor, .*; got Does", SentinelFailedError),
    Refusal("nothing out", gives(lambda self, x: None), CANNOT_TRAVEL + "is a tensor, .*; got NoneType", SentinelFailedError),
    Refusal("output that is not finite", gives(lambda self, x: self.layer(x) / 0), "its output is not finite, though its input is", SentinelFailedError),
    Refusal("several arguments", lambda: [nn.Bilinear(6, 6, 2)], "its module cannot work on float32 .*missing 1 required positional argument", SentinelFailedError),
    Refusal("an error of its own", gives(lambda self, x: self.layer(x) @ x), "its module cannot work on float32 .*shapes cannot be multiplied", SentinelFailedError),
    Refusal("in-place on what the backward needs", gives(written_after_use), "modified by an inplace operation", GateFailedError),
]  # fmt: skip
"""Each ends with this error and sentence, before any weight is wrong."""

DOWNPOUR = [
    "dict changed in place", "namedtuple out", "integer counter and bool mask", "non-persistent buffer in place",
    "extra state", "BatchNorm", "frozen backbone in evaluation mode", "one module twice", "weight_norm",
    "bare parameters, one unused, one frozen, one None", "codebook in a buffer assigned", "checkpointed",
    "bfloat16", "complex", "GRU with dropout", "small GPT with a tied head", "mixture of experts",
]  # fmt: skip
"""Names in ``ROWS`` that one waiting replica of a Downpour trains as well."""

RAY = [
    "small GPT with a tied head",
    "namedtuple out",
    "integer counter and bool mask",
    "tied within a gate",
    "ResNet block",
]
"""Names in ``ROWS`` that are trained over the processes of a cluster as well; all but the first are slow."""
