"""What a profiler sees of a GPU: when it works, and in which calls the host waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["Profile", "draw", "profiled"]

WAITING = ("Synchronize", "aten::item", "aten::_local_scalar_dense", "aten::nonzero")
"""Parts of the names of calls that hold up the host."""

BINS = 200


@dataclass(frozen=True)
class Profile:
    """One look.

    Attributes:
        span_us: from the first to the last work of the device.
        working_us: stretches in which it works, from the first, without overlaps.
        waits: calls in which the host waits, by name; the last one, at the end of all, is the looker's own.
        steps: that were looked at.
    """

    span_us: float
    working_us: list[tuple[float, float]]
    waits: dict[str, int]
    steps: int

    @property
    def busy_share(self) -> float:
        """Of the time from the first to the last work, that in which the device works."""
        return sum(end - begin for begin, end in self.working_us) / self.span_us

    @property
    def waits_per_step(self) -> float:
        return sum(self.waits.values()) / self.steps

    def busy_by_bin(self) -> list[float]:
        """The share in each of :data:`BINS` equal stretches."""
        width = self.span_us / BINS
        shares = [0.0] * BINS
        for begin, end in self.working_us:
            for i in range(int(begin / width), min(BINS - 1, int(end / width)) + 1):
                shares[i] += max(0.0, min(end, (i + 1) * width) - max(begin, i * width)) / width
        return shares


def profiled(train: Callable[[], None], steps: int, trace: Path | None) -> Profile:
    """Have something trained for so many steps, and look."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        train()
    if trace is not None:
        found.export_chrome_trace(str(trace))
    events: Any = found.events()
    on_device = [e.time_range for e in events if e.device_type == DeviceType.CUDA]
    waits = Counter(e.name for e in events if any(part in e.name for part in WAITING))
    stretches: list[tuple[float, float]] = []
    first = min(r.start for r in on_device)
    for begin, end in sorted((r.start - first, r.end - first) for r in on_device):
        if stretches and begin <= stretches[-1][1]:
            stretches[-1] = stretches[-1][0], max(end, stretches[-1][1])
        else:
            stretches.append((begin, end))
    steps = (train.args and len(train.args[0])) or 1  # type: ignore[attr-defined]
    return Profile(stretches[-1][1], stretches, dict(waits), steps)


def draw(looks: Mapping[str, Mapping[str, Profile]], file: Path) -> None:
    """A row of panels for each model: the busy share over time, one for each layout."""
    from matplotlib.figure import Figure

    layouts = list(next(iter(looks.values())))
    figure = Figure(figsize=(3 * len(layouts), 1.7 * len(looks) + 0.6), layout="constrained")
    panels = figure.subplots(len(looks), len(layouts), squeeze=False, sharey=True)
    for row, (name, of_layouts) in zip(panels, looks.items(), strict=True):
        for panel, (layout, look) in zip(row, of_layouts.items(), strict=True):
            times_ms = [(i + 0.5) * look.span_us / BINS / 1e3 for i in range(BINS)]
            panel.fill_between(times_ms, look.busy_by_bin(), step="mid", color="0.55")
            panel.set_title(f"{layout}: {look.busy_share:.0%}", fontsize=9)
            panel.set_ylim(0, 1.02)
            panel.tick_params(labelsize=7)
        row[0].set_ylabel(name.replace(", ", "\n", 1), fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("ms", fontsize=8)
    figure.savefig(file)
