"""GPT-2 and BERT of Hugging Face's transformers, made small by their configurations, in rows of gates.

    pip install transformers                          # Akkordeon itself does without
    python examples/hugging_face.py                   # GPT-2 goes on counting, by 1, 2 or 3
    python examples/hugging_face.py --model bert      # BERT says in which rows a 1 occurs

The models are those of the library, cut before some of their layers; nothing is downloaded.
Letters: B samples in a batch, T numbers in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import akkordeon as ak

try:
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
except ImportError:
    raise SystemExit("this example needs Hugging Face's transformers: pip install transformers") from None

NUMBERS, WIDTH, LAYERS, HEADS, LENGTH, BATCH_SIZE = 32, 64, 4, 4, 16, 32

adamw = partial(torch.optim.AdamW, lr=2e-3, fused=True)

Batches = Iterator[tuple[dict[str, Tensor], Tensor]]


def gpt2() -> nn.Module:
    """The head's weights are those of the embedding; without a cache, which no gate could send on."""
    sizes = {
        "vocab_size": NUMBERS,
        "n_positions": LENGTH,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
    }
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drops, use_cache=False, bos_token_id=0, eos_token_id=0))


def counting(batches: int, seed: int) -> Batches:
    """Rows that count by 1, 2 or 3, modulo 32, and the number after each number of them: both (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        start = torch.randint(NUMBERS, (BATCH_SIZE, 1), generator=generator)
        step = torch.randint(1, 4, (BATCH_SIZE, 1), generator=generator)
        rows = (start + step * torch.arange(LENGTH + 1)) % NUMBERS
        yield {"input_ids": rows[:, :-1]}, rows[:, 1:]


def bert() -> nn.Module:
    """With two classes."""
    sizes = {"vocab_size": NUMBERS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_labels": 2}
    depth = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": LENGTH}
    drops = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**sizes, **depth, **drops))


def with_or_without_one(batches: int, seed: int) -> Batches:
    """Rows (B, T) of different lengths, and (B,) whether a 1 occurs in each, which is so in half of them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        rows = torch.randint(2, NUMBERS, (BATCH_SIZE, LENGTH), generator=generator)
        length = torch.randint(2, LENGTH + 1, (BATCH_SIZE, 1), generator=generator)
        mask = (torch.arange(LENGTH) < length).long()
        has_one = torch.randint(2, (BATCH_SIZE, 1), generator=generator)
        rows[(torch.arange(LENGTH) == length // 2) & has_one.bool()] = 1
        yield {"input_ids": rows * mask, "attention_mask": mask}, has_one.flatten()


def loss(outputs: Any, y: Tensor) -> Tensor:
    """Of what a model of transformers gives, an object with ``logits``."""
    return cross_entropy(outputs.logits.flatten(0, -2), y.flatten())


def accuracy(outputs: Any, y: Tensor) -> Tensor:
    """The share of logits whose largest is the right one."""
    return (outputs.logits.argmax(-1) == y).float().mean()


def cuts(layers: str, gates: int) -> list[str]:
    """The names of the layers that gates begin with, all but the first."""
    return [f"{layers}.{gate * LAYERS // gates}" for gate in range(1, gates)]


MODELS = {
    "gpt2": (gpt2, counting, "transformer.h"),
    "bert": (bert, with_or_without_one, "bert.encoder.layer"),
}


def main(
    model: Literal["gpt2", "bert"] = "gpt2", steps: int = 200, gates: int = 3, in_flight: int = 1
) -> None:
    """Train a model of transformers."""
    make, batches, layers = MODELS[model]
    (example, _), *validation = batches(11, seed=0)
    torch.manual_seed(0)
    row = ak.Network.from_module(
        make(), optimizer=adamw, example=example, cut_before=cuts(layers, gates), tie=True
    )
    with ak.run(row, progress=True) as session:
        session.attach(ak.Sentinel.train(batches(steps, seed=1), loss, in_flight=in_flight))
        scores = {"accuracy": accuracy}
        session.attach(ak.Sentinel.validate(validation, loss, scores=scores, every_updates=steps // 3 + 1))
        session.wait()
    print(f"trained a {type(session.module()).__name__}")


if __name__ == "__main__":
    typer.run(main)
