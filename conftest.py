"""Runs the Python blocks of README.md and docs/ as tests, and divides all tests among processes.

Each document is run from top to bottom.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md"]
).pytest()

RAY = re.compile(r"test_ray|test_network_command|\[ray\b|(on|of)_a_cluster")
"""Tests that need the Ray cluster which they share; to start another takes as long as ten of them."""

LONG = (
    "tests/cli/test_ctrl_c",
    "tests/session/test_replay",
    "tests/whole/test_cuts",
    "tests/pipeline/test_modules",
    "tests/downpour/",
    "tests/whole/",
    "tests/cli/",
)
"""Those that take longest begin first, so that the processes end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those that take long first."""

    def rank(item: pytest.Item) -> int:
        if RAY.search(item.nodeid):
            return -1
        return next((i for i, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let those on Ray go first, which others wait for: a cluster that comes up too slowly is given up."""
    if hasattr(item.config, "workerinput") and not RAY.search(item.nodeid):
        _give_way()


@cache
def _give_way() -> None:
    """This process has the processor, from now on, where those on Ray leave some of it."""
    os.nice(5)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares what is slow to begin."""
    from xdist.scheduler import LoadScopeScheduling

    class Divided(LoadScopeScheduling):
        """All tests on Ray to one process, others file by file to whichever is free."""

        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if RAY.search(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # we have put them in order
    return Divided(config, log)
