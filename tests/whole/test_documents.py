"""What the documents say of the code: paths, names, the map, the layers, the table of records."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from akkordeon.cli.main import app
from akkordeon.core import reports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/akkordeon"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NO_RECORDS = {"BatchCount", "Diagnosis", "StageState"}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def block_of(name: str) -> list[str]:
    """The lines of the drawing in docs/architecture.md between two marks."""
    found = re.search(
        rf"<!-- {name}: begin -->\s*```\n(.*?)```\s*<!-- {name}: end -->",
        text_of("docs/architecture.md"),
        re.S,
    )
    assert found is not None, name
    return found[1].splitlines()


def files_on_the_map() -> Iterator[tuple[str, str]]:
    """Every file on the map, and what is said of it."""
    folder = ""
    for line in block_of("map"):
        name, _, what = line.strip().partition(" ")
        if name.endswith("/"):
            folder = name
        elif name:
            yield (folder if line.startswith(" ") else "") + name, what.strip()


def test_the_map_has_every_source_file_once_and_no_other():
    listed = [path for path, _ in files_on_the_map()]
    wanted = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or defines_something(path)
    }
    assert set(listed) - wanted == set(), "these are on the map of docs/architecture.md and nowhere else"
    assert wanted - set(listed) == set(), "these want a line on the map of docs/architecture.md"
    assert len(listed) == len(wanted)


def defines_something(path: Path) -> bool:
    """Whether an ``__init__.py`` is more than a docstring and names from elsewhere."""
    return path.parent == PACKAGE or any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree(path).body
    )


def test_the_map_says_something_of_every_file_in_a_line():
    for path, what in files_on_the_map():
        assert what, path


def test_the_layers_drawn_are_those_of_the_linter():
    drawn = [" | ".join(re.split(r" \| ", line.split("  ")[0].strip())) for line in block_of("layers")]
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (packages,) = [contract for contract in contracts if contract.get("containers") == ["akkordeon"]]
    assert drawn == packages["layers"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_in_a_document_leads_somewhere(document):
    text = re.sub(r"https?://\S+", "", document.read_text(encoding="utf-8"))
    paths = set(re.findall(r"(?<![\w/.])((?:\.\./)?(?:\w+/)+\w+\.(?:py|md|toml))\b", text))
    lost = {
        path for path in paths if not any((base / path).exists() for base in (PACKAGE, ROOT, ROOT / "docs"))
    }
    assert not lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_in_a_document_is_in_the_file_that_is_said(document):
    references = re.findall(
        r"`(\w+(?:\.\w+)?)(?:\([^`]*\))?` \(((?:\.\./)?[\w/]+\.py)\)", document.read_text("utf-8")
    )
    lost = [f"{name} is not in {path}" for name, path in references if not is_in(PACKAGE / path, name)]
    assert not lost
    assert references or document.name != "architecture.md"


def commands_in(document: Path) -> list[str]:
    """What is written after ``akkordeon``, on a line of its own or in a sentence, without its comment."""
    text = re.sub(r"```python\n.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    lines = re.findall(r"^(?:\$ )?akkordeon ([^\n]*)", text, re.M) + re.findall(
        r"`akkordeon ([^`\n]*)`", text
    )
    return [line.partition("#")[0].strip() for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_has_the_options_it_is_given(document):
    wrong = [line for line in commands_in(document) if not is_command(line.split())]
    assert not wrong


def test_the_documents_show_commands_and_a_wrong_one_would_be_found():
    assert sum(len(commands_in(document)) for document in DOCUMENTS) > 30
    assert is_command(["network", "start", "mlp", "--listen", "HOST:PORT", "--name", "NAME"])
    assert not is_command(["network", "begin"])
    assert not is_command(["train", "--epoch", "7"])


def is_command(words: list[str]) -> bool:
    """Whether these are a command, or a group of some, and options that it has."""
    command: Any = get_command(app)
    words = list(words)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        return False
    known = {"--help", *(option for p in command.params for option in (*p.opts, *p.secondary_opts))}
    return all(word in known for word in words if word.startswith("--"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_in(path: Path, name: str) -> bool:
    """Whether a file has a class, a function or a name at its top, or one ``Class.member``."""
    owner, _, member = name.rpartition(".")
    return path.exists() and member in names_in(path, owner)


def names_in(path: Path, owner: str) -> set[str]:
    """What a file, or a class in it, defines."""
    body = tree(path).body
    if owner:
        body = [
            node for top in body if isinstance(top, ast.ClassDef) and top.name == owner for node in top.body
        ]
    return {name for node in body for name in defined_by(node)}


def defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_the_table_of_records_has_every_record_with_all_its_fields():
    records = {
        name: [field.name for field in fields(thing)]
        for name, thing in vars(reports).items()
        if inspect.isclass(thing) and is_dataclass(thing) and not name.startswith("_")
    }
    listed = {}
    for line in text_of("docs/guide.md").splitlines():
        row = re.fullmatch(r"\| `([A-Z]\w+)` \|[^|]*\| ((?:`\w+` ?)+)\|", line)
        if row:
            listed[row[1]] = re.findall(r"`(\w+)`", row[2])
    assert listed == {name: names for name, names in records.items() if name not in NO_RECORDS}


def test_every_test_that_a_promise_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text_of("docs/guarantees.md"))
    assert named
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in text_of(file)]
    assert missing == []
