"""A file with tasks, for tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import MINE


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path
