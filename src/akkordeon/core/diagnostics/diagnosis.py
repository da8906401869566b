"""What a gate has measured of its stale gradients, and of what it keeps for them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Diagnosis"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a gate with ``diagnose_every`` has measured since it was made.

    The fresh gradient of a batch is the one at the weights that its update starts from. The gate computes it
    alone: from the input and the gradient of the output that it got. So what other gates and the loss would
    have given for weights of now is not in it, and that of one linear layer never differs.

    Attributes:
        every: one batch in so many is measured.
        batches: measured so far.
        cosine_mean: of the angle between the stale and the fresh gradient, both of all weights of the gate
            together; None where none was measured, as where every gradient was 0.
        cosine_min: the smallest.
        correction_mean: norm of what the staleness rule added to a gradient, over that of the gradient; None
            where none was measured, as where no rule was asked.
        correction_max: the largest.
        copies: versions of its weights in memory, each once: that of now, those of batches in flight and of
            cuts.
        copies_max: at most when one was measured.
        bytes: of all those copies together.
        bytes_max: at most when one was measured.
        failed: batches that could not be measured.
        why: the last of those, in words.
    """

    every: int
    batches: int
    cosine_mean: float | None
    cosine_min: float | None
    correction_mean: float | None
    correction_max: float | None
    copies: int
    copies_max: int
    bytes: int
    bytes_max: int
    failed: int = 0
    why: str | None = None
