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

from akkordeon.core.errors import ActorFailedError, AkkordeonError, DataError, RecipeError
from akkordeon.core.reports import RoundDone
from akkordeon.engines.threads import Threads
from akkordeon.engines.timeline import Span
from akkordeon.engines.timeline.chrome_trace import write_trace
from akkordeon.experiments.build import build_recipe, build_sentinels
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.journal import Journal
from akkordeon.experiments.report.environment import environment
from akkordeon.experiments.report.watching import IN_REPORT, WatchConfig
from akkordeon.experiments.run import run
from akkordeon.experiments.run_folder import RunFolder
from akkordeon.experiments.weight_saver import WeightSaver
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
from akkordeon.session.recovery.checkpoint_writer import CheckpointWriter
from akkordeon.session.session import Session
from akkordeon.watch.follower import Follower
from akkordeon.watch.signals import SignalCounter
from akkordeon.watch.sinks.asking import GateAsker
from akkordeon.watch.sinks.prometheus import Prometheus
from akkordeon.watch.summary import summary
from akkordeon.watch.training_check import TrainingCheck
from akkordeon.watch.view import FailSafeView, View

__all__ = ["TrainOutcome", "train_task"]

CHECKPOINT_S = 60.0
"""How long a checkpoint may take that is asked for on the page."""


@dataclass(frozen=True)
class TrainOutcome:
    """How it ended.

    Attributes:
        summary: what every sentinel and gate came to.
        best: the best round of validation, where the best was to be kept.
        signal: that ended it, if one did.
        complaints: what went wrong, in sentences.
        saved: whether all that was to be saved is.
        can_go_on: whether it ended early, and is kept so that it can be taken up again.
    """

    summary: Mapping[str, Any]
    best: RoundDone | None
    signal: int | None
    complaints: Sequence[str]
    saved: bool
    can_go_on: bool


def train_task(
    config: TrainConfig,
    view: View,
    folder: Path | None = None,
    record: Path | None = None,
    warn: Callable[[str], None] = print,
    resume: bool = False,
    watching: WatchConfig | None = None,
    page: tuple[str, int] | None = None,
) -> TrainOutcome:
    """Train a task and show how it goes; a signal stops it with what is reached.

    What is reached is kept as it comes. A view that fails, or a report that cannot be written, ends nothing.

    Args:
        config: what to do.
        view: shows it.
        folder: where weights, report and settings are saved; None saves nothing.
        record: a file to replay the run from.
        warn: takes what ``view`` can show no more.
        resume: go on with the run in the folder from its latest checkpoint.
        watching: who else is told of it.
        page: host and port at which a browser is shown the run; None shows it to none.

    Raises:
        AkkordeonError: it could not begin.
    """
    if folder is None and config.checkpoint_every is not None:
        raise RecipeError("checkpoints need a folder to be kept in; name one with --out DIR")
    start = None
    if folder is not None and resume:
        start = CheckpointFolder.inside(folder).latest(warn)
    task = config.load_task()
    if folder is not None:
        config = replace(config, keep_last=True)
    sentinels = build_sentinels(task, config)
    recipe, check = build_recipe(task, config), TrainingCheck()
    engine, watching = Threads(config.workers, config.intra_op_threads), watching or WatchConfig()
    engine.timeline = watching.timeline(in_report=folder is not None)
    unsaved: list[str] = []
    with (
        ExitStack() as told_elsewhere,  # ends last, when all is kept: Ctrl-C ends the wait for it
        SignalCounter() as signals,
        FailSafeView(view, "what shows the training", warn) as shown,
        ExitStack() as closing,
    ):
        files = None
        sinks = [told_elsewhere.enter_context(sink) for sink in watching.sinks(config.as_plain(), recipe)]
        with run(
            recipe, engine, seed=config.seed, record=record, task=config.as_plain(), resume=start
        ) as session:
            for sink in sinks:
                session.subscribe(sink)
                if isinstance(sink, Prometheus):
                    shown.note(f"the metrics are at {sink.url}")
            if folder is not None:
                files = _RunFiles(folder, config, session, signals, shown.note, start)
                closing.callback(files.close)
            if page is not None:
                keep = None if files is None else files.keeper_of(session)
                shown.note(_page_of(session, page, sentinels, keep, config.task))
            views = [shown, check, *(files.views if files else ())]
            if sinks and config.workers != 1:  # or gates are asked how they are, which changes the run
                views.append(GateAsker())
            seconds, complaints = _followed(session, sentinels, views, signals)
        told = summary(session, seconds)
        complaints += check.complaints(session)
        if session.record_failure is not None:
            complaints.append(session.record_failure)
        spans = [] if engine.timeline is None else engine.timeline.spans
        if files is not None:
            unsaved = files.finish(told, spans[-IN_REPORT:])
        if watching.trace is not None:
            complaints += _traced(spans, watching.trace)
    saved = files is not None and not unsaved
    can_go_on = saved and signals.first is not None and config.checkpoint_every is not None
    return TrainOutcome(told, check.best, signals.first, complaints + unsaved, saved, can_go_on)


def _page_of(
    session: Session,
    at: tuple[str, int],
    sentinels: Sequence[Training | Evaluation],
    keep: Callable[[], str] | None,
    task: str,
) -> str:
    """Have the session shown to browsers; where, in a sentence."""
    host, port = at
    server = session.watch(port, host=host, sentinels=sentinels, keep=keep, title=task)
    return f"the page is at {server.page} (what is behind # lets a browser steer; without it, it looks on)"


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


def _traced(spans: Sequence[Span], path: Path) -> list[str]:
    """Write the trace; what is wrong with that, in sentences."""
    try:
        write_trace(spans, path)
    except DataError as error:
        return [str(error)]
    return []


class _RunFiles:
    """What a run leaves in its folder: weights as they come, and its report."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        session: Session,
        signals: SignalCounter,
        warn: Callable[[str], None],
        start: Checkpoint | None,
    ) -> None:
        description, goes_on = {"akkordeon": version("akkordeon"), **config.as_plain()}, start is not None
        kept = config.checkpoints_kept
        self._folder = RunFolder(path, description, warn, checkpoints_kept=kept, goes_on=goes_on)
        asks = config.workers != 1  # or no two runs would be alike
        self._saver = WeightSaver(
            self._folder, session, lambda: signals.count > 0, asks, warn, ema=config.ema is not None
        )
        self._checkpoints = _CheckpointSaver(self._folder, warn)
        self._journal = Journal(path, goes_on)
        if start is not None:
            self._journal.resumed(start.number)
            warn(f"going on from checkpoint {start.number} in {path}")
        self._told = FailSafeView(self._journal, "the report", warn)
        self._told.tell(environment())
        self.views: list[View] = [self._checkpoints, self._saver, self._told]

    def keeper_of(self, session: Session) -> Callable[[], str]:
        """What takes a checkpoint now, and says where it is once it is written."""

        def keep() -> str:
            self._checkpoints.write(session.checkpoint(timeout=CHECKPOINT_S))
            return str(self._folder.path)

        return keep

    def close(self) -> None:
        """Let other runs into the folder."""
        self._checkpoints.close()
        self._journal.leave()
        self._folder.close()

    def finish(self, told: Mapping[str, Any], spans: Sequence[Span]) -> list[str]:
        """Save what the session ended with; what of it cannot be saved, in sentences."""
        self._checkpoints.close()
        complaints = [] if self._checkpoints.failure is None else [self._checkpoints.failure]
        for finish in (self._saver.finish, partial(self._journal.close, told, spans)):
            try:
                finish()
            except AkkordeonError as error:
                complaints.append(str(error))
        return complaints


class _CheckpointSaver(View):
    """Has checkpoints written beside the training; a disk that is full is told once."""

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._writer = CheckpointWriter(folder.save_checkpoint)
        self._warn = warn
        self._warned = False

    @property
    def failure(self) -> str | None:
        """Why the last checkpoint could not be written; None if it is."""
        return self._writer.failure

    def write(self, checkpoint: Checkpoint) -> None:
        """Have one written that was asked for, and wait for it; see :class:`CheckpointWriter`."""
        self._writer.write(checkpoint)

    def close(self) -> None:
        """Write the last."""
        self._writer.close()

    def tell(self, record: Any) -> None:
        """Have a checkpoint written."""
        self._writer.tell(record)

    def look(self, session: Session, at_once: bool = False) -> None:
        """Say that one could not be written, if that is news."""
        if self.failure is not None and not self._warned:
            self._warned = True
            self._warn(f"{self.failure}; training goes on, and the next checkpoint is tried again")
