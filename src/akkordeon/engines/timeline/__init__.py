"""Who did what when: kept as spans, drawn as SVG, or written for a viewer of traces."""

from akkordeon.engines.timeline.span import Span
from akkordeon.engines.timeline.timeline import Raw, Timeline

__all__ = ["Raw", "Span", "Timeline"]
