"""The shape of the source: one class of a name, files and packages that can be taken in at a glance."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import akkordeon

ROOT = Path(akkordeon.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LINES_MAX = 400
FILES_MAX = 12
ENTRIES_MAX = 11


def inside(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_two_classes_have_one_name() -> None:
    homes = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(inside(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {inside(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}


def test_no_package_has_more_than_12_files_besides_its_init() -> None:
    counts: dict[str, int] = defaultdict(int)
    for path in FILES:
        counts[inside(path.parent)] += path.name != "__init__.py"
    assert {package: files for package, files in counts.items() if files > FILES_MAX} == {}


def test_the_package_has_at_most_11_entries_at_its_top() -> None:
    entries = [path.name for path in ROOT.iterdir() if path.name not in ("py.typed", "__pycache__")]
    assert len(entries) <= ENTRIES_MAX, sorted(entries)
