"""What `make dist` builds: what is in it, and that it installs and runs in an empty environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NEEDED = ("src", "tests", "docs", "examples", "benchmarks")
FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "conftest.py")
SETTINGS = ("constraints.txt", "mkdocs.yml", "pyproject.toml")


def run(*words: object, cwd: Path, **environment: str) -> str:
    """What a command says, with nothing of ours on its path; it must not fail."""
    its = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=its | environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the source archive, of a copy."""
    # build alone may be the folder of what was built
    pytest.importorskip("build.env", reason="make dist needs build: pip install '.[dev]'")
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in NEEDED:
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in (*FILES, *SETTINGS):
        shutil.copy(ROOT / file, source)
    constraints = str(ROOT / "constraints.txt")
    run(sys.executable, "-m", "build", cwd=source, PIP_CONSTRAINT=constraints)
    (wheel,) = source.glob("dist/*.whl")
    (archive,) = source.glob("dist/*.tar.gz")
    return {"wheel": wheel, "archive": archive}


def test_the_archive_has_what_tests_and_site_need(built):
    with tarfile.open(built["archive"]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = {path for folder in NEEDED for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    wanted = {name for name in wanted if ".egg-info/" not in name} | {*FILES, *SETTINGS}
    assert wanted - packed == set()
    assert not [name for name in packed if name.endswith(".pyc")]


def test_the_wheel_is_for_any_machine_and_has_license_and_commands(built):
    assert built["wheel"].name.endswith("-py3-none-any.whl")
    names = [name.partition(".dist-info/")[2] for name in zipfile.ZipFile(built["wheel"]).namelist()]
    assert "licenses/LICENSE" in names
    assert "entry_points.txt" in names


def test_the_wheel_has_every_file_of_the_packages(built):
    """Beside the code: that it is typed, and what the page in a browser is made of."""
    files = {path for path in (ROOT / "src").glob("akkordeon*/**/*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT / "src")) for path in files if "__pycache__" not in path.parts}
    wanted = {name for name in wanted if ".egg-info/" not in name}
    assert any(name.endswith("/py.typed") for name in wanted)
    assert any(not name.endswith((".py", "/py.typed")) for name in wanted)
    assert wanted - set(zipfile.ZipFile(built["wheel"]).namelist()) == set()


@pytest.mark.parametrize("kind", ["wheel", "archive"])
def test_it_installs_and_runs_in_an_empty_environment(kind, built, tmp_path):
    run(sys.executable, "-m", "venv", "environment", cwd=tmp_path)
    program = tmp_path / "environment/bin"
    python, folder = program / "python", tmp_path / "elsewhere"
    folder.mkdir()
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", built[kind], cwd=folder)
    run(python, "-m", "pip", "check", cwd=folder)
    home = run(python, "-c", "import akkordeon; print(akkordeon.__file__)", cwd=folder)
    assert Path(home.strip()).is_relative_to(tmp_path)
    said = run(program / "akkordeon", "train", "digits", "--epochs", "2", "--out", "kept", cwd=folder)
    assert "accuracy" in said
    assert "accuracy" in run(program / "akkordeon", "test", "kept", cwd=folder)
