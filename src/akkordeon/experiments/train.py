"""The main job: a task trained as its settings say, followed to its end, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from akkordeon.core.errors import ActorFailedError, AkkordeonError
from akkordeon.core.reports import RoundDone
from akkordeon.engines.threads import Threads
from akkordeon.experiments.build import build_recipe, build_sentinels
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.journal import Journal
from akkordeon.experiments.run import run
from akkordeon.experiments.run_folder import RunFolder
from akkordeon.experiments.weight_saver import WeightSaver
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.session.session import Session
from akkordeon.watch.follower import Follower
from akkordeon.watch.signals import SignalCounter
from akkordeon.watch.summary import summary
from akkordeon.watch.training_check import TrainingCheck
from akkordeon.watch.view import FailSafeView, View

__all__ = ["TrainOutcome", "train_task"]


@dataclass(frozen=True)
class TrainOutcome:
    """How it ended.

    Attributes:
        summary: what every sentinel and gate came to.
        best: the best round of validation, where the best was to be kept.
        signal: that ended it, if one did.
        complaints: what went wrong, in sentences.
        saved: whether all that was to be saved is.
    """

    summary: Mapping[str, Any]
    best: RoundDone | None
    signal: int | None
    complaints: Sequence[str]
    saved: bool


def train_task(
    config: TrainConfig,
    view: View,
    folder: Path | None = None,
    record: Path | None = None,
    warn: Callable[[str], None] = print,
) -> TrainOutcome:
    """Train a task and show how it goes; a signal stops it with what is reached.

    What is reached is kept as it comes. A view that fails, or a report that cannot be written, ends nothing.

    Args:
        config: what to do.
        view: shows it.
        folder: where weights, report and settings are saved; None saves nothing.
        record: a file to replay the run from.
        warn: takes what ``view`` can show no more.

    Raises:
        AkkordeonError: it could not begin.
    """
    task = config.load_task()
    if folder is not None:
        config = replace(config, keep_last=True)
    sentinels = build_sentinels(task, config)
    recipe, engine, check = build_recipe(task, config), Threads(config.workers), TrainingCheck()
    unsaved: list[str] = []
    with (
        SignalCounter() as signals,
        FailSafeView(view, "what shows the training", warn) as shown,
        ExitStack() as closing,
    ):
        files = None
        with run(recipe, engine, seed=config.seed, record=record, task=config.as_plain()) as session:
            if folder is not None:
                files = _RunFiles(folder, config, session, signals, shown.note)
                closing.callback(files.close)
            views = [shown, check, *(files.views if files else ())]
            seconds, complaints = _followed(session, sentinels, views, signals)
        told = summary(session, seconds)
        complaints += check.complaints(session)
        if session.record_failure is not None:
            complaints.append(session.record_failure)
        if files is not None:
            unsaved = files.finish(told)
    saved = files is not None and not unsaved
    return TrainOutcome(told, check.best, signals.first, complaints + unsaved, saved)


def _followed(
    session: Session,
    sentinels: Sequence[Training | Evaluation],
    views: Sequence[View],
    signals: SignalCounter,
) -> tuple[float, list[str]]:
    """Attach the sentinels and see them end: how long that took, and what failed."""
    follower = Follower(session, views)
    began_s = time.monotonic()
    session.attach_all(sentinels)
    try:
        follower.until_end(signals)
    except ActorFailedError as failed:
        return time.monotonic() - began_s, [str(failed)]
    return time.monotonic() - began_s, []


class _RunFiles:
    """What a run leaves in its folder: weights as they come, and its report."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        session: Session,
        signals: SignalCounter,
        warn: Callable[[str], None],
    ) -> None:
        description = {"akkordeon": version("akkordeon"), **config.as_plain()}
        self._folder = RunFolder(path, description, warn)
        asks = config.workers != 1  # or no two runs would be alike
        self._saver = WeightSaver(self._folder, session, lambda: signals.count > 0, asks, warn)
        self._journal = Journal(path)
        self._told = FailSafeView(self._journal, "the report", warn)
        self.views: list[View] = [self._saver, self._told]

    def close(self) -> None:
        """Let other runs into the folder."""
        self._folder.close()

    def finish(self, told: Mapping[str, Any]) -> list[str]:
        """Save what the session ended with; what of it cannot be saved, in sentences."""
        complaints = []
        for finish in (self._saver.finish, partial(self._journal.close, told)):
            try:
                finish()
            except AkkordeonError as error:
                complaints.append(str(error))
        return complaints
