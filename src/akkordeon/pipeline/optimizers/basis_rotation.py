"""AdamW for matrices in the basis in which their curvature is nearest to diagonal. Experimental."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from akkordeon.core.checks import is_number, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.optimizers.by_parameter import ByParameter
from akkordeon.pipeline.optimizers.composed import Composed
from akkordeon.pipeline.optimizers.muon import matrices_and_rest

__all__ = ["RotatedAdamW", "basis_rotation"]


def basis_rotation(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.01,
    every: int = 10,
) -> Optimizer:
    """Basis rotation (arXiv:2602.03515) for matrices, but for embeddings and heads, and AdamW for all else.

    A late gradient misleads Adam most where weights move together, as directions then oscillate that are no
    single weight's. In a basis of the gradients' own directions each number is one of them. Experimental: its
    authors have it for rows of many gates, and it costs a product or two of matrices in each update.

    Without delay it is not AdamW either, as its basis is another one whatever the delay.

    Args:
        named_parameters: pairs of name and parameter; a gate gives them to a function that asks so.
        lr: of both.
        betas: of both.
        weight_decay: of both.
        every: updates between two looks for the basis.
    """
    matrices, others = matrices_and_rest(named_parameters)
    return Composed(
        RotatedAdamW([{"params": matrices}], lr=lr, betas=betas, weight_decay=weight_decay, every=every),
        AdamW([{"params": others}], lr=lr, betas=betas, weight_decay=weight_decay),
    )


class RotatedAdamW(ByParameter):
    """AdamW for matrices in a basis of their gradients' directions, of both sides and second moments.

    For a matrix of shape (m, n), with U (m, m) and V (n, n) orthogonal, in update t, from 1::

        L ← β2·L + (1 − β2)·G Gᵀ,   R ← β2·R + (1 − β2)·Gᵀ G,   M ← β1·M + (1 − β1)·G
        with every k-th update, the first of them too: U, V ← about the eigenvectors of L and R
        S ← β2·S + (1 − β2)·(Uᵀ G V)²
        W ← (1 − ηλ)·W − η·√(1 − β2^t)/(1 − β1^t) · U [Uᵀ M V / (√S + ε)] Vᵀ

    Eigenvectors are computed the first time; afterwards they are put in the order of their eigenvalues, S
    with them, and follow by one step of power iteration, made orthogonal by QR.

    It keeps 2·m·n + 2·(m² + n²) numbers for each matrix.

    Args:
        params: matrices.
        lr: η.
        betas: β1 and β2.
        eps: ε.
        weight_decay: λ.
        every: k.

    Raises:
        RecipeError: a number out of range, or a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        every: int = 10,
    ) -> None:
        numbers = (lr, *betas, eps, weight_decay)
        if not (all(map(is_number, numbers)) and min(numbers) >= 0 and max(betas) < 1):
            raise RecipeError(
                "basis rotation has lr, eps, weight_decay ≥ 0 and betas of at least 0 and below 1; got "
                f"lr={lr}, betas={betas}, eps={eps}, weight_decay={weight_decay}"
            )
        require_whole("the updates between two looks for a basis", every)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "every": every}
        super().__init__(params, defaults)
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if shapes:
            raise RecipeError(f"a basis is rotated for matrices alone, got a parameter of shape {shapes[0]}")

    def _apply(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        state = self.state[parameter]
        if not state:
            state.update(updates=0, momentum=torch.zeros_like(g), squares=torch.zeros_like(g))
            state.update(left=g.new_zeros(2 * g.shape[:1]), right=g.new_zeros(2 * g.shape[1:]))
        first, second = group["betas"]
        state["left"].lerp_(g @ g.T, 1 - second)
        state["right"].lerp_(g.T @ g, 1 - second)
        state["momentum"].lerp_(g, 1 - first)
        if state["updates"] % group["every"] == 0:
            _turn(state)
        state["updates"] += 1
        u, v = state["u"], state["v"]
        state["squares"].lerp_((u.T @ g @ v).square_(), 1 - second)
        step = (u.T @ state["momentum"] @ v).div_(state["squares"].sqrt().add_(group["eps"]))
        size = group["lr"] * (1 - second ** state["updates"]) ** 0.5 / (1 - first ** state["updates"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_((u @ step @ v.T).to(parameter.dtype), alpha=-size)


def _turn(state: dict[str, Any]) -> None:
    """Have both bases follow the gradients' directions, and the squares follow the bases."""
    for side, basis, dim in (("left", "u", 0), ("right", "v", 1)):
        moments = state[side]
        if basis not in state:
            state[basis] = torch.linalg.eigh(moments).eigenvectors.flip(1).contiguous()
            continue
        power = moments @ state[basis]
        order = (state[basis] * power).sum(0).argsort(descending=True, stable=True)
        state["squares"] = state["squares"].index_select(dim, order)
        state[basis] = torch.linalg.qr(power.index_select(1, order)).Q
