"""How gradients become an update: the staleness rule, clipping, the optimizer, all or nothing."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import LearnerState
from akkordeon.pipeline.learning.average import Average
from akkordeon.pipeline.learning.optimizer import (
    OptimizerFactory,
    bare_step,
    built,
    is_hooked,
    keeps_to_rows,
    refuse_kept_memory,
    with_lr_times,
)
from akkordeon.pipeline.learning.optimizer_state import copied_plain, load_optimizer, state_of_optimizer
from akkordeon.pipeline.learning.schedule import load_scheduler, moving
from akkordeon.pipeline.optimizers.composed import all_within, kind_of
from akkordeon.pipeline.optimizers.ordered_momentum import ordered_within
from akkordeon.pipeline.staleness.rule import Rule
from akkordeon.pipeline.weights import Snapshot, Weights

__all__ = ["Updater", "clipped", "norm_of", "scaled_down"]

AVERAGE = "average"
"""Where the state has the averaged weights; gates that keep none have none."""

FROZEN = "frozen"
"""Where the state says that the weights stay as they are for now; others have no such entry."""

BOOST = "boost"
"""Where the state says that it learns faster for a while; others have no such entry."""

LR_FACTOR = "lr factor"
"""Where the state says how large a step the rule has gradients gathered for; others have no such entry."""

OLDEST = "staleness"
"""Where the state says how late the oldest gathered gradient is, for an optimizer that asks for it."""

UPDATES_WITHOUT_SCORE = 1000
"""After so many it is said that a scheduler waits for a score."""

UPDATES_WITHOUT_GRADIENT = 100
"""After so many it is said which parameters never had a gradient."""


class Updater:
    """Updates weights.

    Args:
        weights: what is updated.
        optimizer: the factory; None leaves the weights as they are.
        rule: what to do with stale gradients.
        clip_norm: largest norm of the gradient; None for any.
        label: whose weights these are, for errors.
        ema: have the weights averaged, with this decay.
        by_samples: the scheduler counts samples, and not updates.

    Attributes:
        rule: what to do with stale gradients.
        rule_state: what the rule keeps of the weights; see :meth:`Rule.initial`.
        frozen: whether the weights stay as they are for now.
        boost: what learning rates are multiplied by for now, and for how many updates more.
        skip_if: of the next update, on a device: 1.0 where it is not to be made, as the host need not know.

    Raises:
        ForeignParameterError: the optimizer holds parameters that are not these.
        RecipeError: the factory gives something else than an optimizer.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: OptimizerFactory | None,
        rule: Rule,
        clip_norm: float | None,
        label: str,
        ema: float | None = None,
        by_samples: bool = False,
    ) -> None:
        self._recipe: dict[str, Any] = {"optimizer": optimizer, "rule": rule, "clip_norm": clip_norm}
        self._recipe |= {"ema": ema, "by_samples": by_samples}
        self.frozen = False
        self.boost: tuple[float, int] | None = None
        self.skip_if: Tensor | None = None
        self._weights = weights
        self.rule = rule
        self._clip_norm = clip_norm
        self._optimizer: Optimizer | None = None
        self._scheduler: LRScheduler | None = None
        if optimizer is not None and weights.masters:
            self._optimizer, self._scheduler = built(optimizer, weights, label)
            weights.average = None if ema is None else Average(ema, weights.now)
        self._bare_step = None if self._optimizer is None else bare_step(self._optimizer)
        plateau = isinstance(self._scheduler, ReduceLROnPlateau)
        self._wanted_score = _WantedScore(label) if plateau else None
        self._counts_samples = by_samples
        self._move_schedule = moving(self._scheduler, by_samples, label)
        self.rule_state = rule.initial(weights.masters)
        self._lr_factor: float | None = None  # of the next update, once it has a gradient
        self._ordered = [] if self._optimizer is None else ordered_within(self._optimizer)
        self._oldest = 0  # gradient of the next update
        self._label = label
        self._updates = 0
        self._without_gradient = set(weights.trainable)

    def like(self, **others: Any) -> Updater:
        """Another of these weights, as new, made with the same arguments but for others.

        Raises:
            RecipeError, ForeignParameterError: as when one is made.
        """
        return Updater(self._weights, label=self._label, **{**self._recipe, **others})

    @property
    def learns(self) -> bool:
        """Whether there is an optimizer, something for it, and nothing is frozen."""
        return self._optimizer is not None and not self.frozen

    @property
    def spares_gradients(self) -> bool:
        """Whether the optimizer is known not to write to the gradients it is given.

        Those of torch on a CPU do not, unless they are told to work on all tensors at once (foreach). Their
        hooks may.
        """
        optimizer = self._optimizer
        return optimizer is None or (
            all(_is_known(each) and not is_hooked(each) for each in all_within(optimizer))
            and not any(group.get("foreach") for group in optimizer.param_groups)
            and all(master.device.type == "cpu" for master in self._weights.masters)
        )

    @property
    def can_skip(self) -> bool:
        """Whether a device can leave an update out by itself: nothing but the optimizer takes part in it."""
        optimizer = self._optimizer
        if optimizer is None or self.frozen:
            return True
        return (
            not self._without_gradient  # the first of a parameter, left out, would leave what is in memory
            and getattr(optimizer, "_step_supports_amp_scaling", False)
            and not is_hooked(optimizer)
            and not self.rule.uses_old_weights  # else gradients may run over in it
            and not self.rule.tensors_of(self.rule_state)
            and self._weights.average is None
        )

    def update(self, gradients: list[Tensor | None], then: Snapshot, staleness: int) -> bool:
        """Make the next version of the weights; if the optimizer raises, the last one stays.

        Args:
            gradients: one for each parameter, in memory of their own; None where there is none.
            then: the weights the gradients were computed at.
            staleness: τ, the number of updates since then.

        Returns:
            Whether there is one; False where it would not have been finite, and the last one stays.
        """
        if self._optimizer is None or self.frozen:
            return True
        return self.apply(self.corrected(gradients, then, staleness))

    def corrected(
        self, gradients: list[Tensor | None], then: Snapshot, staleness: int
    ) -> list[Tensor | None]:
        """What the staleness rule makes of gradients, and of the next step; see :meth:`update`."""
        factor, known = self.rule.lr_factor(staleness, self._updates), self._lr_factor
        self._lr_factor = factor if known is None else min(factor, known)
        self._oldest = max(self._oldest, staleness)
        return self.rule.correct(gradients, self._weights.now, then, staleness, self.rule_state)

    def apply(self, gradients: list[Tensor | None], samples: int = 0) -> bool:
        """Make the next version with gradients as they are, but for clipping; see :meth:`update`.

        Args:
            gradients: as :meth:`update` takes them.
            samples: that they are of, for a schedule by samples.
        """
        lr_factor = 1.0 if self._lr_factor is None else self._lr_factor
        self._lr_factor = None
        skip_if, self.skip_if = self.skip_if, None
        oldest, self._oldest = self._oldest, 0
        if self._optimizer is None or self.frozen:
            return True
        weights = self._weights
        if self._clip_norm is not None:
            gradients = clipped(gradients, self._clip_norm)
        weights.prepare_update(gradients, by_rows=keeps_to_rows(self._optimizer))
        for each in self._ordered:
            each.staleness = oldest
        try:
            for master, gradient in zip(weights.masters, gradients, strict=True):
                master.grad = gradient
            if skip_if is not None:
                vars(self._optimizer).update(found_inf=skip_if, grad_scale=None)
            if self.boost is None and lr_factor == 1.0:
                self._step()
            else:
                self._scaled_step(lr_factor)
            if not self._updates:
                refuse_kept_memory(self._optimizer, weights, self._label)
            if skip_if is None and not weights.are_finite():
                return self._undo()
            if self._move_schedule is not None:
                self._move_schedule(samples)
        except BaseException:
            weights.roll_back()
            raise
        finally:
            for master in weights.masters:
                master.grad = None
            if skip_if is not None:
                del self._optimizer.found_inf, self._optimizer.grad_scale  # type: ignore[attr-defined]
        weights.publish()
        self._updates += 1
        if self._without_gradient:
            self._warn_without_gradient(gradients)
        if self._wanted_score is not None:
            self._wanted_score.updated()
        return True

    def _step(self) -> None:
        """Have the optimizer work, bare unless there is something around its step: that may come late."""
        optimizer = self._optimizer
        assert optimizer is not None, "nothing else is updated"
        if self._bare_step is None or "step" in vars(optimizer) or is_hooked(optimizer):
            optimizer.step()
        else:
            self._bare_step()

    def _scaled_step(self, lr_factor: float) -> None:
        """A step of another size than the optimizer's own, for once or for a while."""
        assert self._optimizer is not None, "nothing else is updated"
        factor, updates = self.boost or (1.0, 0)
        with with_lr_times(self._optimizer, factor * lr_factor):
            self._step()
        if self.boost is not None:
            self.boost = (factor, updates - 1) if updates > 1 else None

    def _warn_without_gradient(self, gradients: list[Tensor | None]) -> None:
        """Warn once of parameters that no loss has depended on so far."""
        waiting = self._without_gradient
        waiting.difference_update([i for i in waiting if gradients[i] is not None])
        if waiting and self._updates == UPDATES_WITHOUT_GRADIENT:
            names = ", ".join(repr(self._weights.names[i]) for i in sorted(waiting))
            logging.getLogger(__name__).warning(
                "%s has made %d updates, and its %s never had a gradient: no loss has depended on it",
                self._label,
                self._updates,
                names,
            )

    def _undo(self) -> bool:
        if not self._weights.keep:
            raise ArithmeticError(
                "its update made weights that are not finite, and a rule that keeps no weights has none to "
                "go back to; a smaller learning rate may help"
            )
        self._weights.roll_back()
        return False

    # ── kept and put back ────────────────────────────────────────────────────────────────────────────

    def state(self) -> LearnerState:
        """What it learns with, in memory of its own.

        Raises:
            RecipeError: the optimizer or the scheduler keeps what is no plain data.
        """
        optimizer, scheduler, average = self._optimizer, self._scheduler, self._weights.average
        return {
            "optimizer": None
            if optimizer is None
            else state_of_optimizer(optimizer, self._names_by_group(optimizer), self._label),
            "scheduler": None
            if scheduler is None
            else copied_plain(scheduler.state_dict(), f"the scheduler of {self._label}"),
            "rule": {name: tensor.clone() for name, tensor in self._rule_tensors().items()},
            "updates": self._updates,
            "kinds": self._kinds(),
            **({} if average is None else {AVERAGE: average.state(self._weights.names)}),
            **({FROZEN: True} if self.frozen else {}),
            **({} if self.boost is None else {BOOST: [*self.boost]}),
            **({} if self._lr_factor in (None, 1.0) else {LR_FACTOR: self._lr_factor}),
            **({OLDEST: self._oldest} if self._ordered and self._oldest else {}),
        }

    def load(self, state: LearnerState) -> None:
        """Go on from such a state.

        Raises:
            RecipeError: it is of another optimizer, scheduler or rule.
        """
        optimizer, scheduler = self._optimizer, self._scheduler
        own = self._rule_tensors()
        kept = {**state["kinds"], "tensors of the staleness rule": sorted(state["rule"])}
        here = {**self._kinds(), "tensors of the staleness rule": sorted(own)}
        for what, mine in here.items():
            if kept.get(what) != mine:
                raise RecipeError(
                    f"{self._label} learned with the {what} {kept.get(what)}, and its recipe has {mine}; "
                    "resume with the recipe that was kept, or begin anew with the weights alone"
                )
        if optimizer is not None:
            load_optimizer(optimizer, state["optimizer"], self._names_by_group(optimizer), self._label)
        if scheduler is not None:
            load_scheduler(scheduler, state["scheduler"], self._label)
        for name, tensor in own.items():
            tensor.copy_(state["rule"][name])
        self._updates = state["updates"]
        self.frozen = state.get(FROZEN, False)
        self.boost = (*state[BOOST],) if state.get(BOOST) else None
        self._lr_factor = state.get(LR_FACTOR)
        self._oldest = state.get(OLDEST, 0)
        if self._weights.average is not None and state.get(AVERAGE):
            self._weights.average.load(state[AVERAGE], self._weights.names)

    def _kinds(self) -> dict[str, str | None]:
        """The classes of what it learns with."""
        optimizer, scheduler = self._optimizer, self._scheduler
        by = " by samples" if self._counts_samples else ""
        return {
            "optimizer": None if optimizer is None else kind_of(optimizer),
            "scheduler": None if scheduler is None else type(scheduler).__name__ + by,
            "staleness rule": type(self.rule).__name__,
        }

    def _rule_tensors(self) -> dict[str, Tensor]:
        """What the staleness rule keeps of each weight, by its name."""
        tensors = self.rule.tensors_of(self.rule_state)
        return dict(zip(self._weights.names, tensors, strict=True)) if tensors else {}

    def _names_by_group(self, optimizer: Optimizer) -> list[str]:
        named = {id(m): name for m, name in zip(self._weights.masters, self._weights.names, strict=True)}
        return [named[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def scored(self, value: float) -> None:
        """Take the score of a validation round, for a scheduler that wants one (``ReduceLROnPlateau``)."""
        if self._wanted_score is not None:
            self._wanted_score.came()
            self._scheduler.step(value)  # type: ignore[union-attr, arg-type]  # a ReduceLROnPlateau's metric


def _is_known(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith(("torch.optim", "akkordeon"))


class _WantedScore:
    """Warns once where a scheduler waits for a score that nobody sends."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._updates_left: float = UPDATES_WITHOUT_SCORE

    def came(self) -> None:
        self._updates_left = math.inf

    def updated(self) -> None:
        self._updates_left -= 1
        if self._updates_left == 0:
            logging.getLogger(__name__).warning(
                "the scheduler of %s wants a score, and after %d updates none has come: give a validator "
                "schedule_by='loss', or the name of one of its scores",
                self._label,
                UPDATES_WITHOUT_SCORE,
            )


def clipped(gradients: list[Tensor | None], max_norm: float) -> list[Tensor | None]:
    """The gradients scaled down so that their common norm is at most ``max_norm``; out of place."""
    return scaled_down(gradients, max_norm, norm_of(gradients))


def norm_of(gradients: list[Tensor | None]) -> Tensor:
    """The common norm of gradients.

    Raises:
        RecipeError: one of them is sparse.
    """
    there = [gradient for gradient in gradients if gradient is not None]
    if any(gradient.is_sparse for gradient in there):
        raise RecipeError("clipping a norm needs dense gradients; make the embedding sparse=False")
    return nn.utils.get_total_norm(there)


def scaled_down(gradients: list[Tensor | None], max_norm: float, norm: Tensor) -> list[Tensor | None]:
    """The gradients as they would be clipped if this were their norm; out of place."""
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients]
