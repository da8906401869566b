"""A comparison of methods at delays: every learning rate on the tuning seeds, then the best on the others.

Each arm that was run is a line of a file, so that a study goes on where it was broken off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.experiments.laboratory.arm import Arm, Method, Outcome, run_arm
from akkordeon.experiments.laboratory.delays import Kind
from akkordeon.experiments.laboratory.on_engine import EngineName
from akkordeon.experiments.tasks.task import Task

__all__ = ["Compared", "Design", "Study"]

TUNING_SEED = 1000
"""Seeds from here on are for choosing learning rates, and are not reported."""


@dataclass(frozen=True)
class Design:
    """What is compared.

    Attributes:
        task: its name.
        methods: as :meth:`Method.named <akkordeon.experiments.laboratory.arm.Method.named>` takes them.
        delays: at the head of the row, in updates.
        lrs: learning rates, the same for each method and delay.
        kind: of delays.
        steps: batches of a run.
        seeds: runs of each method and delay that are reported.
        tuning_seeds: runs of each learning rate before that.
        batch_size: the task's own if not given.
        warm_up: batches over which delays grow.
        engine: that runs have, with ``delay`` + 1 batches in flight; None emulates exact delays.
        diagnose_every: batches of which one is measured; see :class:`akkordeon.Gate`.
        decay: the learning rate falls along a cosine, to nothing at the last step.

    Raises:
        RecipeError: there is no such method, or a kind of delays for an engine.
    """

    task: str
    methods: tuple[str, ...]
    delays: tuple[int, ...]
    lrs: tuple[float, ...]
    kind: Kind
    steps: int
    seeds: int
    tuning_seeds: int = 1
    batch_size: int | None = None
    warm_up: int = 0
    engine: EngineName | None = None
    diagnose_every: int | None = None
    decay: bool = False

    def __post_init__(self) -> None:
        """Refuse now what would be refused after all that comes before it was run."""
        for method in self.methods:
            Method.named(method)
        if self.engine is not None and self.kind != "fixed":
            raise RecipeError(
                f"delays of the kind {self.kind!r} are emulated; on the engine {self.engine!r} they are what "
                "they come to: leave out one of the two"
            )


@dataclass(frozen=True)
class Compared:
    """What a method came to at a delay.

    Attributes:
        method: its name.
        delay: in updates.
        lr: the best on the tuning seeds.
        at_edge: that is the smallest or the largest of the grid, beyond which better ones may be.
        outcomes: one for each seed.
    """

    method: str
    delay: int
    lr: float
    at_edge: bool
    outcomes: tuple[Outcome, ...]

    def of(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a figure over the seeds; infinite where one diverged."""
        found = [getattr(outcome, name) for outcome in self.outcomes]
        if not all(map(math.isfinite, found)):
            return math.inf, math.inf
        return mean(found), stdev(found) if len(found) > 1 else 0.0


class Study:
    """Runs a comparison, arm by arm.

    Args:
        make_task: makes the task, with the first weights of a seed.
        design: what is compared.
        file: of the arms that were run, as JSON lines.
        tell: hears of each arm that was run.

    Raises:
        DataError: the file is there and is none of these.
    """

    def __init__(
        self,
        make_task: Callable[[int], Task],
        design: Design,
        file: Path,
        tell: Callable[[Arm, Outcome], None] = lambda arm, outcome: None,
    ) -> None:
        self._make_task = make_task
        self._design = design
        self._file = file
        self._tell = tell
        self._done = dict(_read(file)) if file.exists() else {}

    def cells(self) -> Iterator[Compared]:
        """Each method at each delay, one after the other."""
        design = self._design
        for method in design.methods:
            for delay in design.delays:
                lr = self._best(method, delay)
                outcomes = tuple(self._outcome(method, delay, lr, seed) for seed in range(design.seeds))
                at_edge = len(design.lrs) > 1 and lr in (min(design.lrs), max(design.lrs))
                yield Compared(method, delay, lr, at_edge, outcomes)

    def _best(self, method: str, delay: int) -> float:
        """The learning rate with the lowest loss on the tuning seeds; the smallest where all diverge."""
        rates = sorted(self._design.lrs)
        if len(rates) == 1:
            return rates[0]
        seeds = range(TUNING_SEED, TUNING_SEED + self._design.tuning_seeds)
        losses = [mean(self._outcome(method, delay, lr, seed).loss for seed in seeds) for lr in rates]
        return rates[losses.index(min(losses))]

    def _outcome(self, method: str, delay: int, lr: float, seed: int) -> Outcome:
        design = self._design
        warm_up = design.warm_up
        if not delay:  # all rules are their optimizer then, to the bit: one run is enough for them
            method, warm_up = Method.named(method).undelayed, 0
        arm = Arm(
            task=design.task,
            method=method,
            kind=design.kind,
            delay=delay,
            lr=lr,
            seed=seed,
            steps=design.steps,
            batch_size=design.batch_size,
            warm_up=warm_up,
            engine=design.engine,
            diagnose_every=design.diagnose_every,
            decay=design.decay,
        )
        if arm not in self._done:
            outcome = run_arm(self._make_task(seed), arm)
            with self._file.open("a") as file:
                file.write(json.dumps({"arm": asdict(arm), "outcome": _plain(outcome)}) + "\n")
            self._done[arm] = outcome
            self._tell(arm, outcome)
        return self._done[arm]


def _plain(outcome: Outcome) -> dict[str, Any]:
    """As plain data; JSON has no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(outcome).items()
    }


def _read(file: Path) -> Iterator[tuple[Arm, Outcome]]:
    """The arms of a file; of a line that breaks off at its end nothing is known."""
    lines = file.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        file.write_text("".join(lines[:-1]))
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            outcome = found["outcome"]
            for name in ("loss", "validation"):
                outcome[name] = math.inf if outcome[name] is None else outcome[name]
            yield Arm(**found["arm"]), Outcome(**outcome)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"line {number} of {file} is no arm of a comparison; give another folder"
            ) from error
