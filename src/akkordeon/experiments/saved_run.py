"""What training has left, used again: a folder to measure or to predict with, a record to replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from akkordeon.core.errors import ActorFailedError, DataError, RecipeError, RecordError, TaskError
from akkordeon.core.numerics.forms import signature
from akkordeon.data.sources import as_batches
from akkordeon.downpour.recipe import Downpour
from akkordeon.experiments.array_file import load_array, signature_of_rows
from akkordeon.experiments.build import build_recipe, build_sentinels, build_trainers, build_validator
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.run import run
from akkordeon.experiments.run_folder import (
    BEST,
    WEIGHTS,
    load_description,
    load_weights,
)
from akkordeon.experiments.tasks.loader import load_task
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.session.records.record import Record
from akkordeon.session.records.replay import Replayed, replay

__all__ = ["load_run", "measure_run", "predict_file", "replay_run", "resumed_config", "resumed_parts"]

ROWS_NAMED = 10
"""Of rows that are refused, so many are named."""


def resumed_config(folder: Path, trust: bool = False, **changes: Any) -> TrainConfig:
    """The settings of a run that is to go on.

    Args:
        folder: what ``train_task`` was given.
        trust: whether a Python file that the folder names may be run.
        changes: settings that are others now; None leaves one as it is.

    Raises:
        DataError: the folder says nothing, or what this version cannot do.
        TaskError: the folder names a Python file, which is not trusted.
    """
    description = load_description(folder)
    _check_trust(description["task"], folder, trust)
    description.pop("akkordeon", None)
    description |= {name: value for name, value in changes.items() if value is not None}
    try:
        return TrainConfig.from_plain(description)
    except RecipeError as error:
        raise DataError(f"the run in {folder} cannot go on: {error}") from error


def resumed_parts(
    folder: Path, trust: bool = False
) -> tuple[Network | Downpour, list[Training | Evaluation]]:
    """What a run is made of that is to go on: the recipe, and the sentinels that train and validate.

    Raises:
        AkkordeonError: as :func:`resumed_config`, or the task cannot be made again.
    """
    config = resumed_config(folder, trust)
    task = config.load_task()
    return build_recipe(task, config), [*build_trainers(task, config), build_validator(task, config)]


def load_run(
    folder: Path, best: bool = False, data_dir: str | None = None, trust: bool = False
) -> tuple[Task, Network]:
    """The task of a run and its network, starting from the weights in its folder.

    Args:
        folder: what ``train_task`` was given.
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


def measure_run(task: Task, network: Network) -> dict[str, Any]:
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


def predict_file(
    task: Task, network: Network, file: Path, probabilities: bool = False
) -> tuple[Tensor, bool]:
    """The network's outputs for the inputs in a ``.npy`` file, and whether they are scores of classes.

    Args:
        task: of a run.
        network: of it, with its weights.
        file: with an array, an input each row.
        probabilities: of the classes, instead of their scores.

    Raises:
        DataError: the file is missing or damaged, or the network cannot work on what it holds, or gives
            NaN or infinity for some of it, which has no class.
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
    _check_finite(outputs, file)
    are_scores = isinstance(y, Tensor) and not y.is_floating_point() and outputs.dim() > 1
    are_scores = are_scores and outputs.shape[1] > 1
    if probabilities and not are_scores:
        raise DataError("the task's labels are no class numbers, so its outputs have no probabilities")
    return outputs.softmax(1) if probabilities else outputs, are_scores


def _check_finite(outputs: Tensor, file: Path) -> None:
    if outputs.isfinite().all():
        return
    rows = [row for row, output in enumerate(outputs) if not output.isfinite().all()]
    named = ", ".join(map(str, rows[:ROWS_NAMED])) + (", …" if len(rows) > ROWS_NAMED else "")
    raise DataError(
        f"the network gives no finite outputs for {len(rows)} of the {len(outputs)} rows of {file}: {named}"
    )


def replay_run(record: Record, trust: bool = False, partial: bool = False) -> Replayed:
    """Replay a run of :func:`akkordeon.experiments.train.train_task`.

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
        config = TrainConfig.from_plain(description)
    except RecipeError as error:
        raise RecordError(f"the record cannot be replayed: {error}") from error
    _check_trust(config.task, "the record", trust)
    task = config.load_task()
    return replay(record, build_recipe(task, config), build_sentinels(task, config), partial=partial)


def _check_trust(task: str, whose: object, trust: bool) -> None:
    """Refuse to run a Python file that nobody named on this command line, unless they trust it."""
    file, colon, function = task.rpartition(":")
    if colon and not trust:
        raise TaskError(
            f"{whose} is of a task that the Python file {file} makes, in its function {function}, and that "
            "file would be run now: look at it, and give --trust if you trust it"
        )
