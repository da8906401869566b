"""What is answered over HTTP: JSON, and what is wrong in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

__all__ = ["json_answer", "sentence_answer"]

SENTENCE_MAX = 500
"""Characters of what is wrong with a request."""


def json_answer(value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON, whose numbers are finite."""
    content = json.dumps(value, allow_nan=False)  # in ASCII: what somebody has sent may be no Unicode
    return Response(content, code, headers, media_type="application/json")


def sentence_answer(code: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says what is wrong."""
    return json_answer({"error": sentence[:SENTENCE_MAX]}, code, headers)
