"""The live view on a terminal: a bar for each training sentinel, a row for each gate, lines above.

train-1    ━━━━━━━━━━━━━━━━━━━━╺━━━━━━━━━  epoch  3/7   61 %   52,310 samples/s   0:00:04 left
train-2    ━━━━━━━━━━━━━━━━━━╺━━━━━━━━━━━  epoch  3/7   58 %   51,022 samples/s   0:00:05 left

gate      version   τ mean   τ max   queue   busy
gate/0       1208      1.9       5       2    61 %  ██████
gate/1       1209      0.9       4       0    32 %  ███
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from akkordeon.session.attachment import Attachment
from akkordeon.session.session import Session
from akkordeon.session.status import Status
from akkordeon.watch.lines import LineView
from akkordeon.watch.rate import Rate
from akkordeon.watch.shard_table import ShardTable
from akkordeon.watch.view import PATIENCE_S, TimedView

__all__ = ["LiveView"]

EVERY_S = 0.25
"""Time between two looks at the session."""

BLOCKS = " ▏▎▍▌▋▊▉█"
BUSY_CELLS = 10
BAR_CELLS, BAR_CELLS_MIN, BESIDE_BAR_CELLS = 30, 5, 65


class LiveView(TimedView):
    """Draws how a session goes; a context manager. All its methods are for one thread.

    Args:
        console: where to draw.
        now_s: the clock.
    """

    def __init__(self, console: Console, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(EVERY_S, now_s)
        self._lines = LineView(
            lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
        )
        self._live = Live(console=console, auto_refresh=False)
        self._bars: dict[str, _Bar] = {}
        self._busy: dict[str, Rate] = {}
        self._shards = ShardTable()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
        self._lines.__exit__(kind, error, trace)

    def tell(self, record: Any) -> None:
        """Write the line of a record above the bars."""
        self._lines.tell(record)

    def note(self, sentence: str) -> None:
        """Write a sentence above the bars."""
        self._lines.note(sentence)

    def take(self, session: Session) -> None:
        """Draw anew."""
        self.draw(session.attachments, session.status(PATIENCE_S))

    def draw(self, attachments: list[Attachment], status: Status) -> None:
        """Draw what was found."""
        self._live.update(self._picture(attachments, status), refresh=True)

    def _picture(self, attachments: list[Attachment], status: Status) -> RenderableType:
        bars = Table.grid(padding=(0, 2, 0, 0))
        bars.add_column(no_wrap=True)
        bars.add_column(width=max(BAR_CELLS_MIN, min(BAR_CELLS, self._live.console.width - BESIDE_BAR_CELLS)))
        for _ in range(4):
            bars.add_column(no_wrap=True, justify="right")
        for attachment in attachments:
            if attachment.role.trains:
                bar = self._bars.setdefault(attachment.address, _Bar(attachment))
                bar.look(status)
                bars.add_row(*bar.cells())
        table = self._shards.table(status) if self._shards.fits(status) else self._gates(status)
        return Group("", bars, "", table, *_in_flight(attachments))

    def _gates(self, status: Status) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("gate")
        for heading in ("version", "τ mean", "τ max", "queue", "busy"):
            table.add_column(heading, justify="right")
        table.add_column("", width=BUSY_CELLS)
        for gate in status.gates:
            load = status.loads.get(gate.address)
            busy = self._busy.setdefault(gate.address, Rate())
            if load is not None:
                busy.add(status.now_s, load.busy_s)
            table.add_row(
                gate.name,
                f"{gate.version:,}",
                f"{gate.staleness_mean:.1f}",
                str(gate.staleness_max),
                str(load.queued if load else 0),
                f"{min(1.0, busy.per_s):.0%}",
                Text(_blocks(min(1.0, busy.per_s), BUSY_CELLS), style="cyan"),
            )
        return table


def _in_flight(attachments: list[Attachment]) -> list[RenderableType]:
    """What more than one batch in flight costs and buys, where there are more."""
    most = max((a.recipe.in_flight or 1 for a in attachments if a.role.trains), default=1)
    if most == 1:
        return []
    cost = "gates work side by side, with gradients τ updates old; 1 is the plain loop"
    return ["", Text(f"{most} batches in flight: {cost}", style="dim")]


class _Bar:
    """The row of one training sentinel."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._rate = Rate()
        self._done = 0

    def look(self, status: Status) -> None:
        """Take in what was found."""
        if self._attachment.ended:
            self._done = self._attachment.samples
            return
        for sentinel in status.sentinels:
            if sentinel.address == self._attachment.address:
                self._done = max(self._done, sentinel.samples)
                self._rate.add(status.now_s, self._done)

    def cells(self) -> tuple[RenderableType, ...]:
        total = self._attachment.samples_wanted
        share = f"{min(1.0, self._done / total):4.0%}" if total else "    "
        return (
            self._attachment.name,
            ProgressBar(total, self._done, pulse=total is None),
            self._epoch(),
            share,
            Text(f"{self._samples_per_s():,.0f} samples/s", style="green"),
            self._time(total),
        )

    def _epoch(self) -> str:
        of = self._attachment.recipe.epochs  # type: ignore[attr-defined]  # it trains
        at = self._attachment.epochs_done + (not self._attachment.ended)
        return f"epoch {min(at, of):>{len(str(of))}}/{of}" if of else f"epoch {at}"

    def _samples_per_s(self) -> float:
        if not self._attachment.ended:
            return self._rate.per_s
        seconds = self._attachment.seconds
        return self._done / seconds if seconds else 0.0

    def _time(self, total: int | None) -> Text:
        if self._attachment.ended:
            return Text(f"{_clock(self._attachment.seconds)} taken", style="dim")
        if not total or not self._rate.per_s:
            return Text("")
        return Text(f"{_clock((total - self._done) / self._rate.per_s)} left", style="yellow")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _blocks(share: float, cells: int) -> str:
    """A bar of characters, an eighth of a cell exact."""
    eighths = round(share * cells * 8)
    return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()
