"""Where a run of a command can be watched beside the terminal: the options, and what they open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from akkordeon.core.errors import DataError
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.timeline import Timeline
from akkordeon.experiments.config import Settings
from akkordeon.pipeline.network import Network
from akkordeon.watch.sinks.prometheus import Prometheus
from akkordeon.watch.sinks.sink import Sink
from akkordeon.watch.sinks.tensorboard import TensorBoard
from akkordeon.watch.sinks.tracker import Tracker

__all__ = ["IN_REPORT", "TRACE", "WatchConfig", "require_writable"]

TRACED = 300_000
"""Of what actors do, so much is in a trace, the latest."""

IN_REPORT = 500
"""Likewise, in the report of a run."""

TRACE = Option(metavar="FILE.json[.gz]", help="Write who did what when, for https://ui.perfetto.dev.")


@dataclass(frozen=True)
class WatchConfig(Settings):
    """Who is told of a run beside the terminal; these settings do not belong to the task."""

    tensorboard: Annotated[
        Path | None, Option(metavar="DIR", help="Write event files for TensorBoard into this folder.")
    ] = None
    trackio: Annotated[
        str | None, Option(metavar="PROJECT", help="Log to this project of trackio, on this machine.")
    ] = None
    wandb: Annotated[
        str | None, Option(metavar="PROJECT", help="Log to this project of Weights & Biases.")
    ] = None
    prometheus: Annotated[
        int | None, Option(min=0, max=65535, metavar="PORT", help="Offer the latest numbers at /metrics.")
    ] = None
    trace: Annotated[Path | None, TRACE] = None

    def sinks(self, settings: Mapping[str, Any], network: Network | Downpour) -> Iterator[Sink]:
        """Open each that was asked for.

        Args:
            settings: of the run, to be shown with it.
            network: likewise.

        Raises:
            AkkordeonError: one cannot be opened.
        """
        if self.tensorboard is not None:
            yield TensorBoard(self.tensorboard, settings=settings, network=network)
        if self.trackio is not None:
            yield Tracker(self.trackio, settings=settings)
        if self.wandb is not None:
            yield Tracker(self.wandb, settings=settings, service="wandb")
        if self.prometheus is not None:
            yield Prometheus(self.prometheus)

    def timeline(self, in_report: bool) -> Timeline | None:
        """What an engine is to fill; None where nobody wants to see it.

        Args:
            in_report: whether the run leaves a report.

        Raises:
            DataError: the trace cannot be written.
        """
        if self.trace is not None:
            require_writable(self.trace)
            return Timeline(TRACED, latest=True)
        return Timeline(IN_REPORT, latest=True) if in_report else None


def require_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Raises:
        DataError: it cannot.
    """
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
