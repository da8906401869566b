"""What the package shows to the world, and what it does not do to it."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import akkordeon as ak
from akkordeon.core import errors

ROOT = Path(__file__).parents[2]

PUBLIC = [
    "AgeWeighted",
    "AkkordeonError",
    "AnnealedSteps",
    "Answer",
    "Async",
    "Attachment",
    "Attachments",
    "Batches",
    "Best",
    "Columns",
    "DelayAdaptive",
    "DelayCompensation",
    "DelayedNesterov",
    "DiscrepancyCorrection",
    "Downpour",
    "DownpourSession",
    "Drift",
    "ErrorFeedback",
    "Flush",
    "GapAware",
    "Gate",
    "GrowingFile",
    "InverseStaleness",
    "Labelled",
    "Latest",
    "Limits",
    "Lines",
    "Machine",
    "Machines",
    "MessageCost",
    "MoreLearning",
    "Network",
    "OrderedMomentum",
    "Plan",
    "Posts",
    "Prediction",
    "Prometheus",
    "Question",
    "Ray",
    "Recovery",
    "RedisStream",
    "ResetOptimizers",
    "Rule",
    "Sentinel",
    "Session",
    "Shadow",
    "Simulator",
    "Stash",
    "Task",
    "TensorBoard",
    "Threads",
    "Tracker",
    "TwoBuffers",
    "VerticalSync",
    "accuracy",
    "auto",
    "basis_rotation",
    "connect",
    "decay_groups",
    "errors",
    "muon",
    "nn",
    "plan",
    "replay",
    "report",
    "resume",
    "run",
]


def test_the_public_names_are_these():
    assert ak.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_nothing_public_is_left_out_of_all():
    found = {name for name, value in vars(ak).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert found | {"errors", "nn"} == set(ak.__all__)


def test_every_public_name_and_method_has_a_docstring():
    for name in ak.__all__:
        thing = getattr(ak, name)
        assert inspect.getdoc(thing), name
        for method, function in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(function) and method[0] != "_":
                assert inspect.getdoc(function), f"{name}.{method}"


def test_the_wheel_carries_the_package_its_types_and_the_page_alone(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name.removeprefix("akkordeon/") for name in names if name.startswith("akkordeon/")}
    package = ROOT / "src/akkordeon"
    sources = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    page = {str(path.relative_to(package)) for path in package.glob("session/page/assets/*")}
    assert {Path(path).name for path in page} >= {"page.html", "uPlot.iife.min.js", "LICENSE.uPlot.txt"}
    assert packed == sources | page | {"py.typed"}
    assert all(name.startswith("akkordeon") for name in names)


QUIET = """
import sys, threading
import torch
before = torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_rng_state().tolist()
import akkordeon
after = torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_rng_state().tolist()
assert before == after, (before[:2], after[:2])
assert threading.active_count() == 1, threading.enumerate()
heavy = {"ray", "sklearn", "matplotlib", "typer", "rich", "torchmetrics", "pooch"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_importing_it_changes_nothing_and_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def tree_of(doc: str) -> dict[str, tuple[str | None, str | None]]:
    """From the drawing of a tree to {class: (parent, other base)}."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    parents: list[str] = []
    for line in doc.splitlines():
        name, _, rest = line.lstrip("│├└─ ").partition(" ")
        if not name.endswith("Error"):
            continue
        depth = line.index(name) // 4
        parents[depth:] = [name]
        other = rest[1 : rest.index(")")] if rest.startswith("(") else None
        tree[name] = (parents[depth - 1] if depth else None, other)
    return tree


def test_the_tree_of_errors_in_the_docstring_is_the_real_one():
    real: dict[str, tuple[str | None, str | None]] = {}
    for name in errors.__all__:
        if not inspect.isclass(getattr(errors, name)):
            continue
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        ours = [base for base in bases if base in errors.__all__]
        others = [base for base in bases if base not in errors.__all__ and base != "Exception"]
        real[name] = (ours[0] if ours else None, others[0] if others else None)
    assert tree_of(errors.__doc__) == real
    found = [c for c in vars(errors).values() if inspect.isclass(c) and c.__module__ == errors.__name__]
    assert len(real) == len(found)
