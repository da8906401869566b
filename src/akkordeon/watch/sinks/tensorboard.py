"""A sink that writes event files for TensorBoard: scalars, histograms of τ, settings and network as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from akkordeon.core.errors import RecipeError
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.watch.sinks.points import Point
from akkordeon.watch.sinks.sink import Sink, flat, require_extra

__all__ = ["TensorBoard"]

FLUSH_S = 5
"""What is written is on the disk after so long, for a TensorBoard that is open."""


class TensorBoard(Sink):
    """Writes event files; the step is that of :class:`Point <akkordeon.watch.sinks.points.Point>`.

    Args:
        folder: where they go, one folder for each run; made if need be.
        settings: are shown as a table.
        network: its gates are shown as text.

    Raises:
        RecipeError: TensorBoard is not installed, or the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        settings: Mapping[str, Any] | None = None,
        network: Network | Downpour | None = None,
    ) -> None:
        super().__init__()
        self._writer = _writer(folder)
        if settings:
            self._writer.add_text("settings", _table(flat(settings)))
        if network is not None:
            self._writer.add_text("network", _code(network_text(network)))
        self._writer.flush()

    def write(self, point: Point) -> None:
        """Write scalars, and a histogram where there is one."""
        for tag, value in point.tagged():
            self._writer.add_scalar(tag, value, point.step)
        if point.staleness:
            self._histogram(point)

    def end(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def _histogram(self, point: Point) -> None:
        seen, (counts, edges) = point.staleness, point.histogram()
        self._writer.add_histogram_raw(
            f"{point.of}/staleness",
            min=min(seen),
            max=max(seen),
            num=sum(counts),
            sum=sum(tau * n for tau, n in seen.items()),
            sum_squares=sum(tau**2 * n for tau, n in seen.items()),
            bucket_limits=edges[1:],
            bucket_counts=counts,
            global_step=point.step,
        )


def _writer(folder: str | Path) -> Any:
    require_extra("tensorboard", "a sink for TensorBoard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder), flush_secs=FLUSH_S)
    except OSError as error:
        raise RecipeError(
            f"the event files cannot be written to {folder}: {error.strerror or error}"
        ) from error


def network_text(network: Network | Downpour) -> str:
    """The gates of a network, head first, with all that is in them."""
    row = network.network if isinstance(network, Downpour) else network
    return "\n\n".join([repr(network), *_gates(row)])


def _gates(row: Network) -> Iterator[str]:
    for address, gate in zip(row.row(), row.gates, strict=True):
        rule = type(gate.staleness).__name__
        weights = sum(p.numel() for p in gate.module.parameters())
        name = f"{address} ({gate.name})" if gate.name else address
        yield f"{name}: {weights:,} weights, {rule}\n{gate.module}"


def _table(settings: Mapping[str, Any]) -> str:
    """A table in Markdown; TensorBoard shows what is in it as text, whatever is in it."""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    """Lines of code in Markdown, which begin with four blanks."""
    return "\n".join(f"    {line}" for line in text.splitlines())
