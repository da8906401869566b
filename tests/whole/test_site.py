"""The site of the documents: its pages, links and reference; and that it can be built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import akkordeon as ak
from akkordeon.core import errors

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/*/*.md"),
    *ROOT.glob("examples/*.md"),
]


def inside(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^(```+).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> list[str]:
    """What a link into a page may name: its headings, as the site and GitHub spell them."""
    text = re.sub(r"^(```+).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return [re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]


def test_every_page_is_in_the_navigation_once_and_nothing_else_is():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"(\S+\.md)$", nav, re.M)
    assert sorted(listed) == sorted(map(inside, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=inside)
def test_every_link_of_a_page_leads_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.is_file() or (anchor and anchor not in anchors(there)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=inside)
def test_no_two_headings_of_a_page_are_the_same(page):
    """Or a link to one leads to the other."""
    assert [anchor for anchor, times in Counter(anchors(page)).items() if times > 1] == []


@pytest.mark.parametrize("page", PAGES, ids=inside)
def test_lists_and_tables_begin_after_an_empty_line(page):
    """Or Python-Markdown, unlike GitHub, shows lines of text."""
    blocks = [block.strip("\n").splitlines() for block in re.split(r"\n\s*\n", prose(page))]
    late = [
        line
        for block in blocks
        for before, line in pairwise(block)
        if re.match(r"([-*+] |\d+\. |\|)", line) and not re.match(r"\s|[-*+] |\d+\. |\|", before)
    ]
    assert late == []


def test_the_reference_has_every_public_name_once_and_every_error():
    pages = "".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.M)
    public = [name for name in shown if name.count(".") == 1]
    assert sorted(public) == [f"akkordeon.{name}" for name in ak.__all__ if name != "errors"]
    assert len(shown) == len(set(shown))
    its = {name for name in errors.__all__ if name.endswith("Error")}
    assert its - {name.rpartition(".")[2] for name in shown} == set()


def test_the_list_of_the_reference_has_every_public_name():
    listed = re.findall(r"`(\w+)`", (REFERENCE / "README.md").read_text(encoding="utf-8"))
    assert set(ak.__all__) <= set(listed)


@pytest.fixture
def copy(tmp_path) -> Path:
    """What the site is built from, to be changed."""
    pytest.importorskip("zensical", reason="the site needs it: pip install '.[docs]'")
    for folder in ("src", "docs", "benchmarks", "examples"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for path in (*ROOT.glob("*.md"), ROOT / "mkdocs.yml"):
        shutil.copy(path, tmp_path)
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "docs/build.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.timeout(400)  # for a machine with other work
def test_the_site_is_built_without_a_warning(copy):
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    site = copy / "build/site"
    assert "<h1" in (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        folder = inside(page.parent if page.name == "README.md" else page.with_suffix(""))
        assert (site / folder / "index.html").is_file(), page
    networks = (site / "docs/reference/networks/index.html").read_text(encoding="utf-8")
    assert 'id="akkordeon.Network.from_module"' in networks
    assert "max_in_flight" in networks
    assert ":class:" not in networks


@pytest.mark.slow
@pytest.mark.timeout(400)  # for a machine with other work
@pytest.mark.parametrize(
    ("page", "text", "why"),
    [
        ("docs/ray.md", "\n[nowhere](nowhere.md)\n", "page does not exist"),
        ("docs/ray.md", "\n[nowhere](guide.md#nowhere)\n", "anchor does not exist"),
        ("docs/reference/engines.md", "\n::: akkordeon.Nothing\n", "akkordeon.Nothing"),
    ],
    ids=["page", "anchor", "name"],
)
def test_what_leads_nowhere_fails_the_build(copy, page, text, why):
    path = copy / page
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    done = build(copy)
    assert done.returncode != 0
    assert why in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)  # for a machine with other work
def test_a_docstring_that_names_no_argument_of_its_function_fails_the_build(copy):
    path = copy / "src/akkordeon/sentinels/scores.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Args:\n", "Args:\n        nothing: that is there.\n"), encoding="utf-8")
    done = build(copy)
    assert done.returncode != 0
    assert "nothing" in done.stderr
