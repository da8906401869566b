"""Muon for the matrices of a model, AdamW for the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from akkordeon.pipeline.optimizers.composed import Composed

__all__ = ["matrices_and_rest", "muon"]

TABLES = {"emb", "embs", "embed", "embeds", "embedder", "embedding", "embeddings", "wte", "wpe"}
TABLES |= {"unembed", "unembedding", "head", "heads", "lmhead"}
"""Words in names of matrices whose rows are looked up, or are scores; they are AdamW's, as is usual."""

BETWEEN_WORDS = re.compile(r"(?<!multi)(?:[\W\d_]+|(?<=[a-z])(?=[A-Z]))")
"""As in ``layers.0.lm_head`` or ``lmHead``; attention with ``multi_head`` is no head."""


def muon(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Optimizer:
    """Muon (Jordan et al. 2024) for matrices, but for embeddings and heads, and AdamW for all else.

    Muon's step is the momentum, orthogonalised by Newton-Schulz and of the length that AdamW's mostly has
    (``adjust_lr_fn="match_rms_adamw"``, Liu et al. 2025, arXiv:2502.16982), so both have one learning rate.
    Of all optimizers it loses least by gradients that are a few updates old (arXiv:2606.30634). There are
    always both, so that the layers of a checkpoint can go on in other gates.

    Args:
        named_parameters: pairs of name and parameter; a gate gives them to a function that asks so.
        lr: of both.
        momentum: of Muon.
        weight_decay: of both.
        betas: of AdamW.
    """
    matrices, others = matrices_and_rest(named_parameters)
    muons = partial(Muon, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return Composed(
        muons([{"params": matrices}], lr=lr, weight_decay=weight_decay),
        AdamW([{"params": others}], lr=lr, betas=betas, weight_decay=weight_decay),
    )


def matrices_and_rest(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices that are neither tables nor heads, by the words of their names, and all else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        is_matrix = parameter.ndim == 2 and TABLES.isdisjoint(_words(name))
        (matrices if is_matrix else others).append(parameter)
    return matrices, others


def _words(name: str) -> list[str]:
    """The words in the name of a parameter."""
    return [word.lower() for word in BETWEEN_WORDS.split(name)]
