"""The main job: a task trained as planned, followed to its end, and kept; and what was kept, used again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from torch import Tensor

from akkordeon.core.errors import ActorFailedError, AkkordeonError, DataError, RecordError, TaskError
from akkordeon.core.payload import signature
from akkordeon.core.reports import RoundDone
from akkordeon.data.sources import as_batches
from akkordeon.data.split import deal_data, take_samples
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.threads import Threads
from akkordeon.experiments.journal import Journal
from akkordeon.experiments.presets import downpour_of, optimizer_named, rule_named, with_lr
from akkordeon.experiments.run import run
from akkordeon.experiments.run_folder import (
    BEST,
    WEIGHTS,
    Folder,
    load_array,
    load_description,
    load_weights,
    signature_of_rows,
)
from akkordeon.experiments.tasks import Task, load_task
from akkordeon.experiments.weight_saver import WeightSaver
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Best, Evaluation, Sentinel, Training
from akkordeon.session.recording import Record
from akkordeon.session.replay import Replayed, replay
from akkordeon.session.session import Session
from akkordeon.watch.follower import Follower
from akkordeon.watch.signals import SignalCounter
from akkordeon.watch.summary import summary
from akkordeon.watch.training_check import TrainingCheck
from akkordeon.watch.view import FailSafeView, View

__all__ = [
    "Outcome",
    "Plan",
    "described",
    "in_flight_of",
    "kept",
    "measure",
    "network_of",
    "plan_of",
    "predict",
    "recipe_of",
    "replay_of",
    "train",
    "trainers_of",
    "validator_of",
]


@dataclass(frozen=True)
class Plan:
    """How a task is to be trained; None leaves it to the task.

    Args:
        task: its name, or ``FILE.py:FUNCTION``.
        data_dir: where the files of its data set are.
        epochs: times to read the training data through.
        batch_size: samples of a batch.
        in_flight: batches each training sentinel has under way; None is 1 where optimizer or lr is given.
        sentinels: parts the training data is cut into, one training sentinel each.
        take: the first so many training samples are all there is.
        validate_every: seconds between validations; None has one after each reading of all the data.
        staleness: name of a rule for all gates.
        optimizer: name of an optimizer for all gates.
        lr: its learning rate, or that of the task's own optimizers.
        max_staleness: gradients older than so many updates are refused.
        keep_best: score by which the best weights are kept; ``"loss"`` too.
        patience: validations without a better one before training stops.
        seed: of the first weights, the order of the samples and all masks.
        workers: threads at work; one makes the run repeatable to the bit.
        keep_last: every validation brings the weights, so that they can be kept while training goes on.
        downpour: replicas and other arguments of :func:`downpour_of` by name; None trains one row.
    """

    task: str = "digits"
    data_dir: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    in_flight: int | None = None
    sentinels: int = 1
    take: int | None = None
    validate_every: float | None = None
    staleness: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    max_staleness: int | None = None
    keep_best: str | None = None
    patience: int | None = None
    seed: int = 0
    workers: int | None = None
    keep_last: bool = False
    downpour: Mapping[str, Any] | None = None

    @property
    def trainers(self) -> int:
        """How many training sentinels there will be."""
        return self.sentinels if self.downpour is None else int(self.downpour["replicas"])

    def load(self) -> Task:
        """Make the task; see :func:`load_task`."""
        return load_task(self.task, self.data_dir, self.seed)


@dataclass(frozen=True)
class Outcome:
    """How it ended.

    Attributes:
        summary: what every sentinel and gate came to.
        best: the best round of validation, where the best was to be kept.
        signal: that ended it, if one did.
        complaints: what went wrong, in sentences.
        kept: whether all that was to be kept is.
    """

    summary: Mapping[str, Any]
    best: RoundDone | None
    signal: int | None
    complaints: Sequence[str]
    kept: bool


# ── from a plan to recipes ───────────────────────────────────────────────────────────────────────────


def network_of(task: Task, plan: Plan) -> Network:
    """The task's network with the rule, the optimizer and the bounds of the plan."""
    network = task.network.replacing(
        staleness=None if plan.staleness is None else rule_named(plan.staleness),
        optimizer=None if plan.optimizer is None else optimizer_named(plan.optimizer, plan.lr),
    )
    if plan.lr is not None and plan.optimizer is None:
        network = with_lr(network, plan.lr)
    if plan.max_staleness is not None:
        network = replace(network, max_staleness=plan.max_staleness)
    in_flight = in_flight_of(task, plan) * plan.sentinels
    return replace(network, max_in_flight=max(network.max_in_flight, in_flight))


def in_flight_of(task: Task, plan: Plan) -> int:
    """Batches that each training sentinel has under way.

    The task's number was found with its own optimizers in one row; for others it is 1, which never hurts.
    """
    as_found = plan.downpour is None and plan.optimizer is None and plan.lr is None
    return plan.in_flight or (task.in_flight if as_found else 1)


def recipe_of(task: Task, plan: Plan) -> Network | Downpour:
    """What is run: that network, or as many replicas of it as the plan says."""
    network = network_of(task, plan)
    return network if plan.downpour is None else downpour_of(network, **plan.downpour)


def trainers_of(task: Task, plan: Plan) -> list[Training]:
    """The training sentinels: ``train``, or ``train-1`` and so on."""
    batches = task.train_batches(plan.batch_size, plan.seed)
    if plan.take is not None:
        batches = take_samples(batches, plan.take)
    return [
        Sentinel.train(
            part,
            task.loss,
            in_flight=in_flight_of(task, plan),
            epochs=plan.epochs or task.epochs,
            scores=task.scores,
            name="train" if plan.sentinels == 1 else f"train-{number}",
        )
        for number, part in enumerate(deal_data(batches, plan.sentinels, plan.seed), 1)
    ]


def validator_of(task: Task, plan: Plan) -> Evaluation:
    """The validation sentinel, ``validate``."""
    best = None
    if plan.keep_best is not None or plan.patience is not None:
        best = Best(plan.keep_best or "loss", patience=plan.patience)
    return Sentinel.validate(
        task.validate,
        task.loss,
        scores=task.scores,
        every_s=plan.validate_every,
        every_epoch=plan.trainers if plan.validate_every is None else None,
        best=best,
        keep_last=plan.keep_last,
        name="validate",
    )


# ── training and keeping ─────────────────────────────────────────────────────────────────────────────


def train(
    plan: Plan,
    view: View,
    folder: Path | None = None,
    record: Path | None = None,
    warn: Callable[[str], None] = print,
) -> Outcome:
    """Train a task and show how it goes; a signal stops it with what is reached.

    What is reached is kept as it comes. A view that fails, or a report that cannot be written, ends nothing.

    Args:
        plan: what to do.
        view: shows it.
        folder: where weights, report and the plan are kept; None keeps nothing.
        record: a file to replay the run from.
        warn: takes what ``view`` can show no more.

    Raises:
        AkkordeonError: it could not begin.
    """
    task = plan.load()
    if folder is not None:
        plan = replace(plan, keep_last=True)
    sentinels: list[Training | Evaluation] = [*trainers_of(task, plan), validator_of(task, plan)]
    recipe, engine, check = recipe_of(task, plan), Threads(plan.workers), TrainingCheck()
    with (
        SignalCounter() as signals,
        FailSafeView(view, "what shows the training", warn) as shown,
        ExitStack() as kept,
    ):
        with run(recipe, engine, seed=plan.seed, record=record, task=described(plan)) as session:
            keeper = None
            if folder is not None:
                keeper = kept.enter_context(_Keeper(folder, plan, session, signals, shown.note))
            views = [shown, check, *(keeper.views if keeper else ())]
            seconds, complaints = _followed(session, sentinels, views, signals)
        told = summary(session, seconds)
        complaints += check.complaints(session)
        if session.record_failure is not None:
            complaints.append(session.record_failure)
        unkept: list[str] = []
        if keeper is not None:
            unkept = keeper.finish(told)
            complaints += unkept
    kept_all = keeper is not None and not unkept
    return Outcome(told, check.best, signals.first, complaints, kept_all)


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


class _Keeper:
    """What a run keeps in a folder: weights as they come, and its report; a context manager."""

    def __init__(
        self, path: Path, plan: Plan, session: Session, signals: SignalCounter, warn: Callable[[str], None]
    ) -> None:
        self._folder = Folder(path, {"akkordeon": version("akkordeon"), **described(plan)})
        asks = plan.workers != 1  # or no two runs would be alike
        self._saver = WeightSaver(self._folder, session, lambda: signals.count > 0, asks, warn)
        self._journal = Journal(path)
        self._told = FailSafeView(self._journal, "the report", warn)
        self.views: list[View] = [self._saver, self._told]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._folder.close()

    def finish(self, told: Mapping[str, Any]) -> list[str]:
        """Keep what the session ended with; what of it cannot be kept, in sentences."""
        complaints = []
        try:
            self._saver.finish()
        except AkkordeonError as error:
            complaints.append(str(error))
        try:
            self._journal.close(told)
        except DataError as error:
            complaints.append(str(error))
        return complaints


def described(plan: Plan) -> dict[str, Any]:
    """The plan as plain data, with paths that lead there from anywhere."""
    file, colon, function = plan.task.rpartition(":")
    task = f"{Path(file).expanduser().resolve()}:{function}" if colon else plan.task
    data_dir = None if plan.data_dir is None else str(Path(plan.data_dir).expanduser().resolve())
    return asdict(replace(plan, task=task, data_dir=data_dir))


def plan_of(description: Mapping[str, Any]) -> Plan:
    """The plan that :func:`described` told, which may have been written by anybody.

    Raises:
        ValueError: it is no plan.
    """
    hints = get_type_hints(Plan)
    for name, value in description.items():
        if name not in hints:
            raise ValueError(f"its task has a setting {name!r} that this version does not know")
        if not _is_of(value, hints[name]):
            raise ValueError(f"the setting {name!r} of its task cannot be {value!r}")
    return Plan(**description)


def _is_of(value: object, hint: Any) -> bool:
    """Whether a value from JSON is of this type, or one of these."""
    kinds = [get_origin(kind) or kind for kind in get_args(hint)] if isinstance(hint, UnionType) else [hint]
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))


def _check_trust(task: str, whose: object, trust: bool) -> None:
    """Refuse to run a Python file that nobody named on this command line, unless they trust it."""
    file, colon, function = task.rpartition(":")
    if colon and not trust:
        raise TaskError(
            f"{whose} is of a task that the Python file {file} makes, in its function {function}, and that "
            "file would be run now: look at it, and give --trust if you trust it"
        )


def replay_of(record: Record, trust: bool = False, partial: bool = False) -> Replayed:
    """Replay a run of :func:`train`.

    Args:
        record: of the run.
        trust: whether a Python file that it names may be run.
        partial: replay a record that breaks off as far as it goes.

    Raises:
        RecordError: the record is of something else, or breaks off.
        TaskError: the record names a Python file, which is not trusted, or the task cannot be made again.
        ReplayError: the run cannot be repeated; where, and what may be why.
    """
    description = record.header.get("task")
    if not isinstance(description, dict) or "task" not in description:
        raise RecordError("the record does not say what was run; replay it in Python with akkordeon.replay")
    try:
        plan = plan_of(description)
        _check_trust(plan.task, "the record", trust)
        task = plan.load()
        recipe = recipe_of(task, plan)
        sentinels: list[Training | Evaluation] = [*trainers_of(task, plan), validator_of(task, plan)]
    except AkkordeonError:
        raise
    except (ValueError, TypeError, OverflowError) as error:  # such as a Downpour's setting that is unknown
        raise RecordError(f"the record cannot be replayed: {error}") from error
    return replay(record, recipe, sentinels, partial=partial)


def kept(
    folder: Path, best: bool = False, data_dir: str | None = None, trust: bool = False
) -> tuple[Task, Network]:
    """The task of a kept run and its network, starting from the weights kept.

    Args:
        folder: what ``train`` was given.
        best: the best weights instead of the last.
        data_dir: where the data is now, if it has moved.
        trust: whether a Python file that the folder names may be run.

    Raises:
        DataError: a file is missing, damaged or of another task.
        TaskError: the folder names a Python file, which is not trusted, or the task cannot be made again.
    """
    description = load_description(folder)
    _check_trust(description["task"], folder, trust)
    task = load_task(description["task"], data_dir or description.get("data_dir"), description.get("seed", 0))
    return task, load_weights(folder / (BEST if best else WEIGHTS), task.network)


def measure(task: Task, network: Network) -> dict[str, Any]:
    """Loss, scores, samples and seconds of one round over the task's validation data."""
    with run(network) as session:
        tester = session.attach(Sentinel.test(task.validate, task.loss, scores=task.scores, name="test"))
        record = tester.wait().rounds[-1]
    return {
        "loss": record.loss,
        "scores": record.scores,
        "samples": record.samples,
        "seconds": record.seconds,
    }


def predict(task: Task, network: Network, file: Path, probabilities: bool = False) -> tuple[Tensor, bool]:
    """The network's outputs for the inputs in a ``.npy`` file, and whether they are scores of classes.

    Args:
        task: of a kept run.
        network: of it, with its weights.
        file: with an array, an input each row.
        probabilities: of the classes, instead of their scores.

    Raises:
        DataError: the file is missing or damaged, or the network cannot work on what it holds.
    """
    x, y = next(iter(as_batches(task.validate, 1)))
    inputs = load_array(file, like=x)
    with run(network) as session:
        try:
            outputs = session.predict(inputs)
        except ActorFailedError as error:
            raise DataError(
                f"the network cannot work on {file}, which holds {signature(inputs)}; "
                f"the task's own inputs are {signature_of_rows(x)}"
            ) from error
    if not isinstance(outputs, Tensor):
        raise DataError("the network gives several tensors; use session.predict in Python")
    are_scores = isinstance(y, Tensor) and not y.is_floating_point() and outputs.dim() > 1
    are_scores = are_scores and outputs.shape[1] > 1
    if probabilities and not are_scores:
        raise DataError("the task's labels are no class numbers, so its outputs have no probabilities")
    return outputs.softmax(1) if probabilities else outputs, are_scores
