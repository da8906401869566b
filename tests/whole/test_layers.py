"""The contracts on imports in pyproject.toml hold, and would not if somebody broke them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the sources and the contracts below ``root``."""
    command = "from importlinter.cli import lint_imports_command as run; run(['--no-logo', '--no-cache'])"
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    return subprocess.run(
        [sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, text=True, timeout=60
    )


def test_every_contract_holds():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


VIOLATIONS = {
    "a thread in the core": ("core/actor.py", "import threading", "no thread, clock or socket"),
    "a clock in a sentinel": (
        "sentinels/training/trainer.py",
        "from time import monotonic",
        "no thread, clock or socket",
    ),
    "a gate that knows a sentinel": (
        "pipeline/gate.py",
        "from akkordeon.sentinels.training import trainer",
        "Gates know the core alone",
    ),
    "a sentinel that knows a gate": (
        "sentinels/reader.py",
        "import akkordeon.pipeline.gate",
        "Sentinels know the core and data alone",
    ),
    "a shard that reads data": (
        "downpour/shard.py",
        "import akkordeon.data.batches",
        "Replicas and shards know the core and gates alone",
    ),
    "an engine that knows an actor": (
        "engines/base.py",
        "from akkordeon.pipeline.gate import Gate",
        "Engines know the core alone",
    ),
    "an engine in the core": (
        "core/actor.py",
        "from akkordeon.engines import threads",
        "only packages below",
    ),
    "an engine that knows another": (
        "engines/threads/workers.py",
        "import akkordeon.engines.simulator",
        "Engines know nothing of each other",
    ),
    "Ray outside its engine": ("session/session.py", "import ray", "is imported in engines/ray alone"),
    "a package without a layer": ("forgotten/__init__.py", "", "only packages below"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_contract_breaks_over(name, tmp_path):
    file, line, contract = VIOLATIONS[name]
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src/akkordeon" / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(contract in text for text in broken), done.stdout
