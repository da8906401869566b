"""A character GPT of eight blocks, cut into a row of gates; the table of its embedding is also its head.

    python examples/char_gpt.py                              # on the manual that comes with Python
    python examples/char_gpt.py --data-dir DIR --steps 2000  # on DIR/input.txt, as of tiny Shakespeare

Letters: B samples in a batch, T characters in a row, V different characters, W the width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

import akkordeon as ak

BLOCKS, WIDTH, HEADS, LENGTH, BATCH_SIZE = 8, 64, 4, 64, 16


class Block(nn.Module):
    """Attention to what came before, then a network for each character, both added to what goes through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) to (B, T, W)."""
        heads = self.attention(self.before_attention(x)).unflatten(2, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    """Says with logits which character comes next."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, text: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        x = self.embedding(text) + self.position[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def adamw(params: Iterable[Tensor], steps: int) -> tuple[torch.optim.Optimizer, object]:
    """AdamW without decay of norms and biases; its rate rises for a tenth of the steps, then falls."""
    weights = list(params)
    matrices, others = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    return optimizer, OneCycleLR(optimizer, 3e-3, steps + 1, pct_start=0.1, cycle_momentum=False)


def loss(logits: Tensor, following: Tensor) -> Tensor:
    """How surprising the following characters are, in nats a character."""
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


def random_rows(text: Tensor, batches: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows from anywhere in a text, and of what follows each of their characters."""
    rows, generator = text.unfold(0, LENGTH + 1, 1), torch.Generator().manual_seed(seed)
    for _ in range(batches):
        some = rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)]
        yield some[:, :-1], some[:, 1:]


@torch.no_grad()
def written_by(model: GPT, length: int) -> list[int]:
    """Characters that a model writes, one after the other."""
    text = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(length):
        chances = model(text[:, -LENGTH:])[0, -1].softmax(0)
        text = torch.cat([text, torch.multinomial(chances, 1)[None]], dim=1)
    return text[0].tolist()


def main(data_dir: Path | None = None, steps: int = 200, gates: int = 4, in_flight: int = 1) -> None:
    """Train a character GPT on DATA_DIR/input.txt, or on the manual of Python, and have it write."""
    written = "\n".join(topics.values()) if data_dir is None else (data_dir / "input.txt").read_text("utf-8")
    characters = sorted(set(written))
    text = torch.tensor([characters.index(character) for character in written])
    train, held_out = text.tensor_split([len(text) * 9 // 10])
    torch.manual_seed(0)
    model, (example, _) = GPT(len(characters), WIDTH), next(random_rows(train, 1, seed=0))
    row = ak.Network.from_module(model, gates, partial(adamw, steps=steps), example=example, tie=True)
    batches, validation = random_rows(train, steps, seed=1), list(random_rows(held_out, 20, seed=2))
    with ak.run(row, progress=True) as session:
        session.attach(ak.Sentinel.train(batches, loss, in_flight=in_flight))
        session.attach(ak.Sentinel.validate(validation, loss, every_updates=max(1, steps // 5)))
        session.wait()
        trained = session.module().eval()
    print("".join(characters[number] for number in written_by(trained, 300)))


if __name__ == "__main__":
    typer.run(main)
