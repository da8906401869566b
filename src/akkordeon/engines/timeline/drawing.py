"""Spans drawn as SVG, with one lane for every actor.

    gate/0  ▐F0▌▐F1▌▐F2▌      ▐ B0 ▌▐F3▌▐ B1 ▌
    gate/1      ▐F0▌▐F1▌▐ B0 ▌     ▐ B1 ▌▒▒crash▒▒
                ─────────────────────────────────▶ virtual seconds

Numbers are batches; what took no time is not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from akkordeon.engines.timeline.span import WORK, Span, lane_order

__all__ = ["COLOURS", "svg"]

COLOURS = {
    "forward": "#4c9be8",
    "backward": "#f2a33c",
    "evaluate": "#7cc47f",
    "other": "#c9c9c9",
    "crash": "#c0392b",
    "freeze": "#8e7cc3",
}
"""Blue and orange stay apart for eyes that do not see red and green."""


LANE, GAP, LEFT, WIDTH, HEAD, FOOT = 30, 8, 130, 1200, 64, 44
LETTER_PX = 7.5


def svg(
    spans: Sequence[Span],
    title: str = "",
    begin_s: float = 0.0,
    end_s: float | None = None,
    *,
    time: str = "virtual",
) -> str:
    """A picture of spans: one lane for every actor, gates first, in colours with a legend.

    Args:
        spans: what happened.
        title: above the picture.
        begin_s: where it starts.
        end_s: where it ends; with the last span if not given.
        time: the kind of seconds along the axis.
    """
    last_s = max((s.end_s for s in spans if s.end_s is not None), default=1.0)
    end_s = last_s if end_s is None else end_s
    shown = [s for s in spans if s.begin_s < end_s and (s.end_s is None or s.end_s > begin_s)]
    lanes = sorted({s.who for s in shown}, key=lane_order)
    width, height = LEFT + WIDTH + 20, HEAD + len(lanes) * (LANE + GAP) + FOOT
    scale = WIDTH / ((end_s - begin_s) or 1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="16" font-weight="bold">{escape(title)}</text>',
        *_legend({s.what for s in shown}),
    ]
    for i, who in enumerate(lanes):
        y = HEAD + i * (LANE + GAP)
        own = [s for s in shown if s.who == who]
        busy_s = sum(min(s.end_s or end_s, end_s) - max(s.begin_s, begin_s) for s in own if s.what in WORK)
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{LANE}" fill="#f3f3f3"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(who)}</text>')
        share = f"{100 * busy_s / (end_s - begin_s):.0f} % busy"
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 27}" text-anchor="end" fill="#777" font-size="10">{share}</text>'
        )
        parts.extend(_box(s, y, scale, begin_s, end_s) for s in own)
    parts.extend(_axis(begin_s, end_s, scale, height - FOOT + 6, time))
    return "\n".join([*parts, "</svg>"])


def _box(span: Span, y: int, scale: float, begin_s: float, end_s: float) -> str:
    x = LEFT + (max(span.begin_s, begin_s) - begin_s) * scale
    right = LEFT + (min(end_s if span.end_s is None else span.end_s, end_s) - begin_s) * scale
    width = max(right - x, 0.4)
    tip = f"{span.who} {span.what}" + ("" if span.batch is None else f" {span.batch}")
    box = (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{LANE}" fill="{COLOURS[span.what]}" '
        f'stroke="white" stroke-width="{0.6 if width > 3 else 0}"><title>{escape(tip)}</title></rect>'
    )
    label = span.what if span.batch is None and span.what not in WORK else span.batch
    if label is not None and width > LETTER_PX * len(str(label)) + 3:
        box += f'<text x="{x + width / 2:.2f}" y="{y + 19}" text-anchor="middle" fill="white">{label}</text>'
    return box


def _legend(used: set[str]) -> list[str]:
    parts, x = [], LEFT
    for what in (w for w in COLOURS if w in used):
        parts.append(f'<rect x="{x}" y="36" width="14" height="14" fill="{COLOURS[what]}"/>')
        parts.append(f'<text x="{x + 19}" y="48">{what}</text>')
        x += 40 + int(LETTER_PX * len(what))
    parts.append(f'<rect x="{x}" y="36" width="14" height="14" fill="#f3f3f3" stroke="#ccc"/>')
    return [
        *parts,
        f'<text x="{x + 19}" y="48">idle</text>',
        f'<text x="{x + 70}" y="48" fill="#777">numbers are batches</text>',
    ]


def _axis(begin_s: float, end_s: float, scale: float, y: int, time: str) -> list[str]:
    span_s = (end_s - begin_s) or 1.0
    size = math.floor(math.log10(span_s))
    steps_s = (m * 10.0**e for e in (size - 1, size) for m in (1, 2, 5))
    step_s = next(step_s for step_s in steps_s if span_s / step_s <= 10)
    unit, factor = ("ms", 1e3) if span_s < 1 else ("s", 1.0)
    parts = [f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}" stroke="#555"/>']
    first = math.ceil(begin_s / step_s - 1e-9)
    for i in range(first, int((begin_s + span_s) / step_s + 1e-9) + 1):
        x = LEFT + (i * step_s - begin_s) * scale
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 5}" stroke="#555"/>')
        number = f"{i * step_s * factor:.6g}"
        parts.append(f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{number}</text>')
    return [
        *parts,
        f'<text x="{LEFT + WIDTH}" y="{y + 32}" text-anchor="end" fill="#555">'
        f"{escape(f'{time} {unit}'.strip())}</text>",
    ]
