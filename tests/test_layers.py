"""The contracts on imports in pyproject.toml hold, and would not if somebody broke them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
    "a thread in the core": ("gate.py", "import threading", "no thread, clock or socket"),
    "a clock in the core": ("trainer.py", "from time import monotonic", "no thread, clock or socket"),
    "a gate that knows a sentinel": ("gate.py", "from akkordeon import trainer", "Gates know nothing"),
    "a sentinel that knows a gate": ("reader.py", "import akkordeon.gate", "Sentinels know nothing"),
    "an engine that knows an actor": ("engines/base.py", "from akkordeon.gate import Gate", "know no actor"),
    "an engine in the core": ("network.py", "from akkordeon.engines import threads", "only layers below"),
    "Ray outside its engine": ("session.py", "import ray", "is imported in engines/ray alone"),
    "a file without a layer": ("forgotten.py", "", "only layers below"),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_contract_breaks_over(name, tmp_path):
    file, line, contract = VIOLATIONS[name]
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src/akkordeon" / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(contract in text for text in broken), done.stdout
