"""Staging a network: from a recipe and an engine to a session."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, overload

from torch import nn

from akkordeon.core.errors import RecipeError
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines import engine_named
from akkordeon.engines.base import Engine
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.session.downpour_session import DownpourSession
from akkordeon.session.records.recorder import Recorder
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
from akkordeon.session.session import Session
from akkordeon.watch.display import show

__all__ = ["resume", "run"]


@overload
def run(
    network: Network,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
    progress: bool = False,
    resume: Checkpoint | None = None,
) -> Session: ...
@overload
def run(
    network: Downpour,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
    progress: bool = False,
    resume: Checkpoint | None = None,
) -> DownpourSession: ...
def run(
    network: Network | Downpour,
    engine: Engine | str = "threads",
    *,
    seed: int = 0,
    record: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
    progress: bool = False,
    resume: Checkpoint | None = None,
) -> Session:
    """Stage a network and start it.

    Args:
        network: the recipe, a Network or a Downpour; its modules are copied.
        engine: ``"threads"``, ``"simulator"`` or ``"ray"``, or an engine such as ``Threads(workers=1)``.
        seed: of everything random that belongs to the run: masks, torch's generator while it lasts.
        record: a file that will say what every actor handled and did, for :func:`akkordeon.replay`.
        task: goes into the record: whatever is needed to make the network and its sentinels again.
        progress: show how it goes until the session is closed: live on a terminal and in a notebook, in lines
            elsewhere. Where a run is to be repeated (one worker, the simulator) it is lines too, because to
            ask gates how they are would change it.
        resume: what the run goes on from: sentinels that are attached under the names they had then go on
            with their data where they were. Engine, workers and hosts may be others.

    Returns:
        The session, to be used in a ``with`` block or closed by hand.

    Raises:
        RecipeError: an unknown engine, or an optimizer over foreign parameters.
    """
    if isinstance(network, nn.Module):
        raise RecipeError(
            f"run stages a Network, got the module {type(network).__name__}; cut it into gates first: "
            "akkordeon.Network.from_module(module, gates=…, optimizer=…)"
        )
    if not isinstance(network, Network | Downpour):
        raise RecipeError(f"run stages a Network or a Downpour, got {type(network).__name__}")
    if not (isinstance(seed, Integral) and -(2**63) <= seed < 2**63):
        raise RecipeError(f"a seed is a whole number of 64 bits, got {seed!r}")
    stage = engine_named(engine) if isinstance(engine, str) else engine
    if not isinstance(stage, Engine):
        raise RecipeError(f"an engine is a name or one such as Threads(), got {engine!r}")
    if not isinstance(resume, Checkpoint | None):
        raise RecipeError(f"resume is a checkpoint, got {resume!r}; akkordeon.resume takes the folder of one")
    if record is not None and resume is not None:
        raise RecipeError("a run that goes on from a checkpoint cannot be recorded; leave out record")
    recorder = None if record is None else Recorder(record, network, seed, task)
    session = (
        Session(network, stage, seed, recorder, resume=resume)
        if isinstance(network, Network)
        else DownpourSession(network, stage, seed, recorder, resume=resume)
    )
    if progress:
        session.at_close(show(session, live=not stage.is_repeatable).close)
    return session


def resume(
    folder: str | Path,
    network: Network | Downpour | None = None,
    engine: Engine | str = "threads",
    *,
    trust: bool = False,
    progress: bool = False,
) -> Session:
    """Stage a network that goes on from the latest checkpoint in a folder, of those that are whole.

    Sentinels that are attached under the names they had then go on with their data where they were.

    Args:
        folder: what ``session.checkpoint`` or ``akkordeon train --out`` was given.
        network: the recipe; its layers may be cut into other gates now. None makes network and sentinels of
            the task that ``akkordeon train`` was given, and attaches them.
        engine: another one, if need be; see :func:`run`.
        trust: whether a Python file that the folder names may be run.
        progress: see :func:`run`.

    Returns:
        The session, to be used in a ``with`` block or closed by hand.

    Raises:
        DataError: there is no checkpoint, or none that is whole.
        RecipeError: it is of another network.
        TaskError: the folder names a Python file, which is not trusted.
    """
    kept = CheckpointFolder.inside(Path(folder)).latest(logging.getLogger(__name__).warning)
    sentinels: Sequence[Training | Evaluation] = ()
    if network is None:
        from akkordeon.experiments.saved_run import resumed_parts  # and with it what only tasks need

        network, sentinels = resumed_parts(Path(folder), trust)
    session = run(network, engine, seed=kept.session["seed"], progress=progress, resume=kept)
    session.attach_all(sentinels)
    return session
